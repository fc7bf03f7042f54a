"""The network of ReQFlow: noisy frames and a time in, clean frames out.

Features of residues and of pairs go through some blocks; each holds invariant point attention, a
transformer along the sequence, a transition, an update of the frames and (but for the last) an
update of the pairs. The modules are named so that the published checkpoints load by name
(`rectified.protein.checkpoints`).

    rotation      q <- unit(q + q (0, b))       b, a read off the residue, in its own axes
    translation   x <- x + R a                  with the rotation before its update

The same function is evaluated with less work. The first layer over a pair's (z, n_i, n_j) is
W z + (U n)_i + (V n)_j, so that its residue parts are computed once per residue; likewise the last
layer of the sum of the three and what two layers made of them. Without gradients, pairs are worked
through some rows at a time, which stay in the cache, and are replaced in place.

Conventions: Angstrom outside, nm inside; masks are 1 for what exists or moves, and None where that
is everything, as in batches of equal length.

References: Yue, Wang and Xu, 2025, arXiv:2502.14637, appendix C; Yim et al., "Fast protein backbone
generation with SE(3) flow matching", 2023, arXiv:2310.05297.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError, choose
from rectified.protein.attention import InvariantPointAttention, Nodes
from rectified.protein.embeddings import EdgeFeatures, NodeFeatures, Pairs
from rectified.protein.frames import Frames
from rectified.protein.linear import apply, layer_of, linear, normalised
from rectified.protein.quaternion import multiply, normalise, quaternion_to_matrix

NM = 0.1  # Angstrom to nm
_CHUNK = 4096  # pairs whose hidden features (384 floats each) still fit a core's cache


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of the network; the defaults are the published ones.

    Attributes:
        node: features of a residue.
        pair: features of a pair; a multiple of 4.
        position: waves of the residue's number; even.
        time: waves of the time; even, at least 4.
        feature: what each residue brings into a pair's features; even.
        hidden: of a head's query, key and value.
        heads: of the attention over frames.
        query_points: of a head.
        value_points: of a head.
        sequence_heads: of the transformer along the sequence; divides `node`.
        sequence_layers: of that transformer.
        blocks: of the network.
        bias: what each residue brings into an update of pairs; half of `node` by default.
    """

    node: int = 256
    pair: int = 128
    position: int = 128
    time: int = 128
    feature: int = 64
    hidden: int = 128
    heads: int = 8
    query_points: int = 8
    value_points: int = 12
    sequence_heads: int = 4
    sequence_layers: int = 2
    blocks: int = 6
    bias: int = 0

    def __post_init__(self) -> None:
        if not self.bias:
            object.__setattr__(self, "bias", self.node // 2)
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise UserError(f"{field.name} must be at least 1, got {getattr(self, field.name)}")
        if self.node % self.sequence_heads:
            raise UserError(
                f"sequence_heads must divide node, got {self.sequence_heads} and {self.node}"
            )
        rules = {"pair": 4, "position": 2, "time": 2, "feature": 2}
        for name, divisor in rules.items():
            if getattr(self, name) % divisor:
                raise UserError(
                    f"{name} must be a multiple of {divisor}, got {getattr(self, name)}"
                )
        if self.time < 4:
            raise UserError(f"time must be at least 4, got {self.time}")


SIZES = {
    "tiny": ModelSizes(
        node=128,
        pair=48,
        position=64,
        time=64,
        feature=32,
        hidden=32,
        query_points=4,
        value_points=8,
        blocks=4,
        bias=24,
    ),
    "small": ModelSizes(
        node=192,
        pair=96,
        position=64,
        time=64,
        feature=48,
        hidden=64,
        value_points=8,
        blocks=5,
        bias=48,
    ),
    "reqflow": ModelSizes(),
}


class FlowModel(nn.Module):
    """Predicts the clean frames of a chain from noisy ones.

    Args:
        sizes: of its parts; the published ones by default.

    Attributes:
        pair_precision: in which pairs are computed: float32, or bfloat16 for speed where outputs
            may differ by hundredths of an Angstrom.

    Example:
        >>> model = FlowModel(SIZES["tiny"])
        >>> frames = Frames(torch.randn(2, 10, 3), torch.eye(4)[0].expand(2, 10, 4))
        >>> model(frames, torch.tensor([0.2, 0.7])).translations.shape
        torch.Size([2, 10, 3])
    """

    def __init__(self, sizes: ModelSizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes = sizes or ModelSizes()
        self.pair_precision = torch.float32
        self.node_feature_net = NodeFeatures(sizes.node, sizes.position, sizes.time)
        self.edge_feature_net = EdgeFeatures(sizes.node, sizes.pair, sizes.feature)
        self.trunk = nn.ModuleDict(
            {name: part for b in range(sizes.blocks) for name, part in _block(b, sizes)}
        )
        _initialise(self)

    def forward(
        self,
        frames: Frames,
        t: Float[Tensor, " batch"],
        *,
        translation_time: Float[Tensor, " batch"] | None = None,
        previous: Float[Tensor, "batch residues 3"] | None = None,
        index: Float[Tensor, "batch residues"] | None = None,
        exists: Float[Tensor, "batch residues"] | None = None,
        moves: Float[Tensor, "batch residues"] | None = None,
    ) -> Frames:
        """Clean frames.

        Args:
            frames: noisy ones, Angstrom, each chain's near the origin.
            t: in [0, 1]; 0 is noise, 1 data.
            translation_time: that of the translations, where it is another.
            previous: C-alphas of the last prediction, Angstrom, for self-conditioning.
            index: numbers of the residues; 0, 1, ... by default.
            exists: 1 for residues, 0 for padding; None: no padding.
            moves: 1 for residues that are generated, 0 for given ones; None: all are generated.

        Returns:
            Frames as many as came in; what does not exist or move comes back as it was.
        """
        batch, count, _ = frames.translations.shape
        if index is None:
            index = torch.arange(count, device=t.device, dtype=torch.float32).expand(batch, count)
        nodes = self.node_feature_net(
            index, moves, exists, t, t if translation_time is None else translation_time
        )
        pairs = self.edge_feature_net(
            nodes, moves, frames.translations, previous, self.pair_precision
        )
        both = None if exists is None else (exists[:, :, None] * exists[:, None])[..., None]
        nodes = _masked(nodes, None if exists is None else exists[..., None])
        pairs = _masked(pairs, both)
        return self._blocks(frames, nodes, pairs, exists, both, _product_of(exists, moves))

    def _blocks(
        self,
        frames: Frames,
        nodes: Nodes,
        pairs: Pairs,
        exists: Float[Tensor, "batch residues"] | None,
        both: Float[Tensor, "batch residues residues 1"] | None,
        movable: Float[Tensor, "batch residues"] | None,
    ) -> Frames:
        q, x = frames.quaternions, frames.translations * NM
        rows = None if exists is None else exists[..., None]
        for b in range(self.sizes.blocks):
            rotations = quaternion_to_matrix(q)
            seen = self.trunk[f"ipa_{b}"](nodes, pairs, rotations, x, exists)
            nodes = self.trunk[f"ipa_ln_{b}"](nodes + _masked(seen, rows))
            along = _along_sequence(self.trunk[f"seq_tfmr_{b}"], nodes, exists)
            nodes = nodes + apply(self.trunk[f"post_tfmr_{b}"], along)
            nodes = _masked(self.trunk[f"node_transition_{b}"](nodes), rows)
            update = self.trunk[f"bb_update_{b}"](nodes)
            if movable is not None:
                update = update * movable[..., None]
            x = x + (rotations @ update[..., 3:, None]).squeeze(-1)
            q = normalise(q + multiply(q, F.pad(update[..., :3], (1, 0))))
            if b < self.sizes.blocks - 1:
                pairs = _masked(self.trunk[f"edge_transition_{b}"](nodes, pairs), both)
        return Frames(x / NM, q)


def _block(b: int, sizes: ModelSizes) -> Iterator[tuple[str, nn.Module]]:
    """The parts of block `b`, by the names of the published checkpoints."""
    node = sizes.node
    yield (
        f"ipa_{b}",
        InvariantPointAttention(
            *(node, sizes.pair, sizes.hidden),
            *(sizes.heads, sizes.query_points, sizes.value_points),
        ),
    )
    yield f"ipa_ln_{b}", nn.LayerNorm(node)
    layer = nn.TransformerEncoderLayer(
        node, sizes.sequence_heads, node, dropout=0.0, batch_first=True
    )
    yield (
        f"seq_tfmr_{b}",
        nn.TransformerEncoder(layer, sizes.sequence_layers, enable_nested_tensor=False),
    )
    yield f"post_tfmr_{b}", nn.Linear(node, node)
    yield f"node_transition_{b}", NodeTransition(node)
    yield f"bb_update_{b}", FrameUpdate(node)
    if b < sizes.blocks - 1:
        yield f"edge_transition_{b}", EdgeTransition(node, sizes.pair, sizes.bias)


def _initialise(model: FlowModel) -> None:
    """Truncated normal weights (LeCun; He before a ReLU), and zeros where a change begins.

    A network so begun returns its input frames.
    """
    before_relu = ("linear_1", "linear_2", "initial_embed", "edge_transition", "edge_embedder.0")
    begins = ("linear_out", "post_tfmr", "linear_3", "bb_update")
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or "seq_tfmr" in name:
            continue
        gain = 2.0 if any(part in name for part in before_relu) else 1.0
        # 0.8796: standard deviation of a unit normal that is cut off at +-2
        std = math.sqrt(gain / module.in_features) / 0.87962566103423978
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(module.bias)
        if any(part in name for part in begins):
            nn.init.zeros_(module.weight)


class NodeTransition(nn.Module):
    """s <- LN(s + three layers of s)."""

    def __init__(self, node: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(node, node)
        self.linear_2 = nn.Linear(node, node)
        self.linear_3 = nn.Linear(node, node)
        self.ln = nn.LayerNorm(node)

    def forward(self, nodes: Nodes) -> Nodes:
        """New features of residues."""
        inner = apply(self.linear_2, apply(self.linear_1, nodes, relu=True), relu=True)
        return self.ln(nodes + apply(self.linear_3, inner))


class FrameUpdate(nn.Module):
    """Reads rotation and translation of a residue's update off its features."""

    def __init__(self, node: int) -> None:
        super().__init__()
        self.linear = nn.Linear(node, 6)

    def forward(self, nodes: Nodes) -> Float[Tensor, "batch residues 6"]:
        """b (for the quaternion) and a (nm), in the axes of each residue."""
        return apply(self.linear, nodes)


class EdgeTransition(nn.Module):
    """z <- LN(F(MLP(h) + h)), h = [z, n_i, n_j], evaluated without forming h.

    Args:
        node: size of a residue's features.
        pair: size of a pair's features.
        bias: size of n, what each residue brings in.
    """

    def __init__(self, node: int, pair: int, bias: int) -> None:
        super().__init__()
        wide = pair + 2 * bias
        self.parts = (pair, bias, bias)
        self.initial_embed = nn.Linear(node, bias)
        self.trunk = nn.Sequential(
            nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU()
        )
        self.final_layer = nn.Linear(wide, pair)
        self.layer_norm = nn.LayerNorm(pair)

    def forward(self, nodes: Nodes, pairs: Pairs) -> Pairs:
        """New features of pairs; without gradients they take the place of the old ones."""
        n = apply(self.initial_embed, nodes)
        kind = pairs.dtype
        first, last = layer_of(self.trunk, 0), self.final_layer
        at_first = [part.contiguous() for part in first.weight.split(self.parts, 1)]
        at_last = [part.contiguous() for part in last.weight.split(self.parts, 1)]
        first_i, first_j = linear(n, at_first[1], first.bias), linear(n, at_first[2])
        last_i, last_j = linear(n, at_last[1], last.bias), linear(n, at_last[2])
        sides = [part.to(kind) for part in (first_i, first_j, last_i, last_j)]
        weights = [part.to(kind) for part in (at_first[0], at_last[0])]
        if torch.is_grad_enabled():
            return self._rows(pairs, sides, weights)
        for chains, rows in _chunks(*pairs.shape[:2]):
            left, right = (chains, rows), (chains, slice(None))
            near = [side[left if place % 2 == 0 else right] for place, side in enumerate(sides)]
            pairs[left] = self._rows(pairs[left], near, weights)
        return pairs

    def _rows(
        self,
        pairs: Float[Tensor, "chains rows residues pair"],
        sides: list[Tensor],
        weights: list[Tensor],
    ) -> Float[Tensor, "chains rows residues pair"]:
        first_i, first_j, last_i, last_j = sides
        add = _add_in_place if not torch.is_grad_enabled() else torch.add
        h = add(linear(pairs, weights[0]), first_i[:, :, None])
        h = add(h, first_j[:, None]).relu_()
        h = apply(layer_of(self.trunk, 2), h, relu=True)
        z = linear(h, self.final_layer.weight.to(h.dtype))
        z = add(z, linear(pairs, weights[1]))
        z = add(add(z, last_i[:, :, None]), last_j[:, None])
        return normalised(self.layer_norm, z)


def _add_in_place(x: Tensor, y: Tensor) -> Tensor:
    return x.add_(y)


def _chunks(batch: int, count: int) -> Iterator[tuple[slice, slice]]:
    """Slices of chains and of rows with about `_CHUNK` pairs each."""
    chains = max(1, _CHUNK // count**2)
    rows = count if chains > 1 else max(1, min(count, _CHUNK // count))
    for chain in range(0, batch, chains):
        for row in range(0, count, rows):
            yield slice(chain, chain + chains), slice(row, row + rows)


def _along_sequence(
    encoder: nn.Module, nodes: Nodes, exists: Float[Tensor, "batch residues"] | None
) -> Nodes:
    """The transformer's layers (post-norm, ReLU), with fused attention."""
    assert isinstance(encoder, nn.TransformerEncoder)
    mask = None if exists is None else (exists != 0)[:, None, None]
    for layer in encoder.layers:
        assert isinstance(layer, nn.TransformerEncoderLayer)
        attention = layer.self_attn
        heads = (3, attention.num_heads, -1)
        joint = linear(nodes, attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = joint.unflatten(-1, heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        nodes = layer.norm1(nodes + apply(attention.out_proj, mixed))
        inner = apply(layer.linear2, apply(layer.linear1, nodes, relu=True))
        nodes = layer.norm2(nodes + inner)
    return nodes


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values * mask.to(values.dtype)


def _product_of(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a * b


def sized(name: str) -> FlowModel:
    """A fresh network of a size that has a name: tiny, small or reqflow.

    Raises:
        UserError: if the name is not known.

    Example:
        >>> sum(p.numel() for p in sized("reqflow").parameters())
        16779268
    """
    return FlowModel(SIZES[choose("size", name, list(SIZES))])
