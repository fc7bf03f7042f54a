import pytest
import torch
from torch import nn

from rectified.binary import (
    STE,
    BinaryConv2d,
    BinaryLinear,
    Indicators,
    ReSTE,
    anneal,
    set_progress,
)
from rectified.binary.indicators import (
    estimating_error,
    gradient_dispersion,
    paper_estimating_error,
    paper_gradient_instability,
)
from rectified.errors import UserError
from rectified.training import FitConfig, fit


def test_the_papers_indicators_by_hand():
    model = nn.Sequential(BinaryLinear(2, 1, bias=False), nn.Linear(1, 1))
    model[0].weight.data = torch.tensor([[0.25, -4.0]])
    assert paper_estimating_error(model) == pytest.approx((0.75**2 + 3**2) ** 0.5)
    set_progress(model, 1.0)  # o = 3
    expected = ((1 - 0.25 ** (1 / 3)) ** 2 + (4 ** (1 / 3) - 1) ** 2) ** 0.5
    assert paper_estimating_error(model) == pytest.approx(expected)
    model[0].weight.grad = torch.tensor([[1.0, -3.0]])
    assert paper_gradient_instability(model) == pytest.approx(2.0)  # var of 1 and 3


def test_the_papers_instability_is_a_gain_meter_and_the_dispersion_is_not():
    g = torch.randn(1000)
    layer = BinaryLinear(1000, 1)
    found = []
    for factor in (1.0, 5.0):
        layer.weight.grad = factor * g[None]
        found.append((paper_gradient_instability(layer), gradient_dispersion(factor * g).item()))
    assert found[1][0] == pytest.approx(25 * found[0][0], rel=1e-4)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)


def test_the_error_falls_with_o():
    z = torch.randn(5000)
    errors = [estimating_error(z, ReSTE(o=o)).item() for o in (1, 2, 3, 5, 10)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(estimating_error(z, STE()).item())


def test_there_must_be_gradients():
    with pytest.raises(UserError, match="layer '0' has no gradient: measure after backward"):
        paper_gradient_instability(nn.Sequential(BinaryLinear(2, 2)))


def test_networks_without_1_bit_layers_have_none():
    assert paper_estimating_error(nn.Linear(2, 2)) == 0
    assert paper_gradient_instability(nn.Linear(2, 2)) == 0


class Batches:
    def __init__(self, count):
        self.data = torch.randn(count, 4, 2, 6, 6)

    def __len__(self):
        return len(self.data)

    def epoch(self, number):
        return ((batch,) for batch in self.data)


@pytest.mark.parametrize("every", [1, 3])
def test_the_hook_measures_weights_activations_and_flips(every):
    torch.manual_seed(0)
    model = nn.Sequential(BinaryConv2d(2, 3, 3), nn.Flatten(), BinaryLinear(48, 2))
    model[2].activation_bits = 32
    before = {}

    def keep(step):  # what the signs are before every update
        before[step.number + 1] = (model[0].weight >= 0).clone()

    config = FitConfig(epochs=2, learning_rate=0.5, device="cpu")
    objective = lambda model, batch: model(batch[0]).square().mean()  # noqa: E731
    with Indicators(model, every) as indicators:
        hooks = [indicators, keep, anneal]
        fit(model, objective, Batches(3), config, hooks=hooks)
    assert [one["update"] for one in indicators.found] == list(range(every, 7, every))
    last = indicators.found[-1]
    rows = {(one["layer"], one["tensor"]): one for one in last["layers"]}
    assert set(rows) == {("0", "weights"), ("0", "activations"), ("2", "weights")}
    flipped = ((model[0].weight >= 0) != before[6]).float().mean().item()
    assert rows["0", "weights"]["flipped"] == pytest.approx(flipped)
    assert rows["0", "weights"]["dispersion"] > 0
    assert rows["0", "activations"]["dispersion"] is None
    assert all(0 <= one["inside"] <= 1 and 0 <= one["beyond"] <= 1 for one in last["layers"])
    assert not model[0]._forward_pre_hooks


def test_every_must_be_at_least_one():
    with pytest.raises(UserError, match="every must be at least 1, got 0"):
        Indicators(nn.Linear(1, 1), 0)
