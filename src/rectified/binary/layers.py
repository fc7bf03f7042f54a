"""Layers with 1-bit weights and, by default, 1-bit inputs.

    y = alpha * (b(w) applied to b(x)) + bias,        alpha_c = mean |w_c| of output channel c

b is the sign (`rectified.binary.sign`). The product of signs is an integer, computed exactly in
floating point; the scale comes *after* it, so that training and packed inference (`pack`) see the
same numbers. (A scale folded into the weights turns products that are exactly 0 into rounding
errors, and their signs into chance: 1 % of all signs, measured at 1152 inputs.) Before a batch norm
the scale has no effect on training at all, whichever is chosen.

Conventions: what lies outside an image is exactly 0, neither +1 nor -1; `scale` is detached, no
gradient flows through it; `standardize` subtracts each output channel's mean weight and divides by
its deviation before the sign, as IR-Net does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rectified.binary.estimators import ReSTE
from rectified.binary.sign import Estimator, binarize
from rectified.errors import UserError, choose
from rectified.graphs.bit_layers import BitLayer
from rectified.training import Step

MakeEstimator = Callable[[], Estimator]
SCALES = ("channel", "layer", "none")


class _Binary(BitLayer):
    """Base of the two layers: estimators, the scale, the sign of weights and inputs."""

    scale: str
    standardize: bool

    def _begin(
        self,
        estimator: MakeEstimator,
        activation_estimator: MakeEstimator | None,
        activation_bits: int,
        scale: str,
        standardize: bool,
    ) -> None:
        if activation_bits not in (1, 32):
            raise UserError(f"activation_bits must be 1 or 32, got {activation_bits}")
        self.scale = choose("scale", scale, SCALES)
        self.activation_bits, self.standardize = activation_bits, standardize
        self.weight_estimator = estimator()
        if activation_bits == 1:
            self.activation_estimator = (activation_estimator or estimator)()

    def latent_weight(self) -> Float[Tensor, "outputs ..."]:
        """The weights before the sign, standardised if that is asked for."""
        if not self.standardize:
            return self.weight
        rows = self.weight.flatten(1)
        centred = rows - rows.mean(1, keepdim=True)
        spread = centred.std(1, correction=0, keepdim=True)
        return (centred / torch.where(spread > 0, spread, 1.0)).view_as(self.weight)

    def alpha(self) -> Float[Tensor, " outputs"]:
        """The factor of each output channel, detached."""
        with torch.no_grad():
            sizes = self.latent_weight().abs().flatten(1)
            if self.scale == "none":
                return sizes.new_ones(len(sizes))
            means = sizes.mean(1)
            return means if self.scale == "channel" else sizes.mean().expand_as(means)

    def binary_weight(self) -> Float[Tensor, "outputs ..."]:
        """The weights' signs, with the estimator's gradient."""
        return binarize(self.latent_weight(), self.weight_estimator)

    def binary_input(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The inputs of the product: their signs, or the inputs as they are."""
        return binarize(x, self.activation_estimator) if self.activation_bits == 1 else x

    def _scaled(self, y: Tensor, trailing: int) -> Tensor:
        places = (-1, *[1] * trailing)
        if self.scale != "none":
            y = y * self.alpha().view(places)
        return y if self.bias is None else y + self.bias.view(places)

    def _settings(self) -> str:
        words = f", 1W/{self.activation_bits}A, scale={self.scale}"
        return words + (", standardize=True" if self.standardize else "")


class BinaryConv2d(_Binary, nn.Conv2d):
    """`nn.Conv2d` with 1-bit weights.

    Args:
        arguments: those of `nn.Conv2d`.
        estimator: makes the weights' estimator; each layer has its own.
        activation_estimator: makes that of the inputs; `estimator` by default.
        activation_bits: 1 for signs, 32 for inputs as they are.
        scale: `"channel"`, `"layer"` or `"none"`.
        standardize: centre and scale each output channel's weights before the sign.
        options: further keyword arguments of `nn.Conv2d`.

    Raises:
        UserError: if `activation_bits` or `scale` is not known.

    Example:
        >>> layer = BinaryConv2d(3, 8, 3, padding=1, bias=False)
        >>> y = layer(torch.randn(2, 3, 8, 8)) / layer.alpha()[:, None, None]
        >>> bool(torch.allclose(y, y.round(), atol=1e-4))
        True
    """

    def __init__(
        self,
        *arguments: Any,
        estimator: MakeEstimator = ReSTE,
        activation_estimator: MakeEstimator | None = None,
        activation_bits: int = 1,
        scale: str = "channel",
        standardize: bool = False,
        **options: Any,
    ) -> None:
        nn.Conv2d.__init__(self, *arguments, **options)
        self._begin(estimator, activation_estimator, activation_bits, scale, standardize)

    def forward(
        self, x: Float[Tensor, "*batch inputs height width"]
    ) -> Float[Tensor, "*batch outputs lower narrower"]:
        products = self._conv_forward(self.binary_input(x), self.binary_weight(), None)
        return self._scaled(products, 2)

    def extra_repr(self) -> str:
        return super().extra_repr() + self._settings()


class BinaryLinear(_Binary, nn.Linear):
    """`nn.Linear` with 1-bit weights.

    Args:
        arguments: those of `nn.Linear`.
        estimator: makes the weights' estimator; each layer has its own.
        activation_estimator: makes that of the inputs; `estimator` by default.
        activation_bits: 1 for signs, 32 for inputs as they are.
        scale: `"channel"`, `"layer"` or `"none"`.
        standardize: centre and scale each output's weights before the sign.
        options: further keyword arguments of `nn.Linear`.

    Raises:
        UserError: if `activation_bits` or `scale` is not known.

    Example:
        >>> BinaryLinear(4, 2, scale="none", bias=False)(torch.ones(1, 4)).abs().max().item() <= 4
        True
    """

    def __init__(
        self,
        *arguments: Any,
        estimator: MakeEstimator = ReSTE,
        activation_estimator: MakeEstimator | None = None,
        activation_bits: int = 1,
        scale: str = "channel",
        standardize: bool = False,
        **options: Any,
    ) -> None:
        nn.Linear.__init__(self, *arguments, **options)
        self._begin(estimator, activation_estimator, activation_bits, scale, standardize)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return self._scaled(F.linear(self.binary_input(x), self.binary_weight()), 0)

    def extra_repr(self) -> str:
        return super().extra_repr() + self._settings()


BinaryLayer = BinaryConv2d | BinaryLinear


def binary_layers(model: nn.Module) -> dict[str, BinaryLayer]:
    """The 1-bit layers of a network, by their paths."""
    found = model.named_modules()
    return {name: layer for name, layer in found if isinstance(layer, BinaryConv2d | BinaryLinear)}


@runtime_checkable
class _Moving(Protocol):
    def schedule(self, progress: float | int) -> None: ...


def set_progress(model: nn.Module, progress: float | int) -> None:
    """Move every estimator in a network to `progress` in [0, 1] of the training.

    Raises:
        UserError: if `progress` is not in [0, 1].

    Example:
        >>> layer = BinaryLinear(4, 2)
        >>> set_progress(layer, 1.0)
        >>> layer.weight_estimator.o.item()
        3.0
    """
    if not 0 <= progress <= 1:
        raise UserError(f"progress must be in [0, 1], got {progress}")
    for module in model.modules():
        if isinstance(module, Estimator) and isinstance(module, _Moving):
            module.schedule(progress)


def anneal(step: Step) -> None:
    """A hook of `rectified.training.fit` that moves the estimators over training.

    The first update is made with progress 0 and the last one with 1, however few there are. In a
    loop of your own, call `set_progress(model, number / max(1, total - 1))` before update `number`.
    """
    set_progress(step.model, min(1.0, step.number / max(1, step.total - 1)))
