"""A network as an ONNX file, for other engines, and a session of onnxruntime on it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rectified.errors import first_line
from rectified.training import logits_of

GRAPH = "lean.onnx"
TOLERANCE = 1e-4  # by which another engine's outputs may differ


def export(network: nn.Module, inputs: Tensor, path: Path) -> tuple[Any | None, list[str]]:
    """Write the ONNX file and open it.

    Args:
        network: in evaluation mode.
        inputs: examples, on which the outputs are compared.
        path: the file to write.

    Returns:
        A session on the file, or None where none could be made; what is to be said of it.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  what torch's exporter needs
    except ImportError:
        return None, ['no ONNX file: pip install "rectified[onnx]"']
    try:
        _write(network, inputs, path)
        session = open_session(path)
        given = session.run(None, {session.get_inputs()[0].name: inputs[:16].numpy()})[0]
    except Exception as error:  # the exporter has many ways to refuse a graph
        path.unlink(missing_ok=True)
        return None, [f"no ONNX file: {first_line(error)}"]
    with torch.no_grad():
        expected = logits_of(network(inputs[:16])).numpy()
    if np.allclose(given, expected, atol=TOLERANCE):
        return session, []
    return session, [f"onnxruntime's outputs differ by {np.abs(given - expected).max():.1e}"]


def _write(network: nn.Module, inputs: Tensor, path: Path) -> None:
    with _silence():
        torch.onnx.export(
            network,
            (inputs[:2],),
            path,
            dynamo=True,
            input_names=["images"],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
            verbose=False,
        )


def open_session(model: Path | bytes) -> Any:
    """A session of onnxruntime on a file or its content, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@contextmanager
def _silence() -> Iterator[None]:
    """The exporter warns about packages that we do not need and about its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
