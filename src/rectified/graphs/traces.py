"""Traces: the operations of a network, read by running its forward on placeholders (`torch.fx`).

`x += y` is recorded as what it is; `torch.fx` alone would take it for `x = x + y`, which is
something else where x lies in memory that others read. `overwritten` finds such calls.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jaxtyping
from torch import fx, nn
from torch.fx.node import Node

from rectified.errors import UserError, first_line
from rectified.graphs.operations import (
    IN_PLACE,
    IN_PLACE_OPERATORS,
    SIZES,
    Trait,
    kind_of,
    kinds,
    module_of,
)

_NUMBERS = {*SIZES, "numel", len, int}


class _Proxy(fx.Proxy):
    """A placeholder that records changes in place."""


def _recorder(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        # a number has no place
        called = IN_PLACE_OPERATORS[function] if _is_number(self.node) else function
        return self.tracer.create_proxy("call_function", called, (self, other), {})

    return record


for _function in IN_PLACE_OPERATORS:
    setattr(_Proxy, f"__{_function.__name__}__", _recorder(_function))


def _is_number(node: Node) -> bool:
    """Whether a node makes sizes or arithmetic of them, not a tensor."""
    if node.target in _NUMBERS or (node.target is getattr and node.args[1] in _NUMBERS):
        return True
    sources = node.all_input_nodes
    is_arithmetic = getattr(node.target, "__module__", "") == "_operator"
    return is_arithmetic and bool(sources) and all(_is_number(source) for source in sources)


class _Tracer(fx.Tracer):
    """Keeps chosen modules whole, and remembers the innermost module whose forward failed."""

    def __init__(self, leaves: Sequence[type[nn.Module]] = ()) -> None:
        super().__init__()
        self.leaves = tuple(leaves)
        self.failed: tuple[str, str] | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or (self.path_of_module(m), type(m).__name__)
            raise


def trace(
    model: nn.Module,
    *,
    leaves: Sequence[type[nn.Module]] = (),
    constants: Mapping[str, Any] | None = None,
    keeps_whole: str = "",
) -> fx.GraphModule:
    """The `torch.fx` graph of a network; the modules in it are the network's own.

    Args:
        model: a network without wrappers.
        leaves: module types that stay whole: one node, not traced into.
        constants: arguments of the forward that are no placeholders, by name.
        keeps_whole: how a user keeps a module whole, with `{}` for its type; empty if there is no
            such way.

    Raises:
        UserError: if `torch.fx` cannot trace the network; the message names the innermost module.

    Example:
        >>> [node.op for node in trace(nn.Sequential(nn.Linear(2, 3))).graph.nodes]
        ['placeholder', 'call_module', 'output']
    """
    tracer = _Tracer(leaves)
    try:
        with _shapes_unchecked(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Was not able to add assertion")
            graph = tracer.trace(model, concrete_args=dict(constants or {}))
            _forget_(graph, constants or {})
            return fx.GraphModule(model, graph)
    except Exception as error:
        advice = "write its forward without branches on tensors or len() of them"
        if tracer.failed is None:
            where = f"{type(model).__name__} ({advice})"
        else:
            path, kind = tracer.failed
            keep = f"{keeps_whole.format(kind)}, or " if keeps_whole else ""
            where = f"{path!r} ({keep}{advice})"
        raise UserError(f"torch.fx cannot trace {where}: {first_line(error)}") from error


def _forget_(graph: fx.Graph, constants: Mapping[str, Any]) -> None:
    """Take out the arguments that are constants, with the checks that they still are."""

    def erase(node: Node) -> None:
        for user in list(node.users):
            erase(user)
        graph.erase_node(node)

    for node in list(graph.nodes):
        if node.op == "placeholder" and str(node.target).rpartition("_")[0] in constants:
            erase(node)


def defaults(model: nn.Module, given: int = 0) -> dict[str, Any]:
    """The arguments of a network's forward with defaults that are values, behind the first `given`.

    Raises:
        UserError: if the forward is compiled and does not say.

    Example:
        >>> defaults(nn.ConvTranspose2d(1, 1, 1))
        {'output_size': None}
    """
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except ValueError as error:
        name = type(model).__name__
        raise UserError(f"torch.fx cannot trace a compiled {name}: {error}") from error
    # torch.fx takes containers apart, into several arguments
    return {
        p.name: p.default
        for p in parameters[given:]
        if p.default is not p.empty and not isinstance(p.default, tuple | list | dict)
    }


@contextmanager
def _shapes_unchecked() -> Iterator[None]:
    """For a while no annotated shape is checked: placeholders are no tensors yet."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def is_in_place(node: Node, module: nn.Module | None) -> bool:
    """Whether a node writes into its first input; `module` is what it calls, if it calls one."""
    return bool(
        node.target in IN_PLACE
        or getattr(module, "inplace", False)
        or (node.op == "call_method" and str(node.target).endswith("_"))
        or (node.op == "call_function" and _asks_for_place(node))
    )


def _asks_for_place(node: Node) -> bool:
    try:
        call = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a built-in function
        return bool(node.kwargs.get("inplace", False))
    return bool(call.arguments.get("inplace", False))


def overwritten(node: Node, modules: Mapping[str, nn.Module]) -> set[Node]:
    """Nodes that lie in the memory which a node changes, if anything but that node reads there.

    Args:
        node: of a traced graph.
        modules: the network's modules by name.
    """
    if not node.all_input_nodes or not is_in_place(node, module_of(node, modules)):
        return set()
    base = node.all_input_nodes[0]
    while base.all_input_nodes and _may_be_view(base, modules):
        base = base.all_input_nodes[0]
    found, waiting, is_read = set[Node](), [base], False
    while waiting:
        here = waiting.pop()
        found.add(here)
        for user in here.users:
            if user is not node and user.all_input_nodes[0] is here and _may_be_view(user, modules):
                waiting.append(user)
            elif user is not node:
                is_read = True
    return found if is_read else set()


def _may_be_view(node: Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether what a node makes may lie in the memory of its first input."""
    is_view = kind_of(node, modules) in kinds(Trait.VIEW)
    return is_view or is_in_place(node, module_of(node, modules))
