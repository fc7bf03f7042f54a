"""Schedules: which share of the kept weights a cycle drops.

A `Schedule` maps the cycle's number (from 1) to a fraction of the weights that are still kept.
Densities below count from `start`, the density before the first cycle:

    constant   d_c = start * (1 - rate)^c
    geometric  d_c = start * (target / start)^(c / n)
    cubic      d_c = target + (start - target) * (1 - c / n)^3      (Zhu & Gupta, 2017, eq. 1)
    one shot   d_1 = target
"""

from __future__ import annotations

from collections.abc import Callable

from rectified.errors import UserError

Schedule = Callable[[int], float]


def constant(rate: float) -> Schedule:
    """Drop the same share of the remaining weights in every cycle.

    Args:
        rate: in (0, 1).

    Raises:
        UserError: if the rate is outside.

    Example:
        >>> constant(0.2)(7)
        0.2
    """
    if not 0 < rate < 1:
        raise UserError(f"rate must be in (0, 1), got {rate}")
    return lambda _cycle: rate


def geometric(target: float, cycles: int, *, start: float = 1.0) -> Schedule:
    """Reach `target` after `cycles` cycles, with the same share in each.

    Args:
        target: density to reach, in (0, start).
        cycles: at least 1.
        start: density now.

    Raises:
        UserError: if the target is not below the present density, or there are no cycles.

    Example:
        >>> round(geometric(0.25, 2)(1), 6)
        0.5
    """
    _check(target, cycles, start)
    return lambda _cycle: 1 - (target / start) ** (1 / cycles)


def cubic(target: float, cycles: int, *, start: float = 1.0) -> Schedule:
    """Reach `target` after `cycles` cycles, fast at first and slowly at the end.

    Raises:
        UserError: as `geometric`.

    References:
        Zhu, Gupta: To prune, or not to prune, 2017, arXiv 1710.01878, equation 1.

    Example:
        >>> [round(cubic(0.1, 2)(c), 4) for c in (1, 2)]
        [0.7875, 0.5294]
    """
    _check(target, cycles, start)

    def density(cycle: int) -> float:
        return target + (start - target) * (1 - min(cycle, cycles) / cycles) ** 3

    return lambda cycle: 1 - density(cycle) / density(cycle - 1)


def one_shot(target: float, *, start: float = 1.0) -> Schedule:
    """Reach `target` in the first cycle, and drop nothing after it.

    Raises:
        UserError: as `geometric`.

    Example:
        >>> [one_shot(0.25)(c) for c in (1, 2)]
        [0.75, 0.0]
    """
    _check(target, 1, start)
    return lambda cycle: 1 - target / start if cycle == 1 else 0.0


def _check(target: float, cycles: int, start: float) -> None:
    if not 0 < target < start:
        raise UserError(f"target must be in (0, {start:g}), the present density, got {target:g}")
    if cycles < 1:
        raise UserError(f"cycles must be at least 1, got {cycles}")
