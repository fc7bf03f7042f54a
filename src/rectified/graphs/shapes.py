"""The traced graph of a network: its operations in running order, with the shapes they make.

A thin layer over `torch.fx`: what a network computes becomes a list of nodes, each a call of a
module, a function or a method. Tracing runs the network's own forward on placeholders, so it sees
functional calls as well as modules; it cannot follow branches that depend on a tensor's values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Node
from torch.fx.passes.shape_prop import ShapeProp

from rectified.graphs.copies import is_hooked
from rectified.graphs.sites import activation_kind
from rectified.graphs.traces import defaults, trace


@torch.no_grad()
def trace_graph(
    model: nn.Module, example: tuple[Any, ...], *, leaves: Sequence[type[nn.Module]] = ()
) -> fx.GraphModule:
    """The `torch.fx` graph of `model`, run once for the shape of every tensor in it.

    Arguments of the model's forward that the example leaves out keep their default values.

    Args:
        model: a network in evaluation mode, without wrappers.
        example: the arguments of one call.
        leaves: module types that stay whole: one node, not traced into.

    Raises:
        UserError: if `torch.fx` cannot trace the network; the message names the module.

    Example:
        >>> traced = trace_graph(nn.Sequential(nn.Linear(2, 3)).eval(), (torch.ones(5, 2),))
        >>> [shape_of(node) for node in traced.graph.nodes]
        [(5, 2), (5, 3), (5, 3)]
    """
    traced = trace(
        model,
        leaves=leaves,
        constants=defaults(model, len(example)),
        keeps_whole="keep it whole with leaves=({},)",
    )
    ShapeProp(traced).propagate(*example)
    return traced


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of what a node makes; empty if that is not one tensor."""
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))


def site_names(traced: fx.GraphModule) -> dict[Node, str]:
    """The activations among the nodes, by the names that `rectified.graphs.sites` gives them."""
    modules, calls = dict(traced.named_modules()), Counter[str]()
    names = {}
    for node in traced.graph.nodes:
        if path := _activation_path(node, modules):
            calls[path] += 1
            names[node] = path if calls[path] == 1 else f"{path}#{calls[path]}"
    return names


def _activation_path(node: Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        is_activation = type(modules[str(node.target)]).__module__ == nn.ReLU.__module__
        return str(node.target) if is_activation else ""
    is_method = node.op == "call_method"
    function = getattr(torch.Tensor, str(node.target), None) if is_method else node.target
    found = activation_kind(function, node.args, node.kwargs)
    return "" if found is None else f"{_caller(node)}.{found[0]}".lstrip(".")


def _caller(node: Node) -> str:
    """The path of the module whose forward makes this call; empty for the network itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


def used_once(traced: fx.GraphModule) -> set[str]:
    """Paths of modules that are called once, have no hooks and share no weights.

    Only these can change their size without a change elsewhere.
    """
    modules = dict(traced.named_modules())
    # layers inside of modules that are not traced into are called with them
    inside = [
        f"{node.target}.{path}"
        for node in traced.graph.nodes
        if node.op == "call_module"
        for path, _module in modules[str(node.target)].named_modules()
        if path
    ]
    calls = Counter(inside)
    calls.update(
        str(n.target) if n.op == "call_module" else str(n.target).rpartition(".")[0]
        for n in traced.graph.nodes
        if n.op in ("call_module", "get_attr")
    )
    owners = Counter(id(p) for module in modules.values() for p in _own_weights(module))

    def is_alone(module: nn.Module) -> bool:
        return not is_hooked(module) and all(owners[id(p)] == 1 for p in _own_weights(module))

    return {name for name, count in calls.items() if count == 1 and is_alone(modules[name])}


def _own_weights(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module._parameters.values() if parameter is not None]
