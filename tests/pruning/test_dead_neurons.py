"""Dead neuron rates: hand-computed cases of every definition, and every way to write a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.models import resnet20
from rectified.pruning.dead_neurons import DeadNeurons, SiteCounts, dead_neuron_rate
from rectified.pruning.masks import apply_, full_masks


class Net(nn.Module):
    """Layers by name, and a forward function of them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.calculate = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.calculate(self, x)


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values)


def linear(weight: Tensor, bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_hand() -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    """Neurons: x, -x, masked with bias 2, masked with bias -1, never firing, and |x| in disguise.

    r = 2/4, 1/4 (zero at x = -1 0 no: see the data), 0, 1, 1, 1/4.
    """
    weight = rows([1.0], [-1.0], [0.0], [0.0], [1.0], [1.0])
    model = nn.Sequential(linear(weight, [0.0, 0.0, 2.0, -1.0, -9.0, 2.0]), nn.ReLU())
    masks = {"0.weight": torch.tensor([[True], [True], [False], [False], [True], [True]])}
    return model, rows([1.0], [3.0], [-2.0], [0.0]), masks


def test_every_definition_on_a_case_computed_by_hand() -> None:
    model, x, masks = by_hand()
    found = dead_neuron_rate(model, [(x,)], masks=masks)
    (site,) = found.sites
    assert site.zeros.tolist() == [2, 3, 0, 4, 4, 1]
    assert site.never_fires.tolist() == [False, False, False, True, True, False]
    assert site.masked.tolist() == [False, False, True, True, False, False]
    assert site.constant.tolist() == [False, False, True, False, False, False]
    assert (found.neurons, found.examples) == (6, 4)
    assert found.total == pytest.approx(14 / 24)
    assert found.constant == pytest.approx(1 / 6)
    assert found.static() == pytest.approx(2 / 6)
    assert found.static("masked") == pytest.approx(2 / 6)
    assert found.dynamic() == pytest.approx(6 / 16)
    assert found.dynamic(normaliser="all") == pytest.approx(6 / 24)
    assert found.dynamic("masked") == pytest.approx(10 / 16)
    assert found.dynamic("masked", "all") == pytest.approx(10 / 24)


@pytest.mark.parametrize("of", ["never_fires", "masked"])
def test_the_identities_between_the_rates_hold(of: Any) -> None:
    model, masks = pruned_resnet()
    found = dead_neuron_rate(model, [(draw(6, 3, 8, 8),)], masks=masks)
    live = 1 - found.static(of)
    assert found.dynamic(of, "all") == pytest.approx(found.dynamic(of) * live)
    if of == "never_fires":
        assert found.total == pytest.approx(found.dynamic(of, "all") + found.static(of))
    weighted = sum(site.total * site.neurons for site in found.by_site().values())
    assert found.total == pytest.approx(weighted / found.neurons)
    assert list(found.by_site()) == [site.name for site in found.sites]


def pruned_resnet() -> tuple[nn.Module, dict[str, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet20(num_classes=10, in_channels=3, image_size=(8, 8))
    masks = full_masks(model)
    for name in ("layer1.0.conv1.weight", "layer1.0.conv2.weight", "conv1.weight"):
        masks[name][:3] = False
    apply_(model, masks)
    return model, masks


def counted_naively(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Zero counts by plain hooks on modules that are used once."""
    zeros: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _i, output, name=name: zeros.update({name: (output == 0).sum(0)})
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.ReLU)
    ]
    model.eval()
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return zeros


def same(found: DeadNeurons, other: DeadNeurons) -> bool:
    return all(
        (one.name, one.examples) == (two.name, two.examples)
        and torch.equal(one.zeros, two.zeros)
        and torch.equal(one.masked, two.masked)
        and torch.equal(one.constant, two.constant)
        for one, two in zip(found.sites, other.sites, strict=True)
    )


def test_counts_are_those_of_a_naive_pass() -> None:
    model, masks = pruned_resnet()
    x = draw(7, 3, 8, 8)
    found = dead_neuron_rate(model, [(x,)], masks=masks)
    naive = counted_naively(model, x)
    assert {site.name for site in found.sites} == set(naive)
    assert all(torch.equal(site.zeros, naive[site.name]) for site in found.sites)
    assert all(site.zeros.dtype == torch.int64 for site in found.sites)


@pytest.mark.parametrize("sizes", [[7], [3, 3, 1], [1] * 7, [0, 5, 0, 2]])
@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_of_any_size_and_memory_format_give_the_same_counts(
    sizes: list[int], channels_last: bool
) -> None:
    model, masks = pruned_resnet()
    model.double()  # so that no rounding depends on the batch
    x = draw(7, 3, 8, 8).double()
    expected = dead_neuron_rate(model, [(x,)], masks=masks)
    if channels_last:
        model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    found = dead_neuron_rate(model, [(part,) for part in x.split(sizes)], masks=masks)
    assert same(found, expected)
    assert all(site.zeros.shape == site.masked.shape for site in found.sites)


def test_the_memory_format_may_change_between_batches() -> None:
    model = nn.Sequential(nn.ReLU())
    x = draw(6, 3, 4, 5)
    one, two = x.split(3)
    expected = dead_neuron_rate(model, [(x,)])
    turned = two.to(memory_format=torch.channels_last)
    assert same(dead_neuron_rate(model, [(one,), (turned,)]), expected)
    turned = one.to(memory_format=torch.channels_last)
    assert same(dead_neuron_rate(model, [(turned,), (two,)]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_every_float_is_counted(dtype: torch.dtype, threshold: float) -> None:
    x = draw(300, 7).to(dtype)
    (site,) = dead_neuron_rate(nn.ReLU(), [(x,)], threshold=threshold).sites
    assert torch.equal(site.zeros, (x <= threshold).sum(0))


def test_outputs_above_2_to_the_16_in_half_precision_are_finite_counts() -> None:
    x = torch.full((70_000, 1), 3.0, dtype=torch.float16)
    (site,) = dead_neuron_rate(nn.ReLU(), [(x,)]).sites
    assert (int(site.zeros), bool(site.constant)) == (0, True)


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "x.relu": lambda x: x.relu(),
    "clamp(min=0)": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_min_": lambda x: x.clamp_min_(0),
    "ReLU6": nn.ReLU6(),
    "hardtanh": lambda x: F.hardtanh(x, 0, 6),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_relu_counts_the_same(way: str) -> None:
    relu = WAYS[way]
    layers = {"relu": relu} if isinstance(relu, nn.Module) else {}
    model = Net(lambda self, x: self.out(relu(self.fc(x))), fc=nn.Linear(4, 9), out=nn.Linear(9, 2))
    for name, layer in layers.items():
        model.add_module(name, layer)
    x = draw(32, 4)
    (site,) = dead_neuron_rate(model, [(x,)]).sites
    with torch.no_grad():
        assert torch.equal(site.zeros, (model.fc(x) <= 0).sum(0))


def test_a_reused_module_is_counted_at_every_call() -> None:
    model = Net(
        lambda self, x: self.relu(self.b(self.relu(self.a(x)))),
        a=linear(rows([1.0])),
        b=linear(rows([-1.0])),
        relu=nn.ReLU(),
    )
    found = dead_neuron_rate(model, [(rows([1.0], [2.0], [-1.0]),)])
    assert [(site.name, site.zeros.tolist()) for site in found.sites] == [
        ("relu", [1]),
        ("relu#2", [3]),
    ]


def test_a_site_that_is_not_always_called_counts_its_own_examples() -> None:
    model = Net(lambda self, x: F.relu(F.relu(x) - 5) if x[0, 0] > 0 else F.relu(x))
    found = dead_neuron_rate(model, [(rows([1.0], [-1.0]),), (rows([-1.0], [-1.0]),)])
    assert [site.examples for site in found.sites] == [4, 2]
    assert found.total == pytest.approx((3 / 4 + 2 / 2) / 2)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Hardswish()])
def test_smooth_activations_count_with_a_threshold(activation: nn.Module) -> None:
    model = nn.Sequential(linear(rows([1.0], [1.0]), [0.0, 0.0]), activation)
    x = rows([-9.0], [0.0], [0.02], [3.0])
    (site,) = dead_neuron_rate(model, [(x,)], threshold=0.02).sites
    assert site.zeros.tolist() == [3, 3]


def test_smooth_activations_beside_relus_are_left_out_without_a_threshold() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 3), nn.ReLU())
    assert list(dead_neuron_rate(model, [(draw(4, 2),)]).by_site()) == ["3"]
    assert list(dead_neuron_rate(model, [(draw(4, 2),)], threshold=0.1).by_site()) == ["1", "3"]


def residual() -> nn.Module:
    return Net(lambda self, x: F.relu(x.repeat(1, 2, 1, 1) + self.conv(x)), conv=nn.Conv2d(3, 6, 1))


def test_a_site_with_a_skip_input_is_never_dead_by_mask() -> None:
    model = residual()
    masks = {"conv.weight": torch.zeros(6, 3, 1, 1, dtype=torch.bool)}
    assert dead_neuron_rate(model, [(draw(4, 3, 5, 5),)], masks=masks).static("masked") == 0


def test_a_sum_is_dead_by_mask_where_all_its_branches_are() -> None:
    model = Net(
        lambda self, x: F.relu(self.a(x) + self.b(x)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1)
    )
    masks = full_masks(model)
    masks["a.weight"][:2] = False
    masks["b.weight"][1:] = False
    (site,) = dead_neuron_rate(model, [(draw(4, 3, 2, 2),)], masks=masks).sites
    assert site.masked[:, 0, 0].tolist() == [False, True, False, False]
    (site,) = dead_neuron_rate(
        model, [(draw(4, 3, 2, 2),)], masks={"a.weight": masks["a.weight"]}
    ).sites
    assert not site.masked.any()  # the other branch is not pruned at all


def test_a_masked_channel_behind_a_batch_norm_can_fire_as_a_constant() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
    masks = {"0.weight": torch.ones(4, 3, 1, 1, dtype=torch.bool)}
    masks["0.weight"][:2] = False
    apply_(model, masks)
    (site,) = dead_neuron_rate(model, [(draw(8, 3, 2, 2),), (draw(3, 3, 2, 2),)], masks=masks).sites
    assert site.masked[:, 0, 0].tolist() == [True, True, False, False]
    assert site.constant[:, 0, 0].tolist() == [True, False, False, False]
    assert site.never_fires[:2, 0, 0].tolist() == [False, True]


UNITS: dict[str, tuple[nn.Module, Tensor, int]] = {
    "linear": (nn.Linear(4, 6), draw(2, 4), 0),
    "linear on tokens": (nn.Linear(4, 6), draw(2, 6, 4), 1),
    "conv1d": (nn.Conv1d(4, 6, 1), draw(2, 4, 6), 0),
    "conv2d": (nn.Conv2d(4, 6, 1), draw(2, 4, 6, 6), 0),
    "grouped": (nn.Conv2d(4, 6, 1, groups=2), draw(2, 4, 6, 6), 0),
    "conv3d": (nn.Conv3d(4, 6, 1), draw(2, 4, 6, 6, 6), 0),
}


@pytest.mark.parametrize("kind", UNITS)
def test_dead_units_lie_on_the_axis_of_their_layer(kind: str) -> None:
    layer, x, axis = UNITS[kind]
    mask = torch.ones_like(layer.weight, dtype=torch.bool)
    mask[2] = False
    (site,) = dead_neuron_rate(
        nn.Sequential(layer, nn.ReLU()), [(x,)], masks={"0.weight": mask}
    ).sites
    expected = torch.zeros_like(site.masked)
    expected.select(axis, 2).fill_(True)
    assert torch.equal(site.masked, expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_has_its_outputs_second(groups: int) -> None:
    layer = nn.ConvTranspose2d(4, 4, 2, groups=groups, bias=False)
    mask = torch.ones_like(layer.weight, dtype=torch.bool)
    if groups == 1:
        mask[:, 3] = False
    else:
        mask[2:, 1] = False  # the second output of the second group
    masks = {"0.weight": mask}
    model = nn.Sequential(layer, nn.ReLU())
    apply_(model, masks)
    (site,) = dead_neuron_rate(model, [(draw(5, 4, 2, 2),)], masks=masks).sites
    assert site.masked[:, 0, 0].tolist() == [False, False, False, True]
    assert site.never_fires[3].all()


def test_where_units_cannot_be_followed_none_is_dead_by_mask() -> None:
    forwards = [
        lambda self, x: F.relu(self.conv(x).flatten(1)),
        lambda self, x: F.relu(torch.cat([self.conv(x), x], 1)),
        lambda self, x: F.relu(self.conv(x).chunk(2, 1)[0]),
        lambda self, x: F.relu(self.conv(F.relu(x))[:, ::2]),
    ]
    for forward in forwards:
        model = Net(forward, conv=nn.Conv2d(3, 4, 1))
        masks = {"conv.weight": torch.zeros(4, 3, 1, 1, dtype=torch.bool)}
        assert dead_neuron_rate(model, [(draw(2, 3, 2, 2),)], masks=masks).static("masked") == 0


@pytest.mark.parametrize("batch_first", [False, True])
def test_transformers_are_counted(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    masks = full_masks(model)
    masks["layers.0.linear1.weight"][4] = False
    found = dead_neuron_rate(model, [(draw(4, 4, 8),), (draw(4, 4, 8, seed=1),)], masks=masks)
    assert [site.zeros.shape for site in found.sites] == [(4, 16)] * 2
    assert found.sites[0].masked[:, 4].all()
    assert int(found.sites[0].masked.sum()) == 4


@pytest.mark.parametrize("block", [nn.MultiheadAttention(6, 2, batch_first=True), nn.LSTM(6, 6)])
def test_attention_and_recurrent_layers_before_a_relu_are_counted(block: nn.Module) -> None:
    def forward(self: Any, x: Tensor) -> dict[str, Tensor]:
        output = self.block(x, x, x)[0] if "Attention" in type(block).__name__ else self.block(x)[0]
        return {"logits": F.relu(output)}

    model = Net(forward, block=block)
    masks = {name: torch.zeros_like(mask) for name, mask in full_masks(model).items()}
    found = dead_neuron_rate(model, [(draw(3, 5, 6),)], masks=masks)
    assert found.neurons == 30
    assert found.static("masked") == 0


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="aot_eager")]
)
def test_wrapped_networks_are_counted(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, x, masks = by_hand()
    expected = dead_neuron_rate(model, [(x,)], masks=masks)
    assert same(dead_neuron_rate(wrap(model), [(x,)], masks=masks), expected)


def test_constants_are_told_from_near_constants_over_all_batches() -> None:
    x = torch.ones(40, 3)
    x[-1, 1] += 1e-4  # late, and small
    x[:, 2] += 1e-7 * torch.arange(40) / 40  # rounding
    found = dead_neuron_rate(nn.ReLU(), [(part,) for part in x.split(15)])
    assert found.sites[0].constant.tolist() == [True, False, True]


@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("batches", [[0], [0, 1], [1, 0], [0, 0, 1]])
def test_nan_is_found_in_any_batch_and_any_number_of_them(
    batches: list[int], threshold: float
) -> None:
    good, bad = draw(4, 3), draw(4, 3)
    bad[2, 1] = float("nan")
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with pytest.raises(UserError, match="activations at '1' are NaN"):
        dead_neuron_rate(model, [((bad, good)[i],) for i in batches * 2], threshold=threshold)


def test_infinity_fires() -> None:
    x = rows([float("inf"), -float("inf")])
    assert dead_neuron_rate(nn.ReLU(), [(x,)]).sites[0].zeros.tolist() == [0, 1]


def test_a_network_without_a_relu_is_refused_with_a_remedy() -> None:
    for model, said in [
        (nn.Linear(2, 2), "Linear calls no ReLU"),
        (nn.Sequential(nn.Linear(2, 2), nn.GELU()), "1 smooth activations: give a dead threshold"),
    ]:
        with pytest.raises(UserError, match=said):
            dead_neuron_rate(model, [(draw(2, 2),)])


@pytest.mark.parametrize("batches", [[], [(torch.zeros(0, 2),)]])
def test_no_example_is_refused(batches: list[tuple[Tensor]]) -> None:
    with pytest.raises(UserError, match="at least one example, got none"):
        dead_neuron_rate(nn.ReLU(), batches)


@pytest.fixture
def unchecked() -> Any:
    """Lets values of the wrong type through, as they come from a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"threshold must be at least 0, got -0\.1"):
        dead_neuron_rate(nn.ReLU(), [(draw(2, 2),)], threshold=-0.1)
    found = dead_neuron_rate(nn.ReLU(), [(draw(2, 2),)])
    with pytest.raises(UserError, match="unknown static set 'mask'"):
        found.static("mask")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown normaliser 'none'"):
        found.dynamic(normaliser="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (2, 1, 4, 3), (2, 1, 5, 5)])
def test_a_site_that_changes_its_shape_is_refused(shape: tuple[int, ...]) -> None:
    batches = [(draw(2, 1, 2, 6),), (draw(*shape),)]
    with pytest.raises(UserError, match="changes its shape from batch to batch"):
        dead_neuron_rate(nn.Sequential(nn.ReLU()), batches)


@pytest.mark.parametrize("broken", [False, True])
def test_nothing_is_left_behind(broken: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if broken and x.sum() > 0:
            raise RuntimeError("broken")
        return F.relu(self.norm(x))

    model = Net(forward, norm=nn.BatchNorm1d(3), dropout=nn.Dropout())
    model.dropout.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(-torch.ones(2, 3),), (torch.ones(2, 3),)]
    random = torch.get_rng_state()
    if broken:
        with pytest.raises(RuntimeError, match="broken"):
            dead_neuron_rate(model, batches)
    else:
        dead_neuron_rate(model, batches)
    assert torch.equal(random, torch.get_rng_state())
    assert [module.training for module in model.modules()] == [True, True, False]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert torch.overrides._get_current_function_mode_stack() == []


def test_a_layer_with_no_live_neuron_has_a_dynamic_rate_of_zero() -> None:
    zeros = torch.full((3,), 5)
    none = torch.zeros(3, dtype=torch.bool)
    found = DeadNeurons((SiteCounts("relu", 5, zeros, none, none),))
    assert (found.static(), found.total) == (1.0, 1.0)
    assert found.dynamic() == found.dynamic(normaliser="all") == 0.0
