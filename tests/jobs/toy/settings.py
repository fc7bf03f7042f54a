"""Settings of `rectified toy`, and what they mean."""

from dataclasses import dataclass, replace
from typing import Literal

from rectified.errors import UserError
from rectified.jobs.options import Numbers, Words, check_minima, seed_list


@dataclass(frozen=True)
class ToyConfig:
    """Measure what is known beforehand.

    Attributes:
        data: digits, or a file of one number.
        rate: how much further it is at every step.
        names: of the arms.
        steps: at which it is measured.
        limit: of nothing; by the rate
            if it is left open.
        norm: of a network that is not there.
        model: module:factory, which is not called.
        seeds: how many seeds, from 0.
        seed: one seed alone.
        device: auto, cpu or cuda.
    """

    data: str = "digits"
    rate: float = 0.5
    names: Words = ("a",)
    steps: Numbers = (1, 2)
    limit: int | None = None
    norm: Literal["auto", "none"] = "auto"
    model: str | None = None
    seeds: int = 1
    seed: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class TwiceConfig(ToyConfig):
    """Measure it several times.

    Attributes:
        twice: how often.
    """

    twice: int = 2


@dataclass(frozen=True)
class ToyPlan:
    """The plan of a run.

    Attributes:
        config: the settings, filled in.
        seeds: of the rows.
        start: where the distance begins; what the data say.
    """

    config: ToyConfig
    seeds: tuple[int, ...]
    start: float = 0.0


def resolve(config):
    """Words to values."""
    check_minima(config, {"limit": 1})
    if not config.rate >= 0:
        raise UserError(f"rate must be at least 0, got {config.rate}")
    limit = config.limit or max(1, int(10 * config.rate))
    return ToyPlan(replace(config, limit=limit), seed_list(config.seeds, config.seed))
