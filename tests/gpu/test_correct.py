"""How benchmarks/gpu compares what two devices found."""

from __future__ import annotations

import math

import pytest
from benchmarks.gpu.correct import Failed, differences

ROW = {"run": "a", "seed": 0, "density": 0.5, "accuracy": 0.75, "seconds": 1.0}


def test_figures_are_compared_and_times_and_names_of_runs_are_not():
    other = {**ROW, "run": "b", "accuracy": 0.5, "seconds": 9.0}
    assert differences([ROW], [other]) == {"accuracy": 0.25}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([], "1 rows on the CPU, 0 on the GPU"),
        ([{**ROW, "seed": 1}], "seed is 0 on the CPU, 1 on the GPU"),
        ([{**ROW, "density": 0.4}], "density is 0.5"),
        ([{**ROW, "accuracy": math.nan}], "accuracy is 0.75"),
        ([{"seed": 0}], "fields differ"),
    ],
)
def test_tables_that_differ_otherwise_fail(other, message):
    with pytest.raises(Failed, match=message):
        differences([ROW], other)
