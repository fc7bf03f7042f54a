from dataclasses import dataclass

import pytest
import tyro

from rectified.errors import UserError
from rectified.jobs.options import Numbers, Words, seed_list


@dataclass(frozen=True)
class Settings:
    score: Words = ("magnitude", "lamp")
    steps: Numbers = (1, 2)


def parsed(*arguments):
    return tyro.cli(Settings, args=list(arguments))


def test_lists_are_separated_by_commas_and_may_have_spaces():
    assert parsed("--score", "a, b,c,", "--steps", "4,8") == Settings(("a", "b", "c"), (4, 8))


def test_a_list_of_one_is_a_list():
    assert parsed("--steps", "4").steps == (4,)


def test_an_empty_list_is_empty():
    assert parsed("--score", "").score == ()


def test_defaults_are_kept_and_shown_as_they_are_typed(capsys):
    assert parsed() == Settings()
    with pytest.raises(SystemExit):
        parsed("--help")
    shown = capsys.readouterr().out
    assert "magnitude,lamp" in shown
    assert "NAME,..." in shown
    assert "INT,..." in shown


def test_a_list_of_numbers_holds_numbers(capsys):
    with pytest.raises(SystemExit):
        parsed("--steps", "4,x")
    assert "'x'" in capsys.readouterr().err


def test_seeds_count_from_zero_and_seed_is_that_one():
    assert seed_list(5, None) == (0, 1, 2, 3, 4)
    assert seed_list(5, 7) == (7,)


@pytest.mark.parametrize(
    ("seeds", "seed", "message"),
    [
        (0, None, "seeds must be at least 1, got 0"),
        (3, -1, "seed must be at least 0, got -1"),
        (3, 2**32, "seed must be at most 4294967295"),
        (10**12, None, "seeds must be at most 1000000"),
    ],
)
def test_impossible_seeds_are_refused(seeds, seed, message):
    with pytest.raises(UserError, match=message):
        seed_list(seeds, seed)
