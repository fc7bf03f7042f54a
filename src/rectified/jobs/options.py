"""Kinds of option that the command line reads, the same for every verb."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import tyro

from rectified.errors import UserError


def _comma_separated(kind: type) -> Any:
    def read(arguments: list[str]) -> tuple[Any, ...]:
        return tuple(kind(word.strip()) for word in arguments[0].split(",") if word.strip())

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{kind.__name__.upper().replace('STR', 'NAME')},...",
        instance_from_str=read,
        is_instance=lambda value: (
            isinstance(value, tuple) and all(isinstance(entry, kind) for entry in value)
        ),
        str_from_instance=lambda value: [",".join(str(entry) for entry in value)],
    )


Words = Annotated[tuple[str, ...], _comma_separated(str)]
"""A comma-separated list of names: `--score magnitude,lamp`."""

Numbers = Annotated[tuple[int, ...], _comma_separated(int)]
"""A comma-separated list of whole numbers: `--steps 1,2,4`."""


def listing(words: str, table: Iterable[str]) -> Any:
    """The help of an option that takes names of a table: some words, then the names.

    Example:
        >>> listing("arms: ", {"ste": 1, "reste": 2}).help
        'arms: ste, reste.'
    """
    return tyro.conf.arg(help=f"{words}{', '.join(table)}.")


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
