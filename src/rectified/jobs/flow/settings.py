"""The settings of `rectified flow`, and the plan that they mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from rectified import flow
from rectified.errors import UserError, choose
from rectified.flow.couplings import Coupling, Source
from rectified.flow.losses import LOSSES
from rectified.flow.paths import PATHS
from rectified.flow.solvers import SOLVERS
from rectified.flow.times import TIMES
from rectified.jobs.flow.data import FlowData, is_points
from rectified.jobs.flow.plan import POINTS, FlowPlan, Solvers
from rectified.jobs.flow.recipes import FIRST, RECIPES, Recipe, reflow_recipes, stages
from rectified.jobs.options import Numbers, Words, check_minima, seed_list
from rectified.jobs.values import Listing

COUPLINGS: dict[str, Callable[[Source], Coupling]] = {
    "independent": flow.Independent,
    "ot": flow.MinibatchOT,
    "sinkhorn": flow.Sinkhorn,
    "class_ot": lambda source: flow.WithinClass(flow.MinibatchOT(source)),
}
MODELS = ("mlp", "resmlp", "unet", "dit")
_MINIMA = {
    **dict.fromkeys(("rounds", "pair_steps", "updates", "reflow_updates", "batch_size"), 1),
    "image_size": 1,
    "pairs": 10,  # of which one is held out
    "samples": 2,  # a distribution cannot be seen in one point
    "limit": 2,
}
_SOLVER = (
    "of the samples: auto (euler, natural_euler off the straight path; renoise beside it where it "
    "is safe), or "
)


@dataclass(frozen=True)
class FlowConfig:
    """Learn a flow between two sets of samples, straighten it by reflow, generate in few steps.

    Attributes:
        data: target: moons, gaussians8, rings, a .npy or .csv file of points; digits, a folder or
            hub name of images; NAME#CLASS takes one class alone.
        source: gaussian, or (transfer) whatever `data` may be.
        limit: use at most this many training examples.
        recipe: how rounds after the first are trained: 2rf (plain; rd is the same on a diffusion's
            path), 2rf++ (U-shaped times, pseudo-Huber, a perceptual term for images). Several are
            trained on the same pairs.
        control: train plain 2rf beside 2rf++, to see the difference.
        rounds: flows in all: the first, and its reflows.
        distil: train a one-step network on the last pairs of each recipe too, as its own artefact.
        couple: of the first flow: independent, ot (the best within a batch), sinkhorn (nearly), or
            class_ot (the best within a class).
        reflow_times: the same for plain reflow; rf++ has u_shaped, unless this names another.
        loss: squared, norm, huber; target_huber and target_squared compare targets.
        reflow_loss: the same for plain reflow; that of the first flow by default.
        inverted: share of the pairs of a reflow that are real data with their inverted noise.
        steps: at which numbers of steps flows are measured.
        model: mlp, resmlp, unet or dit; by the data if auto.
        conditional: give the network the class labels (images).
        label_drop: share of the labels dropped in training.
        guidance: weight of guidance when sampling, for a conditional flow.
        pair_guidance: the same when pairs are made.
        updates: training steps of the first flow.
        reflow_updates: training steps of each later round.
        batch_size: examples per step.
        learning_rate: at its peak.
        ema: decay of the moving average of the weights.
        pairs: how many are made for a reflow.
        pair_steps: steps of the solver that makes them.
        samples: generated for each distance.
        image_size: side in pixels that images are resized to.
        precision: float32 or bf16.
        seeds: how many seeds, from 0.
        seed: one seed alone.
        device: auto, cpu or cuda.
    """

    data: str = "moons"
    source: str = "gaussian"
    limit: int | None = None
    recipe: Words = ("2rf",)
    control: bool = True
    rounds: int = 2
    distil: bool = False
    path: Annotated[str, Listing("", PATHS)] = "straight"
    predict: Annotated[str, Listing("", flow.PREDICTIONS)] = "velocity"
    couple: str = "independent"
    times: Annotated[str, Listing("law of the first flow: ", TIMES)] = "uniform"
    reflow_times: str | None = None
    loss: str = "squared"
    reflow_loss: str | None = None
    inverted: float = 0.0
    solver: Annotated[str, Listing(_SOLVER, SOLVERS)] = "auto"
    steps: Numbers = (1, 2, 4, 8, 50)
    model: Literal["auto", "mlp", "resmlp", "unet", "dit"] = "auto"
    conditional: bool = False
    label_drop: float = 0.1
    guidance: float = 1.0
    pair_guidance: float = 1.0
    updates: int | None = None
    reflow_updates: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    ema: float = 0.999
    pairs: int | None = None
    pair_steps: int = 50
    samples: int | None = None
    image_size: int | None = None
    precision: Literal["float32", "bf16"] = "float32"
    seeds: int = 3
    seed: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


DEFAULT = FlowConfig()


def resolve(config: FlowConfig, *, first: str = FIRST, phases: int = 1) -> FlowPlan:
    """Make a plan of settings; what is left to the data stays open in its `config`.

    Args:
        config: of flows.
        first: what the flow of round 1 is called in rows.
        phases: of phased rectification, trained beside the rest from the first flow; 1 for none.

    Raises:
        UserError: for a word that is not known, or a number that is impossible.
    """
    seeds = seed_list(config.seeds, config.seed)
    _check_words(config)
    _check_numbers(config)
    _check_together(config)
    _check_kind(config)
    path = PATHS[config.path]
    plain = "euler" if path.is_straight else "natural_euler"
    is_open = config.solver == "auto"
    return FlowPlan(
        config=config,
        seeds=seeds,
        steps=tuple(dict.fromkeys(config.steps)),  # a number named twice is measured once
        path=path,
        predicts=flow.PREDICTIONS[config.predict],
        coupling=COUPLINGS[config.couple],
        solvers=Solvers(plain if is_open else config.solver, tries_renoise=is_open),
        stages=stages(
            Recipe(first, TIMES[config.times], LOSSES[config.loss]()),
            reflow_recipes(
                config.recipe,
                has_control=config.control,
                times=config.reflow_times,
                loss=config.reflow_loss or config.loss,
            ),
            rounds=config.rounds,
            phases=phases,
            has_distilled=config.distil,
        ),
        budget=POINTS.given(config),
        data=FlowData(config.data, config.source, config.limit, config.image_size),
    )


def _check_words(config: FlowConfig) -> None:
    for kind, name, known in (
        ("path", config.path, PATHS),
        ("prediction", config.predict, flow.PREDICTIONS),
        ("coupling", config.couple, COUPLINGS),
        ("time law", config.times, TIMES),
        ("time law", config.reflow_times or "uniform", TIMES),
        ("loss", config.loss, LOSSES),
        ("loss", config.reflow_loss or "squared", LOSSES),
        ("solver", config.solver, ("auto", *SOLVERS)),
        ("model", config.model, ("auto", *MODELS)),
    ):
        choose(kind, name, list(known))
    for name in config.recipe:
        choose("recipe", name, list(RECIPES))
    if not config.recipe or not config.steps:
        raise UserError("recipe and steps must name at least one each")


def _check_numbers(config: FlowConfig) -> None:
    if min(config.steps) < 1:
        raise UserError(f"steps must be at least 1, got {min(config.steps)}")
    check_minima(config, _MINIMA)
    rate = config.learning_rate
    if rate is not None and not 0 < rate < math.inf:
        raise UserError(f"learning_rate must be positive, got {rate:g}")
    for name in ("guidance", "pair_guidance"):
        if not math.isfinite(getattr(config, name)):
            raise UserError(f"{name} must be a number, got {getattr(config, name)}")
    if not 0 <= config.inverted < 1:
        raise UserError(f"inverted must be in [0, 1), got {config.inverted}")
    if not 0 <= config.label_drop <= 1:
        raise UserError(f"label_drop must be in [0, 1], got {config.label_drop}")
    if not 0 <= config.ema < 1:
        raise UserError(f"ema must be in [0, 1), got {config.ema}")


def _check_together(config: FlowConfig) -> None:
    if config.solver == "euler" and not PATHS[config.path].is_straight:
        raise UserError(
            f"euler wastes its steps on the curved path {config.path}: write --solver natural_euler"
        )
    if (config.guidance != 1 or config.pair_guidance != 1) and not config.conditional:
        raise UserError("guidance needs a condition: add --conditional, or leave guidance at 1")
    if config.couple == "class_ot" and not config.conditional:
        raise UserError("coupling class_ot needs class labels: add --conditional")
    if config.source == "gaussian":
        return
    if config.inverted:
        raise UserError("inverted pairs start from noise: leave out --source, or inverted at 0")
    if config.path != "straight":
        raise UserError(
            f"transfer between two sets is learnt on the straight path, got {config.path}"
        )
    if config.conditional:
        raise UserError("a conditional flow starts from noise: leave out --source")


def _check_kind(config: FlowConfig) -> None:
    """See that points are asked for what points have, and images for what images have."""
    if is_points(config.data):
        if config.conditional:
            raise UserError("points have no class labels: leave out --conditional")
        if config.model in ("unet", "dit"):
            raise UserError(f"model {config.model} is for images: write --model mlp for points")
    elif config.model == "mlp":
        raise UserError("model mlp is for points: write --model resmlp, unet or dit for images")
