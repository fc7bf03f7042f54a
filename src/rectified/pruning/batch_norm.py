"""Folding batch norms: in evaluation a batch norm is a scale and a shift of each channel,

    y = gamma (x - mu) / sqrt(var + eps) + beta,

so that behind a linear layer or a convolution, x = W u + b, it is part of that layer:

    W' = gamma / sqrt(var + eps) W,    b' = beta + gamma (b - mu) / sqrt(var + eps).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rectified.pruning.channel_graph import CONVOLUTIONS, NORMS
from rectified.pruning.sites import bare
from rectified.pruning.tracing import shape_of, trace_graph, used_once


@torch.no_grad()
def fold_batch_norm(
    model: nn.Module, example: Any, *, leaves: Sequence[type[nn.Module]] = ()
) -> nn.Module:
    """A copy of `model` in evaluation mode, with batch norms folded into the layers before them.

    A batch norm goes if it is the only reader of one linear layer or convolution; an `nn.Identity`
    takes its place, and the layer gets a bias. All others stay.

    Args:
        model: any network that `torch.fx` can trace; it is left as it was.
        example: a batch of inputs, a tensor or a tuple of arguments, for the shapes.
        leaves: module types that `torch.fx` cannot trace; they stay whole.

    Raises:
        UserError: if the network cannot be traced.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU())
        >>> fold_batch_norm(model, torch.ones(1, 4))
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): Identity()
          (2): ReLU()
        )
    """
    folded = copy.deepcopy(bare(model)).eval()
    inputs = example if isinstance(example, tuple) else (example,)
    traced = trace_graph(folded, inputs, leaves=leaves)
    for layer, norm in _pairs(traced):
        _fold_(folded.get_submodule(layer), folded.get_submodule(norm))
        folded.set_submodule(norm, nn.Identity())
    return folded


def _pairs(traced: torch.fx.GraphModule) -> list[tuple[str, str]]:
    """Paths of layers and of the batch norms that alone read them, along the same axis."""
    modules, alone = dict(traced.named_modules()), used_once(traced)

    def is_pair(layer: Any, norm: Any) -> bool:
        if layer.op != "call_module" or not {layer.target, norm.target} <= alone:
            return False
        is_flat = type(modules[layer.target]) is nn.Linear and len(shape_of(layer)) == 2
        has_statistics = modules[norm.target].running_mean is not None
        is_convolution = type(modules[layer.target]) in CONVOLUTIONS
        return len(layer.users) == 1 and has_statistics and (is_flat or is_convolution)

    norms: list[Any] = [
        node
        for node in traced.graph.nodes
        if node.op == "call_module" and type(modules[node.target]) in NORMS
    ]
    sources = [(norm.all_input_nodes[0], norm) for norm in norms]
    return [(layer.target, norm.target) for layer, norm in sources if is_pair(layer, norm)]


def _fold_(layer: Any, norm: Any) -> None:
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias
    layer.weight *= scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
