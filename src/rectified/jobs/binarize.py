"""`rectified binarize`: 1-bit networks, estimator beside estimator over seeds; then on bits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from rectified.binary.estimators import ESTIMATORS
from rectified.jobs import binarize_report
from rectified.jobs.binarize_pack import Packing, pack_and_measure
from rectified.jobs.binarize_settings import BinarizeConfig, network, resolve
from rectified.jobs.binarize_training import (
    Task,
    Trained,
    converted,
    data_of,
    make_network,
    train,
)
from rectified.jobs.classifiers import check_outputs, plain_batches
from rectified.jobs.options import seed_list
from rectified.runs import Run
from rectified.statistics import interval
from rectified.training import accelerator

__all__ = ["DEFAULT", "BinarizeConfig", "resolve", "run"]

DEFAULT = BinarizeConfig()


def run(config: BinarizeConfig, folder: Run, facts: Mapping[str, Any], progress: bool) -> str:
    """Do the study and write its folder.

    Args:
        config: the settings; what is left open is resolved.
        folder: where the results go; nothing is written before the settings prove possible.
        facts: the environment, for the record.
        progress: whether to show progress bars.

    Returns:
        A short text with what was found.
    """
    study = _Study(resolve(config), folder, progress)
    study.check()
    folder.begin("binarize", asdict(study.config), facts)
    study.go_on()
    return study.finish(facts)


@dataclass
class Found:
    """What the study has found so far; kept in the checkpoint, arm by arm."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    best: dict[str, Any] | None = None


class _Study:
    """The work of one `run`: every estimator with every seed."""

    def __init__(self, config: BinarizeConfig, folder: Run, progress: bool) -> None:
        self.config = config
        self.folder = folder
        self.progress = progress
        self.seeds = seed_list(config.seeds, config.seed)
        self.store = folder.store("study")
        saved = self.store.load() if folder.resume else None
        self.found = Found(**saved) if saved else Found()
        self.converted: list[dict[str, Any]] = []

    def check(self) -> None:
        """Everything that can be known to fail, before anything is written."""
        config, device = self.config, accelerator(self.config.device).device
        images = data_of(config.data, self.seeds[0], config.limit)
        example = images.train.select(torch.arange(min(64, len(images.train))))
        inputs, _ = next(iter(plain_batches(example, images, device=device)))
        for estimator in config.estimator:
            model = make_network(config, images, estimator, self.seeds[0]).to(device)
            check_outputs(model, inputs, len(images.classes))
            if ESTIMATORS[estimator].weights is not None:
                self.converted = converted(model)

    def go_on(self) -> None:
        """Train what is left, and keep each arm when it is done."""
        left = [task for task in self.tasks() if task.key not in self.found.done]
        workers = min(self.workers(), len(left))
        for task, trained in _in_turn(left) if workers < 2 else _at_once(left, workers):
            self.keep(task, trained)
            if self.progress:
                print(f"{task.key}: {trained.rows[-1]['accuracy']:.2%}", flush=True)

    def tasks(self) -> Iterator[Task]:
        """Seed by seed, so that an interrupted study compares whole seeds."""
        for seed in self.seeds:
            for estimator in self.config.estimator:
                store = self.folder.store(f"{estimator}-{seed}")
                words = f"{estimator} seed {seed}" if self.progress else ""
                yield Task(self.config, estimator, seed, store.path, self.folder.writer, words)

    def workers(self) -> int:
        """How many trainings run at a time."""
        process = accelerator(self.config.device)
        if process.device.type != "cpu" or process.num_processes > 1:
            return 1  # the device is shared, or the processes are there already
        if self.config.workers is not None:
            return self.config.workers
        # a process takes seconds to start, which small networks do not pay for
        return (os.cpu_count() or 1) if network(self.config.model).channels_last else 1

    def keep(self, task: Task, trained: Trained) -> None:
        """Add a finished arm to what was found."""
        found = self.found
        found.rows += trained.rows
        found.layers += trained.layers
        found.done.append(task.key)
        for row in trained.rows:
            self.folder.log({"event": "epoch", **row})
        is_binary = ESTIMATORS[task.estimator].weights is not None
        if is_binary and not (found.best and found.best["validation"] >= trained.validation):
            found.best = {
                "estimator": task.estimator,
                "seed": task.seed,
                "validation": trained.validation,
                "state": trained.model,
            }
        self.store.save(vars(found))
        if self.folder.writer:
            task.store.unlink(missing_ok=True)

    def finish(self, facts: Mapping[str, Any]) -> str:
        """Write weights, tables, page and results."""
        found, config = self.found, self.config
        rows = sorted(found.rows, key=self.place)
        details: dict[str, Any] = {
            "layers": sorted(found.layers, key=self.place),
            "converted": self.converted,
        }
        results: dict[str, Any] = {
            "verb": "binarize",
            "config": asdict(config),
            "environment": dict(facts),
            "rows": rows,
            "summary": summarise(rows),
        }
        if found.best is not None:
            about = {key: str(value) for key, value in found.best.items() if key != "state"}
            details["saved"] = about
            self.folder.write_weights(found.best["state"], {"model": config.model, **about})
            if config.pack and self.folder.writer:
                packing = self.pack(found.best)
                results["pack"] = packing.sizes
                details["packing"] = vars(packing)
        self.folder.write_json("details.json", details)
        self.folder.write_text("report.html", binarize_report.page(results, details))
        self.folder.write_results(**results)
        return binarize_report.text(results, details)

    def pack(self, best: Mapping[str, Any]) -> Packing:
        """The saved network on bits."""
        images = data_of(self.config.data, best["seed"], self.config.limit)
        model = make_network(self.config, images, best["estimator"], best["seed"])
        model.load_state_dict(best["state"])
        inputs, _ = next(iter(plain_batches(images.test, images, device=torch.device("cpu"))))
        return pack_and_measure(model, inputs, self.folder)

    def place(self, row: Mapping[str, Any]) -> tuple[int, ...]:
        """Where a row stands: estimators in the order in which they were asked for."""
        return self.config.estimator.index(row["estimator"]), row["seed"], row["epoch"]


def _in_turn(tasks: Sequence[Task]) -> Iterator[tuple[Task, Trained]]:
    for task in tasks:
        yield task, train(task)


def _at_once(tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Trained]]:
    """Several processes of one thread each: faster than the threads of one (docs/performance)."""
    from joblib import Parallel, delayed, parallel_config

    with parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        yield from Parallel(return_as="generator_unordered", batch_size=1)(
            delayed(_with_one_thread)(task) for task in tasks
        )


def _with_one_thread(task: Task) -> tuple[Task, Trained]:
    torch.set_num_threads(1)
    return task, train(task)


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The accuracy after the last epoch, over seeds, a line an estimator.

    Example:
        >>> rows = [{"seed": s, "estimator": "ste", "epoch": e, "accuracy": (s + e) / 10}
        ...         for s in (1, 3) for e in (1, 2)]
        >>> [(line["estimator"], line["accuracy_mean"], line["n"]) for line in summarise(rows)]
        [('ste', 0.4, 2)]
    """
    last = max(row["epoch"] for row in rows)
    final = [row for row in rows if row["epoch"] == last]
    lines = []
    for estimator in dict.fromkeys(row["estimator"] for row in final):
        found = interval(row["accuracy"] for row in final if row["estimator"] == estimator)
        lines.append(
            {
                "estimator": estimator,
                "accuracy_mean": found.mean,
                "accuracy_ci95": found.half_width,
                "n": found.n,
            }
        )
    return lines
