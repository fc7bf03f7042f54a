"""The short form of `make torture`: what can happen to a run while it runs."""

import pytest

from rectified.jobs import JOBS
from tests.drawings import undrawn
from tests.torture import kill

ROWS = kill.ROWS


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """One verb of each kind is enough here, and little of it."""
    small = {
        "prune": kill.Row("prune --limit 200 --epochs 2 --cycles 1 --seeds 1"),
        "scatter": kill.Row("scatter --networks none --limit 40 --orientations 2 --seeds 2"),
    }
    monkeypatch.setattr(kill, "ROWS", small)
    undrawn(monkeypatch)


def test_every_verb_has_a_row():
    assert {row.verb for row in ROWS.values()} == {*JOBS, "sweep"}


@pytest.mark.parametrize("verb", ["prune", "scatter"])
def test_kills_at_random_moments_change_no_number(verb):
    found = kill.killed(verb, 2, seed=0)
    assert found["kills"] == 2
    assert not found["differences"], found["places"]


def test_a_clock_that_jumps_changes_no_number():
    found = kill.jumping_clock("prune", seed=0)
    assert not found["differences"], found["places"]


def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on():
    found = kill.two_at_once("scatter")
    assert found["refused"], found
    assert not found["differences"], found["places"]


def test_a_disk_that_fills_costs_a_line_and_the_run_goes_on():
    try:
        found = kill.full_disk("prune", 1, seed=0)
    except PermissionError as error:
        pytest.skip(str(error))
    assert (found["full"], found["untold"]) == (1, 0)
    assert not found["differences"], found["places"]
