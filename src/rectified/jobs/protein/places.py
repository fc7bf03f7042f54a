"""Names of the trainings and points of a protein run, in its files and details."""

from collections.abc import Mapping
from typing import Any


def training_name(number: int, seed: int) -> str:
    """The training of a round.

    Example:
        >>> training_name(1, 0)
        'round1-seed0'
    """
    return f"round{number}-seed{seed}"


def point_name(place: Mapping[str, Any]) -> str:
    """The samples of a round, length and number of steps.

    Example:
        >>> point_name({"round": 2, "length": 48, "steps": 10})
        'round2-length48-steps10'
    """
    return f"round{place['round']}-length{place['length']}-steps{place['steps']}"
