"""Copies of other people's networks: independent, of plain weights, with every layer called.

- A network may be wrapped (`bare`), and its weights may be made anew in every call by weight norms
  or `torch.nn.utils.prune`; `plain_copy` gives an independent network of plain weights.
- In evaluation `nn.TransformerEncoderLayer` hands the weights of its layers to one fused kernel
  and calls no layer. Where layers have been replaced that kernel would run on the wrong weights:
  `call_layers_` makes every layer be called.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves

_OF_EVERY_CLASS = ("__dict__", "__weakref__")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def bare(model: nn.Module) -> nn.Module:
    """The network inside the wrappers of compilation, distribution and weight averaging.

    Example:
        >>> bare(nn.DataParallel(nn.ReLU()))
        ReLU()
    """
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = inner
        else:
            return model


@torch.no_grad()
def plain_copy(model: nn.Module) -> nn.Module:
    """A deep copy of the bare network whose weights are plain parameters.

    What `torch.nn.utils.prune`, `weight_norm`, `spectral_norm` or a parametrization make of other
    parameters is made one last time, as in evaluation mode; then the makers go.

    Example:
        >>> from torch.nn.utils import prune
        >>> layer = prune.l1_unstructured(nn.Linear(4, 2), "weight", 0.5)
        >>> list(layer.state_dict()), list(plain_copy(layer).state_dict())
        (['bias', 'weight_orig', 'weight_mask'], ['bias', 'weight'])
    """
    inner = bare(model)
    # weights that a hook has made are results, which deepcopy refuses
    made = {
        id(value): value.detach().clone()
        for module in inner.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }
    copied = copy.deepcopy(inner, made)
    for module in copied.modules():
        _make_plain_(module)
    return copied


def _make_plain_(module: nn.Module) -> None:
    if parametrize.is_parametrized(module):
        # a copy has the class of the original, which loses the weight's property with its maker
        kind = type(module)
        members = {key: value for key, value in vars(kind).items() if key not in _OF_EVERY_CLASS}
        module.__class__ = type(kind.__name__, kind.__bases__, members)
        was_training = module.training
        module.eval()  # spectral norm moves at every call in training
        with torch.enable_grad():  # else what is left would be a buffer
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        module.train(was_training)
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
        elif _makes_weight(hook):
            hook.remove(module)  # type: ignore[attr-defined]
            del module._forward_pre_hooks[key]


def _makes_weight(hook: object) -> bool:
    """Whether a hook is one of the old weight or spectral norms, which remove themselves."""
    return type(hook).__module__ in (
        "torch.nn.utils.weight_norm",
        "torch.nn.utils.spectral_norm",
    ) and hasattr(hook, "remove")


def is_hooked(module: nn.Module) -> bool:
    """Whether calling a module does more, or something else, than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def call_layers_(model: nn.Module) -> None:
    """Let every transformer layer of PyTorch's call its linear layers, also in evaluation.

    Example:
        >>> layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
        >>> layer.linear1 = nn.Identity()  # has no weight for the fused kernel
        >>> layer.linear2 = nn.Identity()
        >>> call_layers_(layer)
        >>> with torch.no_grad(): layer(torch.ones(1, 3, 4)).shape
        torch.Size([1, 3, 4])
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # the kernel knows these two activations only
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def agree(expected: Any, actual: Any) -> bool:
    """Whether two results, of any structure, are the same but for rounding.

    Example:
        >>> agree({"y": torch.ones(2)}, {"y": torch.ones(2) + 1e-6}), agree(torch.ones(2), 1)
        (True, False)
    """
    first, second = tree_leaves(expected), tree_leaves(actual)
    return len(first) == len(second) and all(map(_is_same, first, second))


def _is_same(expected: Any, actual: Any) -> bool:
    if not isinstance(expected, Tensor) or not expected.is_floating_point():
        return True  # sizes and indices say nothing about rounding
    if not isinstance(actual, Tensor) or expected.shape != actual.shape:
        return False
    scale = float(expected.abs().nan_to_num(posinf=0.0).max()) if expected.numel() else 0.0
    # half of the digits: rounding stays far below, a wrong channel far above
    rounding = torch.finfo(expected.dtype).eps ** 0.5 * max(1.0, scale)
    return torch.allclose(expected, actual, rtol=0.0, atol=rounding, equal_nan=True)
