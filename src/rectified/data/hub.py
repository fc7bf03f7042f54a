"""Data sets of the Hugging Face hub by name, through the optional package `datasets`.

The hub's images arrive as the Arrow tables that parquet files hold, so they are read like them.
"""

from itertools import accumulate
from typing import Any

from rectified.data.parquet import Piece, find_columns, label_values, split_of, stored_table
from rectified.data.stored import Stored
from rectified.errors import UserError, first_line


def hub_splits(name: str, *, image_size: int | None = None) -> dict[str, Stored]:
    """Fetch the splits of a data set, or take them from the local cache.

    Args:
        name: `"owner/name"`.
        image_size: side in pixels that pictures are resized to; None keeps theirs.

    Returns:
        `"train"` and, where they exist, `"validation"` and `"test"`.

    Raises:
        UserError: if `datasets` is not installed, or the data set is unknown, cannot be reached
            or has no training split.
    """
    datasets = _datasets()
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # the hub, its cache and the network fail in many ways
        raise UserError(
            f"{name!r} is no path here and could not be loaded from Hugging Face "
            f"({first_line(error)}); check the name and the network, or give a folder"
        ) from error
    known = {split_of(split): data for split, data in splits.items()}
    if "train" not in known:
        raise UserError(f"{name!r} has no training split, it has {', '.join(splits)}")
    return {split: _stored(name, data, image_size) for split, data in known.items() if split}


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            'data of the hub needs the package datasets: pip install "rectified[hub]"'
        ) from error
    return datasets


def _stored(name: str, data: Any, image_size: int | None) -> Stored:
    table = data.with_format("arrow")[:]
    image, label = find_columns(table.schema, name)
    names = getattr(data.features[label], "names", None)
    chunks = table.column(image).chunks
    first = accumulate([0, *map(len, chunks)])
    pieces = [_piece(name, start, chunk) for start, chunk in zip(first, chunks, strict=False)]
    labels = label_values(table.column(label), name)
    return stored_table(labels, pieces, names, image_size=image_size)


def _piece(name: str, first: int, chunk: Any) -> Piece:
    return Piece(name, first, len(chunk), load=lambda: chunk)
