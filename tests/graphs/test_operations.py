"""Operations: what the table says of each is true of every way to spell it."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectified.graphs.operations import (
    IN_PLACE,
    IN_PLACE_OPERATORS,
    OPERATIONS,
    Operation,
    Trait,
    kinds,
    kinds_of,
    modules,
)

ARGUMENTS: dict[Any, tuple[Any, ...]] = {
    **dict.fromkeys(kinds_of("clamp"), (-0.5, 0.5)),
    **dict.fromkeys(kinds_of("threshold"), (0.1, 20.0)),
    **dict.fromkeys(kinds_of("add", "sub", "mul", "div", "floordiv"), (3.0,)),
    **dict.fromkeys(kinds_of("reshape", "view"), ((-1,),)),
    **dict.fromkeys(kinds_of("unsqueeze"), (1,)),
    **{kind: (2,) for one in OPERATIONS.values() if one.axes for kind in one.kinds},
}


def call(kind: Any, x: Tensor) -> Any:
    """What a kind makes of a tensor."""
    arguments = ARGUMENTS.get(kind, ())
    if isinstance(kind, str):
        return getattr(x, kind)(*arguments)
    if inspect.isclass(kind):
        return kind(*arguments).eval()(x)
    return kind(x, *arguments, **({"training": False} if kind is F.dropout else {}))


def example(kind: Any) -> Tensor:
    """Examples of three channels, of as many further axes as the kind is for."""
    number = re.search(r"(\d)d$", getattr(kind, "__name__", ""))
    axes = int(number[1]) if number else 1
    return torch.randn(2, 3, *axes * [8], generator=torch.Generator().manual_seed(0))


def spellings(trait: Trait) -> list[Any]:
    return [
        pytest.param(one, kind, id=f"{one.name}-{n}")
        for one in OPERATIONS.values()
        if trait in one.traits
        for n, kind in enumerate(one.kinds)
    ]


@pytest.mark.parametrize(("one", "kind"), spellings(Trait.ELEMENTWISE))
def test_all_spellings_are_of_one_operation(one: Operation, kind: Any) -> None:
    expected = call(one.kinds[0], example(kind)) if one.name != "dropout" else example(kind)
    torch.testing.assert_close(call(kind, example(kind)), expected)


@pytest.mark.parametrize(("one", "kind"), spellings(Trait.ELEMENTWISE))
def test_an_elementwise_operation_moves_with_its_elements(one: Operation, kind: Any) -> None:
    x = example(kind)
    assert torch.equal(call(kind, x.flip(2)), call(kind, x.clone()).flip(2))


@pytest.mark.parametrize(("one", "kind"), spellings(Trait.MONOTONE))
def test_a_monotone_operation_never_falls(one: Operation, kind: Any) -> None:
    x = 10 * example(kind)
    y = call(kind, x.clone())
    assert (y.flatten()[x.flatten().argsort()].diff() >= 0).all()


@pytest.mark.parametrize(("one", "kind"), spellings(Trait.NEVER_NEGATIVE))
def test_what_is_never_negative_is_not(one: Operation, kind: Any) -> None:
    assert (call(kind, 10 * example(kind)) >= 0).all()


@pytest.mark.parametrize(("one", "kind"), spellings(Trait.KEEPS_SIGN))
def test_what_keeps_signs_keeps_them(one: Operation, kind: Any) -> None:
    assert (call(kind, example(kind).abs()) >= 0).all()


@pytest.mark.parametrize(("one", "kind"), spellings(Trait.NOTHING))
def test_nothing_is_done(one: Operation, kind: Any) -> None:
    assert torch.equal(call(kind, example(kind)), example(kind))


@pytest.mark.parametrize(("one", "kind"), spellings(Trait.RESHAPE))
def test_a_reshape_keeps_the_order(one: Operation, kind: Any) -> None:
    assert torch.equal(call(kind, example(kind)).flatten(), example(kind).flatten())


@pytest.mark.parametrize(("one", "kind"), spellings(Trait.ELEMENTWISE))
def test_what_is_in_place_writes_into_its_input_and_nothing_else_does(
    one: Operation, kind: Any
) -> None:
    x = example(kind)
    made = call(kind, x)
    is_in_place = kind in IN_PLACE or (isinstance(kind, str) and kind.endswith("_"))
    assert torch.equal(x, made if is_in_place else example(kind))


def test_a_kind_is_of_one_operation() -> None:
    found = [kind for one in OPERATIONS.values() for kind in one.kinds]
    assert len(found) == len(set(found))


def test_operators_in_place_are_in_the_table() -> None:
    assert IN_PLACE_OPERATORS.keys() <= IN_PLACE
    assert IN_PLACE_OPERATORS.keys() <= kinds(Trait.ELEMENTWISE)


def test_kinds_have_all_the_traits_asked_for() -> None:
    both = kinds(Trait.ELEMENTWISE | Trait.NEVER_NEGATIVE)
    assert both == kinds(Trait.ELEMENTWISE) & kinds(Trait.NEVER_NEGATIVE)
    assert set(modules(Trait.NOTHING)) >= {nn.Identity, nn.Dropout}
