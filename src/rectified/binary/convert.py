"""From an existing network to one with 1-bit layers, the weights as they are.

The first and the last layer and 1x1 convolutions (shortcuts) stay in full precision unless told
otherwise: they hold few weights and much of the accuracy.

A ReLU in front of a 1-bit layer would make every input's sign +1, since nothing behind it is
negative. `convert` replaces such ReLUs by identities; the sign is the non-linearity there.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.node import Node

from rectified.binary.estimators import ReSTE
from rectified.binary.layers import BinaryConv2d, BinaryLayer, BinaryLinear, MakeEstimator
from rectified.errors import UserError, choose
from rectified.graphs import operations
from rectified.graphs.bit_layers import only_input, trace
from rectified.graphs.copies import call_layers_, plain_copy
from rectified.graphs.operations import Trait, kinds, module_of

_MIXERS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.MultiheadAttention,
    nn.RNNBase,
)


def convert(
    model: nn.Module,
    *,
    keep: Collection[str] | None = None,
    estimator: MakeEstimator = ReSTE,
    activation_estimator: MakeEstimator | None = None,
    activation_bits: int = 1,
    scale: str = "channel",
    standardize: bool = False,
) -> nn.Module:
    """A copy of `model` whose linear and convolutional layers have 1-bit weights.

    Args:
        model: any network of `nn.Conv2d` and `nn.Linear` layers; it is left alone.
        keep: names of layers that stay as they are; by default `outer_layers(model)`.
        estimator: makes the estimator of each layer's weights.
        activation_estimator: makes that of its inputs; `estimator` by default.
        activation_bits: 1, or 32 for inputs as they are.
        scale: `"channel"`, `"layer"` or `"none"`.
        standardize: centre and scale each output channel's weights before the sign.

    Returns:
        The network with 1-bit layers; its parameters have the same names.

    Raises:
        UserError: if `keep` names a layer that there is not, a weight is NaN or infinite, or a
            ReLU that is no module stands in front of a 1-bit layer.

    Example:
        >>> layers = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2)]
        >>> [type(layer).__name__ for layer in convert(nn.Sequential(*layers))]
        ['Linear', 'Identity', 'BinaryLinear', 'Linear']
    """
    made = plain_copy(model)
    layers = dict(_layers(made))
    for name in keep or ():
        choose("layer to keep", name, list(layers))
    kept = outer_layers(made) if keep is None else keep
    options = {
        "estimator": estimator,
        "activation_estimator": activation_estimator,
        "activation_bits": activation_bits,
        "scale": scale,
        "standardize": standardize,
    }
    _warn_of_others(made)
    for name, layer in layers.items():
        if name in kept:
            continue
        if not torch.isfinite(layer.weight).all():
            raise UserError(f"weights must be finite, got NaN or infinity in layer {name!r}")
        made = _replaced(made, name, _binary(layer, options))
    call_layers_(made)
    if activation_bits == 1:
        _free_signs(made)
    return made


def outer_layers(model: nn.Module) -> tuple[str, ...]:
    """The layers that stay in full precision by default: first, last, and 1x1 convolutions.

    A network of one layer has only that one, which is converted.

    Example:
        >>> outer_layers(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)))
        ('0', '2')
    """
    layers = dict(_layers(model))
    if len(layers) < 2:
        return ()
    names = list(layers)
    narrow = {
        name
        for name, layer in layers.items()
        if isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1}
    }
    return tuple(name for name in names if name in narrow | {names[0], names[-1]})


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Exactly these types: whoever derives from them means something else."""
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, nn.Conv2d):
            assert isinstance(module, nn.Linear | nn.Conv2d)
            yield name, module


def _replaced(root: nn.Module, name: str, module: nn.Module) -> nn.Module:
    if not name:
        return module
    root.set_submodule(name, module)
    return root


def _binary(layer: nn.Linear | nn.Conv2d, options: dict[str, Any]) -> BinaryLayer:
    """The same layer with 1-bit weights, on the same parameters."""
    shared: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta", **options}
    made: BinaryLayer
    if isinstance(layer, nn.Linear):
        made = BinaryLinear(layer.in_features, layer.out_features, **shared)
    else:
        made = BinaryConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            padding_mode=layer.padding_mode,
            **shared,
        )
    made.weight, made.bias = layer.weight, layer.bias
    for child in made.children():
        child.to(layer.weight.device)
    return made.train(layer.training)


def _warn_of_others(model: nn.Module) -> None:
    """Say which layers stay in full precision because of their types."""
    others = [
        f"{name!r} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, _MIXERS) and type(module) not in (nn.Linear, nn.Conv2d)
    ]
    if others:
        warnings.warn(
            f"convert takes nn.Linear and nn.Conv2d; in full precision stay {', '.join(others)}",
            stacklevel=3,
        )


def _free_signs(model: nn.Module) -> None:
    """Replace the ReLUs whose outputs 1-bit layers would take the sign of."""
    _check_transformers(model)
    try:
        traced = trace(model)
    except UserError as error:
        warnings.warn(f"ReLUs in front of 1-bit layers stay: {error}", stacklevel=3)
        return
    modules = dict(traced.named_modules())
    prefix = "0" if isinstance(model, BinaryConv2d | BinaryLinear) else ""
    for node in traced.graph.nodes:
        layer = module_of(node, modules)
        if isinstance(layer, BinaryConv2d | BinaryLinear) and str(node.target) != prefix:
            _free_sign(model, node, modules)


def _check_transformers(model: nn.Module) -> None:
    """Refuse a ReLU between the two linear layers of a transformer layer of PyTorch's."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            continue
        is_relu = module.activation is F.relu or isinstance(module.activation, nn.ReLU)
        if is_relu and isinstance(module.linear2, BinaryLinear):
            layer = f"{name}.linear2".lstrip(".")
            raise UserError(
                f"layer {layer!r} would see no negative input: make the transformer layer with "
                f"activation='gelu', or give keep=[..., {layer!r}]"
            )


def _free_sign(model: nn.Module, layer: Node, modules: dict[str, nn.Module]) -> None:
    source = only_input(layer)
    while isinstance(source, Node) and _keeps_sign(source, modules):
        source = only_input(source)
    if not isinstance(source, Node):
        return
    if isinstance(module_of(source, modules), operations.modules(Trait.NEVER_NEGATIVE)):
        model.set_submodule(str(source.target), nn.Identity())
    elif source.op != "call_module" and source.target in kinds(Trait.NEVER_NEGATIVE):
        raise UserError(
            f"layer {layer.target!r} would see no negative input: make the function {source.name!r}"
            f" before it a module, which convert takes out, or give keep=[..., {layer.target!r}]"
        )


def _keeps_sign(node: Node, modules: dict[str, nn.Module]) -> bool:
    module = module_of(node, modules)
    if module is not None:
        return isinstance(module, operations.modules(Trait.KEEPS_SIGN))
    return node.op != "placeholder" and node.target in kinds(Trait.KEEPS_SIGN)
