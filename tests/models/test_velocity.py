"""Perceptrons that predict a velocity."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rectified.errors import UserError
from rectified.models import VelocityMLP, VelocityResMLP
from tests.models.generative import stirred, unreached


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_a_perceptron_maps_points_and_times_to_velocities(dimensions):
    x, t = torch.randn(7, dimensions), torch.rand(7)
    model = VelocityMLP(dimensions, (16, 8), nn.ReLU)
    assert model(x, t).shape == x.shape
    first, other = model(x, t), model(x, t / 2)
    assert not torch.equal(first, other)
    widths = [layer.in_features for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert widths == [dimensions + 1, 16, 8]


def test_without_hidden_layers_it_is_affine():
    model = VelocityMLP(2, ())
    x, t = torch.randn(4, 2), torch.rand(4)
    weight, bias = model.layers[0].weight, model.layers[0].bias
    torch.testing.assert_close(model(x, t), torch.cat([x, t[:, None]], 1) @ weight.T + bias)


def test_the_usual_one_has_the_usual_size():
    assert sum(p.numel() for p in VelocityMLP(2).parameters()) == 8706


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4), (2, 3, 3)])
def test_a_residual_one_takes_points_of_any_shape(shape):
    model = stirred(VelocityResMLP(shape, width=16, blocks=2))
    x = torch.randn(5, *shape)
    assert model(x, torch.rand(5)).shape == x.shape


def test_a_residual_one_begins_at_no_velocity():
    found = VelocityResMLP((1, 4, 4), width=16)(torch.randn(3, 1, 4, 4), torch.rand(3))
    assert (found == 0).all()


def test_points_do_not_meet_in_a_batch():
    for model in (VelocityMLP(3), stirred(VelocityResMLP((3,), width=16))):
        x, t = torch.randn(5, 3), torch.rand(5)
        torch.testing.assert_close(model(x, t)[2:3], model(x[2:3], t[2:3]))


def test_labels_change_what_is_said_and_minus_one_is_no_label():
    model = stirred(VelocityResMLP((2,), width=16, classes=3))
    x, t = torch.randn(1, 2).expand(4, 2), torch.full((4,), 0.3)
    found = model(x, t, torch.tensor([-1, 0, 1, 2]))
    assert len(found.unique(dim=0)) == 4
    torch.testing.assert_close(model(x, t)[0], found[0])


def test_gradients_reach_all_parameters():
    assert unreached(VelocityMLP(3), torch.randn(6, 3), None) == []
    labels = torch.tensor([-1, 0, 1, 2, 0, 1])
    model = VelocityResMLP((1, 4, 4), width=16, blocks=2, classes=3)
    assert unreached(model, torch.randn(6, 1, 4, 4), labels) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VelocityMLP(0), "at least 1, got 0"),
        (lambda: VelocityMLP(2, (8, 0)), "dimensions and widths must be at least 1"),
        (lambda: VelocityResMLP((2,), width=0), "at least 1, got"),
        (lambda: VelocityResMLP((2,), blocks=0), "at least 1, got"),
        (lambda: VelocityResMLP((2, 0)), "at least 1, got"),
        (lambda: VelocityResMLP(()), "at least 1, got"),
        (lambda: VelocityResMLP((2,), width=7), "width must be even"),
        (
            lambda: VelocityResMLP((2,), width=8)(
                torch.zeros(1, 2), torch.zeros(1), torch.tensor([0])
            ),
            "this network has no classes",
        ),
    ],
)
def test_impossible_networks_and_inputs_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
