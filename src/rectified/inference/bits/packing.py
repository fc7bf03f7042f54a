"""`pack`: a network with 1-bit layers -> the same function on bits.

Each 1-bit layer becomes a `PackedProduct`. Where only monotone modules (scale, bias, ReLU, batch
norm, at most one max pool) stand between two of them, the first gives bits and the modules vanish
into its thresholds; where such modules stand before one that reads floats, they vanish into the
thresholds of its input. What is left runs as it was: stem, classifier, sums of residual networks.

Layers that the kernels do not take (groups, dilation, other padding than zeros, inputs of 32 bits)
run in floating point on the signs of their weights; `PackedModel.layers` says which and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, fx, nn
from torch.fx.node import Node
from torch.utils.flop_counter import FlopCounterMode

from rectified.errors import UserError
from rectified.graphs.bit_layers import (
    BitLayer,
    bit_layers,
    is_bit_layer,
    only_input,
    sign,
    trace,
)
from rectified.graphs.copies import call_layers_, is_hooked, plain_copy
from rectified.graphs.operations import module_of
from rectified.inference.bits.bits import words_for
from rectified.inference.bits.layers import PackedProduct, PoolBits, SignedLayer
from rectified.inference.bits.operations import quiet_floats
from rectified.inference.bits.thresholds import (
    Step,
    entries,
    fits,
    input_thresholds,
    is_monotone,
    tabulate,
)
from rectified.inference.kernels import has_kernels

QUIET = 16_000_000  # float operations, a tenth of a millisecond or two of one core


@dataclass(frozen=True)
class PackedLayer:
    """The way in which a 1-bit layer runs.

    Attributes:
        name: its path in the network.
        way: `"bits"`, or `"float"` on the signs of its weights.
        reads: `"bits"` from another layer, or `"floats"`.
        gives: `"bits"` for another layer, or `"floats"`.
        bytes_float: of its weights as float32.
        bytes_packed: of its weights as bits.
        reason: why it runs in floating point; empty if it does not.
    """

    name: str
    way: str
    reads: str
    gives: str
    bytes_float: int
    bytes_packed: int
    reason: str = ""


class PackedModel(nn.Module):
    """A network on bits, for inference.

    Attributes:
        network: what runs; a `torch.fx.GraphModule` where the network could be traced.
        layers: how each 1-bit layer runs.
        notes: what could not be done, and why.
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[PackedLayer], notes: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.network = network
        self.layers, self.notes = tuple(layers), tuple(notes)
        self._work: float | None = None  # float operations for each number that comes in
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> PackedModel:
        """Nothing: a network that is part of one in training still is for inference."""
        return super().train(False)

    def forward(self, *inputs: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        if self._work == 0 or _is_looked_into(inputs):
            return self.network(*inputs)
        size = sum(x.numel() for x in inputs)
        if self._work is None and size:
            with FlopCounterMode(display=False) as counted:  # of PyTorch's layers, not of ours
                outputs = self.network(*inputs)
            self._work = counted.get_total_flops() / size
            return outputs
        is_short = self._work is not None and self._work * size < QUIET
        with quiet_floats() if is_short and torch.get_num_threads() > 1 else nullcontext():
            return self.network(*inputs)


def _is_looked_into(inputs: Sequence[Any]) -> bool:
    """Whether a call is to be compiled or traced, or to run without numba, on PyTorch alone."""
    looks = torch.compiler.is_compiling() or torch.jit.is_tracing() or not has_kernels()
    return looks or not all(type(x) is Tensor for x in inputs)


@torch.no_grad()
def pack(model: nn.Module) -> PackedModel:
    """The network on bits: the same outputs, 1/32 of the 1-bit layers' memory.

    Args:
        model: a network with 1-bit layers (`rectified.graphs.bit_layers.BitLayer`), or one such
            layer; it is left alone. It is packed as it is in evaluation mode.

    Returns:
        A module for inference on a CPU; `layers` says how each 1-bit layer runs. With numba (extra
        `fast`) it runs compiled kernels, else the same arithmetic in PyTorch.

    Raises:
        UserError: if there is no 1-bit layer, or a weight is NaN or infinite.

    Example:
        >>> from rectified.binary import BinaryLinear
        >>> model = nn.Sequential(BinaryLinear(100, 50), nn.BatchNorm1d(50), BinaryLinear(50, 3))
        >>> packed, x = pack(model), torch.randn(7, 100)
        >>> torch.allclose(packed(x), model.eval()(x), atol=2e-6)
        True
        >>> [(layer.reads, layer.gives) for layer in packed.layers]
        [('floats', 'bits'), ('bits', 'floats')]
    """
    _check(model)
    copied = plain_copy(model).to("cpu", torch.float32).eval()
    if is_bit_layer(copied):
        return PackedModel(_layer(copied), [_entry("", copied, "floats", "floats")])
    try:
        traced = trace(copied)
    except UserError as error:
        return _pack_layers(copied, str(error))
    return _Packer(traced).packed()


def _check(model: nn.Module) -> None:
    if not bit_layers(model):
        raise UserError("model must have 1-bit layers: build it with them, or convert it first")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"weights must be finite, got NaN or infinity in {name!r}")


def reason_for_float(layer: BitLayer) -> str:
    """The reason why the kernels do not take a layer; empty if they do.

    Example:
        >>> from rectified.binary import BinaryConv2d
        >>> reason_for_float(BinaryConv2d(4, 4, 3, groups=2))
        'groups is 2, not 1'
    """
    if layer.activation_bits != 1:
        return f"its inputs have {layer.activation_bits} bits"
    if not isinstance(layer, nn.Conv2d):
        return ""
    if layer.groups != 1:
        return f"groups is {layer.groups}, not 1"
    if set(layer.dilation) != {1}:
        return f"dilation is {tuple(layer.dilation)}, not 1"
    if layer.padding_mode != "zeros":
        return f"padding_mode is {layer.padding_mode!r}, not zeros"
    if layer.padding == "same" and not all(size % 2 for size in layer.kernel_size):
        return "padding 'same' of an even kernel is not the same on both sides"
    return ""


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    if layer.padding == "same":
        return tuple(size // 2 for size in layer.kernel_size)
    return (0, 0) if layer.padding == "valid" else tuple(map(int, layer.padding))


def _bias(layer: BitLayer) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()


def _product(
    layer: BitLayer, step: Step | None = None, *, rows_only: bool = False
) -> PackedProduct:
    outputs, inputs = layer.weight.shape[:2]
    has_step = step is not None
    if isinstance(layer, nn.Conv2d):
        around = layer.kernel_size, layer.stride, _padding(layer)
        made = PackedProduct(inputs, outputs, *around, has_step=has_step)
    else:
        made = PackedProduct(
            inputs, outputs, is_linear=True, has_step=has_step, rows_only=rows_only
        )
    made.fill(layer.latent_weight(), layer.alpha(), _bias(layer), step)
    return made


def _signed(layer: BitLayer) -> SignedLayer:
    outputs, inputs = layer.weight.shape[:2]
    inner = (
        _same_shape(layer)
        if isinstance(layer, nn.Conv2d)
        else nn.Linear(inputs, outputs, bias=False, device="meta")
    )
    inner.weight = nn.Parameter(sign(layer.latent_weight()), requires_grad=False)
    made = SignedLayer(inner, layer.activation_bits)
    made.alpha, made.bias = layer.alpha().clone(), _bias(layer)
    return made


def _same_shape(layer: nn.Conv2d) -> nn.Conv2d:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    arguments: dict[str, Any] = {name: getattr(layer, name) for name in names}
    arguments |= {"groups": layer.groups, "padding_mode": layer.padding_mode}
    return nn.Conv2d(**arguments, bias=False, device="meta")


def _entry(name: str, layer: BitLayer, reads: str, gives: str) -> PackedLayer:
    reason = reason_for_float(layer)
    count = layer.weight.numel()
    way = "float" if reason else "bits"
    return PackedLayer(name, way, reads, gives, 4 * count, -(-count // 8), reason)


def _layer(layer: BitLayer) -> nn.Module:
    return _with_hooks(layer, _signed(layer) if reason_for_float(layer) else _product(layer))


def _with_hooks(layer: BitLayer, made: nn.Module) -> nn.Module:
    """The module in a layer's place, with the hooks of the layer."""
    for name in ("_forward_hooks", "_forward_pre_hooks", *_HOW_HOOKS_ARE_CALLED):
        getattr(made, name).update(getattr(layer, name))
    return made


_HOW_HOOKS_ARE_CALLED = (
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)


def _pack_layers(model: nn.Module, reason: str) -> PackedModel:
    """Layer by layer, where the graph cannot be seen."""
    return PackedModel(model, _replace_all_(model), [f"layers do not pass bits on: {reason}"])


def _replace_all_(model: nn.Module) -> list[PackedLayer]:
    """Each 1-bit layer that is left, by itself."""
    layers = []
    for name, layer in bit_layers(model).items():
        model.set_submodule(name, _layer(layer))
        layers.append(_entry(name, layer, "floats", "floats"))
    if layers:
        call_layers_(model)
    return layers


@dataclass(frozen=True)
class _Passage:
    """Monotone modules between two 1-bit layers, and the pool among them."""

    nodes: tuple[Node, ...]
    pool: Node | None
    before: tuple[nn.Module, ...]
    after: tuple[nn.Module, ...]


class _Packer:
    """Rewrites the graph of one network."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.layers: dict[Node, BitLayer] = {}
        for node in traced.graph.nodes:
            module = module_of(node, self.modules)
            if is_bit_layer(module):
                self.layers[node] = module
        calls = [str(node.target) for node in self.layers]
        self.shared = {name for name in calls if calls.count(name) > 1}

    def packed(self) -> PackedModel:
        """The network with its 1-bit layers packed."""
        gives: dict[Node, str] = {}
        for node, layer in list(self.layers.items()):
            gives[node] = self._give_bits(node, layer)
        reads = {node: self._read_floats(node) for node in self.layers}
        self.traced.graph.lint()
        self.traced.recompile()
        self.traced.delete_all_unused_submodules()
        layers = [
            _entry(str(node.target), layer, reads[node], gives[node])
            for node, layer in self.layers.items()
        ]
        # what a module of PyTorch's calls, such as a transformer layer, is not in the graph
        return PackedModel(self.traced, layers + _replace_all_(self.traced))

    def takes_bits(self, node: Node) -> bool:
        """Whether a node is a layer that the kernels take, called once."""
        layer = self.layers.get(node)
        return (
            layer is not None
            and not reason_for_float(layer)
            and not is_hooked(layer)
            and str(node.target) not in self.shared
        )

    def _give_bits(self, node: Node, layer: BitLayer) -> str:
        """Pack a layer; where only thresholds follow, let it give bits. Says what it gives."""
        name = str(node.target)
        if reason_for_float(layer):
            self.traced.set_submodule(name, _layer(layer))
            return "floats"
        passage = self._passage(node) if self.takes_bits(node) else None
        step = None
        if passage is not None:
            length = layer.weight[0].numel()
            is_image = isinstance(layer, nn.Conv2d)
            step = tabulate(
                layer.alpha(),
                _bias(layer),
                length,
                passage.before,
                passage.after,
                is_image=is_image,
            )
        if passage is None or step is None:
            self.traced.set_submodule(name, _layer(layer))
            return "floats"
        rows_only = any(entries(one) > 1 for one in passage.before + passage.after)
        self.traced.set_submodule(name, _product(layer, step, rows_only=rows_only))
        self._shorten(node, passage, step, words_for(len(layer.weight)))
        return "bits"

    def _passage(self, node: Node) -> _Passage | None:
        """The passage from a layer to the layers that read nothing else."""
        nodes: list[Node] = []
        parts: tuple[list[nn.Module], ...] = ([], [])  # before and behind the pool
        pool, here, outputs = None, node, len(self.layers[node].weight)
        while len(here.users) == 1 and not self._are_layers(here):
            here = next(iter(here.users))
            module = module_of(here, self.modules)
            if module is None or len(here.args) != 1:
                return None
            if pool is None and _is_pool(module):
                pool = here
            elif is_monotone(module) and fits(module, outputs):
                parts[pool is not None].append(module)
            else:
                return None
            nodes.append(here)
        if not self._are_layers(here):
            return None
        return _Passage(tuple(nodes), pool, tuple(parts[0]), tuple(parts[1]))

    def _are_layers(self, node: Node) -> bool:
        return bool(node.users) and all(self.takes_bits(user) for user in node.users)

    def _shorten(self, node: Node, passage: _Passage, step: Step, words: int) -> None:
        """Take the modules out; a pool becomes one of bits."""
        end = passage.nodes[-1] if passage.nodes else node
        source = node
        if passage.pool is not None:
            module = self.modules[str(passage.pool.target)]
            made = PoolBits(words, *_pool_shape(module))
            made.flips = step.pool_flips
            name = f"{node.target}_pool".replace(".", "_")
            self.traced.add_submodule(name, made)
            self.modules[name] = made
            with self.traced.graph.inserting_after(end):
                source = self.traced.graph.call_module(name, (node,))
        if end is not node:
            end.replace_all_uses_with(source)
            for one in reversed(passage.nodes):
                self.traced.graph.erase_node(one)

    def _read_floats(self, node: Node) -> str:
        """Let a layer that reads floats do the comparisons of what stands before it."""
        if not self.takes_bits(node):
            return "floats"
        packed = self.traced.get_submodule(str(node.target))
        assert isinstance(packed, PackedProduct)
        nodes = list(self._before(node, packed.inputs))
        source = only_input(nodes[-1]) if nodes else only_input(node)
        if isinstance(source, Node) and self._gives_bits(source):
            return "bits"
        if nodes:
            chain = [self.modules[str(one.target)] for one in reversed(nodes)]
            packed.input_thresholds, packed.input_flips = input_thresholds(
                chain, packed.inputs, is_image=not packed.is_linear
            )
            packed.rows_only |= packed.is_linear and any(entries(one) > 1 for one in chain)
            node.replace_input_with(nodes[0], source)
            for one in nodes:
                self.traced.graph.erase_node(one)
        return "floats"

    def _before(self, node: Node, inputs: int) -> Iterator[Node]:
        """Monotone modules before a layer whose outputs nothing else reads, the nearest first."""
        here = only_input(node)
        while isinstance(here, Node) and len(here.users) == 1:
            module = module_of(here, self.modules)
            if module is None or len(here.args) != 1:
                return
            if not is_monotone(module) or not fits(module, inputs):
                return
            yield here
            here = only_input(here)

    def _gives_bits(self, node: Node) -> bool:
        if node.op != "call_module":
            return False
        module = self.traced.get_submodule(str(node.target))
        return isinstance(module, PoolBits) or (
            isinstance(module, PackedProduct) and module.has_step
        )


def _is_pool(module: nn.Module) -> bool:
    return (
        type(module) is nn.MaxPool2d
        and module.dilation in (1, (1, 1))
        and not module.ceil_mode
        and not module.return_indices
    )


def _pool_shape(module: nn.Module) -> tuple[tuple[int, int], ...]:
    assert isinstance(module, nn.MaxPool2d)
    return tuple(
        (value, value) if isinstance(value, int) else (value[0], value[1])
        for value in (module.kernel_size, module.stride, module.padding)
    )
