import pytest

from rectified.errors import UserError, choose, first_line


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
