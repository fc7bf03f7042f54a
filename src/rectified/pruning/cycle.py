"""The pruning cycle: train, score, drop, rewind.

A cycle is a list of stages. Every stage scores the trained network and drops its share of the
weights that were kept at the *start of the cycle*; after the last stage (and after any stage that
asks for it) the weights are rewound and the network is trained again. Everything is such a list:

    magnitude        [Stage(magnitude, 0.2)]
    AP-lite          [Stage(magnitude, 0.18), Stage(Activate(), 0.02)]
    AP-pro           [Stage(magnitude, 0.18, retrain=True), Stage(Activate(), 0.02)]
    its control      [Stage(magnitude, 0.18, retrain=True), Stage(magnitude, 0.02)]

All of these end every cycle at the same density, to the weight.

`iterate` runs one network through the cycles with your own training function. It is driven by
`plan`, a generator that asks for each training as it comes, so that many plans can run in step and
their trainings be done at once.

Rewinding (`Rewind`): `init` puts everything back as it was before training (weights, biases,
norms, buffers; the optimiser starts anew); `epoch:K` as it was after K epochs, optimiser included,
and goes on with the schedule and the data from there; `lr` keeps the trained weights and repeats
the schedule; `finetune` keeps them and trains at a small constant rate.

References:
    Frankle, Carbin, arXiv 1803.03635 (init); Frankle et al., arXiv 1903.01611 (epoch K);
    Renda, Frankle, Carbin, arXiv 2003.02389 (learning-rate rewinding, fine-tuning).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.pruning.masks import (
    Masks,
    apply_,
    bare,
    density,
    droppable,
    full_masks,
    kept,
    prune,
)
from rectified.pruning.processes import agree
from rectified.pruning.schedule import Schedule
from rectified.pruning.scores.score import Score, ScoreFunction, Scores, as_score
from rectified.pruning.scores.snapshot import Snapshot
from rectified.training import Batch, Objective, TrainingState

State = dict[str, Tensor]
Rule = Callable[[Masks, Scores, float, Masks], Masks]  # masks, scores, fraction, of


@dataclass(frozen=True)
class Stage:
    """One step of pruning in a cycle.

    Attributes:
        score: higher is kept longer.
        fraction: share of the weights kept at the cycle's start, or a schedule of it.
        retrain: rewind and train between this stage and the next.
        fallback: the score that drops the rest when `score` has too few candidates.
        scope: as in `prune`; `layer` for a score that is layerwise.
        floor: weights that every layer keeps at least.
        rule: replaces `prune`'s exact count, to reproduce other code's arithmetic.
    """

    score: ScoreFunction
    fraction: float | Schedule
    retrain: bool = False
    fallback: ScoreFunction | None = None
    scope: str = "global"
    floor: int = 1
    rule: Rule | None = None

    def __post_init__(self) -> None:
        if as_score(self.score).layerwise:
            object.__setattr__(self, "scope", "layer")

    def share(self, cycle: int) -> float:
        """The fraction in this cycle."""
        return self.fraction(cycle) if callable(self.fraction) else self.fraction


@dataclass(frozen=True)
class Rewind:
    """The state that weights go back to after pruning: `init`, `epoch`, `lr` or `finetune`.

    Example:
        >>> Rewind.parse("epoch:2")
        Rewind(kind='epoch', epoch=2)
    """

    kind: str = "init"
    epoch: int = 0

    @classmethod
    def parse(cls, text: str) -> Rewind:
        """Read `init`, `epoch:K`, `lr` or `finetune`.

        Raises:
            UserError: for anything else.
        """
        kind, _, epoch = text.partition(":")
        if kind == "epoch" and epoch.isdecimal():
            return cls("epoch", int(epoch))
        if kind in ("init", "lr", "finetune") and not epoch:
            return cls(kind)
        raise UserError(
            f"unknown rewind {text!r}; choose from init, epoch:K (such as epoch:2), lr, finetune"
        )

    @property
    def restores_weights(self) -> bool:
        """Whether the weights go back to an earlier state."""
        return self.kind in ("init", "epoch")


@dataclass(frozen=True)
class Training:
    """One training that a plan asks for: train `model` in place, keeping `masks`.

    Attributes:
        model: the network, its weights where the training begins.
        masks: what stays; keep the rest at zero with `hold(model, masks)`.
        start: the epoch to begin at.
        stop: the epoch to stop before, or None for the whole schedule.
        finetune: train at a small constant rate.
        state: the optimiser's state to begin with; leave the one at the end in it.
        watched: some score watches this training through hooks on the model's parameters.
    """

    model: nn.Module
    masks: Masks
    start: int = 0
    stop: int | None = None
    finetune: bool = False
    state: TrainingState = field(default_factory=TrainingState)
    watched: bool = False


@dataclass(frozen=True)
class Cycle:
    """A network at the end of a cycle; enough to go on from there.

    Attributes:
        number: 0 is the dense network.
        masks: which weights are kept.
        initial: state_dict at the start of the last training.
        trained: state_dict after it.
        point: state_dict that rewinding goes back to.
        optimizer: the optimiser's state at that point.
        dropped: weights that every stage dropped.
        missing: weights that a stage had no candidates for, dropped by its fallback.
        memory: the `state` of every stage's score, where it has one: sums over a training, or
            a generator's state.
    """

    number: int
    masks: Masks
    initial: State
    trained: State
    point: State
    optimizer: dict[str, Any] | None = None
    dropped: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    memory: tuple[Scores, ...] = ()

    @property
    def density(self) -> float:
        """The share of weights that is kept."""
        return density(self.masks)


Train = Callable[[Training], object]


def iterate(
    model: nn.Module,
    train: Train,
    stages: Sequence[Stage],
    cycles: int,
    *,
    rewind: str | Rewind = "init",
    masks: Masks | None = None,
    batches: Sequence[Batch] = (),
    objective: Objective | None = None,
    pretrained: bool = False,
    after: Cycle | None = None,
    group: dist.ProcessGroup | None = None,
) -> Iterator[Cycle]:
    """Prune `model` over `cycles` cycles, training it with your own function.

    Args:
        model: any network, with its initial weights; it is trained in place.
        train: trains `training.model` in place and keeps `training.masks` (see `Training`).
        stages: what is dropped in every cycle.
        cycles: how many; cycle 0, the dense network, comes before them.
        rewind: `init`, `epoch:K`, `lr` or `finetune`.
        masks: what is kept at the start; everything by default.
        batches: training data for scores that need gradients.
        objective: their loss.
        pretrained: the network is trained already; with rewind `finetune`, cycle 0 only fine-tunes
            it, too (how far weights move then is what AP goes by).
        after: the cycle to go on after, from an earlier call.
        group: processes that train the network together and iterate in step: rank 0 of them
            decides what is dropped. Default: this process alone.

    Yields:
        The state at the end of every cycle.

    Raises:
        UserError: if there are no stages, or a stage cannot drop its share.

    Example:
        >>> from rectified.pruning import hold, magnitude
        >>> def train(training):
        ...     keep = hold(training.model, training.masks)  # then: step, keep(), step, keep() ...
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [round(c.density, 2) for c in iterate(model, train, [Stage(magnitude, 0.5)], 2)]
        [1.0, 0.5, 0.25]
    """
    events = plan(
        model,
        stages,
        cycles,
        rewind=rewind,
        masks=masks,
        batches=batches,
        objective=objective,
        pretrained=pretrained,
        after=after,
        group=group,
    )
    for event in events:
        if isinstance(event, Training):
            train(event)
        else:
            yield event


def plan(
    model: nn.Module,
    stages: Sequence[Stage],
    cycles: int,
    *,
    rewind: str | Rewind = "init",
    masks: Masks | None = None,
    batches: Sequence[Batch] = (),
    objective: Objective | None = None,
    pretrained: bool = False,
    after: Cycle | None = None,
    group: dist.ProcessGroup | None = None,
) -> Generator[Training | Cycle, None, None]:
    """As `iterate`, but asks for each training: do it before taking the next event."""
    if not stages:
        raise UserError("stages must hold at least one stage, got none")
    if cycles < 0:
        raise UserError(f"cycles must be at least 0, got {cycles}")
    rewind = Rewind.parse(rewind) if isinstance(rewind, str) else rewind
    pruner = _Plan(model, stages, rewind, batches, objective, group)
    if after is None:
        masks = full_masks(model) if masks is None else masks
        after = yield from pruner.dense(masks, finetune=pretrained and rewind.kind == "finetune")
        yield after
    else:
        pruner.recall(after)
    while after.number < cycles:
        after = yield from pruner.cycle(after)
        yield after


@dataclass(frozen=True)
class _Plan:
    """The constants over the cycles of one network."""

    model: nn.Module
    stages: Sequence[Stage]
    rewind: Rewind
    batches: Sequence[Batch]
    objective: Objective | None
    group: dist.ProcessGroup | None

    def dense(self, masks: Masks, *, finetune: bool) -> Generator[Training, None, Cycle]:
        """Cycle 0: train before anything is pruned."""
        apply_(self.model, masks)
        state = TrainingState()
        if self.rewind.kind == "epoch" and self.rewind.epoch:
            yield Training(self.model, masks, 0, self.rewind.epoch, state=state)
        point, optimizer = _state(self.model), deepcopy(state.optimizer)
        yield from self._train(masks, optimizer, finetune=finetune)
        return Cycle(
            number=0,
            masks=masks,
            initial=point,
            trained=_state(self.model),
            point=point,
            optimizer=optimizer,
            memory=self._memory(),
        )

    def cycle(self, before: Cycle) -> Generator[Training, None, Cycle]:
        """All stages, then rewind and train."""
        now = replace(before, number=before.number + 1, dropped=(), missing=())
        share = 0.0
        for position, stage in enumerate(self.stages):
            share += stage.share(now.number)
            due = round(round(share, 12) * kept(before.masks)) - sum(now.dropped)
            now = self._drop(stage, now, due, before.masks)
            if stage.retrain or position == len(self.stages) - 1:
                now = yield from self._retrain(now)
        return now

    def _drop(self, stage: Stage, now: Cycle, due: int, of: Masks) -> Cycle:
        """Drop `due` weights by the stage's score, its fallback helping out."""
        if stage.rule is not None:
            scores = stage.score(self._snapshot(now))
            masks, missing = stage.rule(now.masks, scores, stage.share(now.number), of), 0
        else:
            masks, missing = self._drop_exactly(stage, now, due)
        masks = agree(masks, self.group)
        dropped = kept(now.masks) - kept(masks)
        return replace(
            now,
            masks=masks,
            dropped=(*now.dropped, dropped),
            missing=(*now.missing, missing),
        )

    def _drop_exactly(self, stage: Stage, now: Cycle, due: int) -> tuple[Masks, int]:
        rounds = as_score(stage.score).rounds
        begin, end = kept(now.masks), kept(now.masks) - due
        missing = 0
        for number in range(1, rounds + 1):
            # geometric steps from the present density to the stage's (Tanaka et al., 2020)
            goal = round(begin * (end / begin) ** (number / rounds)) if end else 0
            masks, short = self._drop_once(stage, now, kept(now.masks) - goal)
            missing += short
            now = replace(now, masks=masks)
        return now.masks, missing

    def _drop_once(self, stage: Stage, now: Cycle, count: int) -> tuple[Masks, int]:
        snapshot = self._snapshot(now)
        scores = stage.score(snapshot)
        limits: dict[str, Any] = {"scope": stage.scope, "floor": stage.floor}
        possible = min(count, droppable(now.masks, scores, **limits))
        masks = _prune_count(now.masks, scores, possible, limits)
        missing = count - possible
        if missing == 0:
            return masks, 0
        if stage.fallback is None:
            raise UserError(
                f"cycle {now.number} must drop {count} weights, but only {possible} may go "
                f"(scope {stage.scope!r}, at least {stage.floor} a layer): prune less"
            )
        rest = stage.fallback(replace(snapshot, masks=masks))
        return _prune_count(masks, rest, missing, limits), missing

    def _retrain(self, now: Cycle) -> Generator[Training, None, Cycle]:
        """Rewind, train, and note where this training began and ended."""
        if self.rewind.restores_weights:
            bare(self.model).load_state_dict(now.point)
        apply_(self.model, now.masks)
        initial = _state(self.model)
        optimizer = now.optimizer if self.rewind.kind == "epoch" else None
        finetune = self.rewind.kind == "finetune"
        yield from self._train(now.masks, optimizer, finetune=finetune)
        return replace(now, initial=initial, trained=_state(self.model), memory=self._memory())

    def _train(
        self, masks: Masks, optimizer: dict[str, Any] | None, *, finetune: bool
    ) -> Generator[Training, None, None]:
        """Ask for a training; the optimiser's state is a copy, since torch trains what it loads."""
        start = self.rewind.epoch if self.rewind.kind == "epoch" else 0
        with ExitStack() as watching:
            for score in self._watchers():
                watching.enter_context(score.watch(self.model))
            yield Training(
                self.model,
                masks,
                start,
                finetune=finetune,
                state=TrainingState(deepcopy(optimizer)),
                watched=bool(self._watchers()),
            )

    def _snapshot(self, now: Cycle) -> Snapshot:
        return Snapshot(
            bare(self.model), now.trained, now.initial, now.masks, self.batches, self.objective
        )

    def _watchers(self) -> list[Score]:
        scores = [score for stage in self.stages for score in (stage.score, stage.fallback)]
        distinct = {id(score): as_score(score) for score in scores if score is not None}.values()
        return [score for score in distinct if score.watches]

    def _memory(self) -> tuple[Scores, ...]:
        return tuple(dict(as_score(stage.score).state) for stage in self.stages)

    def recall(self, after: Cycle) -> None:
        """Put back what the model and the scores held at the end of a cycle."""
        bare(self.model).load_state_dict(after.trained)
        # a dense cycle may come from an arm with fewer stages, or other scores
        for stage, state in zip(self.stages, after.memory, strict=False):
            if state:
                as_score(stage.score).restore(state)


def _prune_count(masks: Masks, scores: Scores, count: int, limits: dict[str, Any]) -> Masks:
    return prune(masks, scores, count / kept(masks), **limits) if count else masks


def _state(model: nn.Module) -> State:
    """A copy of the state_dict, under the bare network's names."""
    return {name: value.detach().clone() for name, value in bare(model).state_dict().items()}
