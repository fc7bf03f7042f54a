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
from torch import fx, nn
from torch.fx.node import Node

from rectified.graphs.copies import plain_copy
from rectified.graphs.operations import CONVOLUTIONS, LAYERS, NORMS
from rectified.graphs.shapes import shape_of, trace_graph, used_once


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
    folded = plain_copy(model).eval()
    inputs = example if isinstance(example, tuple) else (example,)
    traced = trace_graph(folded, inputs, leaves=leaves)
    for norm, layer in fold_norms_(traced).items():
        folded.set_submodule(norm, nn.Identity())
        folded.set_submodule(layer, traced.get_submodule(layer))
    return folded


@torch.no_grad()
def fold_norms_(traced: fx.GraphModule) -> dict[str, str]:
    """Fold every batch norm that can go into the layer before it; the graph gets new layers.

    Args:
        traced: from `rectified.graphs.shapes.trace_graph`, in evaluation mode. The model that was
            traced keeps its layers.

    Returns:
        Path of every norm that the graph does not call any more, and of the layer it went into.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> traced = trace_graph(model, (torch.zeros(1, 3, 8, 8),))
        >>> fold_norms_(traced)
        {'1': '0'}
        >>> [type(module).__name__ for module in traced.children()]
        ['Conv2d', 'ReLU']
    """
    folded = foldable(traced)
    for norm, path in folded.items():
        layer = copy.deepcopy(traced.get_submodule(path))
        _fold_(layer, traced.get_submodule(norm))
        traced.set_submodule(path, layer)
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and node.target in folded:
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return folded


def foldable(traced: fx.GraphModule) -> dict[str, str]:
    """Paths of the batch norms that alone read one layer, along the same axis, and that layer's.

    Args:
        traced: from `rectified.graphs.shapes.trace_graph`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU()).eval()
        >>> foldable(trace_graph(model, (torch.ones(1, 4),)))
        {'1': '0'}
    """
    modules: dict[str, Any] = dict(traced.named_modules())
    alone = used_once(traced)

    def folds_into(norm: Node, layer: Node) -> bool:
        if layer.op != "call_module" or not {layer.target, norm.target} <= alone:
            return False
        kind = type(modules[str(layer.target)])
        is_along_channels = kind in CONVOLUTIONS or len(shape_of(layer)) == 2
        has_statistics = modules[str(norm.target)].running_mean is not None
        return kind in LAYERS and is_along_channels and has_statistics and len(layer.users) == 1

    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    norms = [node for node in calls if type(modules[str(node.target)]) in NORMS]
    pairs = [(norm, norm.all_input_nodes[0]) for norm in norms]
    return {str(n.target): str(layer.target) for n, layer in pairs if folds_into(n, layer)}


def _fold_(layer: Any, norm: Any) -> None:
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias
    layer.weight *= scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
