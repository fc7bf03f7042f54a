"""The settings of `rectified protein`, and what its presets fill in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from rectified.errors import UserError, choose
from rectified.jobs.options import Numbers, check_minima, filled, given, seed_list
from rectified.protein.model import FlowModel
from rectified.protein.se3_flow import FrameLoss
from rectified.protein.structure_files import ChainRules, ChainSet
from rectified.training import FitConfig


@dataclass(frozen=True)
class ProteinConfig:
    """Train a flow of protein backbones, rectify it, sample and measure.

    What is left open is the preset's.

    Attributes:
        data: a folder of PDB or mmCIF files (also gzipped), one such file, or an npz set.
        preset: tiny (minutes on 2 cores), small, or reqflow, the published settings.
        checkpoint: begin with these weights instead of training: a published folder (config.yaml
            and a .ckpt), or a run of ours. With epochs, they are trained further.
        rounds: 1 is the first flow; each more is a reflow.
        lengths: residues of the samples.
        steps: evaluations of the network for a sample; several, to be compared.
        samples: for each length and number of steps.
        rot_step: how rotations move: exact, euler (the reference's steps), linear.
        crop: residues that a chain shows in training; 0 for whole chains.
        shortest: residues of a chain that is used, at least.
        longest: residues, at most.
        coil: share of residues in neither helix nor strand, at most, of chains that are used.
        compactness: radius of gyration over 2.2 n^0.38, at most, of chains that are used.
        transport: assign noise to the chains of a batch by optimal transport.
        late_times: share of the times drawn from the last third alone.
        epochs: of the first flow.
        batch_size: chains per step.
        learning_rate: at its peak.
        bonds: weight of the distances between neighbouring residues in the loss.
        pairs: of noise and sample that a reflow learns from, made anew for each length.
        pair_steps: evaluations for each of them.
        keep: share of the pairs that is kept, those with the best bonds and fewest clashes.
        reflow_epochs: of each reflow.
        reflow_rate: learning rate of each reflow, at its peak.
        pair_precision: of residue pairs in training: float32 or bf16; samples are made in float32.
        compile: train through torch.compile.
        mpnn: ProteinMPNN's folder; with it and esm-fold, designability is measured too.
        seeds: how many seeds, from 0.
        seed: one seed alone.
        device: auto, cpu or cuda.
    """

    data: str = ""
    preset: Literal["tiny", "small", "reqflow"] = "tiny"
    checkpoint: str | None = None
    rounds: int = 2
    lengths: Numbers | None = None
    steps: Numbers = (100, 20, 10, 5)
    samples: int = 64
    rot_step: Literal["exact", "euler", "linear"] = "exact"
    crop: int | None = None
    shortest: int | None = None
    longest: int | None = None
    coil: float = 1.0
    compactness: float = 10.0
    transport: bool | None = None
    late_times: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    bonds: float | None = None
    pairs: int | None = None
    pair_steps: int | None = None
    keep: float = 0.75
    reflow_epochs: int | None = None
    reflow_rate: float | None = None
    pair_precision: Literal["float32", "bf16"] | None = None
    compile: bool = False
    mpnn: str | None = None
    seeds: int = 1
    seed: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


PRESETS: dict[str, dict[str, object]] = {
    "tiny": {
        "lengths": (48,),
        "crop": 48,
        "shortest": 48,
        "longest": 512,
        "transport": False,
        "late_times": 0.3,
        "epochs": 90,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "bonds": 20.0,
        "pairs": 512,
        "pair_steps": 50,
        "reflow_epochs": 24,
        "reflow_rate": 4e-4,
        "pair_precision": "bf16",
    },
    "small": {
        "lengths": (60, 100),
        "crop": 100,
        "shortest": 60,
        "longest": 512,
        "transport": False,
        "late_times": 0.3,
        "epochs": 600,
        "batch_size": 16,
        "learning_rate": 5e-4,
        "bonds": 5.0,
        "pairs": 2048,
        "pair_steps": 100,
        "reflow_epochs": 30,
        "reflow_rate": 2e-4,
        "pair_precision": "bf16",
    },
    "reqflow": {
        "lengths": (100, 200, 300),
        "crop": 0,
        "shortest": 60,
        "longest": 512,
        "transport": False,
        "late_times": 0.0,
        "epochs": 600,
        "batch_size": 128,
        "learning_rate": 1e-4,
        "bonds": 0.0,
        "pairs": 4096,
        "pair_steps": 500,
        "reflow_epochs": 10,
        "reflow_rate": 1e-4,
        "pair_precision": "float32",
    },
}
PUBLISHED = "reqflow"


@dataclass(frozen=True, eq=False)
class Plan:
    """The plan of a run.

    Attributes:
        config: the settings, with what the preset decides.
        seeds: of the trainings.
        lengths: residues of the samples.
        rules: which chains are used.
        loss: the objective.
        first: how the first flow is trained, but for the seed.
        reflow: how each reflow is.
        batch_size: chains per step.
        late_times: share of the times drawn from the last third alone.
        transport: whether noise is assigned to chains by optimal transport.
        pairs: that a reflow learns from, for each length.
        pair_steps: evaluations for each of them.
        pair_dtype: of residue pairs in training.
        chains: that are used; `check` reads them.
        start: weights to begin with; `check` reads them.
    """

    config: ProteinConfig
    seeds: tuple[int, ...]
    lengths: tuple[int, ...]
    rules: ChainRules
    loss: FrameLoss
    first: FitConfig
    reflow: FitConfig
    batch_size: int
    late_times: float
    transport: bool
    pairs: int
    pair_steps: int
    pair_dtype: torch.dtype
    chains: ChainSet = field(default_factory=ChainSet)
    start: FlowModel | None = None

    def fit(self, seed: int, number: int) -> FitConfig:
        """The settings of a round's training."""
        return replace(self.first if number == 1 else self.reflow, seed=seed)


def resolve(config: ProteinConfig) -> Plan:
    """Check the settings and fill in what the preset decides.

    Raises:
        UserError: for a name that is not known or a value that is impossible.

    Example:
        >>> resolve(ProteinConfig(data="chains.npz")).lengths
        (48,)
    """
    choose("preset", config.preset, list(PRESETS))
    choose("rot_step", config.rot_step, ["exact", "euler", "linear"])
    seeds = seed_list(config.seeds, config.seed)
    untrained = {"epochs": 0} if config.checkpoint is not None else {}
    config = filled(config, PRESETS[config.preset] | untrained)
    if not config.data and (config.epochs or config.checkpoint is None):
        raise UserError(
            "data must be a folder of PDB or mmCIF files, or an npz set: write --data PATH"
        )
    _check_numbers(config)
    known: Any = config  # the preset has left nothing open
    return Plan(
        config,
        seeds,
        rules=ChainRules(max(known.shortest, known.crop), known.longest),
        loss=FrameLoss(bonds=known.bonds),
        first=_training(config, known.epochs, known.learning_rate),
        reflow=_training(config, known.reflow_epochs, known.reflow_rate),
        pair_dtype=torch.bfloat16 if known.pair_precision == "bf16" else torch.float32,
        **given(known, "lengths", "batch_size", "late_times", "pairs", "pair_steps", "transport"),
    )


def _check_numbers(config: ProteinConfig) -> None:
    minima = {"rounds": 1, "samples": 2, "batch_size": 1, "pairs": 2, "pair_steps": 2, "crop": 0}
    check_minima(config, minima)
    for name, smallest in (("lengths", 10), ("steps", 2)):
        values = getattr(config, name)
        if not values:
            raise UserError(f"{name} must hold at least one number, got none")
        for value in values:
            if value < smallest:
                raise UserError(f"{name} must be at least {smallest}, got {value}")
    if config.crop and config.crop < 10:
        raise UserError(f"crop must be 0 or at least 10, got {config.crop}")
    for name in ("keep", "coil", "late_times"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{name} must be in [0, 1], got {getattr(config, name)}")
    if not config.compactness > 0:
        raise UserError(f"compactness must be positive, got {config.compactness}")
    if round(config.keep * int(config.pairs or 0)) < 1:
        raise UserError(f"keep must leave at least one pair, got {config.keep} of {config.pairs}")


def _training(config: ProteinConfig, epochs: int, rate: float) -> FitConfig:
    as_published = config.preset == PUBLISHED
    return FitConfig(
        epochs=epochs,
        optimizer="adamw",
        learning_rate=rate,
        weight_decay=0.01,  # AdamW's own
        schedule="constant" if as_published else "cosine",
        warmup=0.0 if as_published else 0.03,
        clip=0.0 if as_published else 1.0,
        ema=0.0 if as_published else 0.998,
        compile=config.compile,
        device=config.device,
    )
