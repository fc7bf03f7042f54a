"""The settings of `rectified prune`, and what they mean: scores, schedules, stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch

from rectified.data import ImageData, ImageSource
from rectified.errors import UserError, choose
from rectified.jobs.classifiers import Recipe, recipe
from rectified.jobs.options import Words, check_minima, filled, given, seed_list
from rectified.jobs.values import Listing
from rectified.pruning import activate, schedule
from rectified.pruning.cycle import Rewind, Stage
from rectified.pruning.masks import droppable
from rectified.pruning.scores import SCORES, Score, named_score
from rectified.seeds import generator
from rectified.training import FitConfig, accelerator

_OF_RECIPE = ("epochs", "batch_size", "learning_rate", "weight_decay", "optimizer", "together")
_OF_FIT = ("epochs", "optimizer", "learning_rate", "weight_decay", "precision", "device")


@dataclass(frozen=True)
class PruneConfig:
    """Prune a network over several cycles, and measure accuracy and dead neurons in each.

    Attributes:
        data: digits (embedded), a parquet or image folder, or the name of a data set on the hub.
        limit: use at most this many training examples.
        model: mlp, cnn, resnet20, resnet32, resnet56, vgg16, vgg19, vit, or module:factory.
        norm: whether the network has batch norms; `auto` is the model's habit.
        weights: checkpoint to start from (safetensors, or a plain state_dict).
        ap: arms: off, lite, pro; controls: random, any_sign (as lite), off_pro (as pro).
        cycles: prunings, each followed by training.
        rate: share of the remaining weights that a cycle drops.
        ap_rate: the part of it that AP takes, as a share of the remaining weights.
        target: density to reach; takes the place of `rate`, by `schedule`.
        schedule: constant (by rate), geometric, cubic or one_shot (to the target).
        scope: what a score ranks together: global, layer, or a pattern such as 2:4.
        ap_scope: layers that AP may touch: relu (inputs >= 0, a ReLU behind) or all.
        floor: weights that every layer keeps at least.
        rewind: init, epoch:K, lr or finetune.
        fidelity: `reference` reproduces the authors' arithmetic (magnitude, lite and off only).
        epochs: of training, in every cycle.
        batch_size: examples per step.
        learning_rate: at its peak.
        weight_decay: of the optimiser.
        optimizer: sgd, adam or adamw.
        augment: random crops and flips of the training images; by default for colour images.
        precision: float32 or bf16.
        together: networks trained as one module; by default many for an mlp, else one.
        dead_threshold: outputs up to this size count as zero; needed for GELU and SiLU.
        dead_examples: training examples on which dead neurons are counted, at most.
        deploy: also make the network small and fast: lean.safetensors, lean.onnx, times and sizes.
        drop_never_fires: let deployment remove neurons that never fired on `dead_examples`, which
            is a claim about data, not about weights.
        seeds: how many seeds, from 0.
        seed: one seed alone.
        device: auto, cpu or cuda.
    """

    data: str = "digits"
    limit: int | None = None
    model: str = "mlp"
    norm: Literal["auto", "batch", "none"] = "auto"
    weights: str | None = None
    score: Annotated[Words, Listing("pruning methods: ", SCORES)] = ("magnitude",)
    ap: Words = ("off", "lite")
    cycles: int = 10
    rate: float = 0.2
    ap_rate: float = 0.02
    target: float | None = None
    schedule: Literal["constant", "geometric", "cubic", "one_shot"] | None = None
    scope: str = "global"
    ap_scope: Literal["relu", "all"] = "relu"
    floor: int = 1
    rewind: str = "init"
    fidelity: Literal["exact", "reference"] = "exact"
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    optimizer: Literal["sgd", "adam", "adamw"] | None = None
    augment: bool | None = None
    precision: Literal["float32", "bf16"] = "float32"
    together: int | None = None
    dead_threshold: float = 0.0
    dead_examples: int = 10_000
    deploy: bool = False
    drop_never_fires: bool = False
    seeds: int = 3
    seed: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


Layers = Sequence[str] | None  # weights that AP may touch; None: all
StageMaker = Callable[[str, str, int, Layers], list[Stage]]  # of a score, an arm and a seed


@dataclass(frozen=True, eq=False)
class PrunePlan:
    """A study as values, ready to run.

    Attributes:
        config: the settings, with what the model's recipe decides filled in.
        seeds: each gives every arm one network.
        source: the images.
        recipe: builds the network.
        norm: whether it has batch norms.
        fit: how it is trained.
        batch_size: examples per step.
        augment: whether training images are cropped and flipped at random; where the settings
            leave that open, `check` decides by the images.
        rewind: what the weights go back to after a pruning.
        make_stages: the stages of an arm's cycle.
        together: networks that are trained as one module, at most.
        layers: weights that AP may touch, as `check` finds them in the network; None: all.
        notes: what to mind about this network.
    """

    config: PruneConfig
    seeds: tuple[int, ...]
    source: ImageSource
    recipe: Recipe
    norm: bool
    fit: FitConfig
    batch_size: int
    augment: bool
    rewind: Rewind
    make_stages: StageMaker
    together: int
    layers: Layers = None
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """The device on which networks are trained and measured."""
        return accelerator(self.fit.device).device

    def images(self, seed: int) -> ImageData:
        """The splits that a seed decides."""
        return self.source.load(seed=seed, limit=self.config.limit)

    def stages(self, score: str, ap: str, seed: int) -> list[Stage]:
        """The stages of every cycle of an arm."""
        return self.make_stages(score, ap, seed, self.layers)


def resolve(config: PruneConfig) -> PrunePlan:
    """Check the settings, fill in what the model's recipe decides, and say what all of it means.

    Raises:
        UserError: for a name that is not known or a value that is impossible.

    Example:
        >>> plan = resolve(PruneConfig(rewind="epoch:2", seeds=2))
        >>> plan.seeds, plan.rewind, plan.fit.epochs
        ((0, 1), Rewind(kind='epoch', epoch=2), 8)
    """
    made = recipe(config.model)
    _check_names("score", config.score, tuple(SCORES))
    _check_names("ap", config.ap, activate.ARMS)
    seeds = seed_list(config.seeds, config.seed)
    _check_numbers(config)
    _check_fidelity(config)
    config = _with_recipe(config, made)
    plan = PrunePlan(
        config,
        seeds,
        ImageSource(config.data),
        recipe=made,
        norm=config.norm == "batch",
        augment=bool(config.augment),
        make_stages=_stage_maker(config),
        fit=FitConfig(channels_last=made.channels_last, **given(config, *_OF_FIT)),
        rewind=_rewind(config),
        **given(config, "batch_size", "together"),
    )
    for ap in config.ap:
        plan.stages("magnitude", ap, 0)  # refuses shares that there are not
    return plan


def score_of(name: str, seed: int) -> Score:
    """A score that draws what a seed decides, if it draws."""
    return named_score(name, generator(seed, "score"))


def _check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    if not names:
        raise UserError(f"{kind} must name at least one; choose from {', '.join(known)}")
    for name in names:
        choose(kind, name, tuple(known))


def _check_numbers(config: PruneConfig) -> None:
    check_minima(config, {"cycles": 0, "floor": 0, "limit": 2, "batch_size": 2, "together": 1})
    check_minima(config, {"epochs": 0, "dead_examples": 1})
    if config.dead_threshold < 0:
        raise UserError(f"dead_threshold must be at least 0, got {config.dead_threshold}")
    droppable({}, {}, scope=config.scope)  # refuses a scope that there is not


def _check_fidelity(config: PruneConfig) -> None:
    possible = set(config.ap) <= {"off", "lite"} and set(config.score) == {"magnitude"}
    if config.fidelity == "reference" and not (possible and config.target is None):
        raise UserError(
            "fidelity 'reference' goes with score magnitude, ap off or lite, and rate instead of "
            "target"
        )


def _with_recipe(config: PruneConfig, made: Recipe) -> PruneConfig:
    """The settings with everything that they leave open, but for what data decide."""
    config = filled(config, given(made, *_OF_RECIPE))
    config = filled(config, {"schedule": "constant" if config.target is None else "geometric"})
    if config.norm != "auto":
        return config
    return replace(config, norm="batch" if made.norm else "none")


def _rewind(config: PruneConfig) -> Rewind:
    rewind = Rewind.parse(config.rewind)
    if rewind.epoch >= max(1, config.epochs or 0):
        raise UserError(f"rewind epoch must be below epochs ({config.epochs}), got {rewind.epoch}")
    return rewind


def _rate(config: PruneConfig) -> float | schedule.Schedule:
    """The share of the remaining weights that a cycle drops in all."""
    if config.schedule == "constant":
        if config.target is not None:
            raise UserError("schedule constant goes by rate: leave target out, or take geometric")
        schedule.constant(config.rate)
        return config.rate
    if config.target is None:
        raise UserError(f"schedule {config.schedule} needs a target density, such as target 0.05")
    if config.schedule == "one_shot":
        return schedule.one_shot(config.target)
    law = schedule.geometric if config.schedule == "geometric" else schedule.cubic
    return law(config.target, config.cycles)


def _stage_maker(config: PruneConfig) -> StageMaker:
    rate = _rate(config)
    if config.fidelity == "reference":
        return partial(_reference_stages, config)
    return partial(_stages, config, rate)


def _stages(
    config: PruneConfig,
    rate: float | schedule.Schedule,
    score: str,
    ap: str,
    seed: int,
    layers: Layers,
) -> list[Stage]:
    return activate.arm(
        ap,
        score_of(score, seed),
        rate,
        config.ap_rate,
        layers=layers,
        scope=config.scope,
        floor=config.floor,
        generator=generator(seed, "activation"),
    )


def _reference_stages(
    config: PruneConfig, _score: str, ap: str, _seed: int, _layers: Layers
) -> list[Stage]:
    stages = activate.reference_arm(config.rate, config.ap_rate)
    return stages if ap == "lite" else [replace(stages[0], fraction=config.rate)]
