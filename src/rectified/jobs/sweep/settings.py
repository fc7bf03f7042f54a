"""Settings of `rectified sweep`, and what they mean: the points of its grid, resolved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from rectified.errors import UserError
from rectified.jobs import job_of
from rectified.jobs.job import Job
from rectified.jobs.options import check_minima
from rectified.jobs.sweep.grid import points

DASK, RAY = ("tcp", "tls", "ucx", "ws", "wss"), ("ray",)  # schemes of addresses


@dataclass(frozen=True)
class SweepConfig:
    """Run a verb once for every point of a grid. The verb's own options may follow, for all runs.

    Attributes:
        grid: settings and their values, such as "score=magnitude,lamp seed=0..9 ap=off+lite".
        cluster: address of a Dask scheduler (tcp://HOST:8786) or of a Ray head (ray://HOST:10001);
            this machine's cores by default.
        workers: runs at a time on this machine; one per core by default.
        threads: that each run may use.
        tries: how often a run is begun whose worker is lost, in all.
    """

    grid: str = ""
    cluster: str | None = None
    workers: int | None = None
    threads: int = 1
    tries: int = 3


@dataclass(frozen=True)
class Sweep:
    """A whole sweep, as config.yaml has it.

    Attributes:
        of: the verb.
        data: what its runs work on, for the name of the folder.
        grid: as in `SweepConfig`, and so on.
        settings: what its runs share: the verb's config.
    """

    of: str
    data: str
    grid: str
    cluster: str | None
    workers: int | None
    threads: int
    tries: int
    settings: Any

    @property
    def device(self) -> str:
        """Of the sweep's own process, which computes nothing."""
        return "cpu"

    @property
    def job(self) -> Job[Any, Any]:
        """The job that does each run."""
        return job_for(self.of, self.settings)


@dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
        grid: the settings of the grid that are this run's, by name.
        settings: all of its settings, resolved: the verb's config.
    """

    grid: Mapping[str, Any]
    settings: Any


@dataclass(frozen=True)
class SweepPlan:
    """The plan of a sweep.

    Attributes:
        config: the sweep.
        points: its runs, all of them possible as far as settings tell.
    """

    config: Sweep
    points: tuple[Point, ...]


def job_for(verb: str, settings: Any) -> Job[Any, Any]:
    """The job, or the variant of it, that has such settings."""
    return job_of(verb).of(field.name for field in fields(settings))


def whole(verb: str, settings: Any, options: SweepConfig) -> Sweep:
    """A sweep of a verb, from what its runs share and how it is done."""
    return Sweep(verb, settings.data, **asdict(options), settings=settings)


def parts(contents: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The verb, what its runs share, and how it is done, from what a sweep's config.yaml says.

    Raises:
        UserError: if it does not say what its runs share.
    """
    own = {name: v for name, v in contents.items() if name not in ("of", "data", "settings")}
    shared = contents.get("settings", {})
    if not isinstance(shared, dict):
        raise UserError(f"settings of a sweep must be names and values, got {shared!r:.100}")
    return str(contents.get("of")), shared, own


def resolve(sweep: Sweep) -> SweepPlan:
    """Read the grid, and resolve the settings of every run.

    Raises:
        UserError: if a setting is impossible, be it of one run.
    """
    if sweep.cluster is not None:
        check_cluster(sweep.cluster)
    check_minima(sweep, {"workers": 1, "threads": 1, "tries": 1})
    if sweep.cluster is not None and sweep.workers is not None:
        raise UserError("workers is for this machine: a cluster brings its own, leave it out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a sweep hands out its runs itself: start it without torchrun")
    job = sweep.job
    return SweepPlan(
        sweep,
        tuple(
            Point(point, job.resolve(replace(sweep.settings, **point)).config)
            for point in points(sweep.grid, type(sweep.settings))
        ),
    )


def check_cluster(address: str) -> None:
    """See that an address is one of a cluster that there is an engine for.

    Raises:
        UserError: if it is not.

    Example:
        >>> check_cluster("tcp://scheduler:8786")
    """
    scheme, colon, rest = address.partition("://")
    if scheme not in (*DASK, *RAY) or not colon or not rest:
        raise UserError(
            f"cluster must be the address of a Dask scheduler (tcp://HOST:8786) or of a Ray head "
            f"(ray://HOST:10001), got {address!r}"
        )
