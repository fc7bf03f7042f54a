"""Single layers in onnxruntime, to stand beside the engines that `sparsify` has measured.

Each Linear and Conv2d of a network becomes an ONNX graph of one node, and runs on the very input
that the layer gets in the network. Inside a whole network onnxruntime fuses activations and norms
into such a node, so the sum over layers is an upper bound of what the network takes.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.jobs.deploy.export import open_session
from rectified.timing import Call, interleaved, medians

OPSET, IR_VERSION = 17, 8  # old enough for any onnxruntime of the last years
SECONDS, ROUNDS = 0.01, 5  # of measurement for each layer


def onnx_milliseconds(
    network: nn.Module, inputs: Float[Tensor, "batch ..."], quiet: float = 0.0
) -> dict[str, float]:
    """The median time of each layer in onnxruntime.

    Args:
        network: in evaluation mode; each layer that it calls is timed on its first input.
        inputs: one batch.
        quiet: seconds to wait before a layer, if threads of others occupy the cores until then.

    Returns:
        Milliseconds by the layer's path; without layers that have no ONNX node of their own here,
        and empty if onnxruntime or onnx are not installed.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError:
        return {}
    calls = {}
    for name, (layer, x) in _called(network, inputs).items():
        node = _node(layer, x)
        if node is not None:
            session = open_session(_graph(onnx, node, layer, x).SerializeToString())
            calls[name] = partial(session.run, None, {"x": x.numpy()})
    return {name: _milliseconds(call, quiet) for name, call in calls.items()}


def _milliseconds(call: Call, quiet: float) -> float:
    time.sleep(quiet)
    taken = medians(interleaved({"layer": call}, rounds=ROUNDS, at_least=SECONDS / ROUNDS))
    return 1000 * taken["layer"]


@torch.no_grad()
def _called(network: nn.Module, inputs: Tensor) -> dict[str, tuple[nn.Module, Tensor]]:
    """Each Linear and Conv2d with the first input that it gets."""
    seen: dict[str, tuple[nn.Module, Tensor]] = {}

    def watch(name: str, layer: nn.Module) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, (layer, arguments[0].detach().contiguous()))

        return layer.register_forward_pre_hook(hook)

    handles = [
        watch(name, layer)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    network(inputs)
    for handle in handles:
        handle.remove()
    return seen


def _node(layer: nn.Module, x: Tensor) -> tuple[str, dict[str, Any]] | None:
    """Operator and attributes of a layer, or None if one node does not do."""
    if isinstance(layer, nn.Linear):
        return ("Gemm", {"transB": 1}) if x.ndim == 2 else None
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    return "Conv", {
        "kernel_shape": list(layer.kernel_size),
        "strides": list(layer.stride),
        "pads": [*layer.padding, *layer.padding],
        "dilations": list(layer.dilation),
        "group": layer.groups,
    }


def _graph(onnx: Any, node: tuple[str, dict[str, Any]], layer: nn.Module, x: Tensor) -> Any:
    tensors = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    kind, attributes = node
    helper, numbers = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", *tensors], ["y"], **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", numbers, list(x.shape))],
        [helper.make_tensor_value_info("y", numbers, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
