from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from rectified.cli.arguments import help_page, take
from rectified.errors import UserError
from rectified.jobs import Entry
from rectified.jobs.options import Numbers, Words, seed_list


@dataclass(frozen=True)
class Settings:
    """What is set.

    Attributes:
        score: methods, at 100 %
            of them.
    """

    score: Words = ("magnitude", "lamp")
    steps: Numbers = (1, 2)
    prompt: tuple[str, ...] = ()
    rate: float | None = None
    loud: bool = False
    augment: bool | None = None
    kind: Literal["a", "b"] | None = None
    out: Path = Path("here")


def parsed(*arguments):
    given, others = take(arguments, Settings(), "verb")
    assert others == []
    return replace(Settings(), **given)


def test_lists_are_separated_by_commas_and_may_have_spaces():
    assert parsed("--score", "a, b,c,", "--steps", "4,8") == Settings(("a", "b", "c"), (4, 8))


def test_a_list_of_one_is_a_list():
    assert parsed("--steps", "4").steps == (4,)


def test_an_empty_list_is_empty():
    assert parsed("--score", "").score == ()


def test_a_list_that_is_not_one_word_has_several():
    assert parsed("--prompt", "a cat, on a mat", "b", "--rate", "1").prompt == (
        "a cat, on a mat",
        "b",
    )


def test_values_are_what_annotations_say():
    flags = ["--rate=1", "--loud", "--augment", "False", "--kind", "b", "--out", "a/b"]
    found = parsed(*flags)
    assert (found.rate, found.loud, found.augment) == (1.0, True, False)
    assert (found.kind, found.out) == ("b", Path("a/b"))
    assert parsed("--no-loud", "--augment", "none", "--kind", "None") == Settings()


def test_only_what_was_given_is_taken_and_words_keep_their_order():
    words = ["x", "--rate", "2", "--other", "3", "--loud", "y", "--help"]
    assert take(words, Settings(), "verb") == (
        {"rate": 2.0, "loud": True},
        ["x", "--other", "3", "y", "--help"],
    )
    assert take(words, Settings(), "verb", only=["loud"])[0] == {"loud": True}


def test_defaults_are_shown_as_they_are_typed():
    page = help_page("verb", Entry("what it does", ("--rate 1",), ""), "RUN", {"own": Settings()})
    shown = " ".join(page.split())
    for words in (
        "usage: rectified verb RUN [options]",
        "What it does. examples: rectified verb --rate 1",
        "own options: What is set.",
        "--score NAME,... methods, at 100 % of them. (default: magnitude,lamp)",
        "--steps INT,... (default: 1,2)",
        "--loud, --no-loud (default: false)",
        "--augment {true,false}",
        "--kind {a,b}",
        "--out PATH (default: here)",
        "--rate FLOAT",
        "--prompt [TEXT ...]",
    ):
        assert words in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "4,x"], "--steps must be a list of whole numbers, got '4,x'; see rectified"),
        (["--rate", "fast"], "--rate must be a number or none, got 'fast'"),
        (["--kind", "c"], "--kind must be one of a, b, or none, got 'c'"),
        (["--augment", "yes"], "--augment must be true or false or none, got 'yes'"),
        (["--rate"], "--rate expected one argument; see rectified verb --help"),
    ],
)
def test_a_value_that_cannot_be_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        take(words, Settings(), "verb")


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
