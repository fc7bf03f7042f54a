"""The examples run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = {  # script -> arguments with which it takes seconds, where it would take longer
    "generate_with_a_flow": ["100"],
    "transfer_between_sets": ["100"],
    "rectify_a_pipeline": ["8"],
}
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_says_something(example, tmp_path):
    done = subprocess.run(
        [sys.executable, example, *QUICK.get(example.stem, [])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(example):
    assert len(example.read_text().splitlines()) <= 50
