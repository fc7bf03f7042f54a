"""`rectified diffusion`: few steps for a diffusion model, ours on a data set or one of `diffusers`.

On a data set: train a diffusion model on its path, rectify it on its own (noise, sample) pairs in
its own form, and train a straight flow and its reflow at equal budget beside it. On a pipeline
folder or hub name: rectify the model that is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rectified import flow
from rectified.errors import UserError, choose
from rectified.jobs import flow as flow_job
from rectified.jobs import flow_settings
from rectified.jobs.diffusion_pipeline import PipelineConfig, run_pipeline
from rectified.jobs.flow_settings import FlowConfig
from rectified.jobs.flow_study import FlowStudy
from rectified.jobs.options import Numbers, listing
from rectified.runs import Run

FORMS = ("v_prediction", "noise", "target", "edm")
BASE, RECTIFIED = "diffusion", "rd"


def curved_paths() -> list[str]:
    """The names of the paths of diffusion models."""
    return [name for name, path in flow_settings.PATHS.items() if not path.is_straight]


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
        batch_size: examples a step.
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
    path: Annotated[str, listing(_PATH, curved_paths())] = "vp_linear"
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
PIPELINE = PipelineConfig()


def run(
    config: DiffusionConfig | PipelineConfig,
    folder: Run,
    facts: Mapping[str, Any],
    progress: bool,
) -> str:
    """Do the study and write its folder.

    Args:
        config: the settings; what is left open is resolved.
        folder: where the results go; nothing is written before the settings prove possible.
        facts: the environment, for the record.
        progress: whether to show progress bars.

    Returns:
        A short text with what was found.
    """
    if isinstance(config, PipelineConfig):
        return run_pipeline(config, folder, facts, progress)
    check(config)
    main = FlowStudy(as_flow(config), folder, progress, first=BASE, phases=config.phases)
    studies = [main]
    if config.control:
        studies.append(FlowStudy(straight(config), folder, progress, beside=main))
    filled = asdict(config) | {"rectify_updates": main.config.reflow_updates}
    return flow_job.run_studies("diffusion", studies, filled, facts)


def check(config: DiffusionConfig) -> None:
    """See that the form is one of diffusion, and numbers possible.

    Raises:
        UserError: if not.
    """
    choose("path", config.path, curved_paths())
    choose("prediction", config.predict, list(FORMS))
    for name in ("phases", "rectify_updates"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if config.loss != "auto":
        choose("loss", config.loss, ["auto", *flow_settings.LOSSES])


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


def sample_run(folder: Path, **options: Any) -> str:
    """Samples from a finished run; see `rectified.jobs.flow.sample_run`.

    Raises:
        UserError: for a run on a pipeline, which diffusers samples.
    """
    if (folder / "pipeline").is_dir():
        raise UserError(
            f"{folder} rectified a pipeline: sample it with diffusers, "
            f"DiffusionPipeline.from_pretrained({str(folder / 'pipeline')!r})"
        )
    return flow_job.sample_run(folder, **options)


assert set(FORMS) <= set(flow.PREDICTIONS)
