"""Packed networks on disk: one safetensors file that needs no other code to run.

It holds the signs of 1-bit layers as bits, one for each weight and not one more, thresholds and
scales, the parameters of what stays in floating point, and in its header the graph: which modules,
functions and methods are called on what, as JSON. Only those named below are read back. `torch.fx`
writes the graph as Python code and runs that, so every word that comes to stand in the code must be
a plain name: loading a file executes nothing that is in it. `name:bits` are the signs of the tensor
`name`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, fx, nn
from torch.fx.node import Node

from rectified.errors import UserError
from rectified.files import write_tensors
from rectified.graphs.copies import is_hooked
from rectified.graphs.operations import OPERATIONS
from rectified.inference import stored
from rectified.inference.bits.bits import panels_to_weight, weight_to_panels
from rectified.inference.bits.layers import PackedProduct, PoolBits, SignedLayer
from rectified.inference.bits.packing import PackedLayer, PackedModel

HEADER = {"format": "rectified-packed", "version": "2"}

# type -> the arguments that make it, which are its attributes too
_Names = tuple[str, ...]
_CONV: _Names = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
)
_PRODUCT: _Names = ("inputs", "outputs", "kernel", "stride", "padding")
_PRODUCT += ("is_linear", "has_step", "rows_only")
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_IN_PLACE: _Names = ("inplace",)  # what it changes may be read by others
_POOL = ("kernel_size", "stride", "padding", "ceil_mode")
_MODULES: dict[type[nn.Module], tuple[str, ...]] = {
    PackedProduct: _PRODUCT,
    PoolBits: ("words", "kernel", "stride", "padding"),
    nn.Conv1d: (*_CONV, "bias", "padding_mode"),
    nn.Conv2d: (*_CONV, "bias", "padding_mode"),
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.BatchNorm1d: _NORM,
    nn.BatchNorm2d: _NORM,
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    nn.MaxPool2d: (*_POOL, "dilation"),
    nn.AvgPool2d: (*_POOL, "count_include_pad"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.AdaptiveMaxPool2d: ("output_size",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.PixelShuffle: ("upscale_factor",),
    nn.ZeroPad2d: ("padding",),
    nn.ReflectionPad2d: ("padding",),
    nn.ReplicationPad2d: ("padding",),
    nn.ReLU: _IN_PLACE,
    nn.ReLU6: _IN_PLACE,
    nn.Tanh: (),
    nn.Sigmoid: (),
    nn.SiLU: _IN_PLACE,
    nn.GELU: ("approximate",),
    nn.Hardtanh: ("min_val", "max_val", *_IN_PLACE),
    nn.LeakyReLU: ("negative_slope", *_IN_PLACE),
    nn.Hardswish: _IN_PLACE,
    nn.Hardsigmoid: _IN_PLACE,
    nn.Softmax: ("dim",),
    nn.PReLU: ("num_parameters",),
    nn.Identity: (),
    nn.Dropout: ("p",),
    nn.Dropout2d: ("p",),
}
_TYPES = {kind.__name__: kind for kind in _MODULES}
_OPERATIONS = ("placeholder", "get_attr", "call_function", "call_method", "call_module", "output")
_STORED = """
    add sub mul div floordiv neg relu relu6 sigmoid tanh hardtanh gelu silu leaky_relu dropout
    softmax mean sum amax size cat chunk getitem pad contiguous expand expand_as flatten permute
    reshape squeeze transpose unsqueeze view view_as max_pool2d avg_pool2d adaptive_avg_pool2d
"""
_CALLS = [call for name in _STORED.split() for call in OPERATIONS[name].calls]


def _name_of(function: Callable[..., Any]) -> str:
    name = function.__name__
    return f"torch.{name}" if getattr(torch, name, None) is function else name


_NAMES = {call: _name_of(call) for call in _CALLS if callable(call)}
_NAMES[getattr] = "getattr"  # of shapes only, see `_program` and `_built`
_FUNCTIONS = {name: function for function, name in _NAMES.items()}
_METHODS = {call for call in _CALLS if isinstance(call, str)}


def save_packed(packed: PackedModel, path: str | Path) -> int:
    """Write a packed network to a file.

    Args:
        packed: what `pack` returned.
        path: file to write; it appears whole or not at all.

    Returns:
        The size of the file in bytes.

    Raises:
        UserError: if the network calls something that a file cannot name; the message says what.

    Example:
        >>> import tempfile
        >>> from rectified.binary import BinaryLinear
        >>> from rectified.inference.bits import load_packed, pack
        >>> layer, x = BinaryLinear(640, 640, bias=False), torch.randn(2, 640)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save_packed(pack(layer), f"{folder}/packed.safetensors")
        ...     loaded = load_packed(f"{folder}/packed.safetensors")
        >>> size < 640 * 640 * 4 / 16, torch.equal(loaded(x), pack(layer)(x))
        (True, True)
    """
    network = packed.network
    if isinstance(network, fx.GraphModule):
        program = _program(network)
    elif isinstance(network, PackedProduct | SignedLayer):
        program = {"module": _described("", network)}
    else:
        raise UserError(
            f"{type(network).__name__} could not be traced ({'; '.join(packed.notes)}): its file "
            "would need its code; keep its state_dict instead"
        )
    tensors = {}
    for name, tensor in network.state_dict().items():
        owner = network.get_submodule(name.rpartition(".")[0])
        signs = _signs_of(owner, name.rpartition(".")[2], tensor)
        if signs is None:
            tensors[name] = tensor.detach().cpu().contiguous().clone()
        else:
            tensors[f"{name}:bits"] = _bits(signs)
    about = {"layers": [asdict(layer) for layer in packed.layers], "notes": packed.notes}
    metadata = {**HEADER, "program": json.dumps(program), "about": json.dumps(about)}
    write_tensors(Path(path), tensors, metadata)
    return os.path.getsize(path)


def load_packed(path: str | Path) -> PackedModel:
    """Read what `save_packed` wrote; it runs at once.

    Args:
        path: the file.

    Returns:
        The network, in evaluation mode.

    Raises:
        UserError: if the file is missing, truncated, of another kind or of another version.
    """
    tensors, metadata = stored.read(path)
    stored.check_header(path, metadata, HEADER, "save_packed")
    with stored.damage_named(path):
        program, about = json.loads(metadata["program"]), json.loads(metadata["about"])
        network = _built(program, tensors)
        layers = [PackedLayer(**layer) for layer in about["layers"]]
        return PackedModel(network, layers, about["notes"])


# ---- signs


def _signs_of(owner: nn.Module, name: str, tensor: Tensor) -> Float[Tensor, "..."] | None:
    """The signs that a tensor holds, if it holds signs."""
    if isinstance(owner, PackedProduct) and name == "panels":
        return panels_to_weight(tensor, owner.outputs, owner.inputs, tuple(owner.kernel))
    is_signs = tensor.is_floating_point() and tensor.ndim >= 2 and bool((tensor.abs() == 1).all())
    return tensor if is_signs else None


def _bits(signs: Float[Tensor, "..."]) -> UInt8[Tensor, " bytes"]:
    return torch.from_numpy(np.packbits((signs >= 0).flatten().numpy()))


def _from_bits(bits: UInt8[Tensor, " bytes"], shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    count = math.prod(shape)
    if len(bits) != -(-count // 8):
        raise ValueError(f"{len(bits)} bytes cannot be the signs of {count} weights")
    flat = np.unpackbits(bits.numpy(), count=count)
    return torch.from_numpy(flat).float().mul_(2).sub_(1).view(shape)


def _fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put stored tensors into a network; every one that it has must be there."""
    state = {}
    for name, tensor in network.state_dict().items():
        if f"{name}:bits" not in tensors:
            state[name] = tensors[name]
            kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
            if state[name].dtype != kind:
                raise ValueError(f"{name!r} must be of {kind}, got {state[name].dtype}")
            continue
        owner = network.get_submodule(name.rpartition(".")[0])
        bits = tensors[f"{name}:bits"]
        if isinstance(owner, PackedProduct):
            shape = (owner.outputs, owner.inputs, *owner.kernel)
            state[name] = weight_to_panels(_from_bits(bits, shape))
        else:
            state[name] = _from_bits(bits, tuple(tensor.shape))
    network.load_state_dict(state, assign=True)


# ---- the graph


def _program(network: fx.GraphModule) -> dict[str, Any]:
    nodes, modules, tensors = [], {}, []
    for node in network.graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            modules[target] = _described(target, network.get_submodule(target))
        elif node.op == "get_attr":
            tensors.append(target)
        elif node.op == "call_function":
            if node.target not in _NAMES or _asks_for_more(node.target, node.args):
                raise UserError(f"the call of {target} ({node.name}) cannot be stored in a file")
            target = _NAMES[node.target]
        elif node.op == "call_method" and target not in _METHODS:
            raise UserError(f"the method {target} ({node.name}) cannot be stored in a file")
        arguments, named = _encoded(node.args), _encoded(node.kwargs)
        nodes.append([node.name, node.op, target, arguments, named])
    shapes = {name: list(network.state_dict()[name].shape) for name in tensors}
    return {"nodes": nodes, "modules": modules, "tensors": shapes}


def _asks_for_more(function: Callable[..., Any], arguments: Sequence[Any]) -> bool:
    """Whether a call gets another attribute than a shape, which might be anything."""
    return function is getattr and list(arguments[1:]) != ["shape"]


def _described(name: str, module: nn.Module) -> dict[str, Any]:
    """A module as its type and arguments."""
    if is_hooked(module):
        raise UserError(f"a file cannot hold the hooks of {name!r}: remove them, and pack again")
    if isinstance(module, SignedLayer):
        return {
            "type": "SignedLayer",
            "inner": _described(name, module.inner),
            "activation_bits": module.activation_bits,
        }
    if type(module) not in _MODULES:
        raise UserError(
            f"a file cannot hold a {type(module).__name__} (at {name!r}): it knows "
            f"{', '.join(sorted(_TYPES))}"
        )
    arguments = {key: getattr(module, key) for key in _MODULES[type(module)]}
    if "bias" in arguments:
        arguments["bias"] = arguments["bias"] is not None
    return {"type": type(module).__name__, "arguments": arguments}


def _made(about: Mapping[str, Any]) -> nn.Module:
    if about["type"] == "SignedLayer":
        inner = _made(about["inner"])
        if not isinstance(inner, nn.Conv2d | nn.Linear):
            raise ValueError(f"a {type(inner).__name__} has no signs")
        return SignedLayer(inner, about["activation_bits"])
    kind = _TYPES[about["type"]]
    arguments = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in about["arguments"].items()
    }
    if set(arguments) != set(_MODULES[kind]):
        raise ValueError(f"a {kind.__name__} is not made from {', '.join(arguments)}")
    if kind in (PackedProduct, PoolBits):
        _check_geometry(**arguments)
    return kind(**arguments)


def _check_geometry(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], **_others: Any
) -> None:
    """The kernels believe what they are told."""
    steps = (*kernel, *stride, *(1 + pad for pad in padding))
    if len(steps) != 6 or not all(type(step) is int and 0 < step < 2**31 for step in steps):
        raise ValueError(f"no kernel {kernel} has stride {stride} and padding {padding}")


def _built(program: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    with torch.device("meta"):  # whatever sizes a file claims, no memory is taken for them
        if "module" in program:
            alone = _made(program["module"])
            _fill(alone, tensors)
            return alone
        parts: dict[str, Any] = {
            _place(name): _made(about) for name, about in program["modules"].items()
        }
    for name, shape in program["tensors"].items():
        parts[_place(name)] = torch.empty(shape, device="meta")
    graph = fx.Graph()
    made: dict[str, Node] = {}
    for name, op, target, arguments, named in program["nodes"]:
        called = target
        if op not in _OPERATIONS:
            raise ValueError(f"unknown operation {str(op)[:80]!r}")
        if op == "call_function":
            called = _FUNCTIONS[target]
            if _asks_for_more(called, _decoded(arguments, made)):
                raise ValueError("a file may ask for shapes, not for other attributes")
        elif op == "call_method" and target not in _METHODS:
            raise ValueError(f"unknown method {target}")
        elif op in ("call_module", "get_attr"):
            called = _place(target)
        elif op == "placeholder":
            called = _word(target)
        args, kwargs = _decoded(arguments, made), _decoded(named, made)
        made[name] = graph.create_node(
            op, called, args, {_word(key): value for key, value in kwargs.items()}, _word(name)
        )
    graph.lint()
    network = fx.GraphModule(parts, graph)
    _fill(network, tensors)
    return network


def _word(text: Any) -> str:
    """A name that may stand in the graph's code, which torch.fx writes and runs."""
    if not (isinstance(text, str) and text.isascii() and text.isidentifier()) or iskeyword(text):
        raise ValueError(f"{str(text)[:80]!r} is no name")
    return text


def _place(text: Any) -> str:
    """A module's or tensor's name in the network: words and numbers with dots between them."""
    if not (isinstance(text, str) and re.fullmatch(r"\w+(\.\w+)*", text, re.ASCII)):
        raise ValueError(f"{str(text)[:80]!r} is no name of a module or tensor")
    return text


def _encoded(value: Any) -> Any:
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encoded(entry) for entry in value]}
    if isinstance(value, Mapping):
        return {"dict": {key: _encoded(entry) for key, entry in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_encoded(entry) for entry in (value.start, value.stop, value.step)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise UserError(f"an argument of type {type(value).__name__} cannot be stored in a file")


def _decoded(value: Mapping[str, Any], made: Mapping[str, Node]) -> Any:
    ((kind, content),) = value.items()
    if kind == "node":
        return made[content]
    if kind == "tuple":
        return tuple(_decoded(entry, made) for entry in content)
    if kind == "list":
        return [_decoded(entry, made) for entry in content]
    if kind == "dict":
        return {key: _decoded(entry, made) for key, entry in content.items()}
    if kind == "slice":
        return slice(*(_decoded(entry, made) for entry in content))
    if kind == "value":
        return content
    raise ValueError(f"unknown kind of argument {kind!r}")
