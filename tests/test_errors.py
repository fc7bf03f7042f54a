import pytest

import rectified.flow
from rectified.errors import UserError, choose, first_line, moved


def test_a_user_error_is_a_value_error_so_that_libraries_can_catch_it():
    assert issubclass(UserError, ValueError)


def test_choose_returns_a_known_name():
    assert choose("solver", "heun", ["euler", "heun"]) == "heun"


def test_choose_names_the_value_and_what_is_known():
    with pytest.raises(UserError, match=r"unknown solver 'rk5'; choose from euler, heun"):
        choose("solver", "rk5", {"euler": 1, "heun": 2})


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a\nb", "a"),
        ("\n  a \r\nb", "a "),
        ("", "ValueError"),
        (" \n ", "ValueError"),
        ("x" * 999, "x" * 200),
    ],
)
def test_a_message_is_one_line(message, line):
    assert first_line(ValueError(message)) == line


MISSING = moved("package", {"module": "first second"}, third="other.place")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("first", "package.module.first"),
        ("second", "package.module.second"),
        ("third", "other.place"),
    ],
)
def test_a_name_that_has_moved_says_where_it_is(name, place):
    with pytest.raises(ImportError, match=rf"^package\.{name} has moved to {place}$"):
        MISSING(name)


def test_a_name_that_never_was_is_missing_as_in_any_module():
    with pytest.raises(AttributeError, match="module 'package' has no attribute 'fourth'"):
        MISSING("fourth")


def test_an_import_says_where_a_name_is_as_an_attribute_does():
    words = "^rectified.flow.vp_cosine has moved to rectified.flow.paths.vp_cosine$"
    with pytest.raises(ImportError, match=words):
        from rectified.flow import vp_cosine  # noqa: F401
    with pytest.raises(ImportError, match=words):
        _ = rectified.flow.vp_cosine
    with pytest.raises(AttributeError, match="has no attribute 'vp_sine'"):
        _ = rectified.flow.vp_sine
