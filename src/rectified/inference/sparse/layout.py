"""The layout of a sparse program's values in memory, and the geometry of its windows.

A value is `channels` planes of `height` rows of `pitch = width + halo` floats. The `halo` zeros at
a row's end are also the left border of the next row, and those above a plane are also the lower
border of the plane before, so a zero-padded convolution of stride 1 is a plain sum of shifted
planes:

    position(c, y, x) = start + c * plane + (y + halo) * pitch + halo + x.

Planes never lie a multiple of a kilobyte apart: a level-1 cache has room for few such lines, and a
convolution reads the same place of many planes.
"""

from dataclasses import dataclass

CONFLICT = 256  # floats
GAP = 16  # floats between planes that would be in conflict, one cache line


@dataclass(frozen=True)
class Value:
    """The place of an image of `channels` x `height` x `width`.

    Args:
        channels: number of planes.
        height: rows of a plane.
        width: columns that hold data.
        halo: zeros between rows, and rows of zeros between planes.
        start: position of the first float in the arena, or in the tensor at `port`.
        port: 0 for the arena, else the number of an input or output.
    """

    channels: int
    height: int
    width: int
    halo: int = 0
    start: int = 0
    port: int = 0

    @property
    def pitch(self) -> int:
        """Floats from one row to the next."""
        return self.width + self.halo

    @property
    def plane(self) -> int:
        """Floats from one channel to the next."""
        floats = (self.height + self.halo) * self.pitch
        return floats + (GAP if floats % CONFLICT == 0 and self.port == 0 else 0)

    @property
    def origin(self) -> int:
        """Position of the first pixel of the first channel."""
        return self.start + self.halo * (self.pitch + 1)

    @property
    def size(self) -> int:
        """Floats in all, with the border below the last plane."""
        return self.channels * self.plane + self.halo * (self.pitch + 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or a pool, (rows, columns) each.

    Args:
        kernel: size.
        stride: step between outputs.
        padding: zeros before the first row and column, and after the last.
        dilation: step between taps.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def reach(self) -> tuple[int, int]:
        """Distance from the first tap to the last."""
        rows, columns = ((k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True))
        return rows, columns

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Size of the output for an input of this size.

        Example:
            >>> Window((3, 3), (2, 2), (1, 1)).output(32, 32)
            (16, 16)
        """
        rows, columns = (
            (size + 2 * pad - reach - 1) // step + 1
            for size, pad, reach, step in zip(
                (height, width), self.padding, self.reach, self.stride, strict=True
            )
        )
        return rows, columns

    @property
    def keeps_size(self) -> bool:
        """Whether the output is as large as the input, pixel above pixel."""
        same = all(2 * pad == reach for pad, reach in zip(self.padding, self.reach, strict=True))
        return same and self.stride == (1, 1)

    @property
    def halo(self) -> int:
        """Zeros that this convolution wants between the rows of what it reads."""
        if self.keeps_size:
            return max(self.padding)
        return max(reach // step for reach, step in zip(self.reach, self.stride, strict=True))
