"""Operations: what the calls in a network mean, whichever way they are spelled.

`nn.ReLU()(x)`, `F.relu(x)`, `torch.relu_(x)` and `x.relu()` are one operation. In a traced graph
each is a *kind*: the type of a module, a function, or the name of a tensor's method. `OPERATIONS`
lists the kinds of each operation and what is true of it; `kinds(trait)` gives all that share a
trait. An operation on no list may do anything.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import Node

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TRANSFORMERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
SIZES = {"shape", "size", "ndim", "dim"}  # attributes and methods that tell the shape


class Trait(Flag):
    """Properties of an operation in evaluation mode, whatever its arguments are."""

    ELEMENTWISE = auto()  # each element of the result comes from that element of the inputs alone
    MONOTONE = auto()  # of one input: where that rises, the result does not fall
    NEVER_NEGATIVE = auto()  # the result
    KEEPS_SIGN = auto()  # of an input that is nowhere negative, the result is nowhere negative
    VIEW = auto()  # the result may lie in the memory of the first input
    RESHAPE = auto()  # the elements stay in their order, the axes are others
    NOTHING = auto()  # the result is the input


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        name: of its function or method.
        modules: types of modules that do it.
        functions: that do it.
        methods: names of methods of a tensor that do it.
        traits: what is true of it.
        axes: how many axes behind (batch, channel) it works on, every channel by itself; or 0.
    """

    name: str
    modules: tuple[type[nn.Module], ...]
    functions: tuple[Callable[..., Any], ...]
    methods: tuple[str, ...]
    traits: Trait
    axes: int = 0

    @property
    def calls(self) -> tuple[Any, ...]:
        """The kinds of it that are no modules."""
        return self.functions + self.methods

    @property
    def kinds(self) -> tuple[Any, ...]:
        """All of them."""
        return self.modules + self.calls


# what Python calls for `x += y`, and for `x + y`
IN_PLACE_OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
}

# names of its functions and methods | modules | traits
_TABLE = """
    relu               | ReLU        | elementwise monotone never_negative
    relu6              | ReLU6       | elementwise monotone never_negative
    hardtanh           | Hardtanh    | elementwise monotone
    tanh               | Tanh        | elementwise monotone
    sigmoid            | Sigmoid     | elementwise never_negative
    softplus           | Softplus    | elementwise never_negative
    leaky_relu         | LeakyReLU   | elementwise
    elu                | ELU         | elementwise
    selu               | SELU        | elementwise
    celu               | CELU        | elementwise
    gelu               | GELU        | elementwise
    silu               | SiLU        | elementwise
    mish               | Mish        | elementwise
    threshold          | Threshold   | elementwise
    hardswish          | Hardswish   | elementwise
    hardsigmoid        | Hardsigmoid | elementwise
    softsign           | Softsign    | elementwise
    logsigmoid         | LogSigmoid  | elementwise
    clamp clip         |             | elementwise
    abs                |             | elementwise
    exp                |             | elementwise
    square             |             | elementwise
    neg                |             | elementwise
    add                |             | elementwise
    sub                |             | elementwise
    mul                |             | elementwise
    div truediv        |             | elementwise
    floordiv           |             | elementwise
    clone              |             | elementwise
    identity           | Identity    | elementwise monotone keeps_sign view nothing
    dropout            | Dropout Dropout1d Dropout2d Dropout3d | elementwise monotone keeps_sign view nothing
    contiguous         |             | elementwise keeps_sign view nothing
    detach             |             | elementwise view
    flatten            | Flatten     | keeps_sign view reshape
    reshape            |             | keeps_sign view reshape
    view               |             | keeps_sign view reshape
    squeeze            |             | view reshape
    unsqueeze          |             | view reshape
    unflatten          | Unflatten   | view
    transpose          |             | view
    permute            |             | view
    movedim            |             | view
    t                  |             | view
    expand             |             | view
    expand_as          |             | view
    view_as            |             | view
    chunk              |             | view
    split              |             | view
    unbind             |             | view
    narrow             |             | view
    select             |             | view
    getitem            |             | view
    to                 |             | view
    float              |             | view
    size               |             |
    mean               |             |
    sum                |             |
    amax               |             |
    amin               |             |
    softmax            | Softmax     |
    pad                |             |
    interpolate        | Upsample    |
    cat concat concatenate |         |
"""  # noqa: E501
# the same along so many axes behind (batch, channel)
_TABLE_OF_PLACES = """
    max_pool{0}d          | MaxPool{0}d         | keeps_sign
    avg_pool{0}d          | AvgPool{0}d         | keeps_sign
    adaptive_avg_pool{0}d | AdaptiveAvgPool{0}d | keeps_sign
    adaptive_max_pool{0}d | AdaptiveMaxPool{0}d | keeps_sign
    pad{0}d | ZeroPad{0}d ConstantPad{0}d ReflectionPad{0}d ReplicationPad{0}d |
"""
# of these names, with other arguments or results
_OTHERS = {torch.dropout, torch.dropout_, torch.adaptive_max_pool1d, operator.concat}


def _read(table: str, axes: int = 0) -> Iterator[tuple[str, Operation]]:
    for row in table.strip().splitlines():
        names, modules, traits = (column.split() for column in row.format(axes).split("|"))
        yield names[0], _operation(names, modules, traits, axes)


def _operation(names: list[str], modules: list[str], traits: list[str], axes: int) -> Operation:
    """An operation in all its spellings; one that is element by element may be in place."""
    words = [*names, *(f"{name}_" for name in names if "elementwise" in traits)]
    found = [getattr(room, word, None) for word in words for room in (torch, F, operator)]
    found += [inside for inside, outside in IN_PLACE_OPERATORS.items() if outside in found]
    return Operation(
        names[0],
        tuple(getattr(nn, name) for name in modules),
        tuple(dict.fromkeys(one for one in found if callable(one) and one not in _OTHERS)),
        tuple(word for word in words if callable(getattr(Tensor, word, None))),
        Trait(sum(Trait[trait.upper()].value for trait in traits)),
        axes,
    )


OPERATIONS: dict[str, Operation] = {
    **dict(_read(_TABLE)),
    **{name: one for axes in (1, 2, 3) for name, one in _read(_TABLE_OF_PLACES, axes)},
}
IN_PLACE = {
    function
    for one in OPERATIONS.values()
    for function in one.functions
    if function in IN_PLACE_OPERATORS or function.__name__.endswith("_")
}


def kinds_of(*names: str) -> frozenset[Any]:
    """The kinds of operations by name.

    Example:
        >>> sorted(kind for kind in kinds_of("add", "neg") if isinstance(kind, str))
        ['add', 'add_', 'neg', 'neg_']
    """
    return frozenset(kind for name in names for kind in OPERATIONS[name].kinds)


@cache
def kinds(traits: Trait) -> frozenset[Any]:
    """The kinds of all operations that have the traits.

    Example:
        >>> torch.relu in kinds(Trait.NEVER_NEGATIVE), torch.tanh in kinds(Trait.NEVER_NEGATIVE)
        (True, False)
    """
    return frozenset(k for one in OPERATIONS.values() if traits in one.traits for k in one.kinds)


@cache
def modules(traits: Trait) -> tuple[type[nn.Module], ...]:
    """The types of modules that have the traits.

    Example:
        >>> modules(Trait.MONOTONE)[:2]
        (<class 'torch.nn.modules.activation.ReLU'>, <class 'torch.nn.modules.activation.ReLU6'>)
    """
    return tuple(k for one in OPERATIONS.values() if traits in one.traits for k in one.modules)


def module_of(node: Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return modules[str(node.target)] if node.op == "call_module" else None


def kind_of(node: Node, modules: Mapping[str, nn.Module]) -> Any:
    """The target of a node: the type of a module, a function, or the name of a method."""
    module = module_of(node, modules)
    return node.target if module is None else type(module)


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
