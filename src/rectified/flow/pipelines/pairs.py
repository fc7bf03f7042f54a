"""Pairs of a pipeline: noise by its seed, latents, prompts by their number; and batches of them.

A shard holds `x1` (latents, or pictures where there is no autoencoder), `prompt` (numbers) where
there are texts, and `kept`: false for a sample that was not finite, which is skipped and counted.
Noise is not stored but drawn again from the shard's seed. Batches read one shard at a time, so that
stores may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from rectified import seeds
from rectified.errors import UserError
from rectified.flow.fields import Field
from rectified.flow.pairs import PairStore, fill, noise_like
from rectified.flow.paths import DDPM, Points
from rectified.flow.pipelines.memory import Budget
from rectified.flow.pipelines.schedules import Schedule, dpm_solver
from rectified.flow.reflow import generate
from rectified.training import Batch, evaluating

Labels = Int64[Tensor, " batch"]


@torch.no_grad()
def solve(
    field: Field,
    schedule: Schedule,
    x0: Points,
    *,
    steps: int = 25,
    labels: Labels | None = None,
    guidance: float = 1.0,
) -> Points:
    """Samples of a pipeline's field: diffusers' DPM-Solver++, or Heun's method for a flow.

    Args:
        field: of the pipeline, unguided.
        schedule: of the pipeline.
        x0: noise (batch, ...).
        steps: of the solver.
        labels: numbers of the prompts.
        guidance: weight of guidance; of no effect without prompts.
    """
    known = field.given(labels, guidance) if labels is not None else field
    if not isinstance(schedule.path, DDPM):
        return generate(known, x0, steps=steps)[0]
    scheduler = dpm_solver(schedule)
    scheduler.set_timesteps(steps, device=x0.device)
    x = x0
    with evaluating(field.network):
        for number in scheduler.timesteps:
            output = known.output(x, schedule.time(number).to(x)).to(x.dtype)
            x = scheduler.step(output, number, x, return_dict=False)[0]
    return x


def make_pipeline_pairs(
    field: Field,
    schedule: Schedule,
    store: PairStore,
    shape: tuple[int, ...],
    budget: Budget,
    *,
    prompts: int = 0,
    steps: int = 25,
    guidance: float = 5.0,
    device: torch.device | str = "cpu",
    progress: str = "",
) -> int:
    """Fill a store with a pipeline's pairs; what is there already is kept.

    Pair i of the whole store has prompt i modulo their number.

    Args:
        field: of the pipeline.
        schedule: of the pipeline.
        store: to fill.
        shape: of one sample.
        budget: samples at a time.
        prompts: how many there are; 0 for a pipeline without texts.
        steps: of the solver.
        guidance: weight of guidance, baked into the samples.
        device: where the field is.
        progress: words before the progress bar.

    Returns:
        How many samples were skipped, since they were not finite.

    Raises:
        UserError: if no sample is finite.
    """

    def make(seed: int, count: int) -> dict[str, Tensor]:
        x0 = noise_like((count, *shape), seed)
        first = (seed - store.seed) * store.shard
        labels = (first + torch.arange(count)) % prompts if prompts else None
        samples = budget.over(count, lambda rows: sampled(x0, labels, rows))
        kept = torch.isfinite(samples.flatten(1)).all(1)
        samples[~kept] = 0.0
        shard = {"x1": samples, "kept": kept}
        return shard if labels is None else {**shard, "prompt": labels}

    def sampled(x0: Tensor, labels: Tensor | None, rows: slice) -> Tensor:
        numbers = None if labels is None else labels[rows].to(device)
        x = x0[rows].to(device)
        x1 = solve(field, schedule, x, steps=steps, labels=numbers, guidance=guidance)
        return x1.cpu().float()

    fill(store, make, progress=progress)
    skipped = sum(int((~store.read(index)["kept"]).sum()) for index in range(store.shards))
    if skipped == store.count:
        raise UserError(
            f"none of {store.count} samples is finite: what the pipeline computes overflows; take "
            "precision float32, or look at its weights"
        )
    return skipped


class PipelineBatches:
    """Batches from a store of a pipeline's pairs. Fits `rectified.training.Batches`.

    Args:
        store: filled.
        size: pairs per batch.
        updates: batches per epoch; shards come in another order in every epoch.
        seed: of the order.
        with_noise: batches are (x0, x1, prompt); without, (x1, prompt): samples as data.
    """

    def __init__(
        self,
        store: PairStore,
        *,
        size: int,
        updates: int,
        seed: int = 0,
        with_noise: bool = True,
    ) -> None:
        for name, value in (("batch_size", size), ("updates", updates)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        self.store, self.size, self.updates, self.seed = store, size, updates, seed
        self.with_noise = with_noise

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.updates

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        generator = seeds.generator(self.seed, number, "batches")
        waiting: Batch = ()
        given = 0
        while True:
            for index in torch.randperm(self.store.shards, generator=generator).tolist():
                rows = self._rows(index, generator)
                waiting = _joined(waiting, rows)
                while len(waiting[0]) >= self.size:
                    yield tuple(values[: self.size] for values in waiting)
                    waiting = tuple(values[self.size :] for values in waiting)
                    given += 1
                    if given == self.updates:
                        return

    def _rows(self, index: int, generator: torch.Generator) -> Batch:
        """The pairs of one shard that are kept, shuffled."""
        shard = self.store.read(index)
        rows = shard["kept"].nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        tensors: dict[str, Any] = dict(shard)
        if self.with_noise:
            tensors["x0"] = noise_like(tuple(shard["x1"].shape), self.store.seed + index)
        return tuple(tensors[name][rows] for name in ("x0", "x1", "prompt") if name in tensors)


def _joined(first: Batch, second: Batch) -> Batch:
    if not first:
        return second
    return tuple(torch.cat(both) for both in zip(first, second, strict=True))
