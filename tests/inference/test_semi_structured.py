"""2:4 patterns are found, and handed over only where the kernels exist."""

import pytest
import torch
from torch import nn

from rectified.errors import UserError
from rectified.inference.semi_structured import eligible, has_pattern, semi_structured
from rectified.pruning import Snapshot, apply_, full_masks, magnitude, prune


def two_four(model: nn.Module) -> nn.Module:
    masks = full_masks(model)
    state = model.state_dict()
    scores = magnitude(Snapshot(model, state, state, masks))
    apply_(model, prune(masks, scores, 0.5, scope="2:4"))
    return model


def test_pruning_in_the_scope_makes_the_pattern_in_whole_tiles() -> None:
    model = two_four(nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 12)))
    assert all(has_pattern(model[i].weight.detach()) for i in (0, 2))
    assert eligible(model) == ["0"]  # twelve rows are no tile


def test_a_group_with_three_weights_is_no_pattern() -> None:
    assert not has_pattern(torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]]))
    assert not has_pattern(torch.zeros(2, 6))


def test_a_network_without_the_pattern_is_refused() -> None:
    with pytest.raises(UserError, match="no linear layer holds a 2:4 pattern"):
        semi_structured(nn.Linear(64, 32))


def test_other_precisions_are_refused() -> None:
    with pytest.raises(UserError, match="dtype must be float16 or bfloat16"):
        semi_structured(two_four(nn.Linear(64, 32)), dtype=torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_remedy_is_named() -> None:
    with pytest.raises(UserError, match="use sparsify on a CPU"):
        semi_structured(two_four(nn.Linear(64, 32)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_kernels_compute_the_same() -> None:
    model = two_four(nn.Sequential(nn.Linear(128, 64), nn.ReLU()))
    inputs = torch.randn(64, 128)
    expected = model.to(torch.bfloat16)(inputs.to(torch.bfloat16)).float()
    given = semi_structured(model)(inputs.to("cuda", torch.bfloat16)).float().cpu()
    torch.testing.assert_close(given, expected, atol=0.05, rtol=0.05)
