"""A split as it lies in its source: labels known, pictures not decoded yet.

Readers return `Stored` splits. Which rows form train, validation and test is decided on the labels
alone, so that only the pictures that are needed are ever decoded.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from rectified.errors import UserError


@dataclass(frozen=True, eq=False)
class Stored:
    """One split of a source.

    Args:
        labels: one per row, integers or words.
        read: decodes the rows at ascending row numbers, at least one.
        names: class names, if the source gives them; labels are then numbers of names.
        peak: the pixel value that means 1.0.

    Example:
        >>> rows = Stored(np.array(["cat", "dog", "cat"]), read=lambda rows: torch.empty(0))
        >>> rows.classes
        ('cat', 'dog')
    """

    labels: Shaped[np.ndarray, " n"]
    read: Callable[[Int64[Tensor, " rows"]], UInt8[Tensor, "rows channels height width"]]
    names: tuple[str, ...] | None = None
    peak: int = 255

    @property
    def classes(self) -> tuple[str, ...]:
        """The given names, else the labels in ascending order."""
        return self.names or tuple(str(label) for label in np.unique(self.labels))

    def remembering(self) -> "Stored":
        """The same split, which decodes no row twice.

        Example:
            >>> asked = []
            >>> def read(rows): asked.extend(rows.tolist()); return rows.byte().view(-1, 1, 1, 1)
            >>> rows = Stored(np.array([0, 1, 0]), read).remembering()
            >>> [rows.read(torch.tensor(some)).flatten().tolist() for some in ([0, 2], [1, 2])]
            [[0, 2], [1, 2]]
            >>> asked
            [0, 2, 1]
        """
        return replace(self, read=_Remembering(self.read, len(self.labels)))

    def numbered(self, like: "Stored", split: str) -> Int64[Tensor, " n"]:
        """Return the labels as class numbers.

        Args:
            like: the split that defines the classes: train.
            split: the name of this split, for messages.

        Raises:
            UserError: if a label is not one of the classes.

        Example:
            >>> rows = Stored(np.array(["dog", "cat"]), read=lambda rows: torch.empty(0))
            >>> rows.numbered(rows, "train").tolist()
            [1, 0]
        """
        values = like._values()
        known = np.isin(self.labels, values) & (self.labels.dtype.kind == values.dtype.kind)
        if not known.all():
            row = int(np.flatnonzero(~known)[0])
            raise UserError(
                f"label {self.labels[row].item()!r} in row {row} of {split} is none of the "
                f"{len(values)} classes; mend or remove such rows"
            )
        return torch.from_numpy(np.searchsorted(values, self.labels).astype(np.int64))

    def _values(self) -> Shaped[np.ndarray, " n"]:
        """The stored label of each class."""
        if self.names:
            return np.arange(len(self.names))
        values = np.unique(self.labels)
        # A negative number is the usual mark of a row without a label.
        return values[values >= 0] if values.dtype.kind == "i" else values


class _Remembering:
    """Reads rows once."""

    def __init__(self, read: Callable[[Tensor], Tensor], count: int) -> None:
        self.read = read
        self.known = torch.zeros(count, dtype=torch.bool)
        self.pixels: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        new = rows[~self.known[rows]]
        if len(new):
            pixels = self.read(new)
            if self.pixels is None:
                self.pixels = pixels.new_empty(len(self.known), *pixels.shape[1:])
            if pixels.shape[1:] != self.pixels.shape[1:]:  # grey here and colour there
                return self.read(rows)
            self.pixels[new] = pixels
            self.known[new] = True
        assert self.pixels is not None  # at least one row was asked for
        return self.pixels[rows]
