"""The work of one `rectified protein`: trainings, pairs and measurements, each kept when done.

Within a seed: a first flow is trained (or loaded), measured, and turned into pairs; a reflow learns
from them and is measured, as often as there are rounds. All flows of a seed are given the same
noise when they are measured, so that they can be compared sample by sample.

What a kill may cost is one shard of pairs, one measurement, or what `training.fit` has not kept
yet.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rectified import seeds
from rectified.errors import UserError
from rectified.flow.pairs import PairStore, fill, fingerprint
from rectified.jobs import protein_report
from rectified.jobs.options import seed_list
from rectified.jobs.protein_settings import ProteinConfig, fit_config, loss, rules
from rectified.protein.chain_sets import load_chains, select
from rectified.protein.chains import Chain, ChainBatches, PairBatches, uniform_times
from rectified.protein.checkpoints import load_checkpoint, metadata
from rectified.protein.designability import Tools, designable_share, self_consistency
from rectified.protein.folds import diversity, helix_and_strand, library, tm_scores
from rectified.protein.frames import Frames
from rectified.protein.geometry import Geometry, histogram_distance, measure, ramachandran, torsions
from rectified.protein.model import FlowModel, sized
from rectified.protein.sampling import Samples, sample
from rectified.protein.se3_flow import prior
from rectified.protein.structure_files import ChainSet, pdb_text
from rectified.runs import CHECKPOINT, Run
from rectified.statistics import interval
from rectified.training import choose_device, evaluating, fit

_TOGETHER = 40_000  # residue pairs that are sampled at once
_SHARD = 64  # pairs a file: what a kill may cost
_COMPARED = 16  # samples whose folds are compared with one another
_SHOWN = 3  # samples of a point in the report
_WRITTEN = 8  # samples of a point as files
_REAL = 256  # windows of real chains that samples are compared with
_LATE = 0.7  # where the last third of the times begins
_LISTED = 20  # files that could not be used, in the report
ROW = ("ca_bond_valid", "clashes_per_100", "helix", "strand", "radius_of_gyration")

Row = dict[str, Any]


@dataclass
class Found:
    """What the study has found so far; kept in the checkpoint.

    Attributes:
        rows: one a seed, round, length and number of steps, as in results.json.
        points: the same with the values of every sample, and more measures.
        losses: mean loss of every epoch, by the name of the training.
        shown: backbones as PDB texts, by what made them.
    """

    rows: list[Row] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    shown: dict[str, list[str]] = field(default_factory=dict)


class Study:
    """The work of one `run`."""

    def __init__(self, config: ProteinConfig, folder: Run, progress: bool) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.seeds = seed_list(config.seeds, config.seed)
        self.store = folder.store("study")
        saved = self.store.load() if folder.resume else None
        self.found = Found(**saved) if saved else Found()
        self.chains = ChainSet()
        self.started = time.monotonic()

    def check(self) -> None:
        """Everything that can be known to fail, before anything is written."""
        config = self.config
        self.device = choose_device(config.device)
        library("biotite.structure"), library("gemmi")
        if config.data:
            chains = load_chains(Path(config.data), rules(config))
            limits = {"largest_coil": config.coil, "largest_compactness": config.compactness}
            train = select(chains.train, **limits)
            self.chains = ChainSet(train, select(chains.held_out, **limits), chains.refused)
            if config.epochs:
                self._batches(0)
        self.start = load_checkpoint(Path(config.checkpoint)) if config.checkpoint else None
        if config.mpnn:
            Tools(Path(config.mpnn)).check()

    def run_seed(self, seed: int) -> None:
        """All rounds of one seed."""
        model = self._first_flow(seed)
        self._measure_all(model, seed, 1)
        for number in range(2, self.config.rounds + 1):
            model = self._reflow(model, seed, number)
            self._measure_all(model, seed, number)

    def _batches(self, seed: int) -> ChainBatches:
        config = self.config
        assert config.batch_size is not None
        return ChainBatches(
            self.chains.train,
            config.batch_size,
            crop=config.crop or None,
            seed=seed,
            transport=bool(config.transport),
            times=self._times,
        )

    def _times(self, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
        """Uniform, but for a share that is drawn from the last third alone."""
        t = uniform_times(count, generator)
        is_late = torch.rand(count, generator=generator) < (self.config.late_times or 0.0)
        return torch.where(is_late, _LATE + (1 - _LATE) * t, t)

    def _new(self, seed: int) -> FlowModel:
        if self.start is not None:
            model = FlowModel(self.start.sizes)
            model.load_state_dict(self.start.state_dict())
            return model
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return sized(self.config.preset)

    def _first_flow(self, seed: int) -> FlowModel:
        return self._trained(self._new(seed), seed, 1, lambda: self._batches(seed))

    def _reflow(self, model: FlowModel, seed: int, number: int) -> FlowModel:
        following = FlowModel(model.sizes)
        following.load_state_dict(model.state_dict())
        return self._trained(following, seed, number, lambda: self._pairs(model, seed, number))

    def _trained(self, model: FlowModel, seed: int, number: int, batches: Any) -> FlowModel:
        """The flow of one round: read if it is there, trained and kept if not."""
        name = f"round{number}-seed{seed}"
        kept = self.folder.store(f"weights-{name}")
        state = kept.load()
        if state is None:
            settings = fit_config(self.config, seed=seed, reflow=number > 1)
            half = self.config.pair_precision == "bf16"
            model.pair_precision = torch.bfloat16 if half else torch.float32
            words = f"round {number}" if self.progress else ""
            losses = (
                fit(
                    *(model, loss(self.config), batches(), settings),
                    store=self.folder.store(f"training-{name}"),
                    progress=words,
                )
                if settings.epochs
                else []
            )
            model.pair_precision = torch.float32
            self.found.losses[name] = losses
            self.folder.log({"event": "trained", "seed": seed, "round": number, "losses": losses})
            self.store.save(vars(self.found))
            state = {key: value.cpu() for key, value in model.state_dict().items()}
            kept.save(state)
        model.load_state_dict(state)
        return model.to(self.device).eval()

    def _pairs(self, model: FlowModel, seed: int, number: int) -> PairBatches:
        """Pairs of noise and sample of the flow so far, the best of them."""
        config = self.config
        assert config.pairs is not None
        assert config.pair_steps is not None
        assert config.lengths is not None
        assert config.batch_size is not None
        steps, chosen = config.pair_steps, []
        for length in config.lengths:
            store = PairStore(
                self.folder.path / CHECKPOINT / f"pairs-round{number}-seed{seed}-{length}",
                count=config.pairs,
                shard=_SHARD,
                seed=(seed + 1) * 1_000_003 + length,  # a prime: no two shards share their noise
                identity={"model": fingerprint(model), "steps": steps, "length": length},
            )

            def make(shard_seed: int, count: int, length: int = length) -> dict[str, Tensor]:
                noise = prior(count, length, generator=torch.Generator().manual_seed(shard_seed))
                made = self._sampled(model, noise, steps)
                return {
                    "x0": noise.translations,
                    "q0": noise.quaternions,
                    "x1": made.translations.cpu(),
                    "q1": made.quaternions.cpu(),
                }

            fill(store, make, progress=f"pairs of {length}" if self.progress else "")
            chosen.append(best_pairs(store.load(), config.keep))
        return PairBatches(chosen, config.batch_size, seed=seed, times=self._times)

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

    def _sample(self, model: FlowModel, noise: Frames, steps: int, **more: Any) -> Samples:
        count, length = noise.translations.shape[:2]
        with evaluating(model):
            return sample(
                *(model, count, length),
                steps=steps,
                rot_step=self.config.rot_step,
                noise=noise.to(self.device),
                **more,
            )

    def _measure_all(self, model: FlowModel, seed: int, number: int) -> None:
        done = {(p["seed"], p["round"], p["length"], p["steps"]) for p in self.found.points}
        assert self.config.lengths is not None
        for length in self.config.lengths:
            for steps in self.config.steps:
                if (seed, number, length, steps) not in done:
                    self._measure(model, seed, number, length, steps)
        name = "model" if number == self.config.rounds else f"round{number}"
        if seed == self.seeds[0]:
            words = {**metadata(model), "verb": "protein", "round": str(number)}
            self.folder.write_weights(model.state_dict(), words, f"{name}.safetensors")

    def _measure(self, model: FlowModel, seed: int, number: int, length: int, steps: int) -> None:
        """One point: samples, their measures, some of them as files."""
        noise = prior(
            self.config.samples, length, generator=seeds.generator(seed, length, "samples")
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
        if self.config.mpnn:
            tools = Tools(Path(self.config.mpnn))
            deviations = self_consistency(list(atoms[:_WRITTEN]), tools)
            point["designable"] = designable_share(deviations)
        self._write_samples(model, made, noise, place)
        self.found.rows.append(row)
        self.found.points.append(point)
        self.folder.log({"event": "measured", **row})
        self.store.save(vars(self.found))

    def _write_samples(
        self, model: FlowModel, made: Frames, noise: Frames, place: Mapping[str, int]
    ) -> None:
        if place["seed"] != self.seeds[0] or not self.folder.writer:
            return
        name = f"round{place['round']}-length{place['length']}-steps{place['steps']}"
        folder = self.folder.path / "samples"
        folder.mkdir(exist_ok=True)
        texts = [pdb_text([atoms]) for atoms in made[:_WRITTEN].atoms()]
        for number, text in enumerate(texts):
            self.folder.write_text(f"samples/{name}-{number:02d}.pdb", text)
        if place["steps"] == min(self.config.steps):
            self.found.shown[name] = texts[:_SHOWN]
            way = self._sample(model, noise[:1], place["steps"], keep_states=True).states
            models = [state.to("cpu").atoms()[0] for state in way]
            self.folder.write_text(f"samples/{name}-way.pdb", pdb_text(models))
        elif place["steps"] == max(self.config.steps):
            self.found.shown[name] = texts[:_SHOWN]

    def real(self) -> dict[str, Any]:
        """The same measures of windows of real chains, held out ones where there are some."""
        found: dict[str, Any] = {}
        assert self.config.lengths is not None
        for length in self.config.lengths:
            whole = [c for c in self.chains.held_out if len(c) >= length]
            whole = whole or [c for c in self.chains.train if len(c) >= length]
            if not whole:
                continue
            atoms = torch.stack(list(windows(whole, length)))
            found[str(length)] = {"values": measures(atoms), **shape(atoms), "chains": len(whole)}
        return found

    def finish(self, facts: Mapping[str, Any]) -> str:
        """Write tables, page and results."""
        real = self.real()
        for point in self.found.points:
            if str(point["length"]) in real:
                theirs = torch.tensor(real[str(point["length"])]["ramachandran"])
                ours = torch.tensor(point["ramachandran"])
                point["ramachandran_distance"] = histogram_distance(ours, theirs)
        details: dict[str, Any] = {
            "points": self.found.points,
            "real": real,
            "losses": self.found.losses,
            "shown": self.found.shown,
            "refused": {
                "count": len(self.chains.refused),
                "first": self.chains.refused[:_LISTED],
            },
            "chains": {"train": len(self.chains.train), "held_out": len(self.chains.held_out)},
            "parameters": sum(p.numel() for p in self._new(0).parameters()),
            "seconds": time.monotonic() - self.started,
        }
        results: dict[str, Any] = {
            "verb": "protein",
            "config": asdict(self.config),
            "environment": dict(facts),
            "rows": self.found.rows,
            "summary": summarise(self.found.rows),
        }
        self.folder.write_json("details.json", details)
        self.folder.write_text("report.html", protein_report.page(results, details))
        self.folder.write_results(**results)
        return protein_report.text(results, details)


def measures(atoms: Float[Tensor, "chains residues atoms 3"]) -> dict[str, list[float]]:
    """Every measure of every chain."""
    geometry = measure(atoms)
    values = {one.name: getattr(geometry, one.name).tolist() for one in fields(Geometry)}
    folds = [helix_and_strand(one[:, 1]) for one in atoms]
    values["helix"], values["strand"] = ([fold[k] for fold in folds] for k in (0, 1))
    return values


def shape(atoms: Float[Tensor, "chains residues atoms 3"]) -> dict[str, Any]:
    """Torsions of all chains together, and how different some of them are."""
    phi, psi, _ = torsions(atoms)
    scores = tm_scores([one[:, 1] for one in atoms[:_COMPARED]])
    mean, clusters = diversity(scores)
    return {
        "ramachandran": ramachandran(phi, psi).tolist(),
        "tm_score": mean,
        "clusters": clusters,
    }


def windows(chains: list[Chain], length: int) -> Iterator[Float[Tensor, "length 4 3"]]:
    """Windows of real chains, in turns, each chain's at another place."""
    generator = seeds.generator(0, length, "windows")
    for n in range(max(len(chains), _REAL)):
        chain = chains[n % len(chains)]
        start = int(torch.randint(len(chain) - length + 1, (1,), generator=generator))
        yield chain.atoms[start : start + length]


def best_pairs(tensors: Mapping[str, Tensor], keep: float) -> tuple[Frames, Frames]:
    """Pairs whose samples have the best bonds and the fewest clashes.

    Args:
        tensors: x0, q0, x1, q1 of all pairs.
        keep: the share that is kept.

    Raises:
        UserError: if nothing is left.
    """
    noise = Frames(tensors["x0"], tensors["q0"])
    data = Frames(tensors["x1"], tensors["q1"])
    found = measure(data.atoms())
    # a clash in 100 residues counts as much as 2 % of the bonds
    quality = found.ca_bond_valid + found.peptide_valid - 0.02 * found.clashes_per_100
    count = round(keep * len(noise))
    if count < 1:
        raise UserError(f"keep must leave at least one pair, got {keep} of {len(noise)}")
    chosen = quality.topk(count).indices.sort().values
    return noise[chosen], data[chosen]


def summarise(rows: list[Row]) -> list[dict[str, Any]]:
    """Means over seeds of every round, length and number of steps.

    Example:
        >>> row = {"seed": 0, "round": 1, "steps": 10, "length": 48, "seconds_per_sample": 0.1}
        >>> summarise([{**row, **dict.fromkeys(ROW, 0.5)}])[0]["ca_bond_valid_mean"]
        0.5
    """
    groups: dict[tuple[int, int, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["round"], row["steps"], row["length"]), []).append(row)
    return [
        {
            "round": number,
            "steps": steps,
            "length": length,
            **{
                f"{name}_mean": interval(row[name] for row in group).mean
                for name in (*ROW, "seconds_per_sample")
            },
            "n": len(group),
        }
        for (number, steps, length), group in groups.items()
    ]
