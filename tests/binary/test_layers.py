import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rectified.binary import (
    STE,
    BinaryConv2d,
    BinaryLinear,
    ClippedSTE,
    ReSTE,
    anneal,
    set_progress,
)
from rectified.binary.layers import binary_layers
from rectified.errors import UserError
from rectified.models import Ensemble
from rectified.training import FitConfig, Step, fit


def signs(x):
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


@pytest.mark.parametrize("bias", [True, False])
def test_the_scale_comes_after_an_exact_integer_product(bias):
    layer = BinaryConv2d(70, 5, 3, stride=2, padding=1, bias=bias)
    x = torch.randn(2, 70, 7, 9)
    integers = F.conv2d(signs(x).double(), signs(layer.weight).double(), None, 2, 1)
    assert torch.equal(integers, integers.round())
    alpha = layer.weight.abs().mean((1, 2, 3))
    expected = integers.float() * alpha[:, None, None]
    expected = expected + layer.bias[:, None, None] if bias else expected
    assert torch.equal(layer(x), expected)


def test_padding_is_exactly_zero():
    layer = BinaryConv2d(1, 1, 3, padding=1, scale="none", bias=False)
    layer.weight.data.fill_(1.0)
    found = layer(torch.ones(1, 1, 3, 3))[0, 0]
    assert found.tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


def test_inputs_of_32_bits_stay():
    layer, x = BinaryLinear(6, 3, activation_bits=32, scale="none"), torch.randn(2, 6)
    assert torch.allclose(layer(x), F.linear(x, signs(layer.weight), layer.bias))
    assert not hasattr(layer, "activation_estimator")


def test_scales():
    w = torch.randn(4, 6)
    for scale, expected in {
        "channel": w.abs().mean(1),
        "layer": w.abs().mean().expand(4),
        "none": torch.ones(4),
    }.items():
        layer = BinaryLinear(6, 4, scale=scale)
        layer.weight.data = w.clone()
        assert torch.allclose(layer.alpha(), expected)
        assert not layer.alpha().requires_grad


def test_before_a_batch_norm_no_scale_changes_the_training():
    """The published scales are one method here: outputs and gradients agree."""
    x = torch.randn(8, 3, 6, 6, dtype=torch.float64)
    found = {}
    for scale in ("none", "layer", "channel"):
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(4, eps=1e-12)
        conv = BinaryConv2d(3, 4, 3, scale=scale, bias=False)
        model = nn.Sequential(conv, nn.ReLU(), norm).double()
        y = model(x)
        (y**3).sum().backward()
        found[scale] = y, model[0].weight.grad
    for scale in ("layer", "channel"):
        assert torch.allclose(found[scale][0], found["none"][0], atol=1e-8)
        assert torch.allclose(found[scale][1], found["none"][1], atol=1e-5, rtol=1e-5)


def test_standardised_weights_have_mean_zero_and_deviation_one():
    layer = BinaryConv2d(3, 4, 3, standardize=True)
    latent = layer.latent_weight().flatten(1)
    assert torch.allclose(latent.mean(1), torch.zeros(4), atol=1e-6)
    assert torch.allclose(latent.std(1, correction=0), torch.ones(4), atol=1e-5)
    layer.weight.data.fill_(1.0)
    assert layer(torch.randn(1, 3, 5, 5)).isfinite().all()


def test_gradients_are_those_of_the_estimators():
    layer = BinaryLinear(3, 2, bias=False, scale="none", estimator=ReSTE)
    set_progress(layer, 1.0)
    x = torch.randn(5, 3, requires_grad=True)
    layer(x).sum().backward()
    onto_x = signs(layer.weight).sum(0) * ReSTE(o=3).slope(x)
    onto_w = signs(x).sum(0) * ReSTE(o=3).slope(layer.weight)
    assert torch.allclose(x.grad, onto_x.detach())
    assert torch.allclose(layer.weight.grad, onto_w.detach())


def test_weights_and_inputs_can_have_different_estimators():
    layer = BinaryLinear(3, 2, estimator=ReSTE, activation_estimator=ClippedSTE)
    assert type(layer.weight_estimator) is ReSTE
    assert type(layer.activation_estimator) is ClippedSTE


def test_the_state_dict_has_the_layers_own_names_and_where_the_estimators_stand():
    layer = BinaryConv2d(2, 3, 3)
    set_progress(layer, 0.5)
    other = BinaryConv2d(2, 3, 3)
    other.load_state_dict(layer.state_dict())
    assert {"weight", "bias"} < set(layer.state_dict())
    assert other.weight_estimator.o == layer.weight_estimator.o > 1


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (2, 1), (3, 2), (7, 1)])
def test_the_schedule_reaches_its_end_at_the_last_step_of_short_runs(steps, epochs):
    model = nn.Sequential(BinaryLinear(4, 2))
    data = torch.randn(steps, 6, 4)

    class Batches:
        def __len__(self):
            return steps

        def epoch(self, number):
            return ((batch,) for batch in data)

    seen = []

    def note(step):
        seen.append(model[0].weight_estimator.o.item())

    config = FitConfig(epochs=epochs, device="cpu")
    objective = lambda model, batch: model(batch[0]).square().mean()  # noqa: E731
    fit(model, objective, Batches(), config, hooks=[note, anneal])
    assert seen[0] == 1  # the first update is made at the start of the schedule
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(3) or steps * epochs == 1  # ... the last one at its end
    assert model[0].weight_estimator.o.item() == pytest.approx(3)


def test_a_hook_finds_every_estimator():
    model = nn.Sequential(BinaryConv2d(1, 2, 3), nn.Sequential(BinaryLinear(2, 2, estimator=STE)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    anneal(Step(10, 10, model, torch.zeros(()), optimizer))
    assert model[0].activation_estimator.o.item() == pytest.approx(3)
    assert list(binary_layers(model)) == ["0", "1.0"]


@pytest.mark.usefixtures("unchecked")
def test_a_network_of_them_compiles_and_trains():
    model = nn.Sequential(BinaryConv2d(3, 4, 3, padding=1), nn.Flatten(), BinaryLinear(100, 2))
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 5, 5)
    for network in (compiled, twin):
        network(x).square().sum().backward()
    assert torch.allclose(model[0].weight.grad, twin[0].weight.grad)


def test_many_of_them_train_as_one_module():
    models = [nn.Sequential(BinaryLinear(4, 8), nn.Tanh(), BinaryLinear(8, 2)) for _ in range(3)]
    ensemble, x = Ensemble(models), torch.randn(3, 5, 4)
    ensemble(x).square().sum().backward()
    for number, model in enumerate(models):
        model(x[number]).square().sum().backward()
        gradient = ensemble.base[0].weight.grad[number]
        assert torch.allclose(gradient, model[0].weight.grad, atol=1e-6)


@settings(max_examples=20)
@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2)
)
def test_shapes_are_those_of_conv2d(inputs, outputs, kernel, stride, padding):
    arguments = (inputs, outputs, kernel, stride, padding)
    x = torch.randn(2, inputs, 6, 5)
    assert BinaryConv2d(*arguments)(x).shape == nn.Conv2d(*arguments)(x).shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_bits": 2}, "activation_bits must be 1 or 32, got 2"),
        ({"scale": "row"}, "unknown scale 'row'; choose from channel, layer, none"),
    ],
)
def test_what_a_layer_cannot_be_is_named(options, message):
    for make in (lambda: BinaryLinear(2, 2, **options), lambda: BinaryConv2d(2, 2, 1, **options)):
        with pytest.raises(UserError, match=message):
            make()


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_is_a_share(progress):
    with pytest.raises(UserError, match=r"progress must be in \[0, 1\]"):
        set_progress(BinaryLinear(2, 2), progress)


def test_words_of_a_layer():
    assert "1W/32A, scale=layer" in repr(BinaryLinear(2, 3, activation_bits=32, scale="layer"))
    assert "standardize=True" in repr(BinaryConv2d(2, 3, 1, standardize=True))
