"""Engines: the ways to run one Linear or Conv2d layer, all exact, each a module of its own.

    dense          the layer itself
    channels_last  a convolution whose tensors lie pixel by pixel
    onednn         a linear layer in oneDNN's packed format (PyTorch's own call goes to MKL, which
                   is slow on AMD)
    csr            a linear layer as PyTorch's compressed sparse rows
    kernel         the compiled sparse kernels of this package; needs the extra `fast`

Which is fastest depends on shape, batch, sparsity and machine, so it is measured, not guessed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.graphs.copies import is_hooked
from rectified.inference.kernels import has_kernels


class ChannelsLast(nn.Module):
    """A layer or network whose images lie pixel by pixel; takes and returns plain ones."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        for parameter in inner.parameters():
            if parameter.ndim == 4:  # `Module.to` would refuse 3d convolutions
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Tensor:
        images = (
            x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs
        )
        result = self.inner(*images)
        return result.contiguous() if isinstance(result, Tensor) else result


class OneDnnLinear(nn.Module):
    """A linear layer in oneDNN's format."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        bias = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
        self._weight = layer.weight.detach().to_mkldnn()
        self._bias = bias.detach().to_mkldnn()

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        return torch._C._nn.mkldnn_linear(x.to_mkldnn(), self._weight, self._bias).to_dense()


class CsrLinear(nn.Module):
    """A linear layer as compressed sparse rows."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # PyTorch calls the format beta; the one operation used here is exact and tested.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
            self._weight = layer.weight.detach().to_sparse_csr()
        self._bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        rows = x.reshape(-1, x.shape[-1])
        result = self._weight @ rows[0] if len(rows) == 1 else (self._weight @ rows.t()).t()
        result = result if self._bias is None else result + self._bias
        return result.reshape(*x.shape[:-1], -1)


class KernelLayer(nn.Module):
    """A layer in the compiled kernels, for any number of leading axes."""

    def __init__(self, layer: nn.Module, threads: int) -> None:
        super().__init__()
        from rectified.inference.sparse.network import layer_segment

        segment = layer_segment(layer, threads)
        assert segment is not None
        self.segment = segment
        self._axes = 1 if isinstance(layer, nn.Linear) else 3

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        rows = x if x.ndim == self._axes + 1 else x.reshape(-1, *x.shape[-self._axes :])
        result = self.segment(rows)
        return result.reshape(*x.shape[: -self._axes], *result.shape[1:])


def reason_for_dense(layer: nn.Module) -> str:
    """Say why a layer cannot run in the kernels; empty if it can.

    Example:
        >>> reason_for_dense(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"))
        "padding_mode 'reflect' is not zeros"
    """
    if is_hooked(layer):
        return "its forward has hooks"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"padding_mode {layer.padding_mode!r} is not zeros"
    if not has_kernels():
        return "numba is not installed: pip install 'rectified[fast]'"
    from rectified.inference.sparse.steps import parse_layer

    if parse_layer(layer) is None:
        return f"no sparse kernel for this {type(layer).__name__}"
    return ""


def engines(layer: nn.Module, threads: int) -> dict[str, Callable[[], nn.Module]]:
    """The engines that can run a layer, by name; each makes its module when called.

    Args:
        layer: a `Linear`, `Conv2d` or any other module, which only runs dense.
        threads: how many threads the kernels may use.

    Example:
        >>> sorted(engines(nn.ConvTranspose2d(3, 8, 3), threads=1))
        ['dense']
    """
    from copy import deepcopy

    ways: dict[str, Callable[[], nn.Module]] = {"dense": lambda: deepcopy(layer)}
    if is_hooked(layer):
        return ways  # a copy keeps its hooks, no other engine would
    if type(layer) is nn.Conv2d:
        ways["channels_last"] = lambda: ChannelsLast(deepcopy(layer))
    if type(layer) is nn.Linear:
        if torch.backends.mkldnn.is_available():
            ways["onednn"] = lambda: OneDnnLinear(layer)
        ways["csr"] = lambda: CsrLinear(layer)
    if not reason_for_dense(layer):
        ways["kernel"] = lambda: KernelLayer(layer, threads)
    return ways
