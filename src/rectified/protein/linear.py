"""Linear maps, by the fastest exact float32 product that the machine has.

On x86 processors with AVX-512, PyTorch multiplies float32 matrices with MKL, which does not use
those vectors on processors of other makers; oneDNN, which PyTorch carries too and uses for
bfloat16, does, and is then more than twice as fast with the same precision. `linear` asks oneDNN
where it can be asked, and `torch.nn.functional.linear` everywhere else. Sums are taken in another
order, so that results differ in their last digits, as they do between any two machines.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def linear(
    x: Float[Tensor, "*batch n"],
    weight: Float[Tensor, "m n"],
    bias: Float[Tensor, " m"] | None = None,
    *,
    relu: bool = False,
) -> Float[Tensor, "*batch m"]:
    """x W^T + b, with a ReLU on top if asked for.

    Args:
        x: last axis in.
        weight: as `nn.Linear` has it.
        bias: added, if there is one.
        relu: whether negative values become 0.

    Example:
        >>> linear(torch.ones(2), torch.tensor([[1.0, 2.0]]), torch.tensor([-4.0]), relu=True)
        tensor([0.])
    """
    if _has_faster_product(x):
        if torch.is_grad_enabled():
            y = _Linear.apply(x, weight, bias)
            return y.relu() if relu else y
        return _product(x, weight, bias, "relu" if relu else "none")
    y = F.linear(x, weight, bias)
    return y.relu() if relu else y


def apply(layer: nn.Module, x: Float[Tensor, "*batch n"], *, relu: bool = False) -> Tensor:
    """`linear` with the parameters of an `nn.Linear`, in the precision of `x`."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return linear(x, weight.to(x.dtype), bias.to(x.dtype), relu=relu)


def layer_of(layers: nn.Sequential, place: int) -> nn.Linear:
    """The linear layer at a place of a sequence."""
    layer = layers[place]
    assert isinstance(layer, nn.Linear)
    return layer


def normalised(norm: nn.LayerNorm, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """A layer norm in the precision of `x`."""
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def _has_faster_product(x: Tensor) -> bool:
    """Whether oneDNN can be asked, and is not slower than what PyTorch takes."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and _HAS_ONEDNN
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _find_onednn() -> bool:
    if (
        torch.backends.cpu.get_cpu_capability() != "AVX512"
        or not torch.backends.mkldnn.is_available()
    ):
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


_HAS_ONEDNN = _find_onednn()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, after: str) -> Tensor:
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()  # a part of a wider matrix would take a slow path
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], "")


class _Linear(torch.autograd.Function):
    """The product with its gradients, by the same means."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = weight.contiguous()
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias, "none")

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2) if gradient.ndim > 1 else gradient[None]
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _product(gradient, weight.T, None, "none")
        if ctx.needs_input_grad[1]:
            inputs = x.flatten(0, -2) if x.ndim > 1 else x[None]
            of_weight = _product(rows.T, inputs.T, None, "none")
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias
