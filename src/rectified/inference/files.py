"""Lean networks on disk: one door for both kinds of files, which say what they are.

A packed network is stored with its graph (`bits.files`) and comes back as one that runs; any other
network is stored as weights without their zeros (`sparse.files`) and comes back as a `state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from rectified.errors import UserError
from rectified.inference import stored
from rectified.inference.bits import files as packed_files
from rectified.inference.bits.packing import PackedModel
from rectified.inference.sparse import files as sparse_files
from rectified.inference.sparse.sparsify import SparseModel


def save(
    network: nn.Module | Mapping[str, Tensor], path: str | Path, *, values: str = "float32"
) -> int:
    """Write a network to a safetensors file, as small as it is exact.

    Args:
        network: what `pack` returned; or any other network, or its state_dict, whose zeros are
            left out.
        path: file to write; it appears whole or not at all.
        values: type of the values stored beside zeros: `"float32"` (exact), `"float16"` or
            `"bfloat16"` (half the size, rounded). A packed network has none.

    Returns:
        The size of the file in bytes.

    Raises:
        UserError: if `values` is unknown, the network is a result of `sparsify`, or it is packed
            and calls something that a file cannot name.

    Example:
        >>> import tempfile
        >>> import torch
        >>> layer = nn.Linear(100, 100)
        >>> with torch.no_grad(): _ = layer.weight.mul_(torch.eye(100))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save(layer, f"{folder}/model.safetensors")
        ...     state = load(f"{folder}/model.safetensors")
        >>> size < 2_000, torch.equal(state["weight"], layer.weight)
        (True, True)
    """
    if isinstance(network, SparseModel):
        raise UserError(
            "network must not be what sparsify returned, which holds engines of this machine: "
            "save the network that sparsify was given"
        )
    if isinstance(network, PackedModel):
        return packed_files.save_packed(network, path)
    return sparse_files.save_sparse(network, path, values=values)


def load(path: str | Path) -> PackedModel | dict[str, Tensor]:
    """Read what `save` wrote.

    Args:
        path: the file.

    Returns:
        A packed network, which runs at once; or a plain state_dict of dense tensors, for
        `load_state_dict`, or for `resize` where the network was compact.

    Raises:
        UserError: if the file is missing, damaged, or was not written by `save`.
    """
    kind = stored.format_of(path)
    if kind not in _READERS:
        raise UserError(f"{path} must be written by rectified.inference.save, got another file")
    return _READERS[kind](path)


_READERS: dict[str, Callable[[str | Path], PackedModel | dict[str, Tensor]]] = {
    packed_files.HEADER["format"]: packed_files.load_packed,
    sparse_files.HEADER["format"]: sparse_files.load_sparse,
}
