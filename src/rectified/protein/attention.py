"""Invariant point attention: residues attend to one another by features, pairs and places.

Residue i asks with a query vector and some query points, fixed in its own frame; residue j answers
with a key vector and key points. The weight of j is the softmax of

    q_i . k_j / sqrt(3 c) + sqrt(1/3) b_ij - 1/2 g sum_p |Q_ip - K_jp|^2

where Q and K are the points in space and g = softplus(w) sqrt(1 / (3 (9/2) P)) for each head. What
comes back are the mean value vector, mean value points seen from the frame of i, with their
distances from it, and the mean of the pair's own values. Turning and moving the whole chain changes
nothing.

Here |Q - K|^2 is multiplied out: |Q|^2 does not depend on j and drops out of the softmax, the
product -2 Q.K is appended to that of the features, and |K|^2 joins the bias. So attention is one
product of vectors that are longer by 3 P, and no tensor over pairs, heads, points and axes exists.

References: Jumper et al., "Highly accurate protein structure prediction with AlphaFold", 2021,
supplementary algorithm 22.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rectified.protein.embeddings import Pairs
from rectified.protein.linear import apply, linear

NOWHERE = 1e5  # subtracted from the logits of residues that do not exist
_EPSILON = 1e-8  # squared nm inside the root: a point at the origin has a gradient too

Nodes = Float[Tensor, "batch residues node"]
Points = Float[Tensor, "batch residues heads points 3"]


class InvariantPointAttention(nn.Module):
    """One layer of attention over residues.

    Args:
        node: size of a residue's features.
        pair: size of a pair's features.
        hidden: size of a head's query, key and value vectors.
        heads: their number.
        query_points: P, of a head.
        value_points: of a head.
    """

    def __init__(
        self, node: int, pair: int, hidden: int, heads: int, query_points: int, value_points: int
    ) -> None:
        super().__init__()
        self.hidden, self.heads = hidden, heads
        self.query_points, self.value_points = query_points, value_points
        self.head_weights = nn.Parameter(torch.full((heads,), math.log(math.e - 1)))  # softplus: 1
        self.linear_q = nn.Linear(node, heads * hidden)
        self.linear_kv = nn.Linear(node, 2 * heads * hidden)
        self.linear_q_points = nn.Linear(node, 3 * heads * query_points)
        self.linear_kv_points = nn.Linear(node, 3 * heads * (query_points + value_points))
        self.linear_b = nn.Linear(pair, heads)
        self.down_z = nn.Linear(pair, pair // 4)
        self.linear_out = nn.Linear(heads * (hidden + 4 * value_points + pair // 4), node)

    def forward(
        self,
        nodes: Nodes,
        pairs: Pairs,
        rotations: Float[Tensor, "batch residues 3 3"],
        places: Float[Tensor, "batch residues 3"],
        exists: Float[Tensor, "batch residues"] | None,
    ) -> Nodes:
        """The new features of each residue.

        Args:
            nodes: features of residues.
            pairs: features of pairs.
            rotations: of the frames.
            places: of the frames, nm.
            exists: 1 where there is a residue; None: everywhere.
        """
        batch, count, _ = nodes.shape
        queries = apply(self.linear_q, nodes).unflatten(-1, (self.heads, self.hidden))
        keys, values = (
            apply(self.linear_kv, nodes)
            .unflatten(-1, (self.heads, 2 * self.hidden))
            .split(self.hidden, -1)
        )
        query_points = self._points(self.linear_q_points, nodes, rotations, places)
        key_points, value_points = self._points(
            self.linear_kv_points, nodes, rotations, places
        ).split((self.query_points, self.value_points), -2)
        bias, pair_values = self._pair_parts(pairs)
        sharpness = F.softplus(self.head_weights) * math.sqrt(1 / (13.5 * self.query_points))
        far = -0.5 * sharpness * key_points.square().sum((-1, -2))  # batch residues heads
        if exists is not None:
            far = far + NOWHERE * (exists[..., None] - 1)
        scaled = (query_points * sharpness[:, None, None]).flatten(-2)
        left = torch.cat((queries * math.sqrt(1 / (3 * self.hidden)), scaled), -1).transpose(1, 2)
        right = torch.cat((keys, key_points.flatten(-2)), -1).transpose(1, 2)
        logits = left @ right.mT + (bias + far.transpose(1, 2)[:, :, None])
        weights = logits.softmax(-1)
        mean = weights @ torch.cat((values, value_points.flatten(-2)), -1).transpose(1, 2)
        mean_values, mean_points = mean.transpose(1, 2).split(
            (self.hidden, 3 * self.value_points), -1
        )
        of_pairs = weights.transpose(1, 2).to(pair_values.dtype) @ pair_values
        seen = self._seen(mean_points, rotations, places)
        distances = (seen.square().sum(-1) + _EPSILON).sqrt()
        parts = (mean_values, seen[..., 0], seen[..., 1], seen[..., 2], distances)
        flat = [part.reshape(batch, count, -1) for part in (*parts, of_pairs.to(nodes.dtype))]
        return apply(self.linear_out, torch.cat(flat, -1))

    def _points(
        self,
        layer: nn.Linear,
        nodes: Nodes,
        rotations: Float[Tensor, "batch residues 3 3"],
        places: Float[Tensor, "batch residues 3"],
    ) -> Points:
        """Points in space; the layer's result holds all x, then all y, then all z."""
        own = apply(layer, nodes).unflatten(-1, (3, -1))
        return (rotations @ own + places[..., None]).mT.unflatten(-2, (self.heads, -1)).contiguous()

    def _pair_parts(
        self, pairs: Pairs
    ) -> tuple[Float[Tensor, "batch heads i j"], Float[Tensor, "batch i j value"]]:
        """The bias of the logits, and what a pair has to tell, by one product."""
        weight = torch.cat((self.linear_b.weight * math.sqrt(1 / 3), self.down_z.weight))
        offset = torch.cat((self.linear_b.bias * math.sqrt(1 / 3), self.down_z.bias))
        both = linear(pairs, weight.to(pairs.dtype), offset.to(pairs.dtype))
        bias, values = both.split((self.heads, self.down_z.out_features), -1)
        return bias.permute(0, 3, 1, 2).to(weight.dtype), values

    def _seen(
        self,
        flat: Float[Tensor, "batch residues heads flat"],
        rotations: Float[Tensor, "batch residues 3 3"],
        places: Float[Tensor, "batch residues 3"],
    ) -> Points:
        """Points in space, from the frame of each residue."""
        points = flat.unflatten(-1, (-1, 3))
        away = points.flatten(-3, -2) - places[..., None, :]
        return (away @ rotations).unflatten(-2, points.shape[-3:-1])
