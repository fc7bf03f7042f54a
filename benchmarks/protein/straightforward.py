"""The ReQFlow network written down as its definition says, with the parameters of ours.

All 238 features of a pair are put side by side, points are compared pair by pair, [z, n_i, n_j] is
formed: nothing is rearranged. It is what the fast evaluation is measured and tested against, and it
is slow in the ways that the reference is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rectified.protein.embeddings import position_waves, time_waves
from rectified.protein.frames import Frames
from rectified.protein.model import NM, FlowModel
from rectified.protein.quaternion import multiply, normalise, quaternion_to_matrix


def forward(
    model: FlowModel, frames: Frames, t: Tensor, *, previous: Tensor | None = None
) -> Frames:
    """What `model(frames, t, previous=previous)` computes, for chains without padding."""
    nodes = node_features(model, frames, t)
    pairs = edge_features(model, nodes, frames.translations, previous)
    q, x = frames.quaternions, frames.translations * NM
    for b in range(model.sizes.blocks):
        part = {name: model.trunk[f"{name}_{b}"] for name in PARTS}
        rotations = quaternion_to_matrix(q)
        seen = attention(part["ipa"], nodes, pairs, rotations, x)
        nodes = part["ipa_ln"](nodes + seen)
        nodes = nodes + part["post_tfmr"](part["seq_tfmr"](nodes))
        step = part["node_transition"]
        inner = step.linear_3(step.linear_2(step.linear_1(nodes).relu()).relu())
        nodes = step.ln(nodes + inner)
        update = part["bb_update"].linear(nodes)
        x = x + (rotations @ update[..., 3:, None]).squeeze(-1)
        q = normalise(q + multiply(q, F.pad(update[..., :3], (1, 0))))
        if b < model.sizes.blocks - 1:
            pairs = edge_transition(model.trunk[f"edge_transition_{b}"], nodes, pairs)
    return Frames(x / NM, q)


PARTS = ("ipa", "ipa_ln", "seq_tfmr", "post_tfmr", "node_transition", "bb_update")


def node_features(model: FlowModel, frames: Frames, t: Tensor) -> Tensor:
    batch, count, _ = frames.translations.shape
    net = model.node_feature_net
    index = torch.arange(count, dtype=torch.float32).expand(batch, count)
    times = time_waves(t, net.time)[:, None].expand(batch, count, net.time)
    ones = torch.ones(batch, count, 1)
    return net.linear(torch.cat((position_waves(index, net.position), ones, times, times), -1))


def edge_features(model: FlowModel, nodes: Tensor, x: Tensor, previous: Tensor | None) -> Tensor:
    net = model.edge_feature_net
    batch, count, _ = nodes.shape
    p = net.linear_s_p(nodes)
    rows = p[:, :, None].expand(batch, count, count, -1)
    columns = p[:, None].expand(batch, count, count, -1)
    numbers = torch.arange(count)
    apart = position_waves((numbers[:, None] - numbers).float(), net.feature)
    apart = net.linear_relpos(apart).expand(batch, count, count, -1)
    sc = torch.zeros_like(x) if previous is None else previous
    ones = torch.ones(batch, count, count, 2)
    parts = (rows, columns, apart, distogram(x), distogram(sc), ones)
    return net.edge_embedder(torch.cat(parts, -1))


def distogram(x: Tensor) -> Tensor:
    lower = torch.linspace(1e-3, 20, 22)
    upper = torch.cat((lower[1:], torch.tensor([1e8])))
    d = (x[:, :, None] - x[:, None]).norm(dim=-1, keepdim=True)
    return ((d > lower) & (d < upper)).float()


def attention(ipa: torch.nn.Module, s: Tensor, z: Tensor, r: Tensor, x: Tensor) -> Tensor:
    heads, hidden = ipa.heads, ipa.hidden
    q = ipa.linear_q(s).unflatten(-1, (heads, hidden))
    k, v = ipa.linear_kv(s).unflatten(-1, (heads, 2 * hidden)).split(hidden, -1)

    def points(layer: torch.nn.Linear) -> Tensor:
        own = torch.stack(layer(s).chunk(3, -1), -1)
        return ((r[:, :, None] @ own[..., None]).squeeze(-1) + x[:, :, None]).unflatten(
            2, (heads, -1)
        )

    qp = points(ipa.linear_q_points)
    kp, vp = points(ipa.linear_kv_points).split((ipa.query_points, ipa.value_points), -2)
    logits = torch.einsum("bihc,bjhc->bhij", q, k) * math.sqrt(1 / (3 * hidden))
    logits = logits + math.sqrt(1 / 3) * ipa.linear_b(z).permute(0, 3, 1, 2)
    far = (qp[:, :, None] - kp[:, None]).square().sum(-1)  # batch i j heads points
    sharpness = F.softplus(ipa.head_weights) * math.sqrt(1 / (3 * (ipa.query_points * 9 / 2)))
    far = (far * sharpness[:, None]).sum(-1) * -0.5
    weights = (logits + far.permute(0, 3, 1, 2)).softmax(-1)
    o = torch.einsum("bhij,bjhc->bihc", weights, v).flatten(2)
    op = torch.einsum("bhij,bjhpd->bihpd", weights, vp)
    op = (r.mT[:, :, None, None] @ (op - x[:, :, None, None])[..., None]).squeeze(-1)
    distances = (op.square().sum(-1) + 1e-8).sqrt().flatten(2)
    pair = torch.einsum("bhij,bijc->bihc", weights, ipa.down_z(z)).flatten(2)
    parts = (o, *(part.flatten(2) for part in op.unbind(-1)), distances, pair)
    return ipa.linear_out(torch.cat(parts, -1))


def edge_transition(net: torch.nn.Module, nodes: Tensor, z: Tensor) -> Tensor:
    n = net.initial_embed(nodes)
    batch, count, _ = n.shape
    rows = n[:, :, None].expand(batch, count, count, -1)
    columns = n[:, None].expand(batch, count, count, -1)
    h = torch.cat((z, rows, columns), -1)
    return net.layer_norm(net.final_layer(net.trunk(h) + h))
