import copy

import pytest
import torch
import torch.nn.functional as F

from rectified.errors import UserError
from rectified.training import classification_quality, evaluate
from tests.training.material import Noise, images_network, network


def test_evaluation_is_exact_over_batches_of_any_size():
    model = network()
    batches = list(Noise((7, 1, 12, 3)).epoch(0))
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    found = evaluate(model, classification_quality, batches, device="cpu")
    assert found["loss"] == pytest.approx(float(F.cross_entropy(model(x), y)), rel=1e-6)
    assert found["accuracy"] == float((model(x).argmax(1) == y).double().mean())


def test_evaluation_needs_an_example():
    with pytest.raises(UserError, match="batches must hold at least one example"):
        evaluate(network(), classification_quality, [], device="cpu")


def test_evaluation_changes_nothing_and_puts_every_mode_back():
    model = images_network().train()
    model[1].eval()  # frozen statistics
    before = copy.deepcopy(model.state_dict())
    evaluate(model, classification_quality, Noise(shape=(3, 8, 8)).epoch(0), device="cpu")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not model[1].training
