"""Surrogates: functions near the sign whose slopes stand in for its derivative.

Each is odd, and its slope even. What changes over training (o, t, n) is a buffer without axes: it
is saved with the network, moves without a host having to wait, and a compiled network need not be
compiled again. `schedule(progress)` sets it, with progress 0 before the first and 1 at the last
update; `rectified.binary.anneal` calls it after each.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.binary.sign import binarize
from rectified.errors import UserError

Values = Float[Tensor, "..."]
Number = float | int  # run-time checks of types know no numeric tower


class Surrogate(nn.Module):
    """Base of the estimators: state in buffers, and a slope that can be normalised.

    A call binarizes: `ReSTE()(x)` is `binarize(x, ReSTE())`. Assigning a number to a part of the
    state fills it: `estimator.o = 2.0`.

    Args:
        normalize_gain: divide the slopes of each tensor by their mean, so that the estimator only
            distributes the gradient and does not enlarge it.
        state: buffers without axes, by name.
    """

    def __init__(self, *, normalize_gain: bool = False, **state: Number) -> None:
        super().__init__()
        self.normalize_gain = normalize_gain
        for name, value in state.items():
            self.register_buffer(name, torch.tensor(float(value)))

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, int | float) and name in self.__dict__.get("_buffers", ()):
            self.get_buffer(name).fill_(value)
        else:
            super().__setattr__(name, value)

    def state(self, name: str, x: Values) -> Float[Tensor, ""]:
        """A part of the state, in the precision of `x`."""
        return self.get_buffer(name).to(x.dtype)

    def schedule(self, progress: Number) -> None:
        """Set the state for `progress` in [0, 1] of the training; here there is none to set."""

    def value(self, x: Values, /) -> Values:
        """f(x)."""
        raise NotImplementedError

    def derivative(self, x: Values, /) -> Values:
        """df/dx, before any normalisation."""
        raise NotImplementedError

    def slope(self, x: Values, /) -> Values:
        """The factor of the backward pass."""
        slope = self.derivative(x)
        # all slopes zero: nothing to normalise, and no gradient either
        return slope / positive(slope.mean()) if self.normalize_gain else slope

    def forward(self, x: Values) -> Values:
        return binarize(x, self)

    def extra_repr(self) -> str:
        parts = [f"{name}={value.item():.4g}" for name, value in self.named_buffers()]
        return ", ".join([*parts, *(["normalize_gain=True"] if self.normalize_gain else [])])


def positive(x: Tensor) -> Tensor:
    """`x`, and 1 where it is 0: to divide by."""
    return torch.where(x > 0, x, torch.ones_like(x))


def check_bounds(**rules: tuple[Number, bool, str]) -> None:
    """Refuse a value that breaks its rule.

    Args:
        rules: name of the argument -> its value, whether the rule holds, and the rule in words.

    Raises:
        UserError: for the first rule that does not hold.
    """
    for name, (value, holds, rule) in rules.items():
        if not holds:
            raise UserError(f"{name} must be {rule}, got {value}")
