"""The settings of `rectified diffusion --pipeline`, and the plan that they mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rectified.errors import UserError
from rectified.jobs.flow.plan import updates_per_epoch
from rectified.jobs.options import Numbers, check_minima, seed_list
from rectified.jobs.pipeline.teacher import Teacher
from rectified.training import FitConfig

TEACHER, RECTIFIED, PHASED = "teacher", "rd", "phased"
_RATES = {False: 5e-6, True: 1e-4}  # of all weights (the reference code's), and of LoRA
_MINIMA = {
    "pairs": 1,
    "pair_steps": 1,
    "phases": 1,
    "phase_steps": 1,
    "rectify_updates": 1,
    "batch_size": 1,
    "lora_rank": 0,
    "samples": 1,
}


@dataclass(frozen=True)
class PipelineConfig:
    """Rectify a pipeline of diffusers on its own (noise, sample) pairs.

    Attributes:
        pipeline: a folder that diffusers wrote, or a name on the Hugging Face hub.
        prompts: a text file of prompts, one per line; pair i has prompt i modulo their number.
        prompt: prompts written out, instead of or beside the file.
        pairs: how many are made.
        pair_steps: steps of DPM-Solver++ that make them.
        pair_guidance: weight of guidance when pairs are made, baked into them.
        schedule: of the student: keep, linear (betas as in the authors' script) or flow (the
            straight path).
        predict: by the student: keep, noise, v_prediction, target.
        loss: auto (target where noise is predicted, else prediction), prediction (squared error
            of what is predicted) or target (elementwise pseudo-Huber).
        phases: 1 rectifies the whole; more train a student that is first-order in each phase, with
            the pipeline as its frozen teacher and the pairs' samples as data.
        phase_steps: of the teacher, a phase.
        steps: at which numbers of steps students are measured.
        guidance: weight of guidance when the student is sampled.
        text_drop: share of the prompts that are dropped in training, for guidance.
        rectify_updates: training steps.
        batch_size: examples per step; worked on in parts where memory runs out.
        learning_rate: 5e-6, or 1e-4 for LoRA, by default.
        ema: decay of the moving average of the weights.
        lora_rank: train low-rank updates (peft) of this rank; 0 trains all weights.
        gradient_checkpointing: less memory, more time.
        precision: of pairs and training: float32 or bf16.
        samples: held-out noise that is measured on.
        seeds: how many trainings on the same pairs, with seeds from 0.
        seed: one seed alone.
        device: auto, cpu or cuda.
    """

    pipeline: str = ""
    prompts: str | None = None
    prompt: tuple[str, ...] = ()
    pairs: int = 1000
    pair_steps: int = 25
    pair_guidance: float = 5.0
    schedule: Literal["keep", "linear", "flow"] = "keep"
    predict: Literal["keep", "noise", "v_prediction", "target"] = "keep"
    loss: Literal["auto", "prediction", "target"] = "auto"
    phases: int = 1
    phase_steps: int = 10
    steps: Numbers = (1, 2, 4)
    guidance: float = 1.5
    text_drop: float = 0.1
    rectify_updates: int = 1000
    batch_size: int = 16
    learning_rate: float | None = None
    ema: float = 0.999
    lora_rank: int = 0
    gradient_checkpointing: bool = False
    precision: Literal["float32", "bf16"] = "float32"
    samples: int = 16
    seeds: int = 1
    seed: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def data(self) -> str:
        """The name that a run's folder has."""
        return self.pipeline


DEFAULT = PipelineConfig()


@dataclass(frozen=True)
class PipelinePlan:
    """The teacher, and how students of it are trained.

    Attributes:
        config: the settings, with the learning rate.
        seeds: each a training on the same pairs.
        fitting: how a student is trained, but for its seed: as the reference code, with warmup and
            clipped gradients.
        updates: in each of its epochs.
        teacher: the pipeline, loaded when first asked for.
    """

    config: PipelineConfig
    seeds: tuple[int, ...]
    fitting: FitConfig
    updates: int
    teacher: Teacher

    @property
    def student(self) -> str:
        """The name of students in rows."""
        return PHASED if self.config.phases > 1 else RECTIFIED


def resolve(config: PipelineConfig) -> PipelinePlan:
    """Make a plan of settings.

    Raises:
        UserError: for a value that is impossible.
    """
    if not config.pipeline:
        raise UserError("pipeline must be a folder or a name on the Hugging Face hub, got none")
    seeds = seed_list(config.seeds, config.seed)
    _check_numbers(config)
    if config.phases > 1 and config.loss == "prediction":
        raise UserError("phases compare where steps arrive: leave out the loss 'prediction'")
    rate = config.learning_rate or _RATES[config.lora_rank > 0]
    filled = replace(config, learning_rate=rate, steps=tuple(dict.fromkeys(config.steps)))
    epochs, updates = _epochs(config.rectify_updates)
    fitting = FitConfig(
        epochs=epochs,
        optimizer="adamw",
        learning_rate=rate,
        weight_decay=1e-3,
        schedule="constant",
        clip=1.0,
        precision=config.precision,
        ema=config.ema,
        device=config.device,
    )
    return PipelinePlan(filled, seeds, fitting, updates, _teacher(config))


def _teacher(config: PipelineConfig) -> Teacher:
    return Teacher(
        config.pipeline,
        prompts=config.prompt,
        file=config.prompts,
        schedule=config.schedule,
        predict=config.predict,
        device=config.device,
    )


def _check_numbers(config: PipelineConfig) -> None:
    check_minima(config, _MINIMA)
    if not config.steps or min(config.steps) < 1:
        raise UserError(f"steps must be numbers of at least 1, got {config.steps}")
    if not 0 <= config.text_drop < 1:
        raise UserError(f"text_drop must be in [0, 1), got {config.text_drop}")
    for name in ("guidance", "pair_guidance"):
        if not getattr(config, name) >= 1:
            raise UserError(f"{name} must be at least 1, got {getattr(config, name)}")


def _epochs(updates: int) -> tuple[int, int]:
    """Epochs, between which a training can stop and go on, and updates in each.

    Example:
        >>> _epochs(300)
        (2, 150)
    """
    epochs = -(-updates // updates_per_epoch(updates))
    return epochs, -(-updates // epochs)
