"""The graph of a network with its 1-bit layers whole: what `convert` and `pack` look at."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.fx.node import Node

from rectified import rewriting
from rectified.binary.layers import BinaryConv2d, BinaryLinear


def trace(model: nn.Module) -> fx.GraphModule:
    """The `torch.fx` graph of a network; the modules in it are the network's own.

    Arguments of the model's forward that have default values keep them.

    Raises:
        UserError: if `torch.fx` cannot trace it.

    Example:
        >>> [node.op for node in trace(nn.Sequential(nn.Linear(2, 3))).graph.nodes]
        ['placeholder', 'call_module', 'output']
    """
    kinds = (BinaryConv2d, BinaryLinear)
    # Tracing looks into the root, so a layer alone needs one around it.
    root = nn.Sequential(model) if isinstance(model, kinds) else model
    return rewriting.trace(root, leaves=kinds, constants=rewriting.defaults(root))


def module_of(node: Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return modules[str(node.target)] if node.op == "call_module" else None


def only_input(node: Node) -> Any:
    """The node that an operation of one tensor reads."""
    return node.args[0] if node.args else None
