"""Folded norms compute the same, and zeros stay zeros."""

import copy

import pytest
import torch
from torch import nn

from rectified.graphs.shapes import trace_graph
from rectified.inference.batch_norm import fold_norms_


class Shared(nn.Module):
    """One convolution that is called twice, with a norm behind one of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(self.conv(x)))


class ReadTwice(nn.Module):
    """A convolution whose output is read by the norm and by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y + self.norm(y)


def settle(model: nn.Module) -> nn.Module:
    """Norms as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in norm.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.double().eval()


CASES = {
    "conv": (nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)), (2, 4, 6, 6), 0),
    "grouped": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)), (2, 4, 6, 6), 0),
    "linear": (nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8)), (5, 4), 0),
    "rows": (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(3)), (5, 3, 4), 1),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 8, 3), nn.BatchNorm2d(8)), (2, 4, 6, 6), 1),
    "first": (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3)), (2, 4, 6, 6), 1),
    "shared": (Shared(), (2, 4, 6, 6), 1),
    "read twice": (ReadTwice(), (2, 4, 6, 6), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_stay_and_norms_go_where_they_can(case: str) -> None:
    model, shape, left = CASES[case]
    model = settle(copy.deepcopy(model))
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    traced = trace_graph(model, (x,))
    fold_norms_(traced)
    assert sum("BatchNorm" in type(m).__name__ for m in traced.modules()) == left
    torch.testing.assert_close(traced(x), model(x), rtol=1e-12, atol=1e-12)


def test_zeros_stay_zeros_and_the_model_stays_as_it_is() -> None:
    model = settle(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)))
    weight = model[0].get_parameter("weight")  # type: ignore[index]
    with torch.no_grad():
        weight[weight.abs() < 0.1] = 0
    before = copy.deepcopy(model.state_dict())
    traced = trace_graph(model, (torch.zeros(1, 4, 6, 6, dtype=torch.float64),))
    fold_norms_(traced)
    folded = traced.get_submodule("0").get_parameter("weight")
    assert torch.equal(folded == 0, weight == 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
