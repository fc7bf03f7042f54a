"""Trials in step: their trainings done as one module where that is faster, kept as they go on.

Every trial is a generator (`rectified.pruning.cycle.plan`) that asks for each training and gives
each cycle. After every step the checkpoint holds the rows and each trial's last cycle, to go on
from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from rectified.jobs.job import Context
from rectified.jobs.prune.settings import PrunePlan
from rectified.jobs.prune.training import Request, side_by_side, train_all
from rectified.jobs.prune.trials import (
    DENSE,
    Measured,
    SeedData,
    Trial,
    dense_of,
    layer_rows,
    measure,
    network,
    seed_data,
    trials,
)
from rectified.pruning.cycle import Cycle, Training
from rectified.pruning.cycle import plan as events_of
from rectified.training import classification, everyone

T = TypeVar("T")
SCORE_BATCHES = 10  # that gradient scores may look at

Events = Iterator[Training | Cycle]  # what a trial asks for, and what it gives
Data = Mapping[int, SeedData]  # by seed


@dataclass
class State:
    """The state of a study, which its checkpoint holds.

    Attributes:
        rows: of results.json, one per trial and cycle.
        layers: of details.json, at the end of trials.
        shortfalls: cycles in which AP had too few candidates.
        done: seeds of which nothing is left to do.
        finished: trials of the present seeds that are done.
        cycles: the last cycle of the others.
        best: of the sparsest networks, by validation accuracy: what is saved.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    shortfalls: list[dict[str, Any]] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    cycles: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> State:
        """The state that a checkpoint holds; version 0.1 kept more in it, and None for no best."""
        return cls(**{one.name: saved[one.name] for one in fields(cls) if saved.get(one.name)})


class Runner:
    """Runs the trials of a study, group of seeds by group of seeds."""

    def __init__(self, plan: PrunePlan, context: Context) -> None:
        self.plan = plan
        self.context = context
        self.together = side_by_side(plan.fit, plan.together)
        self.store = context.folder.store("study")
        saved = self.store.load() if context.folder.resume else None
        self.state = State.of(saved) if saved else State()

    def run(self) -> State:
        """Do what is left, and return all that was found."""
        for seeds in self._groups():
            self._run_group(seeds)
        return self.state

    def _groups(self) -> Iterator[list[int]]:
        """Seeds whose networks are trained together."""
        of_a_seed = len(self.plan.config.score) * len(self.plan.config.ap)
        size = max(1, self.together // of_a_seed)
        left = [seed for seed in self.plan.seeds if seed not in self.state.done]
        yield from _parts(left, size)

    def _run_group(self, seeds: list[int]) -> None:
        """First the dense trainings that trials of a seed share, then the cycles."""
        data = {seed: seed_data(self.plan, seed) for seed in seeds}
        ours = trials(self.plan, seeds)
        dense = list(dict.fromkeys(dense_of(self.plan, trial) for trial in ours))
        for part in _parts(dense, self.together):
            self._advance({trial: self._dense(trial, data) for trial in part}, data)
        left = [trial for trial in ours if trial.key not in self.state.finished]
        for part in _parts(left, self.together):
            self._advance({trial: self._pruned(trial, data) for trial in part}, data)
        self.state.done += seeds
        self.state.cycles, self.state.finished = {}, []
        self.store.save(vars(self.state))

    def _dense(self, trial: Trial, data: Data) -> Events:
        """A dense network: cycle 0, unless the checkpoint has it."""
        if trial.key in self.state.cycles:
            return iter(())
        return self._events(trial, data, self.plan.stages(trial.score, "off", trial.seed), cycles=0)

    def _pruned(self, trial: Trial, data: Data) -> Events:
        """A trial, from where the checkpoint has it."""
        dense, cycles = dense_of(self.plan, trial), self.state.cycles
        key = trial.key if trial.key in cycles else dense.key
        after = _moved(cycles[key], self.plan.device)
        if key == dense.key and dense.score != trial.score:
            after["memory"] = ()  # it is another score's
        return self._events(
            trial,
            data,
            self.plan.stages(trial.score, trial.ap, trial.seed),
            cycles=self.plan.config.cycles,
            after=Cycle(**after),
        )

    def _events(self, trial: Trial, data: Data, stages: Sequence[Any], **where: Any) -> Events:
        own, plan = data[trial.seed], self.plan
        seen = [batch for _, batch in zip(range(SCORE_BATCHES), own.training, strict=False)]
        return events_of(
            network(plan, own.images, trial.seed),
            list(stages),
            rewind=plan.rewind,
            batches=seen,
            objective=classification,
            pretrained=plan.config.weights is not None,
            group=everyone(plan.fit.device),
            **where,
        )

    def _advance(self, events: Mapping[Trial, Events], data: Data) -> None:
        """Run trials in step: train what they ask for, measure what they give, keep both."""
        waiting = self._step(events, data, seconds=0.0)
        while waiting:
            started = time.perf_counter()
            self._train(waiting, data)
            each = (time.perf_counter() - started) / len(waiting)
            waiting = self._step({trial: events[trial] for trial in waiting}, data, each)
            self.store.save(vars(self.state))

    def _step(
        self, events: Mapping[Trial, Events], data: Data, seconds: float
    ) -> dict[Trial, Training]:
        """Take every trial to its next training; `seconds` is what its last one took."""
        waiting = {}
        for trial, its in events.items():
            for event in its:
                if isinstance(event, Training):
                    waiting[trial] = event
                    break
                self._record(trial, event, data[trial.seed], seconds)
        return waiting

    def _train(self, waiting: Mapping[Trial, Training], data: Data) -> None:
        """Do the trainings that trials wait for."""
        train_all(
            [
                Request(asked, data[trial.seed].training, trial.seed)
                for trial, asked in waiting.items()
            ],
            self.plan.fit,
            together=self.together,
            store=self.context.folder.store("training"),
            progress=self.context.words(_words(list(waiting))),
        )

    def _record(self, trial: Trial, cycle: Cycle, data: SeedData, seconds: float) -> None:
        """Measure a network at the end of a cycle; a dense one counts for all that prune it."""
        begin = time.perf_counter()
        measured = measure(self.plan, cycle, data, trial.seed)
        seconds += time.perf_counter() - begin
        for one in self._counts_for(trial):
            self._keep(one, cycle, measured, seconds)
        self._note_shortfall(trial, cycle)
        self.state.cycles[trial.key] = {f.name: getattr(cycle, f.name) for f in fields(cycle)}
        if cycle.number == self.plan.config.cycles and trial.ap != DENSE:
            self.state.finished.append(trial.key)
            del self.state.cycles[trial.key]

    def _counts_for(self, trial: Trial) -> list[Trial]:
        if trial.ap != DENSE:
            return [trial]
        return [one for one in trials(self.plan, [trial.seed]) if dense_of(self.plan, one) == trial]

    def _keep(self, trial: Trial, cycle: Cycle, measured: Measured, seconds: float) -> None:
        row, validation = {**trial.names, **measured.row}, measured.validation
        self.state.rows.append({**row, "seconds": seconds})
        self.context.folder.log({"event": "cycle", **row, "validation": validation})
        if validation is None:
            return
        self.state.layers += layer_rows(trial, cycle, measured.dead)
        if not self.state.best or validation > self.state.best["validation"]:
            about = {**trial.names, "validation": validation, "density": cycle.density}
            self.state.best = {**about, "state": cycle.trained}

    def _note_shortfall(self, trial: Trial, cycle: Cycle) -> None:
        """Keep that AP (or a control) had too few candidates left."""
        missing = sum(cycle.missing)
        if missing:
            names = {"score": trial.score, "ap": trial.ap, "cycle": cycle.number}
            self.state.shortfalls.append({**names, "missing": missing})


def _parts(sequence: list[T], size: int) -> Iterator[list[T]]:
    for first in range(0, len(sequence), size):
        yield sequence[first : first + size]


def _words(waiting: Sequence[Trial]) -> str:
    first, count = waiting[0], len(waiting)
    what = f" seed {first.seed}" if count == 1 else f", {count} networks"
    return f"{first.score} {first.ap}{what}"


def _moved(saved: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A cycle's fields, tensors on `device`; a checkpoint has lists where a cycle has tuples."""
    moved = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, saved)
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in moved.items()
    }
