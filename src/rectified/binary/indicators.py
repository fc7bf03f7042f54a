"""Indicators: an estimator's distance from the sign, and how unevenly it spreads the gradient.

The paper's pair, summed over layers (z: binarized weights; g: their gradients in one update):

    estimating error        e = sum ||f(z) - b(z)||
    gradient instability    s = sum var |g|

They are `paper_estimating_error` and `paper_gradient_instability`, with the *current* f. Neither is
free of scale: e grows with the number of weights, and s with the square of any factor on the
gradient, so that s mostly measures an estimator's gain. What can be compared between layers,
networks and estimators is

    estimating_error        sqrt(mean (f(z) - b(z))^2)
    gradient_dispersion     std |g| / mean |g|

for weights and for activations, with the estimator's own mean slope and its spread over the
observed z, the shares of z inside ReSTE's plateau and beyond its cut, and the share of the weights
whose sign an update flips. `Indicators` is a hook that measures all of them over a training.

References:
    X.-M. Wu et al., 2023, arXiv:2308.06689, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rectified.binary.layers import BinaryLayer, binary_layers
from rectified.binary.sign import Estimator, sign
from rectified.errors import UserError
from rectified.training import Step

PLATEAU, CUT = 0.1, 1.5  # ReSTE's m and t, for every estimator, so that shares can be compared


@torch.no_grad()
def estimating_error(z: Float[Tensor, "..."], estimator: Estimator) -> Float[Tensor, ""]:
    """The root mean square of f(z) - b(z).

    Example:
        >>> from rectified.binary import STE
        >>> round(estimating_error(torch.tensor([0.5, -0.5, 2.0, -2.0]), STE()).item() ** 2, 6)
        0.625
    """
    return (estimator.value(z) - sign(z)).square().mean().sqrt()


@torch.no_grad()
def gradient_dispersion(g: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """std |g| / mean |g|: how unevenly a gradient is spread, whatever its size.

    Example:
        >>> gradient_dispersion(torch.tensor([1.0, -1.0])).item()
        0.0
    """
    sizes = g.abs()
    return sizes.std(correction=0) / sizes.mean()


@torch.no_grad()
def paper_estimating_error(model: nn.Module) -> float:
    """e of the paper: the distances ||f(w) - b(w)|| of all 1-bit layers' weights, summed."""
    distances = [
        torch.linalg.vector_norm(layer.weight_estimator.value(w) - sign(w))
        for layer in binary_layers(model).values()
        for w in [layer.latent_weight()]
    ]
    return float(torch.stack(distances).sum()) if distances else 0.0


@torch.no_grad()
def paper_gradient_instability(model: nn.Module) -> float:
    """s of the paper: the variances of |g| of all 1-bit layers' weights, summed.

    Raises:
        UserError: if a weight has no gradient: call it after `backward`.
    """
    variances = []
    for name, layer in binary_layers(model).items():
        if layer.weight.grad is None:
            raise UserError(f"layer {name!r} has no gradient: measure after backward")
        variances.append(layer.weight.grad.abs().var())
    return float(torch.stack(variances).sum()) if variances else 0.0


@dataclass(frozen=True)
class Measured:
    """The indicators of one tensor of one layer.

    Attributes:
        layer: its path.
        tensor: `"weights"` or `"activations"`.
        error: root mean square of f(z) - b(z).
        gain: mean slope over z.
        slope_spread: standard deviation of the slope over its mean.
        inside: share of abs(z) <= 0.1.
        beyond: share of abs(z) > 1.5.
        dispersion: std |g| / mean |g| of the weights' gradient; None for activations.
        flipped: share of the weights whose sign the update flipped; None for activations.
    """

    layer: str
    tensor: str
    error: float
    gain: float
    slope_spread: float
    inside: float
    beyond: float
    dispersion: float | None = None
    flipped: float | None = None


@torch.no_grad()
def measure(name: str, tensor: str, z: Float[Tensor, "..."], estimator: Estimator) -> Measured:
    """The indicators of one tensor that need no gradient."""
    slope, sizes = estimator.slope(z).float(), z.abs()
    gain = slope.mean()
    return Measured(
        name,
        tensor,
        float(estimating_error(z, estimator)),
        float(gain),
        float(slope.std(correction=0) / gain) if gain != 0 else 0.0,
        float((sizes <= PLATEAU).float().mean()),
        float((sizes > CUT).float().mean()),
    )


class Indicators:
    """A hook that measures every 1-bit layer at the last of every `every` updates.

    Put it before `anneal` among the hooks, so that it sees the estimators as the update used them.

    Args:
        model: the network in training.
        every: updates between measurements; those of an epoch, say.

    Attributes:
        found: of each measurement, its update's number, the paper's two sums, and a list of what
            was measured in every layer.

    Raises:
        UserError: if `every` is below 1.

    Example:
        >>> from rectified.binary import BinaryLinear
        >>> from rectified.training import FitConfig, fit
        >>> model, data = nn.Sequential(BinaryLinear(4, 2)), torch.randn(8, 4)
        >>> class Batches:
        ...     def __len__(self): return 3
        ...     def epoch(self, number): return iter([(data,)] * 3)
        >>> with Indicators(model, every=3) as indicators:
        ...     _ = fit(model, lambda m, b: m(b[0]).square().mean(), Batches(),
        ...             FitConfig(epochs=2, device="cpu"), hooks=[indicators])
        >>> [entry["update"] for entry in indicators.found]
        [3, 6]
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        if every < 1:
            raise UserError(f"every must be at least 1, got {every}")
        self.every = every
        self.layers = binary_layers(model)
        self.found: list[dict[str, Any]] = []
        self._inputs: dict[str, Tensor] = {}
        self._signs: dict[str, Bool[Tensor, "..."]] = {}
        self._armed = False
        self._handles = [
            layer.register_forward_pre_hook(self._catcher(name))
            for name, layer in self.layers.items()
        ]
        if every == 1:
            self._arm()

    def __enter__(self) -> Indicators:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _catcher(self, name: str) -> Any:
        def catch(_layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if self._armed:
                self._inputs[name] = arguments[0].detach()

        return catch

    def _arm(self) -> None:
        """Keep what the next update sees."""
        self._armed = True
        self._signs = {name: layer.latent_weight() >= 0 for name, layer in self.layers.items()}

    def __call__(self, step: Step) -> None:
        if self._armed:
            self.found.append(
                {
                    "update": step.number,
                    "estimating_error": paper_estimating_error(step.model),
                    "gradient_instability": paper_gradient_instability(step.model),
                    "layers": [asdict(one) for one in self._measured()],
                }
            )
            self._inputs, self._signs, self._armed = {}, {}, False
        if (step.number + 1) % self.every == 0:
            self._arm()

    def _measured(self) -> Iterable[Measured]:
        for name, layer in self.layers.items():
            yield self._weights(name, layer)
            if layer.activation_bits == 1 and name in self._inputs:
                estimator = layer.activation_estimator
                yield measure(name, "activations", self._inputs[name], estimator)

    @torch.no_grad()
    def _weights(self, name: str, layer: BinaryLayer) -> Measured:
        z = layer.latent_weight()
        known = asdict(measure(name, "weights", z, layer.weight_estimator))
        flipped = ((z >= 0) != self._signs[name]).float().mean()
        assert layer.weight.grad is not None
        dispersion = gradient_dispersion(layer.weight.grad)
        return Measured(**known | {"dispersion": float(dispersion), "flipped": float(flipped)})
