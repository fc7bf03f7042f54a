from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rectified.inference.batch_norm import fold_batch_norm


def random_(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.double().eval().state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(generator=generator)
    return model


def batch(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Linear(4, 3), nn.BatchNorm1d(3)], (5, 4)),
        ([nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3, affine=False)], (5, 4)),
        ([nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6)], (5, 4, 7)),
        ([nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)], (5, 4, 7, 7)),
        ([nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.ReLU()], (2, 2, 3, 3, 3)),
    ],
)
def test_folding_keeps_the_outputs(layers: list[nn.Module], shape: tuple[int, ...]) -> None:
    model, x = random_(nn.Sequential(*layers)), batch(*shape)
    before = model(x)
    folded: Any = fold_batch_norm(model, x[:1])
    torch.testing.assert_close(folded(x), before, rtol=1e-12, atol=1e-12)
    assert isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y + self.norm(y)


class UsedTwice(ReadTwice):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(self.layer(x)))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)), (3, 4)),  # the norm comes first
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4)), (3, 4)),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), (3, 4, 4)),  # another axis
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)), (3, 4)),
        (ReadTwice(), (3, 4)),
        (UsedTwice(), (3, 4)),
    ],
)
def test_other_norms_stay(model: nn.Module, shape: tuple[int, ...]) -> None:
    model, x = random_(model), batch(*shape)
    folded = fold_batch_norm(model, x)
    assert str(folded) == str(model)
    torch.testing.assert_close(folded(x), model(x), rtol=0, atol=0)
