import pytest
import torch
from torch import nn

from rectified.errors import UserError
from rectified.inference.compact.resize import resize


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 6, 1, groups=2),
        nn.Flatten(),
        nn.Linear(6, 4, bias=False),
    )


def narrow() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 6, 1, groups=2),
        nn.Flatten(),
        nn.Linear(6, 4, bias=True),
    )


def test_resizing_to_its_own_state_dict_changes_nothing() -> None:
    model = network()
    assert str(resize(model, model.state_dict())) == str(model)


def test_sizes_groups_and_a_new_bias_come_from_the_tensors() -> None:
    model, wanted = network(), narrow()
    resized = resize(model, wanted.state_dict())
    assert str(resized) == str(wanted)
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resized.eval()(x), wanted.eval()(x), rtol=0, atol=0)
    assert str(model) == str(network())


@pytest.mark.parametrize("shape", [(9, 3, 3, 3), (8, 3, 2, 3), (8, 3)])
def test_shapes_that_no_compaction_makes_are_refused(shape: tuple[int, ...]) -> None:
    state = network().state_dict() | {"0.weight": torch.zeros(shape)}
    with pytest.raises(
        UserError, match=r"state_dict\['0\.weight'\] must be a part of \(8, 3, 3, 3\)"
    ):
        resize(network(), state)


def test_missing_and_unknown_tensors_are_refused() -> None:
    state = network().state_dict()
    with pytest.raises(UserError, match=r"state_dict does not fit.*Unexpected key.*extra"):
        resize(network(), state | {"extra": torch.zeros(1)})
    del state["5.weight"]
    with pytest.raises(UserError, match=r"state_dict does not fit.*Missing key.*5.weight"):
        resize(network(), state)
