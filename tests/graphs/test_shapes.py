from typing import Any

import pytest
import torch
import torch.nn.functional as F
from beartype import beartype
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.graphs.shapes import shape_of, site_names, trace_graph, used_once
from rectified.graphs.sites import watch


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(3, 3), nn.ReLU()

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        x = self.act(self.layer(x))
        return F.relu(self.act(x)) if twice else F.relu(x).clamp(min=0)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()
        self.tail = nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Sigmoid(), nn.ReLU6())

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        for _ in range(depth):
            x = self.first(x)
        return torch.relu(self.tail(self.second(x, twice=True)).relu_())


def test_sites_have_the_names_under_which_they_are_counted() -> None:
    model, counted = Network().eval(), []
    with watch(model, lambda name, _kind, _output: counted.append(name)) as bare:
        bare(torch.ones(2, 3))
    names = site_names(trace_graph(model, (torch.ones(2, 3),))).values()
    assert [name for name in names if name != "tail.2"] == counted  # a sigmoid is no site


def test_only_layers_that_are_called_once_may_change_their_size() -> None:
    traced = trace_graph(Network().eval(), (torch.ones(2, 3),))
    assert {name for name in used_once(traced) if "layer" in name} == {"second.layer"}


def test_shapes_are_those_of_one_run() -> None:
    class Split(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x.flatten(1).chunk(2, 1)[0]

    nodes = trace_graph(Split(), (torch.ones(2, 3, 4),)).graph.nodes
    assert [shape_of(node) for node in nodes] == [(2, 3, 4), (2, 12), (), (2, 6), (2, 6)]


def test_a_branch_on_a_tensor_is_refused_by_the_name_of_its_module() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if len(x) > 1 else -x

    with pytest.raises(UserError, match=r"cannot trace Branch \(write its forward without"):
        trace_graph(Branch(), (torch.ones(2, 3),))
    with pytest.raises(UserError, match=r"trace '0' \(keep it whole with leaves=\(Branch,\)"):
        trace_graph(nn.Sequential(Branch()), (torch.ones(2, 3),))
    traced = trace_graph(nn.Sequential(Branch()), (torch.ones(2, 3),), leaves=(Branch,))
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]


def test_forwards_with_checked_shapes_can_be_traced() -> None:
    class Checked(nn.Module):
        @jaxtyped(typechecker=beartype)
        def forward(self, x: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 3"]:
            return x.relu()

    model = Checked()
    nodes = trace_graph(model, (torch.ones(2, 3),)).graph.nodes
    assert [node.target for node in nodes] == ["x", "relu", "output"]
    with pytest.raises(TypeCheckError):
        model(torch.ones(2, 4))
