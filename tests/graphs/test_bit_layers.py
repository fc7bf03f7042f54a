"""Layers of 1-bit weights by whoever wrote them: found, traced whole, and packed."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectified.graphs.bit_layers import BitLayer, bit_layers, is_bit_layer, sign, trace
from rectified.inference import pack


class SignLinear(BitLayer, nn.Linear):
    """Somebody else's layer."""

    activation_bits = 1

    def latent_weight(self) -> Tensor:
        return self.weight

    def alpha(self) -> Tensor:
        return torch.full((self.out_features,), 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(sign(x), sign(self.weight)) * self.alpha() + self.bias


class SignVolume(BitLayer, nn.Conv3d):
    """A layer that is no convolution of images."""

    activation_bits = 1


def test_the_sign_of_zero_is_plus_one() -> None:
    assert sign(torch.tensor([0.0, -0.0, -1e-30])).tolist() == [1, 1, -1]


def test_a_layer_of_somebody_else_runs_on_bits() -> None:
    model = nn.Sequential(SignLinear(70, 40), nn.BatchNorm1d(40), SignLinear(40, 3)).eval()
    packed, x = pack(model), torch.randn(5, 70)
    assert [(layer.way, layer.gives) for layer in packed.layers] == [
        ("bits", "bits"),
        ("bits", "floats"),
    ]
    torch.testing.assert_close(packed(x), model(x), atol=2e-6, rtol=0)


def test_only_images_and_rows_are_taken() -> None:
    model = nn.Sequential(SignVolume(1, 1, 1), SignLinear(2, 2), nn.Linear(2, 2))
    assert list(bit_layers(model)) == ["1"]
    assert [is_bit_layer(layer) for layer in model] == [False, True, False]
    assert not is_bit_layer(None)


def test_a_layer_alone_is_traced_whole() -> None:
    assert [node.op for node in trace(SignLinear(2, 2)).graph.nodes][1] == "call_module"


@pytest.mark.parametrize("part", ["latent_weight", "alpha"])
def test_a_layer_says_what_its_bits_and_its_scale_are(part: str) -> None:
    with pytest.raises(NotImplementedError):
        getattr(SignVolume(1, 1, 1), part)()
