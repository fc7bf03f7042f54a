"""A study that several files look at."""

import pytest

from rectified.cli import main
from rectified.runs import read_results
from tests.jobs.flow.running import FAST


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """8 Gaussians to moons, both recipes, three rounds, a distilled network, two seeds."""
    folder = tmp_path_factory.mktemp("study") / "run"
    flags = "--data moons --source gaussians8 --recipe 2rf,2rf++ --rounds 3 --distil"
    words = FAST.replace("--seed 0", "--seeds 2").split()
    assert main(["flow", "--out", str(folder), *words, *flags.split()]) == 0
    return folder, read_results(folder)
