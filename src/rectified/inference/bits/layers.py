"""Layers that run on bits: modules with packed weights, for inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.graphs.bit_layers import sign
from rectified.inference.bits import operations
from rectified.inference.bits.bits import PANEL, weight_to_panels, words_for
from rectified.inference.bits.thresholds import Step

_FLOAT = torch.float32  # what the kernels read, whatever PyTorch's default


class PackedProduct(nn.Module):
    """Signs times signs, for convolutions and, as images of one row, for linear layers.

    Reads floats, whose signs it takes (or compares with `input_thresholds`), or bits from another
    packed layer. Gives floats, or, if it has a step, bits.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: height and width; 1, 1 for a linear layer.
        stride: down and across.
        padding: above and below, left and right; what it adds counts as exactly 0.
        is_linear: whether it reads (..., inputs) and not images.
        has_step: whether it gives bits.
        rows_only: whether its thresholds hold what norms do along the second axis, so that it reads
            (rows, inputs) and no further axes.

    Raises:
        UserError: when called on what has other channels or axes, or is not on the CPU: the kernels
            would read beyond it.

    Example:
        >>> from rectified.binary import BinaryConv2d
        >>> from rectified.inference import pack
        >>> layer = BinaryConv2d(3, 8, 3, stride=2, padding=1)
        >>> pack(layer)(torch.zeros(1, 3, 9, 9)).shape
        torch.Size([1, 8, 5, 5])
    """

    panels: Tensor
    alpha: Tensor
    bias: Tensor
    thresholds: Tensor
    flips: Tensor
    input_thresholds: Tensor
    input_flips: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int] = (1, 1),
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        *,
        is_linear: bool = False,
        has_step: bool = False,
        rows_only: bool = False,
    ) -> None:
        super().__init__()
        self.rows_only = rows_only
        self.inputs, self.outputs = inputs, outputs
        self.kernel, self.stride, self.padding = list(kernel), list(stride), list(padding)
        self.is_linear, self.has_step = is_linear, has_step
        count, words = -(-outputs // PANEL), words_for(inputs)
        taps = kernel[0] * kernel[1]
        self.register_buffer("panels", torch.zeros(count, taps * words, PANEL, dtype=torch.int64))
        if has_step:
            self.register_buffer("thresholds", torch.zeros(PANEL * count, dtype=torch.int32))
            self.register_buffer("flips", torch.zeros(count, dtype=torch.int32))
        else:
            self.register_buffer("alpha", torch.zeros(PANEL * count, dtype=_FLOAT))
            self.register_buffer("bias", torch.zeros(PANEL * count, dtype=_FLOAT))
        self.register_buffer("input_thresholds", torch.zeros(inputs, dtype=_FLOAT))
        self.register_buffer("input_flips", torch.zeros(words, dtype=torch.int64))

    @property
    def length(self) -> int:
        """K: how many signs a product sums."""
        return self.inputs * self.kernel[0] * self.kernel[1]

    @torch.no_grad()
    def fill(
        self,
        weight: Float[Tensor, "outputs inputs *kernel"],
        alpha: Float[Tensor, " outputs"],
        bias: Float[Tensor, " outputs"],
        step: Step | None = None,
    ) -> None:
        """Set the weights from those of a layer in floating point."""
        self.panels = weight_to_panels(weight)
        rest = -self.outputs % PANEL
        if step is None:
            self.alpha, self.bias = F.pad(alpha, (0, rest)), F.pad(bias, (0, rest))
        else:
            self.thresholds, self.flips = step.thresholds, step.flips

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedProduct:
        """Move to another device; the kernels know one type of numbers, which stays."""

        def moved(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            return made if made.dtype == tensor.dtype else tensor.to(made.device)

        return super()._apply(moved, recurse)

    def forward(self, x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        self._check(x)
        if self.is_linear and not self.has_step and x.dtype != torch.int64:
            return self._rows(x)
        if not self.is_linear and x.ndim == 3:  # one image, as nn.Conv2d takes it
            return self(x[None])[0]
        geometry = (self.inputs, self.outputs, self.kernel, self.stride, self.padding)
        bits = x if x.dtype == torch.int64 else self._packed(x)
        if self.is_linear:
            bits = bits.reshape(1, 1, -1, bits.shape[-1])
        kept: Any = self._buffers  # nn.Module's attributes take microseconds, as small layers do
        if self.has_step:
            tensors = kept["panels"], kept["thresholds"], kept["flips"]
            y = operations.product_bits(bits, *tensors, *geometry)
            return y.view(*x.shape[:-1], y.shape[-1]) if self.is_linear else y
        y = operations.products(bits, kept["panels"], kept["alpha"], kept["bias"], *geometry)
        return y.movedim(1, -1).reshape(*x.shape[:-1], self.outputs) if self.is_linear else y

    def _check(self, x: Tensor) -> None:
        axis = -1 if self.is_linear else -3
        is_bits = x.dtype == torch.int64
        expected = words_for(self.inputs) if is_bits else self.inputs
        found = x.shape[-1] if is_bits else x.shape[axis] if x.ndim >= -axis else 0
        if self.is_linear:
            has_axes = x.ndim == 2 if self.rows_only else x.ndim > 0
        else:
            has_axes = x.ndim in (3, 4)
        if found != expected or not x.is_cpu or not has_axes:
            what = "features" if self.is_linear else "channels of images"
            raise UserError(
                f"x must have {self.inputs} {what}{' in rows' if self.rows_only else ''} on the "
                f"CPU, got {tuple(x.shape)} of {x.dtype} on {x.device}"
            )
        if self.is_linear:
            return
        places = x.shape[-3:-1] if is_bits else x.shape[-2:]
        around = zip(places, self.padding, self.kernel, strict=True)
        if any(size + 2 * pad < reach for size, pad, reach in around):
            raise UserError(
                f"a kernel of {tuple(self.kernel)} does not fit an image of {tuple(places)}"
            )

    def _rows(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        rows = x if x.ndim == 2 else x.reshape(-1, self.inputs)
        kept: Any = self._buffers
        y = operations.linear(
            rows,
            kept["input_thresholds"],
            kept["input_flips"],
            kept["panels"],
            kept["alpha"],
            kept["bias"],
            self.outputs,
        )
        return y if x.ndim == 2 else y.view(*x.shape[:-1], self.outputs)

    def _packed(self, x: Float[Tensor, "..."]) -> Tensor:
        if self.is_linear:
            x = x.reshape(-1, self.inputs)
        kept: Any = self._buffers
        return operations.pack(x, kept["input_thresholds"], kept["input_flips"])

    def extra_repr(self) -> str:
        words = f"{self.inputs}, {self.outputs}"
        if not self.is_linear:
            words += f", kernel={self.kernel}, stride={self.stride}, padding={self.padding}"
        return words + (", gives bits" if self.has_step else "")


class PoolBits(nn.Module):
    """A max pool on bits.

    Args:
        words: of a pixel.
        kernel: height and width of a window.
        stride: down and across.
        padding: above and below, left and right.

    Raises:
        UserError: when called on what is no such image.
    """

    flips: Tensor

    def __init__(
        self, words: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
    ) -> None:
        super().__init__()
        self.words = words
        self.kernel, self.stride, self.padding = list(kernel), list(stride), list(padding)
        self.register_buffer("flips", torch.zeros(words, dtype=torch.int64))

    def forward(self, bits: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        if bits.dtype != torch.int64 or bits.ndim not in (3, 4) or bits.shape[-1] != self.words:
            raise UserError(
                f"x must be an image of {self.words} words a pixel, got {tuple(bits.shape)} of "
                f"{bits.dtype}"
            )
        images = bits[None] if bits.ndim == 3 else bits
        flips: Any = self._buffers["flips"]
        pooled = operations.pool(images, flips, self.kernel, self.stride, self.padding)
        return pooled[0] if bits.ndim == 3 else pooled


class SignedLayer(nn.Module):
    """A layer that the kernels do not take, run in floating point on weights of -1 and +1.

    Args:
        inner: an `nn.Conv2d` or `nn.Linear` without bias, whose weights are signs.
        activation_bits: 1 to take the signs of what comes in, 32 to leave it.
    """

    alpha: Tensor
    bias: Tensor

    def __init__(self, inner: nn.Conv2d | nn.Linear, activation_bits: int) -> None:
        super().__init__()
        self.inner, self.activation_bits = inner, activation_bits
        outputs = len(inner.weight)
        self.register_buffer("alpha", torch.ones(outputs))
        self.register_buffer("bias", torch.zeros(outputs))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        y = self.inner(sign(x) if self.activation_bits == 1 else x)
        places = (-1, 1, 1) if isinstance(self.inner, nn.Conv2d) else (-1,)
        return y * self.alpha.view(places) + self.bias.view(places)
