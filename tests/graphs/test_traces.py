"""Traced graphs of networks that other people have written."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.graphs.traces import defaults, overwritten, trace


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
