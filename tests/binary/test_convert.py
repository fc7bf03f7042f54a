import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rectified.binary import BinaryConv2d, BinaryLinear, convert, outer_layers
from rectified.binary.layers import binary_layers
from rectified.errors import UserError
from rectified.models import cnn, one_bit_resnet20, resnet20, vgg_small

SHAPE = {"num_classes": 10, "in_channels": 3, "image_size": (32, 32)}


def test_the_networks_of_the_paper_keep_their_first_and_last_layer():
    for build, count in ((one_bit_resnet20, 18), (vgg_small, 5)):
        model = convert(build(**SHAPE))
        assert len(binary_layers(model)) == count
        assert not any(isinstance(m, nn.Identity) for m in model.children())  # norms stand between


def test_projections_stay_in_full_precision():
    kept = outer_layers(resnet20(**SHAPE))
    assert kept == ("conv1", "layer2.0.downsample.0", "layer3.0.downsample.0", "fc")


def test_parameters_are_the_same_and_the_original_is_left_alone():
    model = cnn(num_classes=10, in_channels=1, image_size=(8, 8))
    made = convert(model)
    assert not binary_layers(model)
    assert dict(made.named_parameters()).keys() == dict(model.named_parameters()).keys()
    for name, value in model.named_parameters():
        assert torch.equal(made.get_parameter(name), value)


def test_relus_in_front_of_signs_go():
    """Behind a ReLU every sign would be +1; through pools and flattening too."""
    model = cnn(num_classes=10, in_channels=1, image_size=(8, 8))
    made = convert(model)
    assert [type(m).__name__ for m in made if isinstance(m, nn.ReLU | nn.Identity)] == [
        "Identity",
        "Identity",
        "ReLU",  # before the mean and the float classifier
    ]
    assert any(isinstance(m, nn.ReLU) for m in convert(model, activation_bits=32)[:6])
    x = torch.randn(64, 1, 8, 8)
    seen = made[:4](x)
    assert (seen >= 0).float().mean() < 0.97  # 15 of 16, the largest of four normal numbers


def test_relus_of_a_residual_network_go_where_signs_follow():
    made = convert(resnet20(**SHAPE))
    assert isinstance(made.layer1[0].relu1, nn.Identity)
    assert isinstance(made.layer3[2].relu2, nn.ReLU)  # the mean follows
    assert made(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_keep_names_what_stays():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    assert list(binary_layers(convert(model, keep=()))) == ["0", "1", "2"]
    assert list(binary_layers(convert(model, keep=("1",)))) == ["0", "2"]
    assert list(binary_layers(convert(model))) == ["1"]


def test_a_single_layer_is_converted():
    assert isinstance(convert(nn.Linear(3, 2)), BinaryLinear)
    assert isinstance(convert(nn.Conv2d(3, 2, 1)), BinaryConv2d)


def test_all_settings_of_a_convolution_stay():
    layer = nn.Conv2d(
        4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, bias=False
    )
    made = convert(nn.Sequential(layer), keep=())[0]
    x = torch.randn(2, 4, 8, 8)
    assert made(x).shape == layer(x).shape
    assert made.weight is not layer.weight
    assert made.bias is None


def test_types_that_derive_from_a_layer_are_left_alone():
    class Mine(nn.Linear):
        pass

    made = convert(nn.Sequential(Mine(3, 3), nn.Linear(3, 3)), keep=())
    assert type(made[0]) is Mine


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.three(self.two(F.relu(self.one(x))))


class Branching(Functional):
    def forward(self, x):
        return self.two(x) if x.sum() > 0 else self.one(x)


def test_a_relu_that_is_a_call_is_named():
    with pytest.raises(UserError, match=r"layer 'two' would see no negative input: .*'relu'"):
        convert(Functional())


def test_what_cannot_be_traced_is_converted_with_a_warning():
    with pytest.warns(UserWarning, match="ReLUs in front of 1-bit layers stay: torch.fx cannot"):
        made = convert(Branching())
    assert list(binary_layers(made)) == ["two"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(bad):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight.data[0, 0] = bad
    with pytest.raises(UserError, match="weights must be finite, got NaN or infinity in layer '1'"):
        convert(model)


def test_an_unknown_layer_to_keep_is_named():
    with pytest.raises(UserError, match="unknown layer to keep 'fc'; choose from 0"):
        convert(nn.Sequential(nn.Linear(2, 2)), keep=("fc",))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_pruned_normed_and_wrapped_networks_are_converted():
    from torch.nn.utils import prune, weight_norm

    def made():
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))

    pruned, normed = made(), made()
    prune.l1_unstructured(pruned[1], "weight", 0.5)
    weight_norm(normed[1])
    for model in (pruned, normed, nn.DataParallel(made())):
        model(torch.ones(1, 4))
        converted = convert(model)
        assert list(binary_layers(converted)) == ["1"]
        assert isinstance(converted[1].weight, nn.Parameter)


def test_layers_of_other_types_are_said_to_stay():
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Linear(4, 4), nn.LSTM(4, 4))
    with pytest.warns(UserWarning, match=r"in full precision stay '0' \(Conv1d\), '2' \(LSTM\)"):
        assert list(binary_layers(convert(model, keep=()))) == ["1"]


@pytest.mark.parametrize("activation", ["relu", nn.ReLU()])
@pytest.mark.filterwarnings("ignore:convert takes")
def test_a_relu_inside_a_transformer_layer_of_pytorch_is_named(activation):
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation=activation)
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))
    with pytest.raises(UserError, match=r"layer '1\.linear2' would see no negative input: .*gelu"):
        convert(model)
    assert list(binary_layers(convert(model, keep=("0", "1.linear2", "2")))) == ["1.linear1"]
    assert len(binary_layers(convert(model, activation_bits=32))) == 2
