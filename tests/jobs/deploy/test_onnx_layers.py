"""Single layers in onnxruntime."""

import sys

import pytest
import torch
from torch import nn

from rectified.jobs.deploy import onnx_layers
from rectified.jobs.deploy.onnx_layers import onnx_milliseconds


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=(1, 0), dilation=(1, 2), bias=False),
        nn.Conv2d(8, 8, (3, 2), groups=4),
        nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Linear(5, 6),  # on four axes: no Gemm
        nn.Flatten(),
        nn.Linear(4 * 5 * 6, 7),
    ).eval()


def example() -> torch.Tensor:
    return torch.randn(2, 3, 14, 16, generator=torch.Generator().manual_seed(0))


def test_layers_with_a_node_of_their_own_are_timed() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    times = onnx_milliseconds(network(), example())
    assert set(times) == {"0", "1", "6"}
    assert all(time > 0 for time in times.values())


@torch.no_grad()
def test_the_node_computes_what_the_layer_does() -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    called = onnx_layers._called(network(), example())
    for name in ("0", "1", "6"):
        layer, x = called[name]
        graph = onnx_layers._graph(onnx, onnx_layers._node(layer, x), layer, x)
        session = onnxruntime.InferenceSession(graph.SerializeToString())
        (given,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(given), layer(x), atol=1e-5, rtol=1e-5)


def test_without_onnxruntime_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert onnx_milliseconds(network(), example()) == {}
