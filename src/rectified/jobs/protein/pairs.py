"""Pairs of noise and sample that a reflow learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from rectified.errors import UserError
from rectified.flow.pairs import PairStore, fill, fingerprint
from rectified.jobs.job import Context
from rectified.jobs.protein.settings import Plan
from rectified.protein.frames import Frames
from rectified.protein.geometry import measure
from rectified.protein.model import FlowModel
from rectified.protein.se3_flow import prior
from rectified.runs import CHECKPOINT
from rectified.seeds import generator

_SHARD = 64  # pairs per file: what a kill may cost

Sampler = Callable[[FlowModel, Frames, int], Frames]
"""Samples of a flow from given noise, in so many steps."""


def make_pairs(
    plan: Plan, context: Context, model: FlowModel, name: str, seed: int, sampler: Sampler
) -> list[tuple[Frames, Frames]]:
    """The best pairs of a flow, for each length; those that are kept already are not made again.

    Args:
        plan: how many, in how many steps, and the share that is kept.
        context: whose checkpoint keeps them.
        model: the flow so far.
        name: of the training that they are for.
        seed: of the noise.
        sampler: makes the samples.
    """
    chosen = []
    for length in plan.lengths:
        store = PairStore(
            context.folder.path / CHECKPOINT / f"pairs-{name}-{length}",
            count=plan.pairs,
            shard=_SHARD,
            seed=(seed + 1) * 1_000_003 + length,  # a prime: no two shards share their noise
            identity={"model": fingerprint(model), "steps": plan.pair_steps, "length": length},
        )

        def make(shard_seed: int, count: int, length: int = length) -> dict[str, Tensor]:
            noise = prior(count, length, generator=generator(shard_seed, "pairs"))
            made = sampler(model, noise, plan.pair_steps)
            return {
                "x0": noise.translations,
                "q0": noise.quaternions,
                "x1": made.translations.cpu(),
                "q1": made.quaternions.cpu(),
            }

        fill(store, make, progress=context.words(f"pairs of {length}"))
        chosen.append(best_pairs(store.load(), plan.config.keep))
    return chosen


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
    measured = measure(data.atoms())
    # a clash in 100 residues counts as much as 2 % of the bonds
    quality = measured.ca_bond_valid + measured.peptide_valid - 0.02 * measured.clashes_per_100
    count = round(keep * len(noise))
    if count < 1:
        raise UserError(f"keep must leave at least one pair, got {keep} of {len(noise)}")
    chosen = quality.topk(count).indices.sort().values
    return noise[chosen], data[chosen]
