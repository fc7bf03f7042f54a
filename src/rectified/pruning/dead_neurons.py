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
evaluation: ceil(min(output, 1)), which is 1 where a ReLU fires, is summed over the batch in the
order of its memory.

References:
    Liu, Ghosh, Motani, arXiv 2212.06145 (dynamic and static dead neuron rate; its text leaves the
    normaliser open, so all variants are derived from one set of counts).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor, nn

from rectified.errors import UserError, choose
from rectified.graphs.copies import bare
from rectified.graphs.sites import RELU, Site, trace, watch
from rectified.networks import evaluating
from rectified.pruning.masks import prunable

Static = Literal["never_fires", "masked"]
Normaliser = Literal["live", "all"]

# two float32 sums of the same terms in another order differ by less
_SAME = 1e-6
# a few examples rule out nearly every neuron that might be constant, so that few are looked up
_GLANCE = 4
# float32 values that fit into a second-level cache
_CACHED = 2**18


@dataclass(frozen=True)
class SiteCounts:
    """The counts of one site.

    Attributes:
        name: the site, as in `rectified.graphs.sites`.
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
    def rates(self) -> Float64[Tensor, "*neurons"]:
        """r_i, the share of the examples on which each neuron was zero."""
        return self.zeros.double() / self.examples

    @property
    def never_fires(self) -> Bool[Tensor, "*neurons"]:
        """The neurons that were zero on every example."""
        return self.zeros == self.examples


@dataclass(frozen=True)
class DeadNeurons:
    """Counts at every site of a network, and the rates that follow from them; all in [0, 1]."""

    sites: tuple[SiteCounts, ...]

    @property
    def examples(self) -> int:
        """The number of examples that were seen."""
        return self.sites[0].examples

    @property
    def neurons(self) -> int:
        """N, the number of neurons."""
        return sum(site.zeros.numel() for site in self.sites)

    @property
    def total(self) -> float:
        """Mean zero rate of all neurons."""
        return sum(site.rates.sum().item() for site in self.sites) / self.neurons

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
        rates = sum(site.rates[~_dead(site, of)].sum().item() for site in self.sites)
        return rates / (live if normaliser == "live" else self.neurons) if live else 0.0

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
            Batches without an example are passed over.
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
    with torch.no_grad(), evaluating(model), watch(model, count) as network:
        for inputs, *_ in batches:
            if len(inputs):
                first = inputs[:2] if first is None else first
                network(inputs)
    if first is None:
        raise UserError("batches must hold at least one example, got none")
    if not counters:
        raise UserError(_nothing_to_count(model, skipped))
    masked = _masked_neurons(model, first, masks) if masks else {}
    return DeadNeurons(
        tuple(counter.finish(masked.get(name)) for name, counter in counters.items())
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
    shape: tuple[int, ...] = ()  # of one example in that order
    channels_last: bool = False
    total: Tensor | float = 0.0  # of all counts: NaN if any is, whatever integers make of it
    candidates: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    values: Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, output: Tensor, threshold: float) -> None:
        """Count one batch."""
        flat = self._in_memory_order(output)
        if self.fired is None:
            self.fired = torch.zeros(flat.shape[1], dtype=torch.int64, device=flat.device)
            self.candidates = (flat[0].abs() > threshold).nonzero().squeeze(1)
            self.values = flat[0, self.candidates]
            self._keep_constant(flat[:_GLANCE])
        # float32 sums of up to 2^24 ones are exact, and faster than integer ones
        fired = torch.zeros_like(self.fired, dtype=torch.float32)
        for part in _in_cache(flat):
            fired += _fires(part, threshold).sum(0, dtype=torch.float32)
        self.fired += fired.long()
        self.total = self.total + fired.sum()
        self.examples += len(flat)
        self._keep_constant(flat)

    def _in_memory_order(self, output: Tensor) -> Tensor:
        if self.fired is None:
            self.channels_last = output.ndim == 4 and not output.is_contiguous()
        ordered = output.permute(0, 2, 3, 1) if self.channels_last else output
        shape = tuple(ordered.shape[1:])
        if self.fired is not None and shape != self.shape:
            raise UserError(
                f"site {self.name!r} changes its shape from batch to batch: give every example "
                "the same size"
            )
        self.shape = shape
        return ordered.reshape(len(output), -1)

    def _keep_constant(self, flat: Tensor) -> None:
        if len(self.candidates):
            deviation = (flat[:, self.candidates] - self.values).abs()
            same = (deviation <= _SAME * self.values.abs()).all(0)
            self.candidates, self.values = self.candidates[same], self.values[same]

    def finish(self, masked: Tensor | None) -> SiteCounts:
        """The counts in the shape of one example's output."""
        assert self.fired is not None
        if torch.as_tensor(self.total).isnan():
            raise UserError(f"the activations at {self.name!r} are NaN: check weights and data")
        constant = torch.zeros_like(self.fired, dtype=torch.bool)
        constant[self.candidates] = True
        zeros, constant = self._as_output(self.examples - self.fired), self._as_output(constant)
        if masked is None or masked.shape != zeros.shape:
            masked = torch.zeros_like(constant)
        return SiteCounts(self.name, self.examples, zeros, masked.to(zeros.device), constant)

    def _as_output(self, flat: Tensor) -> Tensor:
        shaped = flat.view(self.shape)
        return shaped.permute(2, 0, 1) if self.channels_last else shaped


def _in_cache(flat: Tensor) -> Sequence[Tensor]:
    """Some examples at a time, so that a processor reads its intermediate results from cache."""
    return flat.split(max(1, _CACHED // flat.shape[1])) if flat.device.type == "cpu" else (flat,)


def _fires(flat: Tensor, threshold: float) -> Tensor:
    """1 where a neuron fires, 0 where it is zero, NaN where it is NaN (`sign` would make it 0)."""
    if threshold > 0:
        return (flat.abs() - threshold).clamp_(0, 1).ceil_()
    return flat.clamp(max=1).ceil_()


def _masked_neurons(
    model: nn.Module, example: Tensor, masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """For every site, which neurons are dead by mask."""
    modules = dict(bare(model).named_modules())
    dead = {
        name: _dead_units(modules[name.rpartition(".")[0]], mask.cpu())
        for name, mask in masks.items()
        if name.rpartition(".")[2] == "weight"  # not the several weights of an attention or LSTM
    }
    sites = trace(model, example, prunable(model)).sites
    return {name: _masked(site, dead) for name, site in sites.items()}


def _dead_units(layer: nn.Module, mask: Tensor) -> Tensor:
    """The output units of a layer that read nothing, shaped to fit one example's output."""
    if getattr(layer, "transposed", False):  # (in, out per group, ...)
        groups = mask.unflatten(0, (layer.groups, -1))
        mask = groups.transpose(1, 2).flatten(0, 1)
    dead = ~mask.flatten(1).any(1)
    return dead.view(-1, *[1] * (mask.ndim - 2))


def _masked(site: Site, dead_units: Mapping[str, Tensor]) -> Tensor:
    """The neurons of a site that are dead by mask: all that feeds them, and no skip input."""
    alive = torch.zeros(site.shape, dtype=torch.bool)
    if not site.sources or not site.sources <= dead_units.keys():
        return alive
    dead = ~alive
    for source in site.sources:
        units = dead_units[source]
        axis = -units.ndim
        if units.ndim > dead.ndim or len(units) != site.shape[axis]:
            return alive
        dead &= units
    return dead
