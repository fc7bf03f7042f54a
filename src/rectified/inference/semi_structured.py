"""2:4 patterns on the sparse tensor cores of a GPU.

NVIDIA GPUs from Ampere on multiply matrices with at most two nonzeros among every four neighbouring
inputs at up to twice the dense rate, in half precision. `prune(..., scope="2:4")` makes such
weights; `semi_structured(model)` hands the linear layers that have them to PyTorch's kernels.

References:
    Mishra et al.: Accelerating Sparse Deep Neural Networks, 2021, arXiv 2104.08378.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.graphs.copies import bare, plain_copy

# what the kernels need of a half-precision weight: whole tiles
_ROWS, _COLUMNS = 32, 64


def has_pattern(weight: Float[Tensor, "out in"], keep: int = 2, group: int = 4) -> bool:
    """Whether at most `keep` of every `group` neighbouring inputs are not zero.

    Example:
        >>> has_pattern(torch.tensor([[1.0, 0.0, 2.0, 0.0]]))
        True
        >>> has_pattern(torch.tensor([[1.0, 3.0, 2.0, 0.0]]))
        False
    """
    if weight.shape[1] % group:
        return False
    return bool(((weight.reshape(-1, group) != 0).sum(1) <= keep).all())


def eligible(model: nn.Module) -> list[str]:
    """Paths of the linear layers that hold a 2:4 pattern in tiles that the kernels take.

    Example:
        >>> layer = nn.Linear(64, 32)
        >>> with torch.no_grad(): _ = layer.weight.view(-1, 4)[:, 2:].zero_()
        >>> eligible(nn.Sequential(layer, nn.Linear(32, 2)))
        ['0']
    """
    return [
        name
        for name, module in bare(model).named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features % _ROWS == 0
        and module.in_features % _COLUMNS == 0
        and has_pattern(module.weight.detach())
    ]


def semi_structured(model: nn.Module, *, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """A copy of `model` on the GPU, in half precision, its 2:4 layers on sparse tensor cores.

    Args:
        model: a network pruned with scope `2:4`.
        dtype: float16 or bfloat16.

    Returns:
        A module in evaluation mode, for inference; other layers stay dense.

    Raises:
        UserError: if there is no such GPU, the dtype is another, or no layer is eligible.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        raise UserError(f"dtype must be float16 or bfloat16, got {dtype}")
    names = eligible(model)
    if not names:
        raise UserError(
            "no linear layer holds a 2:4 pattern in tiles of 32 x 64: prune with scope '2:4' and "
            "target 0.5 first"
        )
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        raise UserError("2:4 kernels need an NVIDIA GPU from Ampere on; use sparsify on a CPU")
    converted = plain_copy(model).to("cuda", dtype).eval()
    for name in names:
        layer: Any = converted.get_submodule(name)
        sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        layer.weight = nn.Parameter(sparse, requires_grad=False)
    return converted
