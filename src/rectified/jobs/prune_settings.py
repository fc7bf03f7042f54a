"""What `rectified prune` can be told, and what the words mean: scores, schedules, stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch

from rectified.errors import UserError, choose
from rectified.jobs.classifiers import recipe
from rectified.jobs.options import Words, listing, seed_list
from rectified.pruning import activate, schedule
from rectified.pruning.cycle import Rewind, Stage
from rectified.pruning.masks import droppable
from rectified.pruning.scores import SCORES, Score, named_score
from rectified.training import FitConfig

SCHEDULES = ("constant", "geometric", "cubic", "one_shot")


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
        batch_size: examples a step.
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
    score: Annotated[Words, listing("pruning methods: ", SCORES)] = ("magnitude",)
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


def resolve(config: PruneConfig) -> PruneConfig:
    """Check the settings and fill in what the model's recipe decides.

    Raises:
        UserError: for a name that is not known or a value that is impossible.
    """
    made = recipe(config.model)
    for kind, names, known in (("score", config.score, SCORES), ("ap", config.ap, activate.ARMS)):
        if not names:
            raise UserError(f"{kind} must name at least one; choose from {', '.join(known)}")
        for name in names:
            choose(kind, name, list(known))
    seed_list(config.seeds, config.seed)
    _check_counts(config)
    filled = {
        name: getattr(made, name)
        for name in ("epochs", "batch_size", "learning_rate", "weight_decay", "optimizer")
        if getattr(config, name) is None
    }
    if config.together is None:
        filled["together"] = made.together
    if config.schedule is None:
        filled["schedule"] = "constant" if config.target is None else "geometric"
    if config.norm == "auto":
        filled["norm"] = "batch" if made.norm else "none"
    config = replace(config, **filled)
    _rate(config)
    fit_config(config)
    droppable({}, {}, scope=config.scope)  # refuses a scope that there is not
    rewind = Rewind.parse(config.rewind)
    if rewind.epoch >= max(1, config.epochs or 0):
        raise UserError(f"rewind epoch must be below epochs ({config.epochs}), got {rewind.epoch}")
    for name in config.ap:
        stages_of(config, "magnitude", name, 0, None)
    return config


def _check_counts(config: PruneConfig) -> None:
    minima = {"cycles": 0, "floor": 0, "limit": 2, "batch_size": 2, "together": 1}
    minima |= {"epochs": 0, "dead_examples": 1}
    for name, smallest in minima.items():
        value = getattr(config, name)
        if value is not None and value < smallest:
            raise UserError(f"{name} must be at least {smallest}, got {value}")
    if config.fidelity == "reference" and not (
        set(config.ap) <= {"off", "lite"}
        and set(config.score) == {"magnitude"}
        and config.target is None
    ):
        raise UserError(
            "fidelity 'reference' goes with score magnitude, ap off or lite, and rate instead of "
            "target"
        )
    if config.dead_threshold < 0:
        raise UserError(f"dead_threshold must be at least 0, got {config.dead_threshold}")


def _rate(config: PruneConfig) -> float | schedule.Schedule:
    """The share that a cycle drops in all."""
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


def fit_config(config: PruneConfig) -> FitConfig:
    """How the networks are trained, once the settings are resolved."""
    assert config.epochs is not None
    assert config.learning_rate is not None
    assert config.weight_decay is not None
    assert config.optimizer is not None
    return FitConfig(
        epochs=config.epochs,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        precision=config.precision,
        channels_last=recipe(config.model).channels_last,
        device=config.device,
    )


def score_of(name: str, seed: int) -> Score:
    """A score that draws what a seed decides, if it draws."""
    return named_score(name, torch.Generator().manual_seed(seed))


def stages_of(
    config: PruneConfig, score: str, ap: str, seed: int, layers: Sequence[str] | None
) -> list[Stage]:
    """The stages of one arm of a study."""
    rate = _rate(config)
    if config.fidelity == "reference":
        assert isinstance(rate, float)
        stages = activate.reference_arm(rate, config.ap_rate)
        return stages if ap == "lite" else [replace(stages[0], fraction=rate)]
    return activate.arm(
        ap,
        score_of(score, seed),
        rate,
        config.ap_rate,
        layers=layers,
        scope=config.scope,
        floor=config.floor,
        generator=torch.Generator().manual_seed(seed),
    )
