"""Copies and graphs of networks that other people have written."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from rectified.errors import UserError
from rectified.rewriting import (
    agree,
    bare,
    call_layers_,
    defaults,
    overwritten,
    plain_copy,
    trace,
)

# ---- copies

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


# ---- graphs


class Through(nn.Module):
    """A convolution, something that writes in place, and a reader of the convolution."""

    def __init__(self, write: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.conv, self.same, self.relu = nn.Conv2d(3, 4, 1), nn.Identity(), nn.ReLU(inplace=True)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        self.write(self, h)
        return h.sum((2, 3))


def _slice(_net: nn.Module, h: Tensor) -> None:
    part = h[:, 1:3]
    part += 1
    part *= 2
    part -= 3
    part /= 4


WRITES: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "a slice": _slice,
    "behind an identity": lambda net, h: net.relu(net.same(h)),
    "a method": lambda _net, h: h.view(-1).mul_(2),
    "a function": lambda _net, h: F.relu(F.dropout(h, training=False), inplace=True),
    "a function, by position": lambda _net, h: F.relu(h, True),
    "a flat view, twice": lambda _net, h: torch.relu_(h.flatten(1).t()),
}


@pytest.mark.parametrize("write", WRITES)
@torch.no_grad()
def test_what_is_written_into_shared_memory_is_recorded_and_found(write: str) -> None:
    model, x = Through(WRITES[write]), torch.randn(2, 3, 4, 4)
    traced = trace(model)
    torch.testing.assert_close(traced(x), model(x))
    modules = dict(traced.named_modules())
    changed = set().union(*(overwritten(node, modules) for node in traced.graph.nodes))
    assert "conv" in {node.name for node in changed}


@torch.no_grad()
def test_writing_into_what_nobody_else_reads_is_no_matter() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.a(x))
            z = self.b(y)
            z += y
            return self.relu(z).flatten(1).mul_(2)

    traced = trace(Residual())
    modules = dict(traced.named_modules())
    assert not any(overwritten(node, modules) for node in traced.graph.nodes)


def test_numbers_are_not_written_into() -> None:
    class Sizes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = x.shape[0]
            more = rows
            more += 1
            more *= rows  # `rows` is still what it was
            return x.reshape(rows, -1) * more + x.size(0)

    x = torch.randn(3, 2, 2)
    assert torch.equal(trace(Sizes())(x), Sizes()(x))


def test_constants_are_no_arguments_of_the_graph() -> None:
    class Options(nn.Module):
        def forward(
            self,
            x: Tensor,
            scale: float = 2.0,
            *,
            mask: Tensor | None = None,
            how: str = "a",
            margins: tuple[int, int] = (0, 1),
        ) -> Tensor:
            x = F.pad(x * scale if how == "a" else x, margins)
            return x if mask is None else x * mask

    assert defaults(Options()) == {"scale": 2.0, "mask": None, "how": "a"}
    assert list(defaults(Options(), 2)) == ["mask", "how"]
    traced = trace(Options(), constants=defaults(Options()))
    names = [node.target for node in traced.graph.nodes if node.op == "placeholder"]
    assert names == ["x", "margins"]
    assert traced(torch.ones(1)).tolist() == [2.0, 0.0]


def test_what_cannot_be_traced_is_named_with_a_remedy() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match=r"cannot trace Branch \(write its forward without"):
        trace(Branch())
    with pytest.raises(UserError, match=r"cannot trace '0' \(whole=Branch, or write its forward"):
        trace(nn.Sequential(Branch()), keeps_whole="whole={}")
    with pytest.raises(UserError, match=r"cannot trace '0' \(write its forward"):
        trace(nn.Sequential(Branch()))
    assert trace(nn.Sequential(Branch()), leaves=(Branch,)).graph.find_nodes(
        op="call_module", target="0"
    )


def test_a_compiled_forward_has_no_arguments_to_know() -> None:
    class Compiled(nn.Module):
        forward = torch.relu  # written in C++, as those of TorchScript are

    with pytest.raises(UserError, match="cannot trace a compiled Compiled: no signature"):
        defaults(Compiled())
