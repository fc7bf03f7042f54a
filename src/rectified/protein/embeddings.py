"""Embeddings: the network's inputs beside the structure, of residues, pairs and time.

A residue's features are its number in the chain and the time, as waves of many lengths, and whether
it moves. A pair's features are those of its two residues, how far apart they are in the chain, and
in which of 22 bins their distance lies, now and in the last prediction (self-conditioning).

The first layer over a pair's features is linear, so it is evaluated part by part: what depends on
one residue is computed once per residue, what depends on i - j once for each of the 2 N - 1
differences, and a one-hot bin times a matrix is a look-up of one of its columns. The sum is that of
the plain product over all 238 features.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rectified.protein.linear import apply, layer_of, linear, normalised

WAVES = 2056  # longest wave of positions, and scale of the time
BINS, FIRST_EDGE, LAST_EDGE = 22, 1e-3, 20.0  # of distances, Angstrom; the last bin is open

Pairs = Float[Tensor, "batch residues residues pair"]


def position_waves(index: Float[Tensor, "*n"], size: int) -> Float[Tensor, "*n {size}"]:
    """[sin, cos](pi index / 2056^(2k / size)) for k below size / 2.

    Example:
        >>> position_waves(torch.zeros(1), 4).tolist()
        [[0.0, 0.0, 1.0, 1.0]]
    """
    k = torch.arange(size // 2, device=index.device)
    angles = index[..., None] * math.pi / WAVES ** (2 * k / size)
    return torch.cat((angles.sin(), angles.cos()), -1)


def time_waves(t: Float[Tensor, " batch"], size: int) -> Float[Tensor, "batch {size}"]:
    """[sin, cos](2056 t 2056^(-k / (size / 2 - 1))) for k below size / 2.

    Example:
        >>> time_waves(torch.zeros(1), 4).tolist()
        [[0.0, 0.0, 1.0, 1.0]]
    """
    half = size // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = (t * WAVES)[:, None] * (-k * math.log(WAVES) / (half - 1)).exp()
    return torch.cat((angles.sin(), angles.cos()), -1)


def distance_bins(
    points: Float[Tensor, "batch residues 3"],
) -> Int64[Tensor, "batch residues residues"]:
    """The bin of every distance, from 1; 0 for those in no bin.

    Bins are open at both ends: a distance that equals an edge, or is below the first, has none, and
    so have a residue's distances to itself.

    Args:
        points: Angstrom.

    Example:
        >>> distance_bins(torch.tensor([[[0.0, 0, 0], [1.5, 0, 0], [90.0, 0, 0]]]))[0, 0].tolist()
        [0, 2, 22]
    """
    edges = torch.linspace(FIRST_EDGE, LAST_EDGE, BINS, device=points.device)
    # the quick way by a matrix product would lose the bins of near residues
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").float()
    bins = torch.bucketize(distances, edges)
    is_edge = distances == edges[bins.clamp(max=BINS - 1)]
    return bins.masked_fill(is_edge, 0)


class NodeFeatures(nn.Module):
    """Features of residues: number, whether it moves, time of rotations and of translations.

    Args:
        node: size of the result.
        position: size of the waves of the number in the chain.
        time: size of the waves of each time.
    """

    def __init__(self, node: int, position: int, time: int) -> None:
        super().__init__()
        self.position, self.time = position, time
        self.linear = nn.Linear(position + 1 + 2 * time, node)

    def forward(
        self,
        index: Float[Tensor, "batch residues"],
        moves: Float[Tensor, "batch residues"] | None,
        exists: Float[Tensor, "batch residues"] | None,
        rotation_time: Float[Tensor, " batch"],
        translation_time: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch residues node"]:
        """Features, before masking.

        Args:
            index: number of each residue.
            moves: 1 where a residue is generated, 0 where it is given; None: all are generated.
            exists: 1 where there is a residue; None: everywhere.
            rotation_time: t of the rotations.
            translation_time: t of the translations.
        """
        batch, count = index.shape
        times = torch.cat(
            (time_waves(rotation_time, self.time), time_waves(translation_time, self.time)), -1
        )
        flag = index.new_ones(batch, count) if moves is None else moves
        positions = position_waves(index, self.position)
        spread = times[:, None].expand(batch, count, -1)
        if exists is not None:
            positions, spread = positions * exists[..., None], spread * exists[..., None]
        return apply(self.linear, torch.cat((positions, flag[..., None], spread), -1))


class EdgeFeatures(nn.Module):
    """Features of pairs of residues.

    Args:
        node: size of a residue's features.
        pair: size of the result.
        feature: size of what each residue, and their difference in number, brings in.
    """

    def __init__(self, node: int, pair: int, feature: int) -> None:
        super().__init__()
        self.feature = feature
        self.linear_s_p = nn.Linear(node, feature)
        self.linear_relpos = nn.Linear(feature, feature)
        self.edge_embedder = nn.Sequential(
            nn.Linear(3 * feature + 2 * BINS + 2, pair),
            nn.ReLU(),
            nn.Linear(pair, pair),
            nn.ReLU(),
            nn.Linear(pair, pair),
            nn.LayerNorm(pair),
        )

    def forward(
        self,
        nodes: Float[Tensor, "batch residues node"],
        moves: Float[Tensor, "batch residues"] | None,
        points: Float[Tensor, "batch residues 3"],
        previous: Float[Tensor, "batch residues 3"] | None,
        precision: torch.dtype = torch.float32,
    ) -> Pairs:
        """Features, before masking.

        Args:
            nodes: features of residues.
            moves: 1 where a residue is generated; None: all are.
            points: C-alphas, Angstrom.
            previous: those of the last prediction; None: there was none.
            precision: in which pairs are computed.
        """
        first, second, third = (layer_of(self.edge_embedder, place) for place in (0, 2, 4))
        own, weight = self.feature, first.weight
        parts = weight.split((own, own, own, BINS, BINS, 1, 1), 1)
        of_i, of_j, of_difference, of_bin, of_last_bin, moves_i, moves_j = parts
        each = apply(self.linear_s_p, nodes)
        left = linear(each, of_i, first.bias)
        right = linear(each, of_j)
        flags = left.new_ones(1) if moves is None else moves[..., None]
        left, right = left + flags * moves_i.T, right + flags * moves_j.T
        x = (left[:, :, None] + right[:, None]).to(precision)
        x = x + self._by_difference(points.shape[1], of_difference).to(precision)
        x = x + _columns(distance_bins(points), of_bin).to(precision)
        if previous is not None:
            x = x + _columns(distance_bins(previous), of_last_bin).to(precision)
        x = apply(second, x.relu_(), relu=True)
        x = apply(third, x)
        norm = self.edge_embedder[5]
        assert isinstance(norm, nn.LayerNorm)
        return normalised(norm, x)

    def _by_difference(
        self, count: int, weight: Float[Tensor, "pair feature"]
    ) -> Float[Tensor, "residues residues pair"]:
        waves, index = _differences(count, self.feature, weight.device)
        return F.embedding(index, linear(apply(self.linear_relpos, waves), weight))


@lru_cache(maxsize=16)
def _differences(
    count: int, size: int, device: torch.device
) -> tuple[Float[Tensor, "differences size"], Int64[Tensor, "residues residues"]]:
    """Waves of all differences of two numbers below `count`, and where i - j stands among them."""
    numbers = torch.arange(count, device=device)
    differences = torch.arange(1 - count, count, device=device)
    index = numbers[:, None] - numbers + count - 1
    return position_waves(differences.float(), size), index


def _columns(
    bins: Int64[Tensor, "*n"], weight: Float[Tensor, "pair bins"]
) -> Float[Tensor, "*n pair"]:
    """The product of one-hot bins with a matrix; bin 0 is no bin."""
    return F.embedding(bins, F.pad(weight.T, (0, 0, 1, 0)))
