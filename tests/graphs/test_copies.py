"""Copies of networks that other people have written."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from rectified.graphs.copies import agree, bare, call_layers_, plain_copy

MAKERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: prune.random_unstructured(
        prune.l1_unstructured(layer, "weight", 0.5), "weight", 0.5
    ),
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
    "weight norm as a parametrization": parametrizations.weight_norm,
    "spectral norm as a parametrization": parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("maker", MAKERS)
def test_a_weight_that_is_made_in_every_call_becomes_a_plain_one(maker: str) -> None:
    model = nn.Sequential(MAKERS[maker](nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(3, 6)
    model(x)  # the weight is a result with a gradient now, which deepcopy refuses
    model.eval()
    names, expected = list(model.state_dict()), model(x)
    copied = plain_copy(model)
    assert set(copied.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert type(copied[0]) is nn.Linear
    assert isinstance(copied[0].weight, nn.Parameter)
    assert not copied[0]._forward_pre_hooks
    torch.testing.assert_close(copied(x), expected)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), expected)


def test_a_copy_is_of_the_network_inside_its_wrappers() -> None:
    layer = nn.Linear(2, 2)
    copied = plain_copy(nn.DataParallel(torch.compile(layer)))
    assert type(copied) is nn.Linear
    assert bare(torch.compile(layer)) is layer
    assert copied.weight is not layer.weight


@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_a_transformer_layer_calls_the_layers_that_have_been_put_into_it(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 5, 8)
    changed, calls = copy.deepcopy(model), []

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(x)

    for inner, old in zip(changed.layers, model.layers, strict=True):
        inner.linear1 = Counting(8, 16)
        inner.linear1.load_state_dict(old.linear1.state_dict())
    call_layers_(changed)
    torch.testing.assert_close(changed(x), model(x))
    assert len(calls) == 2


def test_results_agree_up_to_rounding_whatever_their_structure() -> None:
    x = torch.randn(3)
    assert agree({"a": [x, 1]}, {"a": [x + 1e-7, 2]})
    assert agree(
        torch.tensor([float("nan"), float("inf")]), torch.tensor([float("nan"), torch.inf])
    )
    assert not agree(x, x + 1e-2)
    assert not agree(x, x[:2])
    assert not agree((x, x), x)
    assert agree(torch.zeros(0), torch.zeros(0))
