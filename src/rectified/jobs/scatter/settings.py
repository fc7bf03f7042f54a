"""Settings of `rectified scatter`, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rectified.data import ImageData, ImageSource
from rectified.errors import UserError, choose
from rectified.jobs.options import Words, check_minima, seed_list
from rectified.jobs.scatter.cases import networks
from rectified.seeds import generator

NETWORKS = tuple(networks(generator(0, "frames")))


@dataclass(frozen=True)
class ScatterConfig:
    """Check every bound of scattering networks, and classify by scattering features.

    Attributes:
        data: digits (embedded), a parquet or image folder, or the name of a data set on the hub.
        limit: use at most this many training examples.
        networks: which of the networks are checked: all, none, or some of their names.
        scale: J of the classifier's features; by default 3 for pictures that were enlarged, else 2.
        orientations: L of the classifier's features.
        logarithm: whether the classifier sees logarithms.
        grid: side of the periodic grid on which the bounds are checked; a multiple of 16.
        steps: of the gradient ascent that looks for a pair against each constant.
        seeds: how many seeds, from 0; the bounds are checked with the first.
        seed: one seed alone.
        device: of the classifier's features: auto, cpu or cuda; the checks stay on the CPU.
    """

    data: str = "digits"
    limit: int | None = None
    networks: Words = ("all",)
    scale: int | None = None
    orientations: int = 8
    logarithm: bool = False
    grid: int = 64
    steps: int = 150
    seeds: int = 1
    seed: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, eq=False)
class Plan:
    """The plan of a run.

    Attributes:
        config: the settings, the networks by name.
        seeds: of the classifiers; the bounds are checked with the first.
        source: of the pictures; `check` replaces small ones by enlarged ones.
        scale: J of the classifiers' features.
    """

    config: ScatterConfig
    seeds: tuple[int, ...]
    source: ImageSource
    scale: int

    def data(self, seed: int) -> ImageData:
        """The splits of a seed."""
        return self.source.load(seed=seed, limit=self.config.limit)


def resolve(config: ScatterConfig) -> Plan:
    """Check the settings and name the networks.

    Raises:
        UserError: for a name that is not known or a value that is impossible.

    Example:
        >>> len(resolve(ScatterConfig()).config.networks)
        9
    """
    check_minima(config, {"limit": 2, "scale": 1, "orientations": 1, "steps": 1})
    if config.grid < 32 or config.grid % 16:
        raise UserError(f"grid must be a multiple of 16 and at least 32, got {config.grid}")
    chosen = replace(config, networks=_names(config.networks))
    seeds = seed_list(config.seeds, config.seed)
    return Plan(chosen, seeds, ImageSource(config.data), config.scale or 2)


def _names(said: tuple[str, ...]) -> tuple[str, ...]:
    if said == ("all",):
        return NETWORKS
    if said in ((), ("none",)):
        return ()
    for name in said:
        choose("network", name, NETWORKS)
    return said
