"""What `rectified flow` can be told, and what the words mean."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from rectified import flow
from rectified.errors import UserError, choose
from rectified.flow.losses import LOSSES
from rectified.flow.paths import PATHS
from rectified.flow.solvers import SOLVERS
from rectified.flow.times import TIMES
from rectified.jobs.options import Numbers, Words, listing, seed_list
from rectified.training import FitConfig

RECIPES = ("2rf", "2rf++", "rd")  # rd: plain, as `rectified diffusion` calls it
COUPLINGS = ("independent", "ot", "sinkhorn", "class_ot")
MODELS = ("mlp", "resmlp", "unet", "dit")
RENOISE_STEPS = range(2, 9)  # where rf++'s update was seen to help
RENOISE_GAP = 0.02  # the largest first-order gap at which it is safe
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
        batch_size: examples a step.
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
    path: Annotated[str, listing("", PATHS)] = "straight"
    predict: Annotated[str, listing("", flow.PREDICTIONS)] = "velocity"
    couple: str = "independent"
    times: Annotated[str, listing("law of the first flow: ", TIMES)] = "uniform"
    reflow_times: str | None = None
    loss: str = "squared"
    reflow_loss: str | None = None
    inverted: float = 0.0
    solver: Annotated[str, listing(_SOLVER, SOLVERS)] = "auto"
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

# what is measured to suffice (points: 3x64 perceptron; images: residual perceptron or U-Net)
_POINTS: dict[str, Any] = {
    "updates": 5000,
    "reflow_updates": 5000,
    "batch_size": 256,
    "learning_rate": 3e-3,
    "pairs": 50_000,
    "samples": 2000,
}
_IMAGES: dict[str, Any] = {
    "updates": 6000,
    "reflow_updates": 3000,
    "batch_size": 128,
    "learning_rate": 2e-3,
    "pairs": 20_000,
    "samples": 5000,
}
_LARGE: dict[str, Any] = _IMAGES | {
    "updates": 20_000,
    "reflow_updates": 10_000,
    "learning_rate": 2e-4,
}
SMALL_IMAGE = 256  # numbers an image up to which a perceptron is enough


def resolve(config: FlowConfig, *, shape: tuple[int, ...]) -> FlowConfig:
    """Fill in what the data decides.

    Args:
        config: checked.
        shape: of one point or image.
    """
    size = 1
    for side in shape:
        size *= side
    is_points = len(shape) == 1
    defaults = _POINTS if is_points else _IMAGES if size <= SMALL_IMAGE else _LARGE
    filled = {name: v for name, v in defaults.items() if getattr(config, name) is None}
    if config.model == "auto":
        filled["model"] = "mlp" if is_points else "resmlp" if size <= SMALL_IMAGE else "unet"
    filled["steps"] = tuple(dict.fromkeys(config.steps))  # a number named twice is measured once
    return replace(config, **filled)


def check(config: FlowConfig) -> None:
    """See that names are known and numbers possible.

    Raises:
        UserError: if not.
    """
    seed_list(config.seeds, config.seed)
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
        choose("recipe", name, RECIPES)
    if not config.recipe or not config.steps:
        raise UserError("recipe and steps must name at least one each")
    if min(config.steps) < 1:
        raise UserError(f"steps must be at least 1, got {min(config.steps)}")
    _check_numbers(config)
    if config.solver == "euler" and not PATHS[config.path].is_straight:
        raise UserError(
            f"euler wastes its steps on the curved path {config.path}: write --solver natural_euler"
        )
    if (config.guidance != 1 or config.pair_guidance != 1) and not config.conditional:
        raise UserError("guidance needs a condition: add --conditional, or leave guidance at 1")
    if config.couple == "class_ot" and not config.conditional:
        raise UserError("coupling class_ot needs class labels: add --conditional")
    if config.inverted and config.source != "gaussian":
        raise UserError("inverted pairs start from noise: leave out --source, or inverted at 0")


_TWO = (("samples", 2), ("limit", 2))


def _check_numbers(config: FlowConfig) -> None:
    counts = ("rounds", "pair_steps", "updates", "reflow_updates", "batch_size", "image_size")
    # of 10 pairs one is held out; a distribution cannot be seen in one point
    for name, smallest in (*((name, 1) for name in counts), ("pairs", 10), *_TWO):
        value = getattr(config, name)
        if value is not None and value < smallest:
            raise UserError(f"{name} must be at least {smallest}, got {value}")
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


def recipes(config: FlowConfig) -> tuple[str, ...]:
    """The ways in which reflows are trained, plain first where it is the control."""
    named = tuple(dict.fromkeys(config.recipe))
    adds = config.control and "2rf++" in named and "2rf" not in named
    return ("2rf", *named) if adds else named


def training(config: FlowConfig, *, seed: int, is_first: bool) -> FitConfig:
    """How a round is trained: `epochs` of `UPDATES_AN_EPOCH` updates."""
    updates = config.updates if is_first else config.reflow_updates
    assert updates is not None
    assert config.learning_rate is not None
    return FitConfig(
        epochs=-(-updates // updates_an_epoch(updates)),
        optimizer="adam",
        learning_rate=config.learning_rate,
        weight_decay=0.0,
        schedule="cosine",
        warmup=0.0 if config.model == "mlp" else 0.03,  # a small perceptron needs neither
        clip=0.0 if config.model == "mlp" else 1.0,
        ema=config.ema,
        precision=config.precision,
        seed=seed,
        device=config.device,
    )


def updates_an_epoch(updates: int) -> int:
    """A training is cut into parts of this many updates, between which it can stop and go on."""
    return min(updates, 250)
