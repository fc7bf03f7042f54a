import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rectified.errors import UserError
from rectified.models import Ensemble, cnn, mlp, resnet20, vit

# PyTorch warns that `vmap` runs attention network by network on a CPU: slow, but right.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

NETWORKS, BATCH = 3, 6
SHAPES = {"num_classes": 4, "in_channels": 1, "image_size": (8, 8)}
ARCHITECTURES = {
    "mlp": lambda: mlp(**SHAPES, widths=(7, 5)),
    "mlp with BatchNorm": lambda: mlp(**SHAPES, widths=(7, 5), norm=nn.BatchNorm1d),
    "cnn": lambda: cnn(**SHAPES, widths=(3, 4)),
    "resnet20": lambda: resnet20(**SHAPES),
    "vit": lambda: vit(**SHAPES, dim=8, depth=1, heads=2),
}


def networks(name, count=NETWORKS):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [ARCHITECTURES[name]().double() for _ in range(count)]


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(NETWORKS, BATCH, 1, 8, 8, dtype=torch.float64, generator=generator)
    return x, torch.randint(4, (NETWORKS, BATCH), generator=generator)


def optimiser(module):
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def train_together(ensemble, steps):
    sgd = optimiser(ensemble)
    for step in range(steps):
        x, y = batch(step)
        sgd.zero_grad()
        loss = F.cross_entropy(ensemble(x).flatten(0, 1), y.flatten(), reduction="sum") / BATCH
        loss.backward()
        sgd.step()


def train_alone(models, steps):
    for number, model in enumerate(models):
        sgd = optimiser(model)
        for step in range(steps):
            x, y = batch(step)
            sgd.zero_grad()
            F.cross_entropy(model(x[number]), y[number]).backward()
            sgd.step()


def assert_same_states(models, others):
    for model, other in zip(models, others, strict=True):
        state = other.state_dict()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_each_network(name, training):
    models = [model.train(training) for model in networks(name)]
    x, _ = batch()
    outputs = Ensemble(models)(x)
    alone = torch.stack([model(images) for model, images in zip(models, x, strict=True)])
    torch.testing.assert_close(outputs, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_those_of_each_network(name):
    models = networks(name)
    ensemble, (x, _) = Ensemble(models), batch()
    ensemble(x).square().sum().backward()
    gradients = dict(ensemble.named_parameters())
    for number, (model, images) in enumerate(zip(models, x, strict=True)):
        model(images).square().sum().backward()
        for key, parameter in model.named_parameters():
            together = gradients[f"base.{key}"].grad[number]
            torch.testing.assert_close(together, parameter.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "mlp with BatchNorm", "cnn"])
def test_training_together_is_training_each_alone(name):
    models = networks(name)
    alone, ensemble = copy.deepcopy(models), Ensemble(models)
    train_together(ensemble, steps=5)
    train_alone(alone, steps=5)
    ensemble.unstack_()
    assert_same_states(models, alone)


def test_models_are_left_alone_until_unstacked():
    models = networks("mlp with BatchNorm")
    before = copy.deepcopy(models)
    train_together(Ensemble(models), steps=1)
    assert_same_states(models, before)


def test_every_network_counts_its_batches():
    models = networks("mlp with BatchNorm")
    ensemble = Ensemble(models)
    train_together(ensemble, steps=2)
    ensemble.unstack_()
    assert [model[2].num_batches_tracked.item() for model in models] == [2, 2, 2]


def test_evaluation_mode_reaches_the_networks():
    models = networks("mlp with BatchNorm")
    ensemble, (x, _) = Ensemble(models).eval(), batch()
    before = copy.deepcopy(ensemble.state_dict())
    alone = torch.stack([model.eval()(images) for model, images in zip(models, x, strict=True)])
    torch.testing.assert_close(ensemble(x), alone, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(before[key], value) for key, value in ensemble.state_dict().items())


def test_the_mode_is_that_of_the_models():
    ensemble = Ensemble([model.eval() for model in networks("mlp")])
    assert not ensemble.training
    assert not ensemble.base.training


def test_dropout_differs_between_networks_and_ends_in_evaluation():
    ensemble = Ensemble([nn.Dropout() for _ in range(NETWORKS)])
    ones = torch.ones(NETWORKS, 200)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, two, three = ensemble(ones)
    assert not torch.equal(one, two)
    assert not torch.equal(two, three)
    assert torch.equal(ensemble.eval()(ones), ones)


def test_a_shared_parameter_stays_shared():
    def tied():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    models = [tied() for _ in range(2)]
    ensemble, x = Ensemble(models), torch.ones(2, 3, 4)
    assert len(list(ensemble.parameters())) == 3
    alone = torch.stack([model(images) for model, images in zip(models, x, strict=True)])
    torch.testing.assert_close(ensemble(x), alone)


def test_state_dict_restores_an_ensemble():
    trained, fresh = Ensemble(networks("cnn")), Ensemble(networks("cnn"))
    train_together(trained, steps=2)
    fresh.load_state_dict(trained.state_dict())
    x, _ = batch()
    assert torch.equal(trained.eval()(x), fresh.eval()(x))


def test_stacked_masks_act_on_each_network():
    models = networks("mlp")
    generator = torch.Generator().manual_seed(0)
    masks = [{"1.weight": torch.rand(m[1].weight.shape, generator=generator) < 0.5} for m in models]
    ensemble, (x, _) = Ensemble(models), batch()
    with torch.no_grad():
        for name, mask in ensemble.stacked(masks).items():
            ensemble.get_parameter(name).mul_(mask)
        for model, mask in zip(models, masks, strict=True):
            model[1].weight.mul_(mask["1.weight"])
    alone = torch.stack([model(images) for model, images in zip(models, x, strict=True)])
    torch.testing.assert_close(ensemble(x), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("per_model", "message"),
    [
        ([{}], r"one dict a model \(3\), got 1"),
        ([{"a": torch.ones(1)}, {"a": torch.ones(1)}, {}], r"got \['a'\] in some only \(model 2\)"),
    ],
)
def test_stacked_refuses_dicts_that_do_not_fit(per_model, message):
    with pytest.raises(UserError, match=message):
        Ensemble(networks("mlp")).stacked(per_model)


@pytest.mark.parametrize(
    ("models", "message"),
    [([], "at least one network"), ([nn.Linear(2, 3), nn.Linear(3, 2)], "model 1 differs from 0")],
)
def test_models_that_do_not_fit_are_refused(models, message):
    with pytest.raises(UserError, match=message):
        Ensemble(models)
