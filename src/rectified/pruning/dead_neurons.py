"""Dead neuron rates: how often the neurons behind ReLUs are zero, and why.

A neuron is one output position of one activation function's call: (site, unit) in a linear layer,
(site, channel, row, column) in a convolutional one. Over M examples, in evaluation mode:

    r_i       share of the examples on which neuron i is zero
    total     mean of r_i over all N neurons
    static    share of the neurons in S, the statically dead ones
    dynamic   mean of r_i over the neurons outside S ("live", the default), or
              sum over i outside S of r_i / N ("all")

S is either `never_fires` (r_i = 1 on this data; the default) or `masked` (every incoming weight is
pruned; a norm behind such a layer can still make its neurons fire, at a constant value). Both are
kept, and so are the `constant` neurons: alive, but with the same value for every example.

Counts are exact int64 sums, streamed over the data. Measuring costs about a tenth of a plain
evaluation: the sign of the output is summed over the batch in the order of its memory.

References:
    Liu, Ghosh, Motani, arXiv 2212.06145 (dynamic and static dead neuron rate; its text leaves the
    normaliser open, so all variants are derived from one set of counts).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from rectified.errors import UserError, choose
from rectified.pruning.sites import RELU, Site, bare, trace, watch

Static = Literal["never_fires", "masked"]
Normaliser = Literal["live", "all"]

# two float32 sums of the same terms in another order differ by less
_SAME = 1e-6


@dataclass(frozen=True)
class SiteCounts:
    """What was counted at one site.

    Attributes:
        name: the site, as in `rectified.pruning.sites`.
        examples: how many were seen.
        zeros: on how many of them each neuron was zero; the shape of one example's output.
        masked: whether every incoming weight of a neuron is pruned.
        constant: whether a neuron fired with the same value on every example.
    """

    name: str
    examples: int
    zeros: Int64[Tensor, "*neurons"]
    masked: Bool[Tensor, "*neurons"]
    constant: Bool[Tensor, "*neurons"]

    @property
    def never_fires(self) -> Bool[Tensor, "*neurons"]:
        """Which neurons were zero on every example."""
        return self.zeros == self.examples


@dataclass(frozen=True)
class DeadNeurons:
    """Counts at every site of a network, and the rates that follow from them; all in [0, 1]."""

    sites: tuple[SiteCounts, ...]

    @property
    def examples(self) -> int:
        """How many examples were seen."""
        return self.sites[0].examples

    @property
    def neurons(self) -> int:
        """N, the number of neurons."""
        return sum(site.zeros.numel() for site in self.sites)

    @property
    def total(self) -> float:
        """Mean zero rate of all neurons."""
        return sum(int(site.zeros.sum()) for site in self.sites) / (self.neurons * self.examples)

    @property
    def constant(self) -> float:
        """Share of the neurons that fire with one and the same value on every example."""
        return sum(int(site.constant.sum()) for site in self.sites) / self.neurons

    def static(self, of: Static = "never_fires") -> float:
        """Share of the statically dead neurons."""
        return sum(int(_dead(site, of).sum()) for site in self.sites) / self.neurons

    def dynamic(self, of: Static = "never_fires", normaliser: Normaliser = "live") -> float:
        """Mean zero rate of the neurons that are not statically dead.

        Args:
            of: which neurons count as statically dead.
            normaliser: divide by the number of `live` neurons, or of `all`.

        Returns:
            The rate; 0 where no neuron is live.
        """
        choose("normaliser", normaliser, ("live", "all"))
        live = self.neurons - sum(int(_dead(site, of).sum()) for site in self.sites)
        zeros = sum(int(site.zeros[~_dead(site, of)].sum()) for site in self.sites)
        neurons = live if normaliser == "live" else self.neurons
        return zeros / (neurons * self.examples) if neurons else 0.0

    def by_site(self) -> dict[str, DeadNeurons]:
        """The same for every site alone."""
        return {site.name: DeadNeurons((site,)) for site in self.sites}


def _dead(site: SiteCounts, of: Static) -> Tensor:
    choose("static set", of, ("never_fires", "masked"))
    return site.never_fires if of == "never_fires" else site.masked


def dead_neuron_rate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    *,
    masks: Mapping[str, Tensor] | None = None,
    threshold: float = 0.0,
) -> DeadNeurons:
    """Count how often every neuron of `model` is zero over `batches`.

    Args:
        model: any network with ReLUs: modules, modules used again, or functional calls.
        batches: examples, each once; the first tensor of a batch is the network's input.
        masks: which weights are kept, to tell neurons that are dead by mask.
        threshold: an output of at most this size counts as zero. Smooth activations (GELU, SiLU,
            Mish, Hardswish) are counted only if it is above 0; ReLUs always are.

    Raises:
        UserError: if there is no site to count, no example, a negative threshold, NaN among the
            activations, or a site whose shape changes from batch to batch.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
        >>> with torch.no_grad(): _ = model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        >>> found = dead_neuron_rate(model, [(torch.tensor([[1.0], [2.0], [-3.0]]),)])
        >>> round(found.total, 3), found.static(), round(found.dynamic(), 3)
        (0.5, 0.0, 0.5)
    """
    if threshold < 0:
        raise UserError(f"threshold must be at least 0, got {threshold}")
    counters: dict[str, _Counter] = {}
    skipped: set[str] = set()

    def count(name: str, kind: str, output: Tensor) -> None:
        if kind == RELU or threshold > 0:
            counters.setdefault(name, _Counter(name)).add(output, threshold)
        else:
            skipped.add(name)

    first = None
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), watch(model, count) as network:
            for batch in batches:
                first = batch[0][:2] if first is None else first
                network(batch[0])
    finally:
        model.train(was_training)
    if first is None:
        raise UserError("batches must hold at least one example, got none")
    if not counters:
        raise UserError(_nothing_to_count(model, skipped))
    sites = trace(model, first).sites if masks else {}
    axes = _channel_axes(model)
    return DeadNeurons(
        tuple(
            counter.finish(_masked(sites[name], masks, axes) if masks else None)
            for name, counter in counters.items()
        )
    )


def _nothing_to_count(model: nn.Module, skipped: set[str]) -> str:
    name = type(model).__name__
    if skipped:
        return (
            f"{name} has no ReLU, but {len(skipped)} smooth activations: give a dead threshold "
            "above 0, such as 0.01"
        )
    return f"{name} calls no ReLU (or GELU, SiLU), so that there is no dead neuron rate"


@dataclass
class _Counter:
    """Streams one site's counts."""

    name: str
    examples: int = 0
    fired: Tensor | None = None  # in the order of memory
    layout: tuple[int, ...] = ()  # shape of one example in that order
    channels_last: bool = False
    candidates: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    values: Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, output: Tensor, threshold: float) -> None:
        """Count one batch."""
        flat = self._in_memory_order(output)
        if self.fired is None:
            self.fired = torch.zeros(flat.shape[1], dtype=torch.int64, device=flat.device)
            first = flat[0]
            same = ((flat - first).abs() <= _SAME * first.abs()).all(0) & (first.abs() > threshold)
            self.candidates = same.nonzero().squeeze(1)
            self.values = first[self.candidates].clone()
        elif flat.shape[1] != len(self.fired):
            raise UserError(
                f"site {self.name!r} changes its shape from batch to batch: give every example "
                "the same size"
            )
        # float32 sums of up to 2^24 ones are exact, and three times as fast as integer ones
        alive = torch.sign(flat) if threshold == 0 else (flat.abs() > threshold).float()
        self.fired += alive.sum(0, dtype=torch.float32).long()
        self.examples += len(flat)
        self._keep_constant(flat)

    def _in_memory_order(self, output: Tensor) -> Tensor:
        if self.fired is None:
            self.channels_last = output.ndim == 4 and not output.is_contiguous()
        ordered = output.permute(0, 2, 3, 1) if self.channels_last else output
        self.layout = tuple(ordered.shape[1:])
        return ordered.reshape(len(output), -1)

    def _keep_constant(self, flat: Tensor) -> None:
        if len(self.candidates):
            deviation = (flat[:, self.candidates] - self.values).abs()
            same = (deviation <= _SAME * self.values.abs()).all(0)
            self.candidates, self.values = self.candidates[same], self.values[same]

    def finish(self, masked: Tensor | None) -> SiteCounts:
        """The counts in the shape of one example's output."""
        assert self.fired is not None
        zeros = self.examples - self.fired
        if int(zeros.min()) < 0 or int(zeros.max()) > self.examples:
            raise UserError(f"the activations at {self.name!r} are NaN: check weights and data")
        constant = torch.zeros_like(zeros, dtype=torch.bool)
        constant[self.candidates] = True
        zeros, constant = self._as_output(zeros), self._as_output(constant)
        if masked is None or masked.numel() != zeros.numel():
            masked = torch.zeros_like(constant)
        return SiteCounts(self.name, self.examples, zeros, masked.to(zeros.device), constant)

    def _as_output(self, flat: Tensor) -> Tensor:
        shaped = flat.view(self.layout)
        return shaped.permute(2, 0, 1) if self.channels_last else shaped


def _channel_axes(model: nn.Module) -> dict[str, int]:
    """For every weight, the axis of one example's output that holds the units."""
    return {
        f"{name}.weight".lstrip("."): 0 if isinstance(module, nn.modules.conv._ConvNd) else -1
        for name, module in bare(model).named_modules()
    }


def _masked(site: Site, masks: Mapping[str, Tensor], axes: Mapping[str, int]) -> Tensor:
    """Which neurons of a site are dead by mask: all rows that feed them, and no skip input."""
    dead = torch.ones(site.shape, dtype=torch.bool)
    if not site.sources or any(source not in masks for source in site.sources):
        return ~dead
    for source in site.sources:
        rows = ~masks[source].flatten(1).any(1).cpu()
        shape = [1] * len(site.shape)
        shape[axes[source]] = len(rows)
        if len(rows) != site.shape[axes[source]]:
            return torch.zeros_like(dead)
        dead &= rows.view(shape)
    return dead
