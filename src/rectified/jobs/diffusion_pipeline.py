"""`rectified diffusion --pipeline`: few steps for a pipeline of diffusers, in its own form.

The pipeline makes pairs of noise and samples, a copy of its UNet is trained on them (or, in phases,
on the pipeline itself), and a pipeline is written that plain diffusers code samples in few steps.
There is no data to compare with: samples are compared with those that the teacher makes of the same
held-out noise and prompts in many steps.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rectified import flow
from rectified.errors import UserError
from rectified.flow import Field, PairStore, Phased, diffusers
from rectified.flow.diffusers import Budget, InPieces, PipelineBatches
from rectified.jobs import flow_report, flow_settings
from rectified.jobs.options import Numbers, seed_list
from rectified.jobs.pictures import save_grid
from rectified.runs import Run
from rectified.training import FitConfig, Objective, choose_device, evaluating, fit

TEACHER, RECTIFIED, PHASED = "teacher", "rd", "phased"
SHARD = 64  # pairs a file: minutes of a large pipeline, which is what a kill can cost
GEOMETRY_STEPS = 100  # of the grid on which bends are measured
HELD_OUT = 900_000_000  # seed of noise that no pair begins at
_SHOWN, _SHOWN_SIDE = 6, 48  # pictures in the report, and their side in pixels at most
_RATES = {False: 5e-6, True: 1e-4}  # of all weights (the reference code's), and of LoRA

Row = dict[str, Any]


@dataclass(frozen=True)
class PipelineConfig:
    """Rectify a pipeline of diffusers on its own (noise, sample) pairs.

    Attributes:
        pipeline: a folder that diffusers wrote, or a name on the Hugging Face hub.
        prompts: a text file of prompts, one a line; pair i has prompt i modulo their number.
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
        batch_size: examples a step; worked on in parts where memory runs out.
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
        """What a run's folder is named after."""
        return self.pipeline


def run_pipeline(
    config: PipelineConfig, folder: Run, facts: Mapping[str, Any], progress: bool
) -> str:
    """Do the study and write its folder; the student is in `pipeline/` there.

    Args:
        config: the settings; what is left open is resolved.
        folder: where the results go; nothing is written before the settings prove possible.
        facts: the environment, for the record.
        progress: whether to show progress bars.

    Returns:
        A short text with what was found.
    """
    study = _Study(resolve(config), folder, progress)
    folder.begin("diffusion", asdict(study.config), facts)
    arms = study.go_on()
    return study.finish(arms, facts)


def resolve(config: PipelineConfig) -> PipelineConfig:
    """Check the settings and fill in the learning rate.

    Raises:
        UserError: for a value that is impossible.
    """
    if not config.pipeline:
        raise UserError("pipeline must be a folder or a name on the Hugging Face hub, got none")
    seed_list(config.seeds, config.seed)
    minima = {
        "pairs": 1,
        "pair_steps": 1,
        "phases": 1,
        "phase_steps": 1,
        "rectify_updates": 1,
        "batch_size": 1,
        "lora_rank": 0,
        "samples": 1,
    }
    for name, smallest in minima.items():
        if getattr(config, name) < smallest:
            raise UserError(f"{name} must be at least {smallest}, got {getattr(config, name)}")
    if not config.steps or min(config.steps) < 1:
        raise UserError(f"steps must be numbers of at least 1, got {config.steps}")
    if not 0 <= config.text_drop < 1:
        raise UserError(f"text_drop must be in [0, 1), got {config.text_drop}")
    for name in ("guidance", "pair_guidance"):
        if not getattr(config, name) >= 1:
            raise UserError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.phases > 1 and config.loss == "prediction":
        raise UserError("phases compare where steps arrive: leave out the loss 'prediction'")
    rate = config.learning_rate or _RATES[config.lora_rank > 0]
    filled = replace(config, learning_rate=rate, steps=tuple(dict.fromkeys(config.steps)))
    training(filled, 0)
    return filled


def training(config: PipelineConfig, seed: int) -> FitConfig:
    """How a student is trained: as the reference code, with warmup and clipped gradients."""
    assert config.learning_rate is not None
    return FitConfig(
        epochs=_epochs(config.rectify_updates)[0],
        optimizer="adamw",
        learning_rate=config.learning_rate,
        weight_decay=1e-3,
        schedule="constant",
        clip=1.0,
        precision=config.precision,
        ema=config.ema,
        seed=seed,
        device=config.device,
    )


def _epochs(updates: int) -> tuple[int, int]:
    """Epochs, between which a training can stop and go on, and updates in each.

    Example:
        >>> _epochs(300)
        (2, 150)
    """
    epochs = -(-updates // flow_settings.updates_an_epoch(updates))
    return epochs, -(-updates // epochs)


@dataclass
class Arm:
    """A teacher or a student that was measured.

    Attributes:
        rows: distance by steps.
        note: what else is to be known.
        shown: pictures (steps, images, ...), of the first seed.
    """

    rows: list[Row] = field(default_factory=list)
    note: dict[str, Any] = field(default_factory=dict)
    shown: Tensor | None = None


class _Study:
    """The work of one run. Making one checks everything that can be known to fail."""

    def __init__(self, config: PipelineConfig, folder: Run, progress: bool) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.seeds = seed_list(config.seeds, config.seed)
        self.device = choose_device(config.device)
        self.pipeline = diffusers.load_pipeline(config.pipeline, self.device)
        self.prompts = self._prompts()
        self.teacher, self.own = diffusers.pipeline_field(self.pipeline, self.prompts)
        self.schedule = diffusers.changed(self.own, config.schedule, config.predict)
        self.shape = diffusers.sample_shape(self.pipeline)
        self.said: list[str] = []
        self.budget = Budget(config.batch_size, self.say)
        if config.lora_rank:  # whether the UNet takes it is known when it is there
            diffusers.make_student(self.teacher, self.schedule, lora_rank=config.lora_rank)

    def _prompts(self) -> tuple[str, ...]:
        config = self.config
        read = diffusers.read_prompts(Path(config.prompts)) if config.prompts else ()
        return (*config.prompt, *read)

    def say(self, words: str) -> None:
        """Tell the user something now, and again in the report."""
        self.said.append(words)
        self.folder.log({"event": "note", "words": words})
        if self.progress:
            print(f"rectified: {words}", file=sys.stderr)

    # --- the order of the work ---

    def go_on(self) -> dict[tuple[int, str], Arm]:
        """Do what is left to do; returns everything that was measured."""
        for path, predicts in dict.fromkeys(
            (one.path, one.predicts) for one in (self.own, self.schedule)
        ):
            warning = flow.gain_warning(path, predicts)
            if warning:
                self.say(warning)
        self.store, self.skipped = self.make_pairs()
        arms: dict[tuple[int, str], Arm] = {}
        for seed in self.seeds:
            first = self.kept(seed, TEACHER) if seed == self.seeds[0] else None
            if seed == self.seeds[0]:
                arms[seed, TEACHER] = first or self.measure(seed, TEACHER, self.teacher)
            arms[seed, self.recipe] = self.kept(seed, self.recipe) or self.work(seed)
        return arms

    @property
    def recipe(self) -> str:
        """What the student is called in rows."""
        return PHASED if self.config.phases > 1 else RECTIFIED

    def kept(self, seed: int, recipe: str) -> Arm | None:
        """What a run that is resumed has measured already."""
        saved = self.folder.store(f"{recipe}-{seed}").load() if self.folder.resume else None
        return None if saved is None else Arm(**saved)

    def work(self, seed: int) -> Arm:
        """Train and measure one student; the first seed's is written as a pipeline."""
        student, losses = self.train(seed)
        unet = diffusers.trained_unet(student)
        if seed == self.seeds[0] and self.folder.writer:
            place = self.folder.path / "pipeline"
            diffusers.save_pipeline(self.pipeline, unet, self.schedule, place)
        return self.measure(seed, self.recipe, student, {"losses": losses})

    # --- pairs and training ---

    def make_pairs(self) -> tuple[PairStore, int]:
        """The teacher's pairs, made where they are missing, and how many were skipped."""
        config = self.config
        place = self.folder.path / "pairs"
        words = "\n".join(self.prompts)
        store = PairStore(
            place,
            count=config.pairs,
            shard=SHARD,
            seed=1_000_000,
            identity={
                "model": flow.fingerprint(self.pipeline.unet),
                "prompts": hashlib.sha256(words.encode()).hexdigest()[:16],
                "steps": config.pair_steps,
                "guidance": config.pair_guidance,
                "precision": config.precision,
            },
        )
        if self.prompts:
            self.folder.write_text("pairs/prompts.txt", f"{words}\n")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            skipped = diffusers.make_pipeline_pairs(
                self.teacher,
                self.own,
                store,
                self.shape,
                self.budget,
                prompts=len(self.prompts),
                steps=config.pair_steps,
                guidance=config.pair_guidance,
                device=self.device,
                progress="pairs" if self.progress else "",
            )
        if skipped:
            self.say(f"{skipped} of {config.pairs} samples were not finite and are left out")
        return store, skipped

    def train(self, seed: int) -> tuple[Field, list[float]]:
        """One student."""
        config = self.config
        student = diffusers.make_student(
            self.teacher,
            self.schedule,
            lora_rank=config.lora_rank,
            gradient_checkpointing=config.gradient_checkpointing,
        )
        batches = PipelineBatches(
            self.store,
            size=config.batch_size,
            updates=_epochs(config.rectify_updates)[1],
            seed=seed,
            with_noise=self.recipe == RECTIFIED,
        )
        losses = fit(
            student.network,
            InPieces(self.objective(), self.budget),
            batches,
            training(config, seed),
            store=self.folder.store(f"training-{seed}"),
            progress=f"seed {seed} training" if self.progress else "",
        )
        student.network.eval()
        return student, losses

    def objective(self) -> Objective:
        """On pairs; or, in phases, on the teacher."""
        config, schedule = self.config, self.schedule
        drop = config.text_drop if self.prompts else 0.0
        if self.recipe == RECTIFIED:
            return diffusers.rectification(schedule, loss=config.loss, text_drop=drop)
        return Phased(
            self.teacher,
            config.phases,
            config.phase_steps,
            config.pair_guidance,
            path=schedule.path,
            predicts=schedule.predicts,
            # whole levels, where phases hold whole numbers of them
            times=flow.Discrete(max(schedule.levels // config.phases, 1)),
            label_drop=drop,
        )

    # --- measuring ---

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor | None]:
        """Noise that no pair begins at, and prompts for it."""
        count = self.config.samples
        x0 = flow.noise_like((count, *self.shape), HELD_OUT).to(self.device)
        if not self.prompts:
            return x0, None
        return x0, torch.arange(count, device=self.device) % len(self.prompts)

    def solved(self, steps: int) -> Tensor:
        """What the teacher makes of the held-out noise, in the solver that makes pairs."""
        x0, labels = self.held_out

        def part(rows: slice) -> Tensor:
            own = None if labels is None else labels[rows]
            return diffusers.solve(
                self.teacher,
                self.own,
                x0[rows],
                steps=steps,
                labels=own,
                guidance=self.config.pair_guidance,
            )

        return self.budget.over(len(x0), part)

    @cached_property
    def reference(self) -> Tensor:
        """The teacher's samples in many steps."""
        return self.solved(self.config.pair_steps)

    @cached_property
    def floor(self) -> float:
        """How far the teacher is from itself in twice as many steps: the solver's own error."""
        return self.distance(self.solved(2 * self.config.pair_steps))

    def distance(self, samples: Tensor) -> float:
        """Mean squared difference from the teacher's samples, in units of their mean square."""
        apart = (samples - self.reference).double().square().mean()
        return float(apart / self.reference.double().square().mean())

    def measure(
        self, seed: int, recipe: str, known: Field, more: Mapping[str, Any] | None = None
    ) -> Arm:
        """Geometry, and distance at each number of steps, of a teacher or student."""
        config = self.config
        guidance = config.pair_guidance if recipe == TEACHER else config.guidance
        x0, labels = self.held_out

        def given(rows: slice) -> Field:
            return known if labels is None else known.given(labels[rows], guidance)

        def bends(size: int) -> tuple[flow.Straightness, float]:
            part = slice(0, size)
            bent = flow.straightness(
                given(part), x0[part], steps=GEOMETRY_STEPS, step=flow.natural_euler
            )
            return bent, flow.first_order_gap(given(part), x0[part], steps=GEOMETRY_STEPS)

        rows, shown = [], []
        with evaluating(known.network):
            bent, gap = self.budget.run(bends)
            for steps in config.steps:
                samples = self.budget.over(len(x0), _sampled(given, x0, steps))
                rows.append(
                    {
                        "seed": seed,
                        "round": 1 if recipe == TEACHER else 2,
                        "recipe": recipe,
                        "solver": "natural_euler",
                        "steps": steps,
                        "distance": self.distance(samples),
                        "distance_name": "teacher",
                        "straightness": bent.total,
                        "transport_cost": bent.total / bent.relative if bent.relative else None,
                        "first_order_gap": gap,
                        "evaluations": steps * (2 if labels is not None and guidance != 1 else 1),
                    }
                )
                shown.append(self.pictures(samples[:_SHOWN]))
        note = {
            "straightness_relative": bent.relative,
            "first_order_gap": gap,
            "floor": self.floor,
            "terminal_gain": flow.terminal_gain(known.path, known.predicts),
            "skipped": self.skipped,
            "pairs_used": config.pairs - self.skipped,
            "protocol": f"{config.samples} held-out noises, against the pipeline in "
            f"{config.pair_steps} steps of DPM-Solver++ at guidance {config.pair_guidance:g}; "
            f"students at guidance {config.guidance:g}, all trained on the same pairs",
            **(more or {}),
        }
        arm = Arm(rows, note, torch.stack(shown) if seed == self.seeds[0] else None)
        self.folder.store(f"{recipe}-{seed}").save(vars(arm))
        for row in rows:
            self.folder.log({"event": "measured", **row})
        return arm

    def pictures(self, samples: Tensor) -> Tensor:
        """Pictures in [-1, 1] of a few samples, small enough for a page."""
        found = self.budget.over(
            len(samples), lambda rows: diffusers.decode(self.pipeline, samples[rows]).cpu()
        )
        scale = _SHOWN_SIDE / max(found.shape[-2:])
        if scale < 1:
            found = F.interpolate(found, scale_factor=scale, mode="area")
        return found.clamp(-1, 1)

    # --- the results ---

    def finish(self, arms: Mapping[tuple[int, str], Arm], facts: Mapping[str, Any]) -> str:
        """Write page and results."""
        rows = [row for arm in arms.values() for row in arm.rows]
        results: dict[str, Any] = {
            "verb": "diffusion",
            "config": asdict(self.config),
            "environment": dict(facts),
            "rows": rows,
            "summary": flow_report.summarise(rows),
            "notes": {
                f"seed {seed}, {recipe}": {
                    "seed": seed,
                    "recipe": recipe,
                    "round": 1 if recipe == TEACHER else 2,
                    **arm.note,
                }
                for (seed, recipe), arm in arms.items()
            },
            "warnings": list(dict.fromkeys(self.said)),
        }
        shown: dict[str, Any] = {}
        for (_, recipe), arm in arms.items():
            if arm.shown is not None:
                number = 1 if recipe == TEACHER else 2
                rounded = torch.round(arm.shown.double() * 1000).div(1000)
                shown[flow_report.named(recipe, number)] = rounded.tolist()
        student = arms[self.seeds[0], self.recipe].shown
        if self.folder.writer and student is not None:
            save_grid(self.folder.path / "samples.png", student[0])
        details = {"notes": results["notes"], "shown": shown}
        self.folder.write_json("details.json", details)
        self.folder.write_text("report.html", flow_report.page(results, details))
        self.folder.write_results(**results)
        place = self.folder.path / "pipeline"
        where = f"pipeline: {place} (guidance_scale {self.config.guidance:g})"
        return f"{flow_report.text(results)}\n{where}"


def _sampled(given: Any, x0: Tensor, steps: int) -> Any:
    def part(rows: slice) -> Tensor:
        return flow.generate(given(rows), x0[rows], steps=steps, step=flow.natural_euler)[0]

    return part
