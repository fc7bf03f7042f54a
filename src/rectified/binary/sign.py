"""The sign of a tensor, with a gradient that an estimator gives.

    forward   b(x) = +1 where x >= 0, -1 elsewhere          (so b(0) = +1, and b(NaN) = -1)
    backward  dL/dx = dL/db * f'(x)

The derivative of the sign is zero almost everywhere, so training needs a stand-in: an *estimator*
is a function f close to the sign, used through its slope f' alone. Its value f says how far it is
from the sign (`rectified.binary.indicators`).
"""

from typing import Any, Protocol, no_type_check, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.graphs.bit_layers import sign


@runtime_checkable
class Estimator(Protocol):
    """A function near the sign, and its slope; both element by element."""

    def value(self, x: Float[Tensor, "..."], /) -> Float[Tensor, "..."]:
        """f(x), used by the estimating error."""
        ...

    def slope(self, x: Float[Tensor, "..."], /) -> Float[Tensor, "..."]:
        """df/dx, used by the backward pass."""
        ...


def binarize(x: Float[Tensor, "..."], estimator: Estimator) -> Float[Tensor, "..."]:
    """The sign of `x`, exactly -1 or +1, that `estimator` differentiates.

    Args:
        x: any shape and floating type.
        estimator: gives the gradient; see `rectified.binary.estimators`.

    Returns:
        +1 where x >= 0 (so for both zeros), -1 elsewhere; NaN gives -1.

    Example:
        >>> from rectified.binary import ReSTE
        >>> x = torch.tensor([-2.0, -0.5, 0.0, 0.05], requires_grad=True)
        >>> binarize(x, ReSTE(o=3.0)).tolist()
        [-1.0, -1.0, 1.0, 1.0]
        >>> binarize(x, ReSTE(o=3.0)).sum().backward()
        >>> [round(slope, 3) for slope in x.grad.tolist()]
        [0.0, 0.529, 4.642, 4.642]
    """
    if not torch.is_grad_enabled():  # under vmap x.requires_grad does not say whether it does
        return sign(x)
    with torch.no_grad():
        slope = estimator.slope(x)
    return _Sign.apply(x, slope)


class _Sign(torch.autograd.Function):
    """The slope is saved, not x: it has x's size, and this way it is computed once."""

    generate_vmap_rule = True

    @staticmethod
    @no_type_check  # compiled: torch.compile looks into these three
    def forward(x: Tensor, slope: Tensor) -> Tensor:
        return sign(x)

    @staticmethod
    @no_type_check
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    @no_type_check
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None
