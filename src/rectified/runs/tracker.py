"""Trackers that people already use, fed with what every run logs: TensorBoard, MLflow, W&B.

Off by default; `--tracker tensorboard` turns one on, for any verb. It hears the events that go to
metrics.jsonl, through Accelerate's trackers, and changes nothing in the run.

An event becomes scalars. Its texts and seed name the series, its first other whole number is the
step, and every other number is a value:

    {"event": "cycle", "seed": 0, "ap": "off", "cycle": 3, "accuracy": 0.97}
    cycle/0/off/accuracy = 0.97 at step 3
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rectified.errors import UserError, choose

TRACKERS = ("tensorboard", "mlflow", "wandb")
_FOLDER = "tensorboard"  # in the run's


class Tracker:
    """A listener for a run's events; it begins with the first of them.

    Args:
        name: one of `TRACKERS`.
        path: the run's folder, whose name the tracker shows.
        settings: of the run.

    Raises:
        UserError: if there is no such tracker, or its package is missing.
    """

    def __init__(self, name: str, path: Path, settings: Mapping[str, Any]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        choose("tracker", name, TRACKERS)
        if name not in [str(getattr(one, "value", one)) for one in get_available_trackers()]:
            raise UserError(
                f'tracker {name} is not installed: pip install "rectified[{name}]"'
                if name == "tensorboard"
                else f"tracker {name} is not installed: pip install {name}"
            )
        where: dict[str, dict[str, Any]] = {
            "tensorboard": {"run_name": _FOLDER, "logging_dir": path},
            "mlflow": {"experiment_name": "rectified", "run_name": path.name},
            "wandb": {"run_name": "rectified", "name": path.name},
        }
        self.tracker = LOGGER_TYPE_TO_CLASS[name](**where[name])
        self.settings = {key: _scalar(value) for key, value in settings.items()}
        self.begun = False
        self.counts: Counter[str] = Counter()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take an event."""
        if not self.begun:
            self.begun = True
            self.tracker.start()
            self.tracker.store_init_configuration(self.settings)
        series, step, values = scalars(event)
        if values:
            self.counts[series] += 1
            step = self.counts[series] if step is None else step
            self.tracker.log({f"{series}/{name}": v for name, v in values.items()}, step=step)

    def close(self) -> None:
        """Write what is left."""
        if self.begun:
            self.tracker.finish()


def scalars(event: Mapping[str, Any]) -> tuple[str, int | None, dict[str, float]]:
    """The series, the step and the values of an event.

    Example:
        >>> scalars({"event": "epoch", "seed": 7, "epoch": 2, "loss": 0.5, "note": None})
        ('epoch/7', 2, {'loss': 0.5})
    """
    parts = [str(event.get("event", "event"))]
    step, values = None, {}
    for name, value in event.items():
        if name in ("event", "time") or value is None:
            continue
        if isinstance(value, str) or name == "seed":
            parts.append(str(value)[:100])
        elif isinstance(value, bool):
            values[name] = float(value)
        elif isinstance(value, int) and step is None:
            step = value
        elif isinstance(value, int | float):
            values[name] = float(value)
    return "/".join(parts), step, values


def _scalar(value: Any) -> bool | int | float | str:
    """A setting as every tracker can hold it."""
    return value if isinstance(value, bool | int | float | str) else str(value)
