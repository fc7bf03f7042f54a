"""Networks as sparse programs: stretches of known operations in one call.

`Segment` is a module that runs connected steps as one `Program`, written anew for each shape of
input. A sum and a ReLU behind a convolution, with no one else reading in between, become part of
it. `segmented` cuts a traced network into such segments and what has to stay in PyTorch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.fx.node import Node, map_arg
from torch.fx.passes.split_module import split_module

from rectified.errors import UserError
from rectified.graphs.shapes import shape_of
from rectified.graphs.traces import overwritten
from rectified.inference.sparse.builder import NO_FLOOR, Builder
from rectified.inference.sparse.kernels import LANES, VECTORS
from rectified.inference.sparse.program import Program
from rectified.inference.sparse.steps import Flatten, Mix, Pool, Step, Sum, parse, parse_layer

SIDE_BY_SIDE = 64  # samples: more would not fit a level-1 cache with enough features for a pass


@dataclass(frozen=True)
class Line:
    """A step, the name of what it makes and the names of what it reads."""

    name: str
    step: Step
    reads: tuple[str, ...]


class Segment(nn.Module):
    """Connected steps, run as one program; inference only, float32 in the CPU's memory.

    Args:
        inputs: names of the arguments.
        lines: what is done, in order.
        outputs: names of the results; one is returned as a tensor, several as a tuple.
        threads: how many threads a call may use.
        ranks: how many axes each argument has, batch included.

    Raises:
        UserError: when called on other numbers of axes, channels or features, or on other types:
            the kernels would read beyond them.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        lines: Sequence[Line],
        outputs: Sequence[str],
        threads: int,
        ranks: Sequence[int],
    ) -> None:
        super().__init__()
        self._inputs, self._outputs, self._threads = list(inputs), list(outputs), threads
        self._ranks = list(ranks)
        self._lines = merged(lines, outputs)
        self._programs: dict[Any, Program] = {}  # by the shapes of all inputs, batch included
        self._written: dict[Any, Program] = {}

    def forward(self, *inputs: Float[Tensor, "batch ..."]) -> Any:
        key = inputs[0].shape if len(inputs) == 1 else tuple([x.shape for x in inputs])
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = self._program([tuple(x.shape) for x in inputs])
        for x in inputs:
            if x.dtype is not torch.float32 or not x.is_cpu:
                raise UserError(
                    f"a sparse network takes float32 tensors on the CPU, got {x.dtype} on "
                    f"{x.device}"
                )
        results = program(*inputs)
        return results[0] if len(results) == 1 else tuple(results)

    @property
    def mixes(self) -> bool:
        """Whether any layer is in it."""
        return any(isinstance(line.step, Mix) for line in self._lines)

    def extra_repr(self) -> str:
        return ", ".join(f"{line.name}: {type(line.step).__name__}" for line in self._lines)

    def _program(self, shapes: Sequence[tuple[int, ...]]) -> Program:
        """The program for these inputs; batches that lie side by side alike have one."""
        if [len(shape) for shape in shapes] != self._ranks:
            raise UserError(
                f"a sparse network takes inputs of as many axes as its example had, {self._ranks}, "
                f"got {[len(shape) for shape in shapes]}"
            )
        if len({shape[0] for shape in shapes}) != 1:
            raise UserError(f"inputs must be of one batch, got shapes {shapes}")
        lanes = _lanes(shapes[0][0]) if all(len(shape) == 2 for shape in shapes) else 1
        inner = (lanes, *(shape[1:] for shape in shapes))
        if inner not in self._written:
            self._written[inner] = self._write(lanes, [shape[1:] for shape in shapes])
        return self._written[inner]

    def _write(self, lanes: int, shapes: Sequence[Sequence[int]]) -> Program:
        halo = max((line.step.halo for line in self._lines), default=0)
        builder = Builder(halo=halo if lanes == 1 else 0, lanes=lanes)
        values = {
            name: builder.input(tuple(shape))
            for name, shape in zip(self._inputs, shapes, strict=True)
        }
        flat = {name: len(shape) == 1 for name, shape in zip(self._inputs, shapes, strict=True)}
        left = Counter(name for line in self._lines for name in line.reads)
        left.update(self._outputs)
        for line in self._lines:
            values[line.name] = line.step.write(builder, *(values[name] for name in line.reads))
            flat[line.name] = _makes_vector(line.step) or flat[line.reads[0]]
            left.subtract(line.reads)
            for name in set(line.reads):
                if not left[name]:
                    builder.release(values[name])
        for name in self._outputs:
            builder.output(values[name], flat[name])
        return builder.finish(self._threads)


def _makes_vector(step: Step) -> bool:
    return isinstance(step, Flatten) or (isinstance(step, Pool) and step.flat)


def _lanes(batch: int) -> int:
    """The number of samples side by side: whole vectors that hold the batch, or a part of it."""
    if batch == 1:
        return 1
    lanes = LANES
    while lanes < min(batch, SIDE_BY_SIDE, VECTORS * LANES):
        lanes *= 2
    return lanes


def merged(lines: Sequence[Line], outputs: Sequence[str]) -> list[Line]:
    """Make a sum and a ReLU part of the convolution before them, where no one else reads that.

    Args:
        lines: steps in order.
        outputs: names that are read from outside.

    Returns:
        Fewer lines, which compute the same outputs.
    """
    reads = Counter(outputs)
    reads.update(name for line in lines for name in line.reads)
    done: dict[str, Line] = {}
    for line in lines:
        host = _host(line, done, reads)
        if host is None:
            done[line.name] = line
            continue
        assert isinstance(host.step, Mix | Sum)
        assert isinstance(line.step, Sum)
        del done[host.name]
        step = replace(host.step, floor=line.step.floor)
        others = tuple(name for name in line.reads if name != host.name)
        done[line.name] = Line(line.name, step, host.reads + others)
    return list(done.values())


def _host(line: Line, done: dict[str, Line], reads: Counter[str]) -> Line | None:
    """The convolution or sum that can also do this sum or ReLU."""
    if not isinstance(line.step, Sum):
        return None
    for name in line.reads:
        # Only the line just before: every other operand has been computed by then.
        if name != next(reversed(done), None) or reads[name] != 1:
            continue
        host = done[name]
        unfinished = isinstance(host.step, Mix | Sum) and host.step.floor == NO_FLOOR
        room = len(line.reads) == 1 or (isinstance(host.step, Mix) and len(host.reads) == 1)
        if unfinished and room:
            return host
    return None


def layer_segment(layer: nn.Module, threads: int) -> Segment | None:
    """One layer as a segment, or None if it has to stay in PyTorch.

    Args:
        layer: a `Linear` or `Conv2d`.
        threads: how many threads a call may use.
    """
    step = parse_layer(layer)
    rank = 2 if isinstance(layer, nn.Linear) else 4
    lines = [] if step is None else [Line("y", step, ("x",))]
    return Segment(["x"], lines, ["y"], threads, [rank]) if lines else None


def segmented(traced: fx.GraphModule, dense: set[str], threads: int) -> nn.Module:
    """Run every stretch of known operations as a program, and the others as before.

    Args:
        traced: from `trace_graph`, norms folded.
        dense: names of layers that stay in PyTorch.
        threads: how many threads a call may use.

    Returns:
        A module that computes what `traced` does.
    """
    parts = _parts(traced, dense)
    split = split_module(traced, traced, lambda node: parts[node][0])
    programs = {f"submod_{number}" for number, known in parts.values() if known}
    for name, part in list(split.named_children()):
        segment = graph_segment(part, threads) if name in programs else None
        # Without a layer in it, a program would only copy.
        if segment is not None and segment.mixes:
            split.set_submodule(name, segment)
    split.recompile()
    return _unwrapped(split)


def _unwrapped(split: fx.GraphModule) -> nn.Module:
    """The one segment of a network that is nothing else."""
    nodes = list(split.graph.nodes)
    calls = [node for node in nodes if node.op == "call_module"]
    inputs = [node for node in nodes if node.op == "placeholder"]
    result = nodes[-1].args[0]
    if len(calls) == 1 and len(nodes) == len(inputs) + 2 and result is calls[0]:
        segment = split.get_submodule(str(calls[0].target))
        if isinstance(segment, Segment) and list(calls[0].args) == inputs:
            return segment
    return split


def _parts(traced: fx.GraphModule, dense: set[str]) -> dict[Node, tuple[int, bool]]:
    """Number the stretches of nodes in running order: in a program or not, images or vectors."""
    modules = dict(traced.named_modules())
    # in a program a view is a copy, which would not see what is written into it
    shared = {one for node in traced.graph.nodes for one in overwritten(node, modules)}
    parts: dict[Node, tuple[int, bool]] = {}
    number, previous = 0, None
    for node in traced.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        known = node not in shared and str(node.target) not in dense and _known(node, modules)
        kind = (known, known and _is_of_vectors(node))
        number += kind != previous and previous is not None
        previous = kind
        parts[node] = (number, known)
    return parts


def _known(node: Node, modules: Mapping[str, nn.Module]) -> bool:
    tensors = [node, *node.all_input_nodes]
    floats = all(
        getattr(one.meta.get("tensor_meta"), "dtype", None) == torch.float32 for one in tensors
    )
    ranks = {len(shape_of(one)) for one in tensors}
    plain = floats and ranks <= {2, 4} and not overwritten(node, modules)
    step = parse(node, modules) if plain else None
    if isinstance(step, Mix):
        layer = modules.get(str(node.target))
        flat = isinstance(layer, nn.Linear | nn.BatchNorm1d)
        return ranks == ({2} if flat else {4})
    return step is not None


def _is_of_vectors(node: Node) -> bool:
    """Whether a batch of more than one would lie side by side here."""
    tensors = [node, *node.all_input_nodes]
    return all(len(shape_of(one)) == 2 for one in tensors) and shape_of(node)[0] > 1


def graph_segment(part: nn.Module, threads: int) -> Segment:
    """A graph of known operations as a segment.

    Args:
        part: every node of it parses.
        threads: how many threads a call may use.
    """
    assert isinstance(part, fx.GraphModule)
    modules = dict(part.named_modules())
    inputs, ranks, lines, outputs = [], [], [], []
    for node in part.graph.nodes:
        if node.op == "placeholder":
            inputs.append(node.name)
            ranks.append(len(shape_of(node)))
        elif node.op == "output":
            outputs = [one.name for one in node.all_input_nodes]
        else:
            step = parse(node, modules)
            assert step is not None
            lines.append(Line(node.name, step, _reads(node)))
    return Segment(inputs, lines, outputs, threads, ranks)


def _reads(node: Node) -> tuple[str, ...]:
    """Names of what a node reads, in order, each as often as it stands there."""
    names: list[str] = []
    map_arg((node.args, node.kwargs), lambda one: names.append(one.name))
    return tuple(names)
