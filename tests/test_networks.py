import pytest
from torch import nn

from rectified.networks import evaluating


class Adapted(nn.Linear):
    """Weights of an adapter that are merged for evaluation, as low-rank adapters do."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


class Frozen(nn.Sequential):
    """Keeps its statistics as they are, whatever mode it is put in."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


def modes(model):
    return [module.training for module in model.modules()]


def test_evaluation_mode_is_for_a_while():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    with evaluating(model) as same:
        assert same is model
        assert modes(model) == [False, False, False]
    assert modes(model) == [True, True, False]


def test_modes_are_put_back_after_an_error():
    model = nn.Sequential(nn.Dropout()).train()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        1 // int(model.training)
    assert model.training


def test_a_network_that_does_more_upon_train_is_told():
    model = nn.Sequential(Adapted(2, 2), nn.ReLU())
    with evaluating(model):
        assert model[0].merged
    assert not model[0].merged


@pytest.mark.parametrize("trains", [True, False])
def test_a_part_has_its_own_mode_again_whatever_train_does_to_it(trains):
    model = Frozen(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].training = trains
    with evaluating(model):
        assert modes(model) == [False, False, False]
    assert modes(model) == [True, True, trains]
