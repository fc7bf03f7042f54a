"""Folding norms: a norm behind a layer as another weight and bias of that layer.

In evaluation mode a batch norm is a scale and a shift of every channel, so behind a convolution or
linear layer it is exact as w' = w s, b' = (b - mean) s + beta with s = gamma / sqrt(var + eps).
Weights that are zero stay zero.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from rectified.pruning.tracing import shape_of, used_once


@torch.no_grad()
def fold_norms(traced: fx.GraphModule) -> None:
    """Fold every norm that follows a convolution or linear layer into it, in place.

    Args:
        traced: from `trace_graph`, in evaluation mode.

    Example:
        >>> from rectified.pruning.tracing import trace_graph
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> traced = trace_graph(model, (torch.zeros(1, 3, 8, 8),))
        >>> fold_norms(traced)
        >>> [type(module).__name__ for module in traced.children()]
        ['Conv2d', 'ReLU']
    """
    modules = dict(traced.named_modules())
    alone = used_once(traced)
    for node in list(traced.graph.nodes):
        before = _folds_into(node, modules, alone)
        if before is None:
            continue
        layer: Any = modules[str(before.target)]
        norm: Any = modules[str(node.target)]
        fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        traced.set_submodule(str(before.target), fuse(layer, norm))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()


def _folds_into(node: Node, modules: Mapping[str, nn.Module], alone: set[str]) -> Node | None:
    """The call of the layer that a norm's call folds into, if it is a norm and there is one."""
    norm = modules.get(str(node.target)) if node.op == "call_module" else None
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_var is None:
        return None
    before = node.args[0]
    if not isinstance(before, Node) or before.op != "call_module" or len(before.users) != 1:
        return None
    if not {str(before.target), str(node.target)} <= alone:
        return None
    kind = type(modules[str(before.target)])
    fits = kind is nn.Conv2d or (kind is nn.Linear and len(shape_of(before)) == 2)
    return before if fits else None
