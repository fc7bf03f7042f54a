import pytest
import torch
from torch import nn

from rectified.training import EMA, FitConfig, classification, fit
from tests.training.material import Noise, images_network


def test_the_average_is_the_recursion_that_it_says():
    model = nn.Linear(1, 1, bias=False).double()
    average = EMA(model, 0.5)
    expected = float(model.weight.detach())
    for number, value in enumerate([1.0, 4.0, -2.0] * 10, start=1):
        model.weight.data.fill_(value)
        average.update(model)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    assert float(average.state["weight"]) == pytest.approx(expected, rel=1e-12)


def test_fit_leaves_the_average_and_whole_number_buffers_are_copied():
    model = images_network()
    followed = []

    def follow(step):
        followed.append(step.model.state_dict()["0.weight"].clone())

    config = FitConfig(epochs=2, ema=0.9, device="cpu")
    fit(model, classification, Noise(shape=(3, 8, 8)), config, hooks=[follow])
    expected = images_network().state_dict()["0.weight"]
    for number, weight in enumerate(followed, start=1):
        expected = expected.lerp(weight, 1 - min(0.9, (1 + number) / (10 + number)))
    assert torch.allclose(model[0].weight, expected)
    assert int(model[1].num_batches_tracked) == 6
