"""The graph of a network with its 1-bit layers whole: what `convert` and `pack` look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
from torch import fx, nn
from torch.fx.node import Node

from rectified.binary.layers import BinaryConv2d, BinaryLinear
from rectified.errors import UserError


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_binary = isinstance(m, BinaryConv2d | BinaryLinear)
        return is_binary or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """The `torch.fx` graph of a network; the modules in it are the network's own.

    Raises:
        UserError: if `torch.fx` cannot trace it.

    Example:
        >>> [node.op for node in trace(nn.Sequential(nn.Linear(2, 3))).graph.nodes]
        ['placeholder', 'call_module', 'output']
    """
    # Tracing looks into the root, so a layer alone needs one around it.
    root = nn.Sequential(model) if isinstance(model, BinaryConv2d | BinaryLinear) else model
    try:
        with _shapes_unchecked():
            return fx.GraphModule(root, _Tracer().trace(root))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"torch.fx cannot trace {type(model).__name__}: {reason}") from error


@contextmanager
def _shapes_unchecked() -> Iterator[None]:
    """For a while no annotated shape is checked: placeholders are no tensors yet."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def module_of(node: Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return modules[str(node.target)] if node.op == "call_module" else None


def only_input(node: Node) -> Any:
    """The node that an operation of one tensor reads."""
    return node.args[0] if node.args else None
