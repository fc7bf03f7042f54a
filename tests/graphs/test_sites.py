"""Sites: every call of an activation function is seen, and what stands around it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectified.graphs import sites
from rectified.graphs.copies import bare
from rectified.graphs.sites import RELU, SMOOTH, Trace, activation_kind, evaluating, watch
from rectified.models import resnet20
from rectified.pruning.masks import prunable
from rectified.pruning.scores.lookahead import neighbours


class Net(nn.Module):
    """Layers by name, and a forward function of them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.calculate = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.calculate(self, *inputs, **named)


def trace(model: nn.Module, example: Any) -> Trace:
    return sites.trace(model, example, prunable(model))


def seen(model: nn.Module, *inputs: Any) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    with torch.no_grad(), watch(model, lambda name, kind, _: found.append((name, kind))) as network:
        network(*inputs)
    return found


def sources(model: nn.Module, example: Any) -> dict[str, set[str]]:
    return {name: set(site.sources) for name, site in trace(model, example).sites.items()}


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))

CALLS: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "F.relu": (F.relu, "relu", RELU),
    "F.relu in place": (lambda x: F.relu(x, inplace=True), "relu", RELU),
    "F.relu_": (F.relu_, "relu", RELU),
    "torch.relu": (torch.relu, "relu", RELU),
    "torch.relu_": (torch.relu_, "relu", RELU),
    "x.relu": (lambda x: x.relu(), "relu", RELU),
    "x.relu_": (lambda x: x.relu_(), "relu", RELU),
    "relu6": (F.relu6, "relu6", RELU),
    "hardtanh": (lambda x: F.hardtanh(x, 0.0, 6.0), "hardtanh", RELU),
    "hardtanh by name": (lambda x: F.hardtanh(x, min_val=0.0, max_val=1.0), "hardtanh", RELU),
    "x.clamp(min=0)": (lambda x: x.clamp(min=0), "clamp", RELU),
    "x.clamp(0)": (lambda x: x.clamp(0), "clamp", RELU),
    "x.clamp(0, 6)": (lambda x: x.clamp(0, 6), "clamp", RELU),
    "x.clamp_(0.0)": (lambda x: x.clamp_(0.0), "clamp", RELU),
    "torch.clamp": (lambda x: torch.clamp(x, min=0.0), "clamp", RELU),
    "x.clip(0)": (lambda x: x.clip(0), "clip", RELU),
    "x.clamp_min(0)": (lambda x: x.clamp_min(0), "clamp_min", RELU),
    "x.clamp_min_(min=0)": (lambda x: x.clamp_min_(min=0), "clamp_min", RELU),
    "torch.clamp_min": (lambda x: torch.clamp_min(x, 0), "clamp_min", RELU),
    "gelu": (F.gelu, "gelu", SMOOTH),
    "silu": (F.silu, "silu", SMOOTH),
    "mish": (F.mish, "mish", SMOOTH),
    "hardswish": (F.hardswish, "hardswish", SMOOTH),
}


@pytest.mark.parametrize("call", CALLS)
def test_functional_calls_are_seen(call: str) -> None:
    function, name, kind = CALLS[call]
    model = Net(
        lambda self, x: self.out(function(self.fc(x))), fc=nn.Linear(4, 5), out=nn.Linear(5, 2)
    )
    assert seen(model, ROW) == [(name, kind)]
    assert sources(model, ROW) == {name: {"fc.weight"}}


@pytest.mark.parametrize(
    "function",
    [
        torch.tanh,
        F.leaky_relu,
        F.hardtanh,
        lambda x: x.clamp(max=0),
        lambda x: x.clamp(-1, 1),
        lambda x: x.clamp_min(0.5),
        lambda x: x.clamp(min=None, max=0),
        lambda x: F.threshold(x, 0.0, 20.0),
    ],
)
def test_what_does_not_cut_at_zero_is_no_site(function: Callable[[Tensor], Tensor]) -> None:
    assert seen(Net(lambda self, x: function(self.fc(x)), fc=nn.Linear(4, 5)), ROW) == []


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.ReLU(), RELU),
        (nn.ReLU(inplace=True), RELU),
        (nn.ReLU6(), RELU),
        (nn.Hardtanh(0, 1), RELU),
        (nn.GELU(), SMOOTH),
        (nn.SiLU(), SMOOTH),
        (nn.Hardswish(), SMOOTH),
    ],
)
def test_modules_are_seen_by_their_path(module: nn.Module, kind: str) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Sequential(module))
    assert seen(model, ROW) == [("1.0", kind)]


def test_a_reused_module_is_a_site_for_every_call_in_every_forward() -> None:
    relu = nn.ReLU()
    model = Net(
        lambda self, x: self.relu(self.b(F.relu(self.relu(self.a(x))))),
        a=nn.Linear(4, 4),
        b=nn.Linear(4, 4),
        relu=relu,
    )
    with watch(model, lambda name, _kind, _output: names.append(name)):
        names: list[str] = []
        for _ in range(2):
            model(ROW)
    assert names == ["relu", "relu#2", "relu#3"] * 2
    assert sources(model, ROW) == {
        "relu": {"a.weight"},
        "relu#2": {""},
        "relu#3": {"b.weight"},
    }


def test_nested_modules_name_their_functional_calls() -> None:
    inner = Net(lambda self, x: F.relu(F.relu(self.fc(x))), fc=nn.Linear(4, 4))
    assert [name for name, _ in seen(nn.Sequential(inner, inner), ROW)] == [
        "0.relu",
        "0.relu#2",
        "0.relu#3",
        "0.relu#4",
    ]


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_fused_path_of_transformers_hides_no_relu(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first).eval()
    tokens = torch.randn(2, 5, 8)
    assert [name for name, _ in seen(model, tokens)] == ["layers.0.relu", "layers.1.relu"]
    assert sources(model, tokens)["layers.1.relu"] == {"layers.1.linear1.weight"}


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def compiled_inside(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        lambda model: torch.compile(model, backend="aot_eager"),
        compiled_inside,
        nn.DataParallel,
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    ],
)
def test_wrapped_networks_have_the_sites_of_the_bare_one(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    model = wrap(perceptron())
    with torch.no_grad():
        model(ROW)  # compiles
    assert seen(model, ROW) == [("1", RELU)]
    assert sources(model, ROW) == {"1": {"0.weight"}}
    assert neighbours(model, ROW)["2.weight"].before == ("0.weight",)
    with torch.no_grad():
        assert model(ROW).shape == (2, 3)


def test_a_compiled_part_is_watched_uncompiled() -> None:
    part = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend="eager")
    model = nn.Sequential(part, nn.Linear(4, 2))
    model(ROW)
    assert [kind for _, kind in seen(model, ROW)] == [RELU]
    assert len(trace(model, ROW).layers) == 2


def test_outputs_of_any_shape_pass() -> None:
    @dataclass
    class Output:
        logits: Tensor
        hidden: tuple[Tensor, ...]

    def forward(self: Any, tokens: Tensor, *, mask: Tensor | None = None) -> Output:
        hidden = self.encoder(tokens)["last"]
        return Output(self.head(hidden), (hidden,))

    encoder = Net(lambda self, x: {"last": F.relu(self.fc(x)), "none": None}, fc=nn.Linear(4, 4))
    model = Net(forward, encoder=encoder, head=nn.Linear(4, 2))
    assert seen(model, ROW) == [("encoder.relu", RELU)]
    assert trace(model, ROW).layers["head.weight"].before == {"encoder.fc.weight"}


def test_several_inputs_are_all_the_networks_input() -> None:
    model = Net(
        lambda self, a, b: F.relu(self.a(a) + self.b(b)), a=nn.Linear(4, 3), b=nn.Linear(4, 3)
    )
    found = trace(model, (ROW, ROW.abs()))
    assert found.sites["relu"].sources == {"a.weight", "b.weight"}
    assert found.layers["a.weight"].reads_input
    assert found.layers["b.weight"].reads_input
    assert not found.layers["a.weight"].reads_nonnegative
    assert found.layers["b.weight"].reads_nonnegative


def test_a_layer_called_by_keyword_is_traced_too() -> None:
    model = Net(lambda self, x: F.relu(self.fc(input=x)), fc=nn.Linear(4, 3))
    layer = trace(model, ROW).layers["fc.weight"]
    assert layer.reads_input
    assert not layer.reads_nonnegative


def fills(self: Any, x: Tensor) -> Tensor:
    wide = x.new_zeros(2, 6, 8, 8)
    wide[:, :3] = x
    return F.relu(self.conv(x) + wide)


BETWEEN: dict[str, tuple[Callable[[Any, Tensor], Tensor], set[str]]] = {
    "pool": (lambda self, x: F.relu(F.max_pool2d(self.conv(x), 2)), {"conv.weight"}),
    "adaptive pool": (
        lambda self, x: F.relu(F.adaptive_avg_pool2d(self.conv(x), 1)),
        {"conv.weight"},
    ),
    "flatten": (lambda self, x: F.relu(self.conv(x).flatten(1)), {"conv.weight"}),
    "reshape": (
        lambda self, x: F.relu(self.conv(x).view(2, -1).unsqueeze(1).permute(2, 0, 1)),
        {"conv.weight"},
    ),
    "slice": (lambda self, x: F.relu(self.conv(x)[:, ::2].contiguous()), {"conv.weight"}),
    "chunk": (lambda self, x: F.relu(self.conv(x).chunk(2, dim=1)[1]), {"conv.weight"}),
    "split": (lambda self, x: F.relu(torch.split(self.conv(x), 3, 1)[0]), {"conv.weight"}),
    "cat": (
        lambda self, x: F.relu(torch.cat([self.conv(x), self.other(x)], 1)),
        {"conv.weight", "other.weight"},
    ),
    "stack": (
        lambda self, x: F.relu(torch.stack([self.conv(x), self.other(x)]).mean(0)),
        {"conv.weight", "other.weight"},
    ),
    "branches": (
        lambda self, x: F.relu(self.conv(x) + self.other(x)),
        {"conv.weight", "other.weight"},
    ),
    "residual": (
        lambda self, x: F.relu(x.repeat(1, 2, 1, 1) + self.conv(x)),
        {"conv.weight", ""},
    ),
    "residual in place": (
        lambda self, x: F.relu(self.conv(x).add_(x.repeat(1, 2, 1, 1))),
        {"conv.weight", ""},
    ),
    "residual of an activation": (
        lambda self, x: self.deep(F.relu(self.other(x))).add(F.relu(self.conv(x))).relu(),
        {"deep.weight", ""},
    ),
    "filled in place": (fills, {"conv.weight", ""}),
    "a gate": (
        lambda self, x: F.relu(self.conv(x) * torch.sigmoid(self.other(x))),
        {"conv.weight", "other.weight"},
    ),
    "dropout": (lambda self, x: F.relu(F.dropout(self.conv(x), 0.5)), {"conv.weight"}),
    "a parameter": (lambda self, x: F.relu(self.conv(x) + self.other.bias[0]), {"conv.weight"}),
    "two layers": (lambda self, x: F.relu(self.deep(self.conv(x))), {"deep.weight"}),
    "an activation of another kind": (
        lambda self, x: F.relu(torch.tanh(self.conv(x))),
        {"conv.weight"},
    ),
    "the input alone": (lambda self, x: F.relu(x - 1), {""}),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_the_origin_of_a_site_is_found_through(between: str) -> None:
    forward, expected = BETWEEN[between]
    model = Net(
        forward,
        conv=nn.Conv2d(3, 6, 3, padding=1),
        other=nn.Conv2d(3, 6, 1),
        deep=nn.Conv2d(6, 6, 1),
    )
    site = list(trace(model, IMAGE).sites.values())[-1]
    assert site.sources == expected
    assert not site.norm


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True), nn.LayerNorm(8)],
)
def test_a_norm_before_a_site_is_noted(norm: nn.Module) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU()
    )
    found = trace(model, IMAGE)
    assert [site.norm for site in found.sites.values()] == [True, False]
    assert found.layers["0.weight"].norm == "1"
    assert found.layers["3.weight"].norm is None


def test_a_norm_after_the_activation_belongs_to_no_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2), nn.ReLU())
    found = trace(model, ROW)
    assert found.layers["0.weight"].norm is None
    assert not any(site.norm for site in found.sites.values())
    assert found.layers["3.weight"].before == {"0.weight"}


def test_a_layer_used_twice_adds_up_what_it_reads() -> None:
    model = Net(lambda self, x: self.fc(F.relu(self.fc(x))), fc=nn.Linear(4, 4))
    layer = trace(model, ROW).layers["fc.weight"]
    assert layer.before == {"fc.weight"}
    assert layer.reads_input
    assert not layer.reads_nonnegative
    assert layer.sites == ["relu"]


def test_signs_are_looked_up_in_what_a_layer_reads() -> None:
    found = trace(perceptron(), ROW).layers
    assert not found["0.weight"].reads_nonnegative
    assert found["2.weight"].reads_nonnegative
    assert trace(perceptron(), ROW.abs()).layers["0.weight"].reads_nonnegative


def test_a_resnet_is_traced_whole() -> None:
    model = resnet20(num_classes=10, in_channels=3, image_size=(8, 8))
    found = trace(model, IMAGE)
    assert len(found.sites) == 19
    assert all(site.norm for site in found.sites.values())
    assert found.sites["layer1.0.relu2"].sources == {"layer1.0.conv2.weight", ""}
    assert found.sites["layer2.0.relu2"].sources == {
        "layer2.0.conv2.weight",
        "layer2.0.downsample.0.weight",
    }
    assert found.layers["layer1.1.conv1.weight"].before == {"conv1.weight", "layer1.0.conv2.weight"}
    around = neighbours(model, IMAGE)
    assert around["fc.weight"].before[-1] == "layer3.2.conv2.weight"
    assert around["conv1.weight"].norm == "bn1"
    for name, near in around.items():  # the two directions tell the same
        assert all(name in around[other].after for other in near.before)
        assert all(name in around[other].before for other in near.after)


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def fails(_self: Any, _x: Tensor) -> Tensor:
    raise RuntimeError("broken")


@pytest.mark.parametrize("broken", [False, True])
def test_nothing_is_left_behind(broken: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU())
    model.append(Net(fails if broken else lambda _, x: x))
    model.train()
    model[1].eval()  # frozen, as in fine-tuning
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    for use in (trace, neighbours, seen):
        if broken:
            with pytest.raises(RuntimeError, match="broken"):
                use(model, ROW)
        else:
            use(model, ROW)
    assert hooks_of(model) == 0
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.overrides._get_current_function_mode_stack() == []


def test_the_modes_come_back_even_where_there_is_nothing_to_prune() -> None:
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match="no weights to prune"):
        trace(model, ROW)
    assert model.training
    assert hooks_of(model) == 0


def test_evaluation_mode_is_for_a_while() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]


def test_watching_does_not_change_what_a_network_computes() -> None:
    model = resnet20(num_classes=10, in_channels=3, image_size=(8, 8)).eval()
    with torch.no_grad():
        expected = model(IMAGE)
        with watch(model, lambda *_: None) as network:
            assert network is bare(model)
            assert torch.equal(network(IMAGE), expected)


def test_other_functions_have_no_kind() -> None:
    assert activation_kind(torch.add, (ROW, ROW), {}) is None
    assert activation_kind(Tensor.clamp, (ROW, torch.zeros(4)), {}) is None
