from itertools import pairwise

import pytest
import torch

from rectified.training import FitConfig, classification, fit, learning_rate_factor, make_optimizer
from tests.training.material import PLAIN, Noise, network, same


@pytest.mark.parametrize("schedule", ["steps", "cosine", "linear", "constant"])
def test_schedules_warm_up_and_never_exceed_the_peak(schedule):
    config = FitConfig(schedule=schedule, warmup=0.1)
    factors = [learning_rate_factor(config, p / 1000) for p in range(1000)]
    assert factors[0] == 0
    assert factors[50] == pytest.approx(0.5)
    assert max(factors) == 1
    after = factors[100:]
    assert all(a >= b for a, b in pairwise(after))


def test_schedules_end_where_they_say():
    ends = {"cosine": 0.0, "linear": 0.0, "constant": 1.0, "steps": 0.01}
    for schedule, end in ends.items():
        config = FitConfig(schedule=schedule)
        assert learning_rate_factor(config, 1 - 1e-9) == pytest.approx(end, abs=1e-8)
    middle = FitConfig(schedule="cosine", warmup=0.0)
    assert learning_rate_factor(middle, 1 / 3) == pytest.approx(0.75)


def test_frozen_parameters_are_left_alone():
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    assert len(make_optimizer(model, PLAIN).param_groups[0]["params"]) == 3
    fit(model, classification, Noise(), PLAIN)
    assert torch.equal(before, model[0].weight)


def test_nesterov_is_not_plain_momentum():
    plain, nesterov = network(), network()
    fit(plain, classification, Noise(), FitConfig(epochs=1, device="cpu"))
    fit(nesterov, classification, Noise(), FitConfig(epochs=1, nesterov=True, device="cpu"))
    assert not same(plain, nesterov)
