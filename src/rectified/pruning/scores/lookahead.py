"""The look-ahead score: what a weight does to the layers before and after it.

    s(w_ji) = w_ji^2 * sum over layers before of |row i|^2 * sum over layers after of |column j|^2

is the squared change of the three layers' linear map when w is removed: magnitude, looking one
layer ahead and one back. Batch norms scale the rows that they follow; the channels of a residual
sum add up, and an identity skip adds 1; pruned weights count as zero everywhere.

References:
    Park, Lee, Mo, Shin: Lookahead: A Far-sighted Alternative of Magnitude-based Pruning, 2020,
    arXiv 2002.04809.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.graphs.copies import bare
from rectified.graphs.sites import trace
from rectified.graphs.weights import named_weights
from rectified.pruning.masks import prunable
from rectified.pruning.scores.score import Score, Scores
from rectified.pruning.scores.snapshot import Snapshot, first_batch, network_at

IDENTITY = "identity"


@dataclass(frozen=True)
class Neighbours:
    """The layers around one layer, by the names of their weights.

    Attributes:
        before: layers whose output reaches this one's input (through activations, pools, sums).
        after: layers that this one's output reaches. In both, `IDENTITY` stands for a
            skip connection from or to something that is not a layer: it adds 1 a channel.
        norm: name of the norm module that directly follows this layer, or `None`.

    Example:
        >>> Neighbours(before=("conv1.weight", IDENTITY), norm="bn2").after
        ()
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    norm: str | None = None


@dataclass(frozen=True)
class LookAhead(Score):
    """w^2 times the squared norms of what feeds it and what it feeds (LAP).

    With w from input channel j to output channel i of layer l,

        s = w^2 * (sum of squares of row j of W before) * (sum of squares of column i of W after),

    the squared change of the Jacobian of the three layers, taken as linear, when w is removed.
    Convolutions sum over their kernels; without a layer before or after, the factor is 1; several
    of them add up; a batch norm scales its layer's rows by (gamma / sqrt(var + eps))^2. Other norms
    scale by what they read, and count as 1. Between a convolution and a linear layer, a channel
    of the convolution stands for a block of neighbouring channels of the linear layer (flatten).

    Args:
        neighbours: a snapshot's layers with what is around them, by the weight's name. Default:
            found by running the first batch (`neighbours`).

    Raises:
        UserError: when called, if a masked weight has no neighbours' entry, does not belong to a
            linear or convolution layer, or two neighbours' channels do not fit together.

    References:
        Park, Lee, Mo, Shin: Lookahead: A Far-Sighted Alternative of Magnitude-based Pruning, 2020,
        arXiv 2002.04809, eq. 4 to 6.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> up, down = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]])
        >>> weights = {"0.weight": up, "1.weight": down}
        >>> masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
        >>> first, last = Neighbours(after=("1.weight",)), Neighbours(before=("0.weight",))
        >>> score = LookAhead(lambda snapshot: {"0.weight": first, "1.weight": last})
        >>> score(Snapshot(model, weights, weights, masks))["0.weight"]
        tensor([[ 9.],
                [64.]], dtype=torch.float64)
    """

    neighbours: Callable[[Snapshot], Mapping[str, Neighbours]] | None = None

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        around = (self.neighbours or _found_neighbours)(snapshot)
        missing = snapshot.masks.keys() - around.keys()
        if missing:
            raise UserError(f"neighbours must name every masked weight, missing {min(missing)!r}")
        involved = {name: around.get(name, Neighbours()) for name in _involved(snapshot, around)}
        layers = {name: _Layer.of(name, snapshot, near.norm) for name, near in involved.items()}
        return {name: layers[name].look_ahead(around[name], layers) for name in snapshot.masks}


def _found_neighbours(snapshot: Snapshot) -> Mapping[str, Neighbours]:
    return neighbours(network_at(snapshot, "trained"), first_batch(snapshot)[0])


def neighbours(model: nn.Module, example: Any) -> dict[str, Neighbours]:
    """For look-ahead scores: the layers before and after each layer, and the norm behind it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
        >>> neighbours(model, torch.ones(1, 2))["0.weight"]
        Neighbours(before=(), after=('3.weight',), norm='1')
    """
    layers = trace(model, example, prunable(model)).layers
    order = [name for name in named_weights(bare(model)) if name in layers]
    return {
        name: Neighbours(
            before=tuple(other for other in order if other in layers[name].before),
            after=tuple(other for other in order if name in layers[other].before),
            norm=layers[name].norm,
        )
        for name in order
    }


def _involved(snapshot: Snapshot, around: Mapping[str, Neighbours]) -> set[str]:
    """The masked weights and their neighbours."""
    names = set(snapshot.masks)
    for name in snapshot.masks:
        names.update(around[name].before, around[name].after)
    return names - {IDENTITY}


@dataclass(frozen=True)
class _Layer:
    """One layer's squared weights in a form common to linear and all convolution layers.

    Attributes:
        name: of the weight.
        squares: w^2, zero where pruned.
        gain: what the norm behind it multiplies each squared output channel by.
        transposed: the weight has input channels first.
    """

    name: str
    squares: Float[Tensor, "groups out_per_group in_per_group kernel"]
    gain: Float[Tensor, " out"]
    shape: torch.Size
    transposed: bool

    @classmethod
    def of(cls, name: str, snapshot: Snapshot, norm: str | None) -> _Layer:
        """The layer that owns the weight `name`."""
        module = snapshot.model.get_submodule(name.rpartition(".")[0])
        if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            kind = type(module).__name__
            raise UserError(f"LookAhead needs linear or convolution layers, got {kind} at {name!r}")
        weight = snapshot.trained[name].double()
        if name in snapshot.masks:
            weight = weight * snapshot.masks[name]
        groups, transposed = getattr(module, "groups", 1), getattr(module, "transposed", False)
        squares = weight.square().reshape(groups, len(weight) // groups, weight.shape[1], -1)
        squares = squares.transpose(1, 2) if transposed else squares
        channels = groups * squares.shape[1]
        gain = _norm_gain(norm, snapshot, weight.new_ones(channels))
        return cls(name, squares, gain, weight.shape, transposed)

    def look_ahead(self, near: Neighbours, layers: Mapping[str, _Layer]) -> Tensor:
        """w^2 times the factors of its input and its output channel."""
        groups, outputs, inputs, _ = self.squares.shape
        feeding = self._sum(near.before, groups * inputs, layers, lambda other: other.rows)
        fed = self._sum(near.after, groups * outputs, layers, lambda other: other.columns)
        factors = feeding.view(groups, 1, inputs, 1) * (fed * self.gain).view(groups, outputs, 1, 1)
        scores = self.squares * factors
        return (scores.transpose(1, 2) if self.transposed else scores).reshape(self.shape)

    @property
    def rows(self) -> Float[Tensor, " out"]:
        """The sum that comes out of each output channel."""
        return self.squares.sum((2, 3)).flatten() * self.gain

    @property
    def columns(self) -> Float[Tensor, " in"]:
        """The factors of each input channel."""
        return self.squares.sum((1, 3)).flatten()

    def _sum(
        self,
        names: tuple[str, ...],
        channels: int,
        layers: Mapping[str, _Layer],
        norms: Callable[[_Layer], Tensor],
    ) -> Float[Tensor, " channels"]:
        """The factor of each of this layer's channels: 1 where there is nothing to look at."""
        total = self.gain.new_full((channels,), 0.0 if names else 1.0)
        for name in names:
            if name == IDENTITY:
                total += 1.0
            else:
                total += self._fit(norms(layers[name]), channels, layers[name])
        return total

    def _fit(self, norms: Tensor, channels: int, other: _Layer) -> Float[Tensor, " channels"]:
        """One entry for each channel of this layer."""
        if channels == len(norms):
            return norms
        if len(self.shape) != len(other.shape):  # flattened: a block of the linear layer's
            if channels % len(norms) == 0:
                return norms.repeat_interleave(channels // len(norms))
            if len(norms) % channels == 0:
                return norms.view(channels, -1).sum(1)
        raise UserError(
            "LookAhead needs neighbours whose channels fit, "
            f"got {channels} of {self.name!r} beside {len(norms)} of {other.name!r}"
        )


def _norm_gain(
    norm: str | None, snapshot: Snapshot, ones: Float[Tensor, " out"]
) -> Float[Tensor, " out"]:
    """(gamma / sqrt(var + eps))^2 of a batch norm."""
    state = snapshot.trained
    if norm is None or f"{norm}.running_var" not in state:
        return ones
    batch_norm = cast(nn.BatchNorm1d, snapshot.model.get_submodule(norm))
    gamma = state.get(f"{norm}.weight", ones)
    return gamma.double().square() / (state[f"{norm}.running_var"].double() + batch_norm.eps)
