"""Kinds of option that the command line reads, the same for every verb."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from rectified.errors import UserError
from rectified.jobs.values import Numbers as Numbers
from rectified.jobs.values import Words as Words

C = TypeVar("C")


def check_minima(config: Any, minima: Mapping[str, int]) -> None:
    """See that numbers are not too small; None passes.

    Args:
        config: settings with these names as attributes.
        minima: name of a setting to the least value it may have.

    Raises:
        UserError: if one is smaller.
    """
    for name, smallest in minima.items():
        value = getattr(config, name)
        if value is not None and value < smallest:
            raise UserError(f"{name} must be at least {smallest}, got {value}")


def filled(config: C, values: Mapping[str, Any]) -> C:
    """`config` with those of `values` that it leaves open (None).

    Example:
        >>> from dataclasses import make_dataclass
        >>> settings = make_dataclass("Settings", ["epochs", "seed"])(None, 3)
        >>> filled(settings, {"epochs": 30, "seed": 0})
        Settings(epochs=30, seed=3)
    """
    missing = {name: value for name, value in values.items() if getattr(config, name) is None}
    return replace(config, **missing)  # type: ignore[type-var]


def given(config: Any, *names: str) -> dict[str, Any]:
    """Some settings by name, for another dataclass that has fields of these names."""
    return {name: getattr(config, name) for name in names}


MOST_SEEDS = 1_000_000
LARGEST_SEED = 2**32 - 1  # that NumPy and scikit-learn take


def check_seed(seed: int) -> None:
    """See that every library takes a seed.

    Raises:
        UserError: if one does not.
    """
    if seed < 0:
        raise UserError(f"seed must be at least 0, got {seed}")
    if seed > LARGEST_SEED:
        raise UserError(f"seed must be at most {LARGEST_SEED}, got a larger one")


def seed_list(seeds: int, seed: int | None) -> tuple[int, ...]:
    """`--seeds 5` means seeds 0 to 4; `--seed 7` that one alone.

    Raises:
        UserError: if there is no seed, or it is one that libraries refuse.

    Example:
        >>> seed_list(3, None), seed_list(3, 7)
        ((0, 1, 2), (7,))
    """
    if seed is not None:
        check_seed(seed)
        return (seed,)
    if seeds < 1:
        raise UserError(f"seeds must be at least 1, got {seeds}")
    if seeds > MOST_SEEDS:
        raise UserError(f"seeds must be at most {MOST_SEEDS}, got more")
    return tuple(range(seeds))
