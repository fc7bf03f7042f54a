"""The work of `rectified protein`: trainings, pairs and measurements, each kept when done.

Within a seed: a first flow is trained (or loaded), measured, and turned into pairs; a reflow learns
from them and is measured, as often as there are rounds. All flows of a seed are given the same
noise when they are measured, so that they can be compared sample by sample.

What a kill may cost is one shard of pairs, one measurement, or what `training.fit` has not kept
yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.jobs.job import Context, Findings, Results
from rectified.jobs.protein.measuring import (
    ROW,
    compare_torsions_,
    measures,
    real,
    shape,
    summarise,
)
from rectified.jobs.protein.pairs import make_pairs
from rectified.jobs.protein.places import point_name, training_name
from rectified.jobs.protein.report import verdicts
from rectified.jobs.protein.settings import Plan
from rectified.protein.chain_sets import load_chains, select
from rectified.protein.chains import ChainBatches, PairBatches, uniform_times
from rectified.protein.checkpoints import load_checkpoint, metadata
from rectified.protein.designability import Tools, designable_share, self_consistency
from rectified.protein.folds import library
from rectified.protein.frames import Frames
from rectified.protein.model import FlowModel, sized
from rectified.protein.sampling import Samples, sample
from rectified.protein.se3_flow import prior
from rectified.protein.structure_files import ChainSet, pdb_text
from rectified.seeds import generator, seeded
from rectified.statistics import interval
from rectified.training import Batches, choose_device, evaluating, fit

_TOGETHER = 40_000  # residue pairs that are sampled at once
_SHOWN = 3  # samples of a point in the report
_WRITTEN = 8  # samples of a point as files
_LATE = 0.7  # where the last third of the times begins
_LISTED = 20  # files that could not be used, in the report

Row = dict[str, Any]


def check(plan: Plan) -> Plan:
    """Read chains and weights, and see that the libraries and tools are there.

    Raises:
        UserError: if something is missing, or no chain can be used.
    """
    config = plan.config
    choose_device(config.device)
    library("biotite.structure"), library("gemmi")
    if config.data:
        chains = load_chains(Path(config.data), plan.rules)
        limits = {"largest_coil": config.coil, "largest_compactness": config.compactness}
        train = select(chains.train, **limits)
        used = ChainSet(train, select(chains.held_out, **limits), chains.refused)
        plan = replace(plan, chains=used)
        if plan.first.epochs:
            chain_batches(plan, 0)
    if config.checkpoint:
        plan = replace(plan, start=load_checkpoint(Path(config.checkpoint)))
    if config.mpnn:
        Tools(Path(config.mpnn)).check()
    return plan


def run(plan: Plan, context: Context) -> Findings:
    """All rounds of all seeds that are left."""
    started = time.monotonic()
    saved = context.folder.store("study").load() if context.folder.resume else None
    study = _Study(plan, context, Progress(**(saved or {})))
    for seed in plan.seeds:
        study.run_seed(seed)
    state = study.state
    reference = real(plan.chains, plan.lengths)
    compare_torsions_(state.points, reference)
    chains = plan.chains
    details = {
        "points": state.points,
        "real": reference,
        "losses": state.losses,
        "shown": state.shown,
        "refused": {"count": len(chains.refused), "first": chains.refused[:_LISTED]},
        "chains": {"train": len(chains.train), "held_out": len(chains.held_out)},
        "parameters": sum(p.numel() for p in new_model(plan, 0).parameters()),
        "seconds": time.monotonic() - started,
    }
    judged = verdicts(plan.config.rounds, plan.config.steps, plan.lengths, state.points)
    return Findings(state.rows, summarise(state.rows), judged, details=details)


def network(results: Results) -> FlowModel:
    """The flow of the last round."""
    return load_checkpoint(results.folder / "model.safetensors")


def chain_batches(plan: Plan, seed: int) -> ChainBatches:
    """The batches that a first flow learns from."""
    return ChainBatches(
        plan.chains.train,
        plan.batch_size,
        crop=plan.config.crop or None,
        seed=seed,
        transport=plan.transport,
        times=times(plan),
    )


def times(plan: Plan) -> Callable[[int, torch.Generator], Float[Tensor, " count"]]:
    """Uniform times, but for a share that is drawn from the last third alone."""

    def draw(count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
        t = uniform_times(count, generator)
        is_late = torch.rand(count, generator=generator) < plan.late_times
        return torch.where(is_late, _LATE + (1 - _LATE) * t, t)

    return draw


def new_model(plan: Plan, seed: int) -> FlowModel:
    """The network before its first training."""
    if plan.start is not None:
        return copied(plan.start)
    with seeded(seed, "network"):
        return sized(plan.config.preset)


def copied(model: FlowModel) -> FlowModel:
    """A network with the same weights."""
    made = FlowModel(model.sizes)
    made.load_state_dict(model.state_dict())
    return made


@dataclass
class Progress:
    """The work that is done; kept in the checkpoint.

    Attributes:
        rows: one per seed, round, length and number of steps, as in results.json.
        points: the same with the values of every sample, and more measures.
        losses: mean loss of every epoch, by the name of the training.
        shown: backbones as PDB texts, by the name of the point.
    """

    rows: list[Row] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    shown: dict[str, list[str]] = field(default_factory=dict)


class _Study:
    """The rounds of a run, with what they share."""

    def __init__(self, plan: Plan, context: Context, state: Progress) -> None:
        self.plan, self.context, self.state = plan, context, state
        self.device = choose_device(plan.config.device)
        self.store = context.folder.store("study")

    def run_seed(self, seed: int) -> None:
        """All rounds of one seed."""
        plan = self.plan
        model = self._trained(new_model(plan, seed), seed, 1, lambda: chain_batches(plan, seed))
        self._measure_all(model, seed, 1)
        for number in range(2, plan.config.rounds + 1):
            model = self._reflow(model, seed, number)
            self._measure_all(model, seed, number)

    def _reflow(self, model: FlowModel, seed: int, number: int) -> FlowModel:
        plan, name = self.plan, training_name(number, seed)

        def batches() -> PairBatches:
            pairs = make_pairs(plan, self.context, model, name, seed, self._sampled)
            return PairBatches(pairs, plan.batch_size, seed=seed, times=times(plan))

        return self._trained(copied(model), seed, number, batches)

    def _trained(
        self, model: FlowModel, seed: int, number: int, batches: Callable[[], Batches]
    ) -> FlowModel:
        """The flow of one round: read if it is there, trained and kept if not."""
        name = training_name(number, seed)
        kept = self.context.folder.store(f"weights-{name}")
        state = kept.load()
        if state is None:
            losses = self._fit(model, name, seed, number, batches)
            self.state.losses[name] = losses
            event = {"event": "trained", "seed": seed, "round": number, "losses": losses}
            self.context.folder.log(event)
            self.store.save(vars(self.state))
            state = {key: value.cpu() for key, value in model.state_dict().items()}
            kept.save(state)
        model.load_state_dict(state)
        return model.to(self.device).eval()

    def _fit(
        self, model: FlowModel, name: str, seed: int, number: int, batches: Callable[[], Batches]
    ) -> list[float]:
        settings = self.plan.fit(seed, number)
        if not settings.epochs:
            return []
        model.pair_precision = self.plan.pair_dtype
        losses = fit(
            model,
            self.plan.loss,
            batches(),
            settings,
            store=self.context.folder.store(f"training-{name}"),
            progress=self.context.words(f"round {number}"),
        )
        model.pair_precision = torch.float32
        return losses

    def _sampled(self, model: FlowModel, noise: Frames, steps: int) -> Frames:
        """Samples from given noise, some at a time."""
        together = max(1, _TOGETHER // noise.translations.shape[1] ** 2)
        parts = [
            self._sample(model, noise[first : first + together], steps).frames
            for first in range(0, len(noise), together)
        ]
        return Frames(
            torch.cat([part.translations for part in parts]),
            torch.cat([part.quaternions for part in parts]),
        )

    def _sample(
        self, model: FlowModel, noise: Frames, steps: int, *, keep_states: bool = False
    ) -> Samples:
        count, length = noise.translations.shape[:2]
        with evaluating(model):
            return sample(
                model,
                count,
                length,
                steps=steps,
                rot_step=self.plan.config.rot_step,
                noise=noise.to(self.device),
                keep_states=keep_states,
            )

    def _measure_all(self, model: FlowModel, seed: int, number: int) -> None:
        done = {(p["seed"], p["round"], p["length"], p["steps"]) for p in self.state.points}
        for length in self.plan.lengths:
            for steps in self.plan.config.steps:
                if (seed, number, length, steps) not in done:
                    self._measure(model, seed, number, length, steps)
        name = "model" if number == self.plan.config.rounds else f"round{number}"
        if seed == self.plan.seeds[0]:
            words = {**metadata(model), "verb": "protein", "round": str(number)}
            self.context.folder.write_weights(model.state_dict(), words, f"{name}.safetensors")

    def _measure(self, model: FlowModel, seed: int, number: int, length: int, steps: int) -> None:
        """One point: samples, their measures, some of them as files."""
        noise = prior(
            self.plan.config.samples, length, generator=generator(seed, length, "samples")
        )
        begun = time.perf_counter()
        made = self._sampled(model, noise, steps).to("cpu")
        seconds = (time.perf_counter() - begun) / len(noise)
        atoms = made.atoms()
        values = measures(atoms)
        place = {"seed": seed, "round": number, "steps": steps, "length": length}
        row = {**place, **{name: interval(values[name]).mean for name in ROW}}
        row["seconds_per_sample"] = seconds
        point: dict[str, Any] = {**place, "values": values, "seconds_per_sample": seconds}
        point |= shape(atoms)
        if self.plan.config.mpnn:
            tools = Tools(Path(self.plan.config.mpnn))
            deviations = self_consistency(list(atoms[:_WRITTEN]), tools)
            point["designable"] = designable_share(deviations)
        self._write_samples(model, made, noise, place)
        self.state.rows.append(row)
        self.state.points.append(point)
        self.context.folder.log({"event": "measured", **row})
        self.store.save(vars(self.state))

    def _write_samples(
        self, model: FlowModel, made: Frames, noise: Frames, place: Mapping[str, int]
    ) -> None:
        folder = self.context.folder
        if place["seed"] != self.plan.seeds[0] or not folder.writer:
            return
        name = point_name(place)
        (folder.path / "samples").mkdir(exist_ok=True)
        texts = [pdb_text([atoms]) for atoms in made[:_WRITTEN].atoms()]
        for number, text in enumerate(texts):
            folder.write_text(f"samples/{name}-{number:02d}.pdb", text)
        fewest, most = min(self.plan.config.steps), max(self.plan.config.steps)
        if place["steps"] in (fewest, most):
            self.state.shown[name] = texts[:_SHOWN]
        if place["steps"] == fewest:
            way = self._sample(model, noise[:1], fewest, keep_states=True).states
            models = [state.to("cpu").atoms()[0] for state in way]
            folder.write_text(f"samples/{name}-way.pdb", pdb_text(models))
