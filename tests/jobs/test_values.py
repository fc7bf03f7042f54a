"""What a word or a plain value means by an annotation: the same for flags, files, grids, Python."""

import math
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectified.errors import UserError
from rectified.jobs.values import Numbers, Words, described, from_settings, override, read


@pytest.mark.parametrize(
    ("value", "hint", "found"),
    [
        ("7", int, 7),
        ("7", str, "7"),
        ("7", float, 7.0),
        (7, float, 7.0),
        (np.float32(0.5), float, 0.5),
        (np.int64(7), int, 7),
        ("TRUE", bool, True),
        (False, bool | None, False),
        ("none", int | None, None),
        ("None", str | None, None),
        (None, str | None, None),
        ("none", Literal["auto", "none"], "none"),
        ("a,b", Words, ("a", "b")),
        (["a", "b"], Words, ("a", "b")),
        (("a,b",), Words, ("a,b",)),
        ("1,2", Numbers | None, (1, 2)),
        ("a,b", tuple[str, ...], ("a,b",)),
        ("a", Path, Path("a")),
        (Path("a"), str, "a"),
    ],
)
def test_a_value_is_read(value, hint, found):
    assert read(value, hint) == found
    assert type(read(value, hint)) is type(found)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("1.5", int),
        (1.0, int),
        (True, int),
        (True, float),
        (3, str),
        ("x", int | None),
        (3, NoneType),
        ("yes", bool),
        (1, bool),
        ("c", Literal["a", "b"]),
        ([1], Words),
        (3, Words),
        ({}, float),
        (10**400, float),
        (b"1", float),
        (3, Path),
    ],
)
def test_a_value_of_another_kind_is_refused_with_the_rule(value, hint):
    with pytest.raises(ValueError, match=r"^must be ") as caught:
        read(value, hint)
    assert described(hint) in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_grid_separates_entries_by_a_plus():
    assert read("a+b,c", Words, between="+") == ("a", "b,c")
    assert read("a+b", tuple[str, ...], between="+") == ("a", "b")


@given(st.floats())
def test_a_number_comes_back_from_its_text(number):
    found = read(repr(number), float)
    assert found == number or math.isnan(number)


@dataclass(frozen=True)
class Settings:
    rate: float = 0.5
    names: Words = ("a",)


def test_settings_are_named_with_their_place():
    assert from_settings(Settings, {"rate": 1}, source="c.yaml") == Settings(1.0)
    assert override(Settings(0.25), {"names": "x,y"}, verb="toy") == Settings(0.25, ("x", "y"))
    with pytest.raises(UserError, match=r"rate in c\.yaml must be a number, got \[\]"):
        from_settings(Settings, {"rate": []}, source="c.yaml")
    with pytest.raises(UserError, match="unknown setting of toy 'ratte'; choose from names, rate"):
        override(Settings(), {"ratte": 1}, verb="toy")
