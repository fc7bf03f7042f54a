import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.inference.compact import compact, compaction
from rectified.inference.compact.resize import resize
from rectified.models import cnn, mlp, resnet20, vgg16
from rectified.pruning.dead_neurons import dead_neuron_rate
from rectified.pruning.masks import apply_, prunable


class Residual(nn.Module):
    """Functional and in-place calls, an identity shortcut and a projection."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn_first = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn_second = nn.BatchNorm2d(width)
        self.third = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.project = nn.Conv2d(width, 2 * width, 1, stride=2, bias=False)
        self.bn_project = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        branch = F.relu(self.bn_first(self.first(x)))
        branch = self.bn_second(self.second(branch))
        branch += x
        x = torch.relu(branch)
        x = F.relu(self.third(x) + self.bn_project(self.project(x)))
        x = F.adaptive_avg_pool2d(x, 1)
        return self.fc(x.view(x.size(0), -1))


class Concatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.mixed = nn.Conv2d(13, 7, 3)
        self.bn = nn.BatchNorm2d(7)
        self.fc = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.a(x)), x, torch.tanh(self.b(x))], dim=1)
        return self.fc(self.bn(self.mixed(x)).relu().mean((2, 3)))


class Gated(nn.Module):
    """Squeeze and excitation: channels times a factor each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        factor = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.last(x * factor)


class TokenMixer(nn.Module):
    """Linear layers on (batch, tokens, channels), and operations that mix channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        x = self.embed(x)
        x = x + scale * self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.softmax(-1).mean(1))


def convolutional(norm: bool) -> nn.Module:
    def block(inputs: int, outputs: int, **options: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, bias=not norm, **options)
        return [convolution, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *block(3, 8, padding=1),
        nn.MaxPool2d(2),
        *block(8, 10, padding=1, stride=1),
        nn.AvgPool2d(3, stride=1, padding=1),
        *block(10, 8),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(32, 12),
        nn.LeakyReLU(),
        nn.Linear(12, 4),
    )


def dense(norm: bool) -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if norm else []), nn.ReLU()]

    return nn.Sequential(*block(10, 16), *block(16, 12), *block(12, 8), nn.Linear(8, 3))


def separable() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 6, 1),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Hardswish(),
        nn.Conv2d(6, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )


IMAGE, ROW, TOKENS = (3, 8, 8), (10,), (4, 6)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: dense(False), ROW),
    "dense_norm": (lambda: dense(True), ROW),
    "convolutional": (lambda: convolutional(False), IMAGE),
    "convolutional_norm": (lambda: convolutional(True), IMAGE),
    "residual": (Residual, IMAGE),
    "concatenation": (Concatenation, IMAGE),
    "gated": (Gated, IMAGE),
    "separable": (separable, IMAGE),
    "grouped": (grouped, IMAGE),
    "tokens": (TokenMixer, TOKENS),
}


def random_(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Weights, biases and statistics as after some training, in float64."""
    model = model.double().eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0.0, 0.7, generator=generator)
    return model


def random_masks(model: nn.Module, density: float, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        name: torch.rand(weight.shape, generator=generator) < density
        for name, weight in prunable(model).items()
    }


def masked(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    apply_(model, masks)
    return model


def case(name: str, density: float, seed: int) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    build, shape = NETWORKS[name]
    model = random_(build(), generator)
    masks = random_masks(model, density, generator)
    return model, masks, torch.randn(6, *shape, generator=generator, dtype=torch.float64)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


CASES = list(itertools.product(NETWORKS, (0.5, 0.1, 0.03), range(3)))


@pytest.mark.parametrize(("name", "density", "seed"), CASES)
def test_outputs_are_those_of_the_masked_network_and_nothing_is_left_to_remove(
    name: str, density: float, seed: int
) -> None:
    model, masks, x = case(name, density, seed)
    before = copy.deepcopy(model.state_dict())
    small = compact(model, x[:2], masks=masks)
    torch.testing.assert_close(small(x), masked(model, masks)(x), rtol=1e-10, atol=1e-10)
    assert set(small.state_dict()) >= set(before)
    assert type(small) is type(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert shapes(compact(small, x[:2])) == shapes(small)
    small.train()(x)  # the smaller batch norms are whole


@pytest.mark.parametrize("name", NETWORKS)
def test_zeros_in_the_weights_count_as_masks_do(name: str) -> None:
    model, masks, x = case(name, 0.1, 5)
    by_mask = compact(model, x, masks=masks)
    assert shapes(compact(masked(model, masks), x)) == shapes(by_mask)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_dense_network_stays_as_it_is(name: str) -> None:
    model, _, x = case(name, 1.0, 0)
    assert shapes(compact(model, x)) == shapes(model)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_weights_keeps_one_channel_a_layer(name: str) -> None:
    model, masks, x = case(name, 0.0, 0)
    small = compaction(model, x, masks=masks)
    torch.testing.assert_close(small.model(x), masked(model, masks)(x), rtol=1e-10, atol=1e-10)
    assert all(layer.stays or layer.outputs[1] == 1 for layer in small.layers)


def chain(*widths: int, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if norm else [])]
        layers += [nn.Tanh()]
    return nn.Sequential(*layers).double().eval()


def test_a_unit_without_inputs_goes_and_its_bias_moves_on() -> None:
    model = chain(2, 3, 1)
    with torch.no_grad():
        model[0].weight[1] = 0
    small: Any = compact(model, torch.ones(1, 2, dtype=torch.float64))
    moved = model[2].bias + model[2].weight[:, 1] * torch.tanh(model[0].bias[1])
    torch.testing.assert_close(small[2].bias, moved)
    torch.testing.assert_close(small[0].weight, model[0].weight[[0, 2]])


def test_a_unit_that_nobody_reads_goes_and_takes_its_private_inputs_along() -> None:
    model = chain(4, 5, 3, 2)
    with torch.no_grad():
        model[4].weight[:, 0] = 0  # nobody reads unit 0 of the second layer,
        model[2].weight[1:, :2] = 0  # which alone read units 0 and 1 of the first
    table = compaction(model, torch.ones(1, 4, dtype=torch.float64)).layers
    assert [layer.outputs for layer in table] == [(5, 3), (3, 2), (2, 2)]
    assert [layer.inputs for layer in table] == [(4, 4), (5, 3), (3, 2)]
    assert [layer.stays for layer in table] == [None, None, "the output"]


def test_channels_that_only_feed_each_other_through_a_residual_sum_go() -> None:
    model = random_(Residual(), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.third.weight[:, 3] = 0  # behind the block, nobody reads channel 3 of the stream;
        model.project.weight[:, 3] = 0
        model.first.weight[:, 3] = 0  # within it, hidden channel 5 alone reads and writes it
        model.first.weight[5, 3] = 1
        model.second.weight[:, 5] = 0
        model.second.weight[3, 5] = 1
    small: Any = compact(model, torch.ones(1, 3, 8, 8, dtype=torch.float64))
    assert small.stem.out_channels == 7
    assert small.first.in_channels == small.first.out_channels == 7
    assert small.second.in_channels == small.second.out_channels == 7


def test_a_channel_of_a_sum_stays_while_one_branch_varies() -> None:
    model = random_(Residual(), torch.Generator().manual_seed(0))
    x = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        model.bn_second.bias[3:5] = -100.0  # the ReLU behind the sum makes constants zero
        model.stem.weight[3] = 0
        model.second.weight[4] = 0
    assert compact(model, x).get_submodule("stem").out_channels == 8
    with torch.no_grad():
        model.second.weight[3] = 0
    assert compact(model, x).get_submodule("stem").out_channels == 7


def norm_then_padded(beta: float, padding: int | str, mode: str = "zeros") -> nn.Sequential:
    """Channel 1 of 3 has no weights, and its batch norm makes it `beta` everywhere."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 2, 3, padding=padding, padding_mode=mode, bias=False),
    )
    random_(model, torch.Generator().manual_seed(1))
    with torch.no_grad():
        model[0].weight[1] = 0
        model[1].running_mean[1] = 0
        model[1].bias[1] = beta
    return model


@pytest.mark.parametrize(
    ("beta", "padding", "mode", "channels"),
    [
        (1.0, 0, "zeros", 2),
        (1.0, 1, "zeros", 3),  # at the border the constant is missing: no bias can say that
        (-1.0, 1, "zeros", 2),  # zero behind the ReLU
        (1.0, 1, "replicate", 2),
        (1.0, 1, "circular", 2),
        (1.0, "same", "zeros", 3),
        (1.0, "valid", "zeros", 2),
    ],
)
def test_a_constant_behind_a_norm_is_folded_where_borders_allow(
    beta: float, padding: int | str, mode: str, channels: int
) -> None:
    model = norm_then_padded(beta, padding, mode)
    x = torch.randn(2, 1, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small: Any = compact(model, x)
    torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
    assert small[0].out_channels == small[1].num_features == small[3].in_channels == channels
    assert (small[3].bias is not None) == (beta > 0 and channels == 2)


def test_constants_before_a_padded_convolution_become_one_channel() -> None:
    model = norm_then_padded(1.0, 1)
    with torch.no_grad():
        model[0].weight[2] = 0
        model[1].bias[2] = model[1].running_mean[2] * 0 + 9.0
    x = torch.randn(2, 1, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small: Any = compact(model, x)
    torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
    assert small[0].out_channels == 2


@pytest.mark.parametrize(
    ("pool", "channels"),
    [
        (nn.AvgPool2d(3, 2, padding=1), 3),  # zeros of the padding count in the mean
        (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), 2),
        (nn.AvgPool2d(3, 2, ceil_mode=True), 2),
        (nn.MaxPool2d(3, 2, padding=1), 2),
        (nn.AdaptiveAvgPool2d(3), 2),
        (nn.Upsample(scale_factor=1.5, mode="bilinear"), 2),
        (nn.ZeroPad2d(1), 3),
        (nn.ReflectionPad2d(1), 2),
    ],
)
def test_pools_pass_constants_where_they_are_the_same_at_every_position(
    pool: nn.Module, channels: int
) -> None:
    model = norm_then_padded(1.0, 0)
    model.insert(3, pool)
    x = torch.randn(2, 1, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small: Any = compact(model, x)
    torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
    assert small[0].out_channels == channels


def test_a_constant_moves_into_the_norm_behind_a_layer_without_bias() -> None:
    model = nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 1)
    )
    random_(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model[0].weight[2] = 0
    small: Any = compact(model, torch.ones(1, 3, dtype=torch.float64))
    assert set(small.state_dict()) == set(model.state_dict())
    shift = model[2].weight[:, 2] * torch.tanh(model[0].bias[2])
    torch.testing.assert_close(small[3].running_mean, model[3].running_mean - shift)


def test_a_norm_of_scale_zero_makes_a_channel_constant() -> None:
    model = chain(3, 4, 2, norm=True)
    random_(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model[1].weight[2] = 0
    small: Any = compact(model, torch.ones(1, 3, dtype=torch.float64))
    assert small[0].out_features == 3


def test_flatten_removes_the_block_of_columns() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(12, 2)).double()
    with torch.no_grad():
        model[0].weight[1] = 0
    small: Any = compact(model, torch.ones(1, 1, 3, 3, dtype=torch.float64))
    kept = [0, 1, 2, 3, 8, 9, 10, 11]
    torch.testing.assert_close(small[2].weight, model[2].weight[:, kept])


def removable_by_force(model: nn.Sequential, x: Tensor) -> list[int]:
    """Per layer but the last, how many units noise cannot reach the output from, or that
    are the same on all of x at the next layer; both seen by running the network only."""
    layers = [i for i, layer in enumerate(model) if isinstance(layer, nn.Linear | nn.Conv2d)]
    counts = []
    for here, following in itertools.pairwise(layers):
        values = model[: here + 1](x).detach()
        removable = 0
        for unit in range(values.shape[1]):
            noisy = values.clone()
            noise = torch.Generator().manual_seed(unit)
            noisy[:, unit] += torch.randn(noisy[:, unit].shape, dtype=x.dtype, generator=noise)
            is_unread = torch.equal(model[here + 1 :](noisy), model[here + 1 :](values))
            flatten = isinstance(model[following - 1], nn.Flatten)
            read = model[here + 1 : following - flatten](values)
            is_constant = read[:, unit].var() < 1e-24
            removable += is_unread or bool(is_constant)
        counts.append(removable)
    return counts


def convolution_chain() -> nn.Sequential:
    layers = [nn.Conv2d(2, 9, 2), nn.Tanh(), nn.Conv2d(9, 8, 2), nn.BatchNorm2d(8), nn.Tanh()]
    return nn.Sequential(
        *layers, nn.Conv2d(8, 6, 1), nn.Tanh(), nn.Flatten(), nn.Linear(24, 7), nn.Linear(7, 2)
    )


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: chain(6, 12, 10, 8, 4), (6,)),
        (lambda: chain(6, 12, 10, 8, 4, norm=True), (6,)),
        (convolution_chain, (2, 4, 4)),
    ],
)
@pytest.mark.parametrize("density", [0.4, 0.15])
@pytest.mark.parametrize("seed", range(4))
def test_every_channel_goes_that_an_exhaustive_search_finds_removable(
    build: Callable[[], nn.Sequential], shape: tuple[int, ...], density: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model: Any = random_(build(), generator)
    apply_(model, random_masks(model, density, generator))
    x = torch.randn(16, *shape, dtype=torch.float64, generator=generator)
    table = compaction(model, x).layers[:-1]
    expected = [
        min(gone, layer.outputs[0] - 1)
        for gone, layer in zip(removable_by_force(model, x), table, strict=True)
    ]
    assert [layer.outputs[0] - layer.outputs[1] for layer in table] == expected


def test_grouped_convolutions_are_listed_and_stay() -> None:
    model, masks, x = case("grouped", 0.03, 0)
    table = compaction(model, x, masks=masks).layers
    assert [layer.outputs for layer in table] == [(8, 8), (8, 8), (2, 2)]
    assert [layer.stays for layer in table] == [
        "2 (Conv2d)",
        "grouped, shared, hooked or not called as a layer",
        "the output",
    ]


@pytest.mark.parametrize("build", [mlp, cnn, resnet20, vgg16])
def test_the_classifiers_shrink_at_two_percent_density(build: Callable[..., nn.Module]) -> None:
    generator = torch.Generator().manual_seed(0)
    size = (32, 32) if build in (resnet20, vgg16) else (8, 8)
    model = build(num_classes=10, in_channels=3, image_size=size).eval()
    for name, tensor in model.state_dict().items():
        if "running_mean" in name or name.endswith("bias"):
            tensor.normal_(0, 0.1, generator=generator)
    masks = random_masks(model, 0.02, generator)
    x = torch.randn(2, 3, *size, generator=generator)
    small = compact(model, x, masks=masks)
    torch.testing.assert_close(small(x), masked(model, masks)(x), rtol=1e-5, atol=1e-5)
    count = sum(p.numel() for p in small.parameters())
    assert count < sum(p.numel() for p in model.parameters())
    assert set(small.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("build", [Residual, lambda: dense(True)])
def test_neurons_that_never_fire_go_on_request(build: Callable[[], nn.Module]) -> None:
    generator = torch.Generator().manual_seed(0)
    model = random_(build(), generator)
    x = torch.randn(20, *(IMAGE if isinstance(model, Residual) else ROW), generator=generator)
    x = x.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.bias.data[:2] = -100
    counts = dead_neuron_rate(model, [(x,)])
    never = {site.name: site.never_fires for site in counts.sites}
    small = compact(model, x, never_fires=never)
    torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
    assert shapes(small) != shapes(compact(model, x)) == shapes(model)


def test_never_fires_takes_a_value_per_channel_or_per_neuron() -> None:
    model = random_(convolutional(False), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model[0].bias[3] = -1000
    x = torch.randn(2, *IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    channels = torch.arange(8) == 3
    neurons = channels[:, None, None].expand(8, 8, 8).clone()
    neurons[2, 0, 0] = True  # a channel that fires elsewhere stays
    for never in (channels, neurons):
        small: Any = compact(model, x, never_fires={"1": never})
        assert small[0].out_channels == 7


class Repeated(nn.Module):
    """One ReLU module twice, then a functional one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.relu(self.c(self.relu(self.b(self.relu(self.a(x)))))))


@pytest.mark.parametrize(("site", "layer"), [("relu", "a"), ("relu#2", "b"), ("relu.relu", "c")])
def test_sites_are_named_as_where_they_are_counted(site: str, layer: str) -> None:
    model = Repeated().double()
    with torch.no_grad():
        model.get_submodule(layer).bias[1] = -100
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = [found.name for found in dead_neuron_rate(model, [(x,)]).sites]
    name = names[["relu", "relu#2", "relu.relu"].index(site)]
    small = compact(model, x, never_fires={name: torch.tensor([False, True, False])})
    assert small.get_submodule(layer).out_features == 2


@pytest.mark.parametrize("name", ["dense_norm", "residual", "concatenation", "separable"])
def test_a_compact_state_dict_gives_a_fresh_network_its_sizes(name: str) -> None:
    model, masks, x = case(name, 0.1, 2)
    small = compact(model, x, masks=masks)
    fresh = NETWORKS[name][0]().double().eval()
    torch.testing.assert_close(resize(fresh, small.state_dict())(x), small(x), rtol=0, atol=0)


def test_an_artefact_holds_no_more_than_the_small_tensors() -> None:
    model = chain(4, 30, 2)
    masks = {"0.weight": (torch.arange(30) < 3)[:, None].expand(30, 4)}
    small = compact(model, torch.ones(1, 4, dtype=torch.float64), masks=masks)
    stored = [tensor.untyped_storage().nbytes() for tensor in small.state_dict().values()]
    assert sum(stored) == 8 * (3 * 4 + 3 + 2 * 3 + 2)


def test_frozen_weights_stay_frozen() -> None:
    model = chain(4, 5, 2)
    model[0].requires_grad_(False)
    small = compact(model, torch.ones(1, 4, dtype=torch.float64))
    assert [p.requires_grad for p in small.parameters()] == [False, False, True, True]


def sequence(*layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential(*layers)
    random_(model, torch.Generator().manual_seed(0))
    return model


class Calling(nn.Module):
    """An odd forward around a few layers."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.call = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def fixed_view(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x).view(-1, 4))


def told_view(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.b(y.view(y.size(0), y.shape[1]))


def overwritten(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    y.relu_()
    return self.b(y)


def called_twice(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(self.a(x)))


def softmaxed(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x).softmax(1))


def weight_read_elsewhere(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x)) + self.a.weight.sum()


def parameter_added(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x) + self.a.bias)


def dropped_always(self: Any, x: Tensor) -> Tensor:
    return self.b(F.dropout(self.a(x), 0.0, training=True))


def sliced(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x)[:, [1, 0, 3, 2]])


def two_outputs(self: Any, x: Tensor) -> Any:
    y = self.a(x)
    return self.b(y), y


@pytest.mark.parametrize(
    ("forward", "width"),
    [
        (told_view, 3),
        *((forward, 4) for forward in (fixed_view, overwritten, called_twice, softmaxed)),
        *((forward, 4) for forward in (weight_read_elsewhere, parameter_added, dropped_always)),
        *((forward, 4) for forward in (sliced, two_outputs)),
    ],
)
def test_whatever_touches_channels_in_an_unknown_way_keeps_them(
    forward: Callable[..., Tensor], width: int
) -> None:
    model: Any = random_(
        Calling(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2)), torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        model.a.weight[2] = 0
        model.a.bias[2] = -1
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    table = compaction(model, x)
    torch.testing.assert_close(table.model(x), model(x), rtol=1e-10, atol=1e-10)
    assert table.model.get_submodule("a").out_features == width
    reasons = {layer.name: layer.stays for layer in table.layers}
    assert (reasons["a"] is None) == (forward is told_view)


@pytest.mark.parametrize(
    ("between", "channels"),
    [
        (lambda x: x[:, :, ::2, 1:], 3),
        (lambda x: x[:, :3], 4),
        (lambda x: x[..., 1:], 4),
        (lambda x: F.pad(x, (1, 1)), 4),  # a border of zeros beside a constant of 1
        (lambda x: F.pad(x, (1, 1), value=1.0), 3),
        (lambda x: F.pad(x, (0, 0, 0, 0, 0, 0), value=1.0), 4),
        (lambda x: F.interpolate(x, scale_factor=2), 3),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], 4),
        (lambda x: F.max_pool2d(x, 2), 3),
        (lambda x: torch.amax(x, dim=-1, keepdim=True), 3),
        (lambda x: x.sum((2, 3), keepdim=True), 3),
        (lambda x: x - x.mean(1, keepdim=True), 4),
        (lambda x: x - x.mean(), 4),
        (lambda x: 1 / (2 - x), 3),
        (lambda x: 1 / (1 - x), 4),  # infinite: no constant to fold
        (lambda x: x * x.shape[1], 4),
        (lambda x: torch.cat([x, x], 2), 4),
        (lambda x: x.flatten(2).unsqueeze(-1), 3),
        (lambda x: x.transpose(2, 3), 4),
    ],
)
def test_a_constant_passes_where_channels_are_kept_apart(
    between: Callable[[Tensor], Tensor], channels: int
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(between(F.hardtanh(self.a(x))))[:, :2]

    inputs = between(torch.ones(2, 4, 6, 6)).shape[1]
    model: Any = random_(
        Calling(forward, a=nn.Conv2d(1, 4, 1), b=nn.Conv2d(inputs, 3, 1)),
        torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        model.a.weight[1] = 0
        model.a.bias[1] = 5
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    small: Any = compact(model, x)
    torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10, equal_nan=True)
    assert small.a.out_channels == channels


def test_shared_weights_and_hooks_keep_a_layer_as_it_is() -> None:
    tied = sequence(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    tied[2].weight = tied[0].weight
    hooked = sequence(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    hooked[2].register_forward_hook(lambda _module, _args, output: 2 * output)
    x = torch.ones(1, 4, dtype=torch.float64)
    for model in (tied, hooked):
        with torch.no_grad():
            model[2].weight[1] = 0
        small = compact(model, x)
        torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
        assert small.get_submodule("2").out_features == 4


def test_a_norm_with_batch_statistics_keeps_its_channels() -> None:
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    model = sequence(nn.Linear(4, 4), norm, nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[1] = 0
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    small: Any = compact(model, x)
    torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
    assert small[0].out_features == 4


def test_a_network_without_layers_stays_as_it_is() -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(compact(nn.Sequential(nn.ReLU()), x)(x), x.relu())


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_an_untraceable_module_is_named_and_may_stay_whole() -> None:
    model = sequence(nn.Linear(3, 4), nn.Sequential(Branching()), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[1] = 0
    x = torch.ones(1, 3, dtype=torch.float64)
    with pytest.raises(UserError, match=r"cannot trace '1\.0' \(.*leaves=\(Branching,\).*: symb"):
        compact(model, x)
    with pytest.raises(UserError, match=r"cannot trace Branching \(write its forward"):
        compact(Branching(), x)
    table = compaction(model, x, leaves=(Branching,))
    assert [layer.outputs for layer in table.layers] == [(4, 4), (2, 2)]
    assert table.layers[0].stays == "1.0 (Branching)"


def test_a_forward_that_depends_on_sizes_is_refused() -> None:
    def by_width(self: Any, x: Tensor) -> Tensor:
        return self.b(self.a(x)) * self.a.out_features

    def by_shape(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y.view(y.size(0) * 4 // 4, y.size(1) * 4 // y.size(1)))

    x = torch.ones(1, 4, dtype=torch.float64)
    for forward, message in ((by_width, "has other outputs"), (by_shape, "does not run")):
        model = random_(
            Calling(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2)), torch.Generator().manual_seed(0)
        )
        with torch.no_grad():
            model.get_parameter("a.weight")[1] = 0
        with pytest.raises(UserError, match=f"{message}.*depend on the sizes of its layers"):
            compact(model, x)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = chain(3, 2)
    with torch.no_grad():
        model[0].weight[0, 1] = torch.nan
    with pytest.raises(UserError, match=r"weights must be finite, '0\.weight' holds NaN"):
        compact(model, torch.ones(1, 3, dtype=torch.float64))


def test_claims_about_unknown_sites_and_of_other_shapes_are_refused() -> None:
    model = sequence(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    x = torch.ones(1, 3, dtype=torch.float64)
    with pytest.raises(UserError, match="unknown site in never_fires 'relu'; choose from 1"):
        compact(model, x, never_fires={"relu": torch.tensor([True, False])})
    with pytest.raises(UserError, match=r"never_fires\['1'\] must have the shape .*got \(3,\)"):
        compact(model, x, never_fires={"1": torch.tensor([True, False, True])})


def test_a_false_claim_is_refused() -> None:
    model = sequence(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].bias[:] = 10
    with pytest.raises(UserError, match="neurons of never_fires fire"):
        compact(
            model,
            torch.ones(1, 3, dtype=torch.float64),
            never_fires={"1": torch.tensor([True, False])},
        )


@pytest.mark.parametrize("name", ["convolutional_norm", "residual"])
def test_a_compact_network_can_be_exported(name: str) -> None:
    model, masks, x = case(name, 0.1, 0)
    small = compact(model.float(), x.float(), masks=masks)
    exported = torch.export.export(small, (x.float(),)).module()
    torch.testing.assert_close(exported(x.float()), small(x.float()))


@pytest.mark.slow
def test_a_compact_network_runs_in_onnxruntime(tmp_path: Any) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, masks, x = case("residual", 0.1, 0)
    small, x = compact(model.float(), x.float(), masks=masks), x.float()
    torch.onnx.export(small, (x,), tmp_path / "small.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "small.onnx")
    (actual,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(actual), small(x).detach(), rtol=1e-4, atol=1e-5)


# Other people's networks.


class Overwriting(nn.Module):
    """Writes through a slice into channels that are constant before, and reads them again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Linear(4, 2)
        self.same, self.relu = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        part = y[:, :, ::2, ::2]
        part += x[:, :1, ::2, ::2]
        z = self.after(y)
        z = self.relu(self.same(z)) + z
        return self.last(z.mean((2, 3)))


@torch.no_grad()
def test_what_is_written_in_place_through_a_view_keeps_its_channels() -> None:
    torch.manual_seed(0)
    model, x = Overwriting().eval(), torch.randn(2, 3, 6, 6)
    model.conv.weight[:4] = 0  # constant until the slice is written
    model.after.weight[1] = 0
    made = compaction(model, x)
    assert torch.allclose(made.model(x), model(x), atol=1e-6)
    sizes = {layer.name: layer for layer in made.layers}
    assert sizes["conv"].outputs == (6, 6)
    assert sizes["conv"].stays == "iadd"


@pytest.mark.parametrize("wrapped", [False, True])
@torch.no_grad()
def test_weights_made_by_torchs_own_pruning_are_removed(wrapped: bool) -> None:
    from torch.nn.utils import prune

    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))
    prune.ln_structured(model[0], "weight", 0.75, n=2, dim=0)
    prune.random_unstructured(model[2], "weight", 0.5)
    with torch.enable_grad():
        model(torch.ones(1, 6))  # its weights have a gradient now, which cannot be copied
    x = torch.randn(4, 6)
    small = compact(nn.DataParallel(model) if wrapped else model, x)
    assert torch.allclose(small(x), model(x), atol=1e-6)
    assert len(small[0].weight) <= 10
    assert set(small.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@torch.no_grad()
def test_hidden_units_of_pytorchs_transformer_layers_go(activation: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=activation)
    model = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)).eval()
    first, second = model[1].layers
    first.linear1.weight[:10] = 0  # constant hidden units
    first.linear1.bias[:10] = torch.linspace(-1, 1, 10)
    first.linear2.weight[:, 14:] = 0  # units that nobody reads
    second.linear2.register_forward_hook(lambda _layer, _inputs, output: 2 * output)
    second.linear1.weight[:10] = 0
    x = torch.randn(2, 5, 4)
    made = compaction(model, x)
    assert torch.allclose(made.model(x), model(x), atol=1e-5)
    sizes = {entry.name: entry for entry in made.layers}
    assert sizes["1.layers.0.linear1"].outputs == (16, 4)
    assert sizes["1.layers.0.linear2"].inputs == (16, 4)
    assert sizes["1.layers.1.linear1"].outputs == (16, 16)
    assert sizes["1.layers.0.linear2"].stays == "1.layers.0 (TransformerEncoderLayer)"
    assert resize(copy.deepcopy(model), made.model.state_dict())(x).shape == (2, 5, 3)
