"""Paths of features: their order, the energy that they hold, and those one can do without.

Dropping paths of depth n whose maps hold the energy e_n, with all that would have followed them,
changes the features by at most

    |||Phi(x) - Phi'(x)|||^2 <= sum_n c_n e_n

where c_n is what the rest of the network can do to energy (`bounds.depth_constants`): pruning with
a guarantee.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor

from rectified.errors import UserError
from rectified.scattering.bounds.constants import depth_constants
from rectified.scattering.layers import Pairs
from rectified.scattering.network import ScatteringNetwork


@dataclass(frozen=True)
class Path:
    """One path; its features are at this place among those of its order.

    Attributes:
        order: the number of layers that it went through.
        channel: the input channel (or group of channels) that it began with.
        filters: which filter in every layer.
        scales: octaves below the Nyquist frequency of each layer's grid, None where undefined.
        angles: in radians, None where undefined.
        energy: ||U[q] x||^2 over a batch, if one was given.
    """

    order: int
    channel: int
    filters: tuple[int, ...] = ()
    scales: tuple[float | None, ...] = ()
    angles: tuple[float | None, ...] = ()
    energy: float | None = None


@dataclass(frozen=True)
class Pruned:
    """A network with fewer paths.

    Attributes:
        network: the same network, on the paths that are left.
        error: |||Phi - Phi'||| / ||x|| on the given batch is at most this.
        paths: how many there are at each depth.
    """

    network: ScatteringNetwork
    error: float
    paths: tuple[int, ...]


def path_table(
    network: ScatteringNetwork,
    x: Num[Tensor, "*batch channels *grid"] | None = None,
    *,
    channels: int = 1,
) -> list[list[Path]]:
    """All paths, depth by depth, in the order of the features.

    Args:
        network: any.
        x: a batch on which the energies are measured, if given.
        channels: of the input, if no batch is given.

    Example:
        >>> from rectified.scattering import Layer, wavelets
        >>> network = ScatteringNetwork([Layer(wavelets(J=1, L=2))] * 2, (8, 8))
        >>> table = path_table(network)
        >>> [len(depth) for depth in table], table[2][5].filters
        ([1, 4, 16], (1, 1))
    """
    measured = None if x is None else [_energies(network, one) for one in network.propagated(x)]
    channels = channels if x is None else x.shape[-len(network.grid) - 1]
    table = [[Path(0, channel) for channel in range(channels)]]
    for depth in range(network.depth):
        table.append(_children(network, depth, table[-1]))
    if measured is None:
        return table
    return [
        [Path(**{**vars(path), "energy": energy}) for path, energy in zip(*level, strict=True)]
        for level in zip(table, (one.tolist() for one in measured), strict=True)
    ]


def prune_paths(
    network: ScatteringNetwork, x: Num[Tensor, "*batch channels *grid"], *, tolerance: float
) -> Pruned:
    """Drop the weakest paths, with their descendants, within a guaranteed error on a batch.

    The tolerated energy is divided equally between the depths, and each spends what it has on its
    weakest paths.

    Args:
        network: whose banks take each map alone beyond the first layer.
        x: examples of what the network will see.
        tolerance: largest |||Phi - Phi'||| / ||x||, in [0, 1).

    Raises:
        UserError: if the tolerance is outside, or a bank beyond the first mixes maps.

    Example:
        >>> from rectified.scattering import Layer, wavelets
        >>> network = ScatteringNetwork([Layer(wavelets(J=2, L=4))] * 2, (16, 16))
        >>> x = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
        >>> pruned = prune_paths(network, x, tolerance=0.1)
        >>> pruned.error <= 0.1, pruned.paths[2] < 256
        (True, True)
    """
    if not 0 <= tolerance < 1:
        raise UserError(f"tolerance must be in [0, 1), got {tolerance}")
    if any(bank.channels > 1 for bank in network.banks[1:]):
        raise UserError("paths can be pruned only where banks beyond the first take single maps")
    energies = [_energies(network, maps) for maps in network.propagated(x)]
    total = float(energies[0].sum())
    budget = tolerance**2 * total / max(1, network.depth)
    places = torch.arange(len(energies[0]))  # of the paths that are left, among all of their depth
    kept, spent = [], 0.0
    for depth, constant in enumerate(depth_constants(network)[1:]):
        pairs, children = _pairs(network, depth, places)
        stays, cost = _strongest(energies[depth + 1][children], budget / max(constant, 1e-300))
        spent += cost * constant
        kept.append((pairs[0][stays], pairs[1][stays]))
        places = children[stays]
    lean = copy.copy(network)
    lean.kept, lean.channels = tuple(kept), x.shape[-len(network.grid) - 1]
    counts = (len(energies[0]), *(len(filters) for _, filters in kept))
    return Pruned(lean, math.sqrt(spent / total) if total else 0.0, counts)


def _energies(network: ScatteringNetwork, maps: Tensor) -> Float[Tensor, " paths"]:
    axis = maps.ndim - len(network.grid) - 1
    others = [one for one in range(maps.ndim) if one != axis]
    return maps.detach().abs().square().sum(others, dtype=torch.float64).cpu()


def _children(network: ScatteringNetwork, depth: int, parents: list[Path]) -> list[Path]:
    bank, kept = network.banks[depth], network.kept[depth]
    groups = parents[:: bank.channels]
    pairs = (
        [(group, one) for group in range(len(groups)) for one in range(len(bank.filters))]
        if kept is None
        else list(zip(kept[0].tolist(), kept[1].tolist(), strict=True))
    )
    return [
        Path(
            depth + 1,
            groups[group].channel,
            (*groups[group].filters, one),
            (*groups[group].scales, bank.atoms[one].scale),
            (*groups[group].angles, bank.atoms[one].angle),
        )
        for group, one in pairs
    ]


def _pairs(
    network: ScatteringNetwork, depth: int, places: Int64[Tensor, " left"]
) -> tuple[Pairs, Int64[Tensor, " children"]]:
    """All children of the paths that are left, and their places among all of their depth."""
    bank, before = network.banks[depth], network.kept[depth]
    if before is not None:
        renumbered = torch.full((int(places.max()) + 1,), -1).scatter(
            0, places, torch.arange(len(places))
        )
        known = (before[0] < len(renumbered)).nonzero().flatten()
        known = known[renumbered[before[0][known]] >= 0]
        return (renumbered[before[0][known]], before[1][known]), known
    count = len(bank.filters)
    groups = torch.arange(len(places) // bank.channels).repeat_interleave(count)
    filters = torch.arange(count).repeat(len(places) // bank.channels)
    origin = places[:: bank.channels] // bank.channels
    return (groups, filters), origin[groups] * count + filters


def _strongest(
    energy: Float[Tensor, " paths"], budget: float
) -> tuple[Int64[Tensor, " stays"], float]:
    """Drop the weakest while their sum is within the budget; the rest, and what was dropped."""
    ordered, order = energy.sort()
    sums = ordered.cumsum(0)
    count = min(int((sums <= budget).sum()), len(energy) - 1)  # at least one path stays
    return order[count:].sort().values, float(sums[count - 1]) if count else 0.0
