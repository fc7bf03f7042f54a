"""Reflow: train a flow on what the last flow made of its noise.

    pairs = make_pairs(field, store, shape, solver)          # (noise, sample)
    straighter = reflow(field, pairs, FitConfig(...))        # the same objective, given pairs

One round makes a flow nearly straight; later ones add errors of their own (Lee et al., 2024). What
goes wrong in practice is the pairs: too few, too poor, or in the wrong order. `check_pairs` looks.

`distil` trains a one-step map on the same pairs, at t = 0 alone: better in one step, and destroyed
in more, so it is a network of its own at the end, not a flow. `invert` gives the noise of real
data, by following the flow backward.

References:
    Liu et al., 2022, arXiv 2209.03003 (reflow, distillation); Lee, Lin, Fanti, 2024,
    arXiv 2405.20320 (one round, inverted real data).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rectified import seeds
from rectified.errors import UserError
from rectified.flow.fields import Field
from rectified.flow.grids import uniform_grid
from rectified.flow.matching import FlowMatching
from rectified.flow.pairs import PairStore, fill, noise_like
from rectified.flow.paths import Points
from rectified.flow.solvers import Stepper, Trajectory, euler, heun, integrate, natural_euler
from rectified.flow.times import Discrete
from rectified.training import Batch, FitConfig, Hook, Store, evaluating, fit

_AT_ONCE = 4096  # points that are integrated together


class Draws:
    """Random batches of rows that belong together: points, pairs, labels.

    An epoch is a number of updates, not a pass: small sets are passed many times in one. Fits
    `rectified.training.Batches`.

    Args:
        tensors: with one row per example.
        size: rows per batch.
        updates: batches per epoch.
        seed: of the order.

    Raises:
        UserError: if the tensors have not equally many rows, or hold a NaN or infinity.

    Example:
        >>> draws = Draws((torch.arange(4.0)[:, None],), size=2, updates=3, seed=0)
        >>> [len(points) for points, in draws.epoch(0)]
        [2, 2, 2]
    """

    def __init__(
        self, tensors: Sequence[Tensor], *, size: int, updates: int, seed: int = 0
    ) -> None:
        rows = {len(tensor) for tensor in tensors}
        if len(rows) != 1 or rows == {0}:
            raise UserError(
                f"tensors must have equally many rows, at least one; got {sorted(rows)}"
            )
        for name, value in (("size", size), ("updates", updates)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        for tensor in tensors:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                rows_fine = torch.isfinite(tensor.reshape(len(tensor), -1)).all(1)
                bad = int((~rows_fine).nonzero()[0])
                raise UserError(f"data must be finite: row {bad} holds a NaN or infinity")
        self.tensors, self.size, self.updates, self.seed = tuple(tensors), size, updates, seed

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.updates

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch: shuffled passes, one after the other."""
        count = len(self.tensors[0])
        generator = seeds.generator(self.seed, number, "batches")
        wanted = self.size * self.updates
        passes = [
            torch.randperm(count, generator=generator) for _ in range(math.ceil(wanted / count))
        ]
        order = torch.cat(passes)[:wanted].to(self.tensors[0].device)
        for rows in order.split(self.size):
            yield tuple(tensor[rows] for tensor in self.tensors)


@torch.no_grad()
def generate(
    field: Field,
    x0: Points,
    *,
    steps: int = 50,
    step: Stepper | None = None,
    labels: Int64[Tensor, " batch"] | None = None,
    guidance: float = 1.0,
    progress: str = "",
) -> tuple[Points, int]:
    """Samples from given source points.

    Args:
        field: the flow.
        x0: source points (batch, ...).
        steps: of a uniform grid.
        step: the solver; Heun's on a straight path, `natural_euler` on others by default, where
            Euler's method in x would waste its steps.
        labels: classes, for a field that has them.
        guidance: weight of guidance.
        progress: words before the progress bar.

    Returns:
        Samples, and the number of evaluations for each.

    Raises:
        UserError: for Euler's method on a curved path, or guidance without labels.
    """
    from tqdm import tqdm

    if step is euler and not field.path.is_straight:
        raise UserError(
            f"euler wastes its steps on a curved path ({type(field.path).__name__}): take "
            "natural_euler, which is DDIM"
        )
    step = step or (heun if field.path.is_straight else natural_euler)
    if labels is None and guidance != 1:
        field = field.given(field.labels, guidance)
    times = uniform_grid(steps).to(x0)
    classes = labels.split(_AT_ONCE) if labels is not None else None
    ends, evaluations = [], 0
    hidden = None if progress else True
    parts = list(x0.split(_AT_ONCE))
    with _evaluation(field.network):
        for i, part in enumerate(tqdm(parts, desc=progress, disable=hidden, leave=False)):
            known = field if classes is None else field.given(classes[i], guidance)
            path: Trajectory[Tensor] = integrate(known, field.path.start(part), times, step)
            ends.append(path[-1])
            evaluations = path.evaluations
    return torch.cat(ends), evaluations


def _evaluation(network: Any) -> Any:
    from contextlib import nullcontext

    return evaluating(network) if isinstance(network, nn.Module) else nullcontext()


def make_pairs(
    field: Field,
    store: PairStore,
    shape: tuple[int, ...],
    *,
    steps: int = 50,
    step: Stepper | None = None,
    source: Callable[[int, int], Points] | None = None,
    classes: int = 0,
    guidance: float = 1.0,
    device: torch.device | str = "cpu",
    progress: str = "",
) -> tuple[Tensor, ...]:
    """Fill a store with (source, sample) pairs of a flow, and return them.

    Args:
        field: the flow; guidance is baked into its samples.
        store: gets `x1`, `labels` where there are classes, and `x0` only where it cannot be drawn
            again from the shard's seed.
        shape: of one point.
        steps: of the solver.
        step: the solver, as for `generate`.
        source: (seed, count) to source points; Gaussian noise by default.
        classes: number of classes, each drawn alike; 0 for none.
        guidance: weight of guidance, 1 for none.
        device: where the flow runs.
        progress: words before the progress bar.

    Returns:
        x0, x1 and, with classes, labels: on the CPU.

    Raises:
        UserError: if the store holds other pairs, or the flow diverges.
    """

    def sources(seed: int, count: int) -> Points:
        return noise_like((count, *shape), seed)

    def drawn(seed: int, count: int) -> Tensor:
        return torch.randint(classes, (count,), generator=seeds.generator(seed, "labels"))

    def make(seed: int, count: int) -> dict[str, Tensor]:
        x0 = (source or sources)(seed, count)
        labels = drawn(seed, count) if classes else None
        x1, _ = generate(
            field,
            x0.to(device),
            steps=steps,
            step=step,
            labels=None if labels is None else labels.to(device),
            guidance=guidance,
        )
        shard = {"x1": x1.cpu()}
        if source is not None:
            shard["x0"] = x0.cpu()
        if labels is not None:
            shard["labels"] = labels
        return shard

    fill(store, make, progress=progress)
    stored = store.load()
    _check_stored(store, stored, shape, has_source=source is not None, has_labels=classes > 0)
    if "x0" not in stored:
        parts = [sources(store.seed + i, store.size(i)) for i in range(store.shards)]
        stored["x0"] = torch.cat(parts)
    return tuple(stored[name] for name in ("x0", "x1", "labels") if name in stored)


def _check_stored(
    store: PairStore,
    stored: dict[str, Tensor],
    shape: tuple[int, ...],
    *,
    has_source: bool,
    has_labels: bool,
) -> None:
    """See that shards from an earlier call are of the pairs that are wanted now."""
    wanted = {"x1"} | ({"x0"} if has_source else set()) | ({"labels"} if has_labels else set())
    remedy = "give another folder, or remove it to make them anew"
    if stored.keys() != wanted:
        raise UserError(
            f"{store.folder} holds {', '.join(sorted(stored))} of every pair, wanted "
            f"{', '.join(sorted(wanted))}: {remedy}"
        )
    if stored["x1"].shape[1:] != shape:
        raise UserError(
            f"{store.folder} holds points of shape {tuple(stored['x1'].shape[1:])}, wanted "
            f"{shape}: {remedy}"
        )


@dataclass(frozen=True)
class PairCheck:
    """Measures of pairs before anything is trained on them.

    Attributes:
        mean: of the source points, per dimension, largest in size; 0 for standard noise.
        deviation: of the source points over all dimensions; 1 for standard noise.
        duplicates: target points that occur more than once.
        is_oriented: whether x0 looks more like the source than x1 does; None where the two ends
            cannot be told apart.
    """

    mean: float
    deviation: float
    duplicates: int
    is_oriented: bool | None


def check_pairs(x0: Points, x1: Points) -> PairCheck:
    """Look at pairs whose source is standard normal.

    Example:
        >>> x0 = noise_like((1000, 2), 0)
        >>> check_pairs(x0, 3 * x0 + 5).is_oriented, check_pairs(3 * x0 + 5, x0).is_oriented
        (True, False)
    """
    ours, theirs = _normality(x0), _normality(x1)
    apart = abs(ours - theirs) > 1e-3
    flat = x1.flatten(1)
    return PairCheck(
        mean=float(x0.flatten(1).mean(0).abs().max()),
        deviation=float(x0.std()),
        duplicates=len(flat) - len(torch.unique(flat, dim=0)),
        is_oriented=ours < theirs if apart else None,
    )


def _normality(x: Points) -> float:
    """The squared distance of mean and covariance from those of standard noise, per dimension."""
    flat = x.flatten(1).double()
    mean = flat.mean(0)
    covariance = (flat - mean).T @ (flat - mean) / max(len(flat) - 1, 1)
    apart = covariance - torch.eye(len(mean), dtype=torch.float64, device=x.device)
    return float(mean.square().mean() + apart.square().mean())


def reflow(
    field: Field,
    pairs: Sequence[Tensor],
    config: FitConfig,
    *,
    objective: FlowMatching | None = None,
    batch_size: int = 256,
    updates: int = 100,
    hooks: Sequence[Hook] = (),
    store: Store | None = None,
    progress: str = "",
) -> Field:
    """A new flow, trained on pairs from the weights of the last.

    Args:
        field: the last flow; its network is copied, not changed.
        pairs: x0, x1 and, for a conditional flow, labels.
        config: how to train; `epochs` of `updates` steps each.
        objective: with `coupling=None`; the squared error at uniform times by default.
        batch_size: pairs per step.
        updates: steps per epoch.
        hooks: called after every update.
        store: keeps an unfinished training.
        progress: words before the progress bar.

    Raises:
        UserError: if the pairs do not pair, or the objective draws others.
    """
    objective = objective or FlowMatching(None, field.path, field.predicts)
    if objective.coupling is not None:
        raise UserError("reflow trains on given pairs: its objective must have coupling=None")
    if pairs[0].shape != pairs[1].shape:
        raise UserError(
            f"pairs must be as many source as target points of one shape, got "
            f"{tuple(pairs[0].shape)} and {tuple(pairs[1].shape)}"
        )
    if not isinstance(field.network, nn.Module):
        kind = type(field.network).__name__
        raise UserError(f"the flow's network must be an nn.Module, got {kind}")
    network = deepcopy(field.network)
    draws = Draws(pairs, size=min(batch_size, len(pairs[0])), updates=updates, seed=config.seed)
    fit(network, objective, draws, config, hooks=hooks, store=store, progress=progress)
    return Field(network.eval(), objective.path, objective.predicts)


def distil(
    field: Field,
    pairs: Sequence[Tensor],
    config: FitConfig,
    *,
    objective: FlowMatching | None = None,
    **options: Any,
) -> Field:
    """A one-step map x1 = x0 + v(x0, 0), trained on pairs at t = 0 alone.

    Args:
        field: the flow whose pairs they are.
        pairs: x0, x1 and, for a conditional flow, labels.
        config: how to train.
        objective: its time law is replaced by t = 0.
        options: as for `reflow`.
    """
    objective = objective or FlowMatching(None, field.path, field.predicts)
    return reflow(field, pairs, config, objective=replace(objective, times=Discrete(1)), **options)


@torch.no_grad()
def invert(
    field: Field, x1: Points, *, steps: int = 50, step: Stepper | None = None
) -> Float[Tensor, "batch ..."]:
    """The source points of given data: the flow followed backward.

    Args:
        field: the flow.
        x1: points at t = 1.
        steps: of a uniform grid.
        step: the solver, as for `generate`.
    """
    step = step or (heun if field.path.is_straight else natural_euler)
    backward = uniform_grid(steps).to(x1).flip(0)
    with _evaluation(field.network):
        ends = [integrate(field, part, backward, step)[-1] for part in x1.split(_AT_ONCE)]
    return torch.cat(ends) / field.path.start(torch.ones_like(x1[:1]))
