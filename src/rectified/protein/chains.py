"""Chains of residues, and batches of them for training: all of one length, no padding.

An epoch shows one chain of each cluster of similar sequences, so that families with many known
structures do not outweigh the others. With a crop, each chain shows a window of that many residues,
drawn anew every epoch; without, chains are sorted into buckets of nearly equal length and cut to
the shortest of their batch. Either way a batch has one length, and nothing is computed for
residues that do not exist.

Everything about epoch `e` follows from `(seed, e)`: order, windows, noise, times and the coin of
self-conditioning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rectified import seeds
from rectified.errors import UserError
from rectified.protein.frames import Frames, atoms_to_frames
from rectified.protein.se3_flow import (
    FIRST_TIME,
    LAST_TIME,
    Batch,
    assign_noise,
    packed,
    training_noise,
)

BUCKET = 8  # residues by which chains of a batch may differ before they are cut

TimeLaw = Callable[[int, torch.Generator], Float[Tensor, " count"]]


@dataclass(frozen=True)
class Chain:
    """One chain of one structure, without gaps in its atoms.

    Attributes:
        name: for messages and files: `1UBQ_A`.
        atoms: N, CA, C, O of each residue, Angstrom.
        index: numbers of the residues, from 1; a gap in them is a gap in the chain.
        sequence: one letter per residue.
        cluster: of similar sequences; chains of cluster -1 stand for themselves.
    """

    name: str
    atoms: Float[Tensor, "residues 4 3"]
    index: Int64[Tensor, " residues"]
    sequence: str
    cluster: int = -1

    def __len__(self) -> int:
        return len(self.atoms)

    def frames(self) -> Frames:
        """Frames around the mean C-alpha."""
        return atoms_to_frames(self.atoms).centred()


def uniform_times(count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """The reference's law of times: uniform."""
    return torch.rand(count, generator=generator)


class ChainBatches:
    """Batches of noise and chains, epoch by epoch. Fits `rectified.training.Batches`.

    Args:
        chains: at least one that is long enough.
        size: chains per batch, at most.
        crop: residues that each chain shows; None for whole chains.
        seed: of everything that is drawn.
        pairs: residue pairs per batch, at most: long chains come in smaller batches.
        transport: whether noise is assigned to the chains of a batch by optimal transport.
        times: law of the times, in [0, 1]; stretched over [0.01, 0.99].

    Raises:
        UserError: if no chain is as long as `crop`.
    """

    def __init__(
        self,
        chains: Sequence[Chain],
        size: int,
        *,
        crop: int | None,
        seed: int = 0,
        pairs: int = 500_000,
        transport: bool = False,
        times: TimeLaw = uniform_times,
    ) -> None:
        chains = [chain for chain in chains if crop is None or len(chain) >= crop]
        if not chains:
            raise UserError(f"no chain has {crop} residues: lower crop, or give longer chains")
        self.size, self.crop, self.seed = size, crop, seed
        self.pairs, self.transport, self.times = pairs, transport, times
        self.frames = [chain.frames() for chain in chains]
        self.index = [chain.index - chain.index[0] + 1 for chain in chains]
        groups: dict[object, list[int]] = {}
        for place, chain in enumerate(chains):
            alone = chain.cluster < 0
            groups.setdefault(("", place) if alone else chain.cluster, []).append(place)
        self.clusters = list(groups.values())

    def __len__(self) -> int:
        """Batches per epoch; the same for every epoch, so that a schedule has a length."""
        if self.crop is not None:
            return max(1, len(self.clusters) // self._batch(self.crop))
        lengths = sorted(np.mean([len(self.frames[p]) for p in c]) for c in self.clusters)
        needed, taken = 0, 0
        while taken < len(lengths):
            taken += self._batch(math.ceil(lengths[taken]))
            needed += 1
        return needed

    def _batch(self, length: int) -> int:
        return max(1, min(self.size, self.pairs // length**2 + 1))

    def epoch(self, number: int, /) -> Iterator[Batch]:
        """The batches of one epoch."""
        generator = seeds.generator(self.seed, number, "batches")
        chosen = [
            cluster[int(torch.randint(len(cluster), (1,), generator=generator))]
            for cluster in self.clusters
        ]
        order = [chosen[i] for i in torch.randperm(len(chosen), generator=generator).tolist()]
        for places in self._grouped(order, generator):
            yield self._make(places, generator)

    def _grouped(self, order: list[int], generator: torch.Generator) -> Iterator[list[int]]:
        if self.crop is None:
            order = sorted(order, key=lambda place: len(self.frames[place]) // BUCKET)
        batches, start = [], 0
        for _ in range(len(self)):
            # whole chains of another draw may need other batches: wrap around, or leave the rest
            size = self._batch(self.crop or len(self.frames[order[start % len(order)]]))
            batches.append([order[i % len(order)] for i in range(start, start + size)])
            start += size
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]

    def _make(self, places: list[int], generator: torch.Generator) -> Batch:
        length = min(self.crop or math.inf, *(len(self.frames[place]) for place in places))
        windows = [self._window(place, int(length), generator) for place in places]
        parts = [self.frames[place][window] for place, window in zip(places, windows, strict=True)]
        data = Frames(
            torch.stack([part.translations for part in parts]),
            torch.stack([part.quaternions for part in parts]),
        ).centred()
        noise = training_noise(data, generator=generator)
        if self.transport:
            noise = assign_noise(noise, data)
        index = torch.stack(
            [self.index[p][w] - self.index[p][w][0] for p, w in zip(places, windows, strict=True)]
        )
        return _timed(noise, data, index.float(), self.times, generator)

    def _window(self, place: int, length: int, generator: torch.Generator) -> slice:
        free = len(self.frames[place]) - length + 1
        start = int(torch.randint(free, (1,), generator=generator))
        return slice(start, start + length)


class PairBatches:
    """Batches of given pairs of noise and sample, for reflow: only the times are drawn.

    Args:
        pairs: noise and sample frames, one entry for each length.
        size: pairs per batch; those of one length together.
        seed: of order, times and coins.
        times: law of the times, in [0, 1].

    Raises:
        UserError: if there is no pair.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Frames, Frames]],
        size: int,
        *,
        seed: int = 0,
        times: TimeLaw = uniform_times,
    ) -> None:
        self.pairs = [(noise, data) for noise, data in pairs if len(noise)]
        if not self.pairs:
            raise UserError("pairs must hold at least one pair, got none")
        self.size, self.seed, self.times = size, seed, times

    def __len__(self) -> int:
        """Batches per epoch."""
        return sum(max(1, len(noise) // self.size) for noise, _ in self.pairs)

    def epoch(self, number: int, /) -> Iterator[Batch]:
        """The batches of one epoch."""
        generator = seeds.generator(self.seed, number, "batches")
        batches = []
        for noise, data in self.pairs:
            order = torch.randperm(len(noise), generator=generator)
            count = max(1, len(noise) // self.size)
            batches += [(noise, data, rows) for rows in order[: count * self.size].chunk(count)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            noise, data, rows = batches[i]
            length = noise.translations.shape[1]
            index = torch.arange(length, dtype=torch.float32).expand(len(rows), length)
            yield _timed(noise[rows], data[rows], index, self.times, generator)


def _timed(
    noise: Frames,
    data: Frames,
    index: Float[Tensor, "batch residues"],
    times: TimeLaw,
    generator: torch.Generator,
) -> Batch:
    count = len(data)
    t = FIRST_TIME + (LAST_TIME - FIRST_TIME) * times(count, generator)
    coin = torch.rand(1, generator=generator).expand(count)  # one for the batch
    return packed(noise, data, t, index, coin)
