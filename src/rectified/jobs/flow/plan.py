"""A study of flows as values: what `resolve` makes of the settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from rectified import flow
from rectified.flow.couplings import Coupling, Source
from rectified.flow.paths import AffinePath
from rectified.flow.predictions import Prediction
from rectified.jobs.flow.data import FlowData
from rectified.jobs.flow.recipes import Stage
from rectified.training import FitConfig

if TYPE_CHECKING:
    from rectified.jobs.flow.settings import FlowConfig

RENOISE_STEPS = range(2, 9)  # where rf++'s update was seen to help
RENOISE_GAP = 0.02  # the largest first-order gap at which it is safe
SMALL_IMAGE = 256  # numbers per image up to which a perceptron is enough


@dataclass(frozen=True)
class Budget:
    """The size of a study: what the settings leave open, the data decide.

    Attributes:
        model: mlp, resmlp, unet or dit.
        updates: training steps of the first flow.
        reflow_updates: training steps of each later one.
        batch_size: examples per step.
        learning_rate: at its peak.
        pairs: how many are made for a reflow.
        samples: generated for each distance.
    """

    model: str
    updates: int
    reflow_updates: int
    batch_size: int
    learning_rate: float
    pairs: int
    samples: int

    def given(self, config: FlowConfig) -> Budget:
        """The same but for what the settings say."""
        own = {field.name: getattr(config, field.name) for field in fields(self)}
        return replace(self, **{k: v for k, v in own.items() if v not in (None, "auto")})


# what is measured to suffice (points: 3x64 perceptron; images: residual perceptron or U-Net)
POINTS = Budget("mlp", 5000, 5000, 256, 3e-3, 50_000, 2000)
IMAGES = Budget("resmlp", 6000, 3000, 128, 2e-3, 20_000, 5000)
LARGE = Budget("unet", 20_000, 10_000, 128, 2e-4, 20_000, 5000)


def usual_budget(shape: tuple[int, ...]) -> Budget:
    """The budget that suffices for points or images of a shape."""
    if len(shape) == 1:
        return POINTS
    return IMAGES if math.prod(shape) <= SMALL_IMAGE else LARGE


@dataclass(frozen=True)
class Solvers:
    """The solvers that flows are measured with.

    Attributes:
        plain: name of the one for all.
        tries_renoise: whether renoise stands beside it on reflows, where it is safe.
    """

    plain: str
    tries_renoise: bool

    def at(self, steps: int, *, gap: float, is_reflow: bool) -> tuple[str, ...]:
        """Their names for a number of steps, on a flow of this first-order gap."""
        is_safe = is_reflow and gap < RENOISE_GAP and steps in RENOISE_STEPS
        return (self.plain, "renoise") if self.tries_renoise and is_safe else (self.plain,)


@dataclass(frozen=True)
class FlowPlan:
    """A study of flows: which are trained, and how they are measured.

    Attributes:
        config: the settings of flows; filled in by `check`.
        seeds: each with a split and networks of its own.
        steps: at which numbers of steps flows are measured.
        path: between source and target.
        predicts: what networks predict.
        coupling: of the first flow.
        solvers: of the samples.
        stages: the networks of one seed, in order.
        budget: that of points until `check` has seen the data.
        data: opened when first asked for.
    """

    config: FlowConfig
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    path: AffinePath
    predicts: Prediction
    coupling: Callable[[Source], Coupling]
    solvers: Solvers
    stages: tuple[Stage, ...]
    budget: Budget
    data: FlowData

    @property
    def step(self) -> Any:
        """The solver of one evaluation per step that suits the path."""
        return flow.euler if self.path.is_straight else flow.natural_euler

    @property
    def label_drop(self) -> float:
        """Share of the labels dropped in training."""
        return self.config.label_drop if self.config.conditional else 0.0

    @property
    def last(self) -> Stage:
        """The flow that the study is about: the last of the first recipe that was named."""
        named = [s for s in self.stages if s.recipe.name == self.config.recipe[0]]
        return named[-1] if named else self.stages[0]

    def filled(self, shape: tuple[int, ...]) -> FlowPlan:
        """The plan for data of this shape."""
        budget = usual_budget(shape).given(self.config)
        config = replace(self.config, steps=self.steps, **asdict(budget))
        return replace(self, config=config, budget=budget)

    def fitting(self, stage: Stage, seed: int) -> tuple[FitConfig, int]:
        """The settings of a stage's training, and its updates per epoch."""
        budget = self.budget
        updates = budget.updates if stage.start is None else budget.reflow_updates
        per_epoch = updates_per_epoch(updates)
        is_small = budget.model == "mlp"  # which needs neither warmup nor clipping
        config = FitConfig(
            epochs=-(-updates // per_epoch),
            optimizer="adam",
            learning_rate=budget.learning_rate,
            weight_decay=0.0,
            schedule="cosine",
            warmup=0.0 if is_small else 0.03,
            clip=0.0 if is_small else 1.0,
            ema=self.config.ema,
            precision=self.config.precision,
            seed=seed,
            device=self.config.device,
        )
        return config, per_epoch


def updates_per_epoch(updates: int) -> int:
    """A training is cut into epochs of this many updates, between which it can stop and go on."""
    return min(updates, 250)
