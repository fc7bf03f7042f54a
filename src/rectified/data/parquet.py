"""Images in parquet files, in the layout of Hugging Face's data sets.

A column of images, each a struct with the file's `bytes` or the bytes themselves, and a column of
labels, integers or words. Names of the classes come from the file's `huggingface` metadata where it
has them. A file belongs to the split that its name gives: `train-00000-of-00002.parquet`,
`test.parquet`, `validation.parquet` (or `valid`, `val`).
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64, Shaped
from torch import Tensor

from rectified.data.pictures import Picture, decode
from rectified.data.stored import Stored
from rectified.errors import UserError, first_line
from rectified.files import from_json

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_IMAGE_COLUMNS = ("img", "image", "picture")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
# At the start of a word, so that `latest.parquet` is no test split.
MOST_ROWS = 100_000_000
MOST_BYTES, MOST_GROWTH = 2**30, 100  # that one group of rows may take, by size of the file
_SPLIT = re.compile(r"(?<![a-z])(train|test|val)")


@dataclass(frozen=True)
class Piece:
    """Some consecutive rows of a split, loaded only when a picture of them is needed.

    Args:
        place: where the rows lie, for messages.
        first: number of the piece's first row there.
        count: how many rows.
        load: returns the column of images.

    Example:
        >>> Piece("train.parquet", 0, 2, load=lambda: [b"one", b"two"]).count
        2
    """

    place: str
    first: int
    count: int
    load: Callable[[], Any]


def parquet_splits(files: Sequence[Path], *, image_size: int | None = None) -> dict[str, Stored]:
    """Find the splits of some parquet files.

    Args:
        files: at least one; all are the training split if no name gives a split.
        image_size: side in pixels that pictures are resized to; None keeps theirs.

    Returns:
        `"train"` and, where there are files of them, `"validation"` and `"test"`.

    Raises:
        UserError: if a file cannot be read, has no column of images or of labels, holds labels
            that are missing or of another type, or if no file belongs to train.

    Example:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> table = pa.table({"image": [b"(a PNG file)", b"(another)"], "label": [1, 0]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pq.write_table(table, f"{folder}/train.parquet")
        ...     splits = parquet_splits([Path(folder) / "train.parquet"])
        >>> splits["train"].labels.tolist()
        [1, 0]
    """
    by_split: dict[str | None, list[Path]] = {}
    for file in sorted(files):
        by_split.setdefault(split_of(file.name), []).append(file)
    if set(by_split) == {None}:
        by_split = {"train": by_split[None]}
    if "train" not in by_split:
        raise UserError(
            f"no parquet file is of the training split, got {sorted(f.name for f in files)}; "
            "put 'train' into the file's name"
        )
    return {split: _read(paths, image_size) for split, paths in by_split.items() if split}


def split_of(name: str) -> str | None:
    """Return the split that a file's or split's name gives, None if it gives none.

    Example:
        >>> split_of("valid-00000-of-00001.parquet"), split_of("latest.parquet")
        ('validation', None)
    """
    match = _SPLIT.search(name.lower())
    return {"val": "validation"}.get(match[1], match[1]) if match else None


def stored_table(
    labels: Shaped[np.ndarray, " n"],
    pieces: Sequence[Piece],
    names: Sequence[str] | None,
    *,
    image_size: int | None = None,
) -> Stored:
    """Put the labels and the pieces of a column of images together.

    Args:
        labels: integers or words.
        pieces: the images, in the order of `labels`.
        names: class names, if integers are numbers of names.
        image_size: side in pixels that pictures are resized to; None keeps theirs.

    Example:
        >>> stored_table(np.array([1, 0]), [], ["cat", "dog"]).classes
        ('cat', 'dog')
    """

    def read(rows: Int64[Tensor, " rows"]) -> Tensor:
        return decode(_pictures(pieces, rows), len(rows), image_size=image_size)

    return Stored(labels, read, tuple(names) if names and labels.dtype.kind == "i" else None)


def label_values(labels: "pa.ChunkedArray", place: str) -> Shaped[np.ndarray, " n"]:
    """Return a column of labels as integers or words.

    Args:
        labels: the column.
        place: where the table lies, for messages.

    Raises:
        UserError: if a label is missing or is neither an integer nor a word.

    Example:
        >>> import pyarrow as pa
        >>> label_values(pa.chunked_array([["cat", "dog"]]), "").tolist()
        ['cat', 'dog']
    """
    import pyarrow as pa

    if labels.null_count:
        raise UserError(f"{place}: {labels.null_count} labels are missing; remove those rows")
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if pa.types.is_integer(labels.type):
        return labels.to_numpy().astype(np.int64)
    if pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type):
        return np.array(labels.to_pylist(), dtype=str)
    raise UserError(f"{place}: labels must be integers or words, got {labels.type}")


def find_columns(schema: "pa.Schema", place: str) -> tuple[str, str]:
    """Return the names of the columns of images and of labels.

    Args:
        schema: of the table.
        place: where the table lies, for messages.

    Raises:
        UserError: if there is no such column.

    Example:
        >>> import pyarrow as pa
        >>> find_columns(pa.schema({"image": pa.binary(), "label": pa.int64()}), "train.parquet")
        ('image', 'label')
    """
    images = [name for name in schema.names if _holds_images(schema.field(name).type)]
    image = next((name for name in (*_IMAGE_COLUMNS, *images) if name in images), None)
    label = next((name for name in _LABEL_COLUMNS if name in schema.names), None)
    if image is None or label is None:
        missing = "images (bytes)" if image is None else f"labels ({', '.join(_LABEL_COLUMNS)})"
        raise UserError(f"{place} has no column of {missing}; it has {', '.join(schema.names)}")
    return image, label


def _read(files: Sequence[Path], image_size: int | None) -> Stored:
    labels, pieces, names = zip(*(_read_file(file) for file in files), strict=True)
    return stored_table(
        np.concatenate(labels), list(chain(*pieces)), names[0], image_size=image_size
    )


def _read_file(file: Path) -> tuple[Shaped[np.ndarray, " n"], list[Piece], tuple[str, ...]]:
    with _opened(file) as parquet:
        image, label = find_columns(parquet.schema_arrow, str(file))
        labels = label_values(parquet.read(columns=[label]).column(0), str(file))
        counts = [
            parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)
        ]
        names = _class_names(parquet.schema_arrow.metadata, label)
    pieces = [
        Piece(str(file), first, count, partial(_load, file, group, image))
        for group, (first, count) in enumerate(zip(accumulate([0, *counts]), counts, strict=False))
    ]
    return labels, pieces, names


def _load(file: Path, group: int, column: str) -> "pa.ChunkedArray":
    with _opened(file) as parquet:
        cells = parquet.read_row_group(group, columns=[column]).column(0)
        said = parquet.metadata.row_group(group).num_rows
        if len(cells) != said:  # the count in the footer is not the one in the pages
            raise OSError(f"{len(cells)} rows in group {group}, which says that it has {said}")
        return cells


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            _check_size(file, parquet.metadata)
            yield parquet
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise UserError(
            f"{file} cannot be read as parquet ({first_line(error)}); fetch it again"
        ) from error


def _check_size(file: Path, about: "pq.FileMetaData") -> None:
    """Columns compress well, so that a small file can fill the memory."""
    rows, size = about.num_rows, file.stat().st_size
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    held = max([group.total_byte_size for group in groups], default=0)
    if rows > MOST_ROWS or held > max(MOST_BYTES, MOST_GROWTH * size):
        raise UserError(
            f"{file} says that it holds {rows} rows, and {held} bytes in one group, of {size} on "
            "disk: it is too large, or a trap"
        )


def _pictures(pieces: Sequence[Piece], rows: Int64[Tensor, " rows"]) -> Iterator[Picture]:
    start = 0
    for piece in pieces:
        inside = rows[(rows >= start) & (rows < start + piece.count)] - start
        if len(inside):
            for row, content in zip(inside.tolist(), _contents(piece, inside), strict=True):
                yield f"{piece.place}, row {piece.first + row}", io.BytesIO(content or b"")
        start += piece.count


def _contents(piece: Piece, rows: Int64[Tensor, " rows"]) -> list[bytes | None]:
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = piece.load().take(rows.numpy())
    return (
        pc.struct_field(cells, "bytes") if pa.types.is_struct(cells.type) else cells
    ).to_pylist()


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    try:
        info = from_json((metadata or {}).get(b"huggingface", b"{}")).get("info", {})
        names = info.get("features", {}).get(label, {}).get("names", ())
    except (ValueError, AttributeError):  # somebody else's words: no names then
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _holds_images(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
