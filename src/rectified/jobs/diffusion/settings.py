"""The settings of `rectified diffusion` on a data set, and the plan that they mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal

from rectified.errors import choose
from rectified.flow.losses import LOSSES
from rectified.flow.paths import PATHS
from rectified.jobs.flow import settings as flows
from rectified.jobs.flow.plan import FlowPlan
from rectified.jobs.flow.settings import FlowConfig
from rectified.jobs.options import Numbers, check_minima
from rectified.jobs.values import Listing

FORMS = ("v_prediction", "noise", "target", "edm")
BASE, RECTIFIED = "diffusion", "rd"


def curved_paths() -> list[str]:
    """The names of the paths of diffusion models."""
    return [name for name, path in PATHS.items() if not path.is_straight]


_PATH = "the diffusion's, Stable Diffusion's being scaled_linear: "


@dataclass(frozen=True)
class DiffusionConfig:
    """Rectify a diffusion model on its own (noise, sample) pairs, in whatever form it has.

    Attributes:
        data: digits, a folder or hub name of images, or points as for `rectified flow`.
        limit: use at most this many training examples.
        predict: v_prediction, noise, target, edm.
        loss: of the rectification: auto (squared error of the prediction; for noise, the
            reference code's pseudo-Huber on the target), or squared, huber, target_huber,
            target_squared.
        phases: train a phased model too, first-order in each of so many phases; 1 for none.
        control: train a straight flow and its reflow beside it, at equal budget.
        rounds: models in all: the diffusion model, and its rectifications.
        steps: at which numbers of steps models are measured.
        model: mlp, resmlp, unet or dit; by the data if auto.
        conditional: give the network the class labels (images).
        guidance: weight of guidance when sampling, for a conditional model.
        pair_guidance: the same when pairs are made.
        updates: training steps of the diffusion model.
        rectify_updates: training steps of each rectification.
        batch_size: examples per step.
        learning_rate: at its peak.
        ema: decay of the moving average of the weights.
        pairs: how many are made.
        pair_steps: steps of the solver that makes them.
        samples: generated for each distance.
        image_size: side in pixels that images are resized to.
        precision: float32 or bf16.
        seeds: how many seeds, from 0.
        seed: one seed alone.
        device: auto, cpu or cuda.
    """

    data: str = "digits"
    limit: int | None = None
    path: Annotated[str, Listing(_PATH, curved_paths())] = "vp_linear"
    predict: str = "v_prediction"
    loss: str = "auto"
    phases: int = 1
    control: bool = True
    rounds: int = 2
    steps: Numbers = (1, 2, 4, 8, 50)
    model: Literal["auto", "mlp", "resmlp", "unet", "dit"] = "auto"
    conditional: bool = False
    guidance: float = 1.0
    pair_guidance: float = 1.0
    updates: int | None = None
    rectify_updates: int | None = None
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


DEFAULT = DiffusionConfig()


@dataclass(frozen=True)
class DiffusionPlan:
    """A diffusion model, its rectifications and their control.

    Attributes:
        config: the settings; filled in by `check`.
        flows: the diffusion model with its rectifications; then the straight control, if wanted.
    """

    config: DiffusionConfig
    flows: tuple[FlowPlan, ...]

    def filled(self, flows: tuple[FlowPlan, ...]) -> DiffusionPlan:
        """The plan with flows that have seen the data."""
        budget = asdict(flows[0].budget)
        budget["rectify_updates"] = budget.pop("reflow_updates")
        return DiffusionPlan(replace(self.config, steps=flows[0].steps, **budget), flows)


def resolve(config: DiffusionConfig) -> DiffusionPlan:
    """Make a plan of settings; what is left to the data stays open in its `config`.

    Raises:
        UserError: for a word that is not known or no form of a diffusion, or an impossible number.
    """
    choose("path", config.path, curved_paths())
    choose("prediction", config.predict, list(FORMS))
    check_minima(config, {"phases": 1, "rectify_updates": 1})
    if config.loss != "auto":
        choose("loss", config.loss, ["auto", *LOSSES])
    model = flows.resolve(as_flow(config), first=BASE, phases=config.phases)
    control = replace(flows.resolve(straight(config)), data=model.data)
    return DiffusionPlan(config, (model, control) if config.control else (model,))


def as_flow(config: DiffusionConfig) -> FlowConfig:
    """The settings as those of a flow on a diffusion's path."""
    shared = {
        name: value
        for name, value in asdict(config).items()
        if name in FlowConfig.__dataclass_fields__ and name not in ("loss", "control")
    }
    return FlowConfig(
        **shared,
        recipe=(RECTIFIED,),
        control=False,
        reflow_loss=rectification_loss(config),
        reflow_updates=config.rectify_updates,
    )


def rectification_loss(config: DiffusionConfig) -> str:
    """A noise prediction is compared as the target that it implies, as the reference code does:
    an error in it is multiplied by b / a there, which its own squared error does not see."""
    if config.loss != "auto":
        return config.loss
    return "target_huber" if config.predict == "noise" else "squared"


def straight(config: DiffusionConfig) -> FlowConfig:
    """The control: a straight flow and its reflow, at equal budget."""
    shared = asdict(as_flow(config))
    for name in ("path", "predict", "recipe", "reflow_loss"):
        del shared[name]
    return FlowConfig(**shared, recipe=("2rf",))
