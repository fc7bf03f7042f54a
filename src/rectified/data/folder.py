"""Folders of image files: one sub-folder per class.

Either `train/CLASS/*.png`, with `test/CLASS/*.png` and `validation/CLASS/*.png` (or `valid`, `val`)
where they exist, or plain `CLASS/*.png`. Classes are numbered in the order of their names; hidden
files and files of other kinds are passed over.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from rectified.data.pictures import Picture, decode
from rectified.data.stored import Stored
from rectified.errors import UserError

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_FOLDERS = {"train": ["train"], "validation": ["validation", "valid", "val"], "test": ["test"]}


def folder_splits(folder: Path, *, image_size: int | None = None) -> dict[str, Stored]:
    """Find the splits of a folder of images.

    Args:
        folder: holds `train/CLASS/*` or `CLASS/*`.
        image_size: side in pixels that pictures are resized to; None keeps theirs.

    Returns:
        `"train"` and, where they exist, `"validation"` and `"test"`.

    Raises:
        UserError: if there are fewer than two classes, or a class without pictures.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         (Path(folder) / name).mkdir()
        ...         Image.new("L", (8, 8)).save(Path(folder) / name / "1.png")
        ...     folder_splits(Path(folder))["train"].labels.tolist()
        ['cat', 'dog']
    """
    if not (folder / "train").is_dir():
        return {"train": _stored(folder, image_size)}
    folders = {
        split: next((folder / name for name in names if (folder / name).is_dir()), None)
        for split, names in _FOLDERS.items()
    }
    return {split: _stored(place, image_size) for split, place in folders.items() if place}


def _stored(folder: Path, image_size: int | None) -> Stored:
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        raise UserError(
            f"{folder} must hold parquet files, or a folder of images for each of two or more "
            f"classes, got {len(classes)} such folder{'' if len(classes) == 1 else 's'}"
        )
    files = [(name, file) for name in classes for file in _images(name)]

    def read(rows: Int64[Tensor, " rows"]) -> Tensor:
        return decode(_pictures(files, rows), len(rows), image_size=image_size)

    return Stored(np.array([name.name for name, _ in files]), read)


def _images(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES)
    visible = [f for f in files if not f.name.startswith(".")]
    if not visible:
        raise UserError(f"{folder} holds no image file; add some or remove the folder")
    return visible


def _pictures(files: list[tuple[Path, Path]], rows: Int64[Tensor, " rows"]) -> Iterator[Picture]:
    return ((str(files[row][1]), files[row][1]) for row in rows.tolist())
