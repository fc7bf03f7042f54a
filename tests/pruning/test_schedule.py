"""Schedules: they reach their targets, to the weight, and refuse what is impossible."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectified.errors import UserError
from rectified.pruning.masks import Masks, kept, prune
from rectified.pruning.schedule import Schedule, constant, cubic, geometric, one_shot


def densities(schedule: Schedule, cycles: int, start: float = 1.0) -> list[float]:
    found = [start]
    for cycle in range(1, cycles + 1):
        found.append(found[-1] * (1 - schedule(cycle)))
    return found


@pytest.mark.parametrize("start", [1.0, 0.6])
@pytest.mark.parametrize("target", [0.5, 0.02, 1e-4])
@pytest.mark.parametrize("cycles", [1, 2, 17])
def test_a_schedule_reaches_its_target(start: float, target: float, cycles: int) -> None:
    for law in (geometric, cubic):
        found = densities(law(target, cycles, start=start), cycles, start)
        assert found[-1] == pytest.approx(target)
        assert all(later < earlier for earlier, later in pairwise(found))
    assert densities(one_shot(target, start=start), cycles, start)[1:] == pytest.approx(
        [target] * cycles
    )


def test_the_cubic_law_is_zhu_and_guptas() -> None:
    cycles, target = 8, 0.1
    sparsities = [0.9 + (0 - 0.9) * (1 - c / cycles) ** 3 for c in range(cycles + 1)]
    assert densities(cubic(target, cycles), cycles) == pytest.approx([1 - s for s in sparsities])


@pytest.mark.parametrize("law", [geometric, cubic])
def test_one_cycle_is_one_shot(law: Callable[[float, int], Schedule]) -> None:
    assert law(0.3, 1)(1) == pytest.approx(one_shot(0.3)(1))


def test_a_constant_rate_is_the_geometric_law() -> None:
    assert densities(constant(0.2), 17)[-1] == pytest.approx(0.8**17)
    assert geometric(0.8**17, 17)(3) == pytest.approx(0.2)


def test_what_comes_after_the_last_cycle_drops_nothing() -> None:
    assert cubic(0.1, 4)(5) == 0
    assert one_shot(0.1)(2) == 0


@settings(max_examples=25)
@given(st.integers(50, 5000), st.floats(0.02, 0.9), st.integers(1, 12))
def test_exact_counts_end_within_a_few_weights_of_the_target(
    weights: int, target: float, cycles: int
) -> None:
    for law in (geometric(target, cycles), cubic(target, cycles), one_shot(target)):
        masks: Masks = {"w": torch.ones(weights, dtype=torch.bool)}
        for cycle in range(1, cycles + 1):
            masks = prune(masks, {"w": torch.arange(float(weights))}, law(cycle), floor=0)
        assert abs(kept(masks) - target * weights) <= 0.5 * cycles + 1e-6


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.2, 2.0, float("nan")])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match=r"rate must be in \(0, 1\), got"):
        constant(rate)


@pytest.mark.parametrize("target", [0.0, 0.5, 0.7, -1.0, float("nan")])
def test_a_target_that_is_not_below_the_present_density_is_refused(target: float) -> None:
    for make in (
        lambda: geometric(target, 3, start=0.5),
        lambda: cubic(target, 3, start=0.5),
        lambda: one_shot(target, start=0.5),
    ):
        with pytest.raises(UserError, match=r"target must be in \(0, 0\.5\)"):
            make()


@pytest.mark.parametrize("law", [geometric, cubic])
def test_no_cycle_is_refused(law: Callable[[float, int], Schedule]) -> None:
    with pytest.raises(UserError, match="cycles must be at least 1, got 0"):
        law(0.5, 0)
