"""Kymatio's two-dimensional scattering coefficients, computed another way.

    S_0 = x * phi,  S_1 = |x * psi_1| * phi,  S_2 = ||x * psi_1| * psi_2| * phi,  j_2 > j_1

with the Morlet wavelets of `morlet`, reflecting borders, and every map sampled at the rate 2^-j of
its wavelet. Channels are ordered as kymatio's: order 0, order 1 by wavelet, order 2 by first, then
second wavelet. What is different:

- phi is a product of two one-dimensional responses at every rate, so low-pass, decimation and
  cropping are two small matrix products; no Fourier transform follows the last modulus;
- a product and the folding of what aliases are one pass over contiguous blocks, all orientations at
  once, with the filter's factor built in;
- signals go through in chunks that stay in the processor's cache.

References:
    Bruna and Mallat, Invariant scattering convolution networks, 2013, arXiv 1203.1513; Andreux et
    al., Kymatio: Scattering Transforms in Python, 2020, arXiv 1812.11214.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError, choose
from rectified.scattering.morlet import morlet
from rectified.scattering.nonlinearities import modulus
from rectified.scattering.windows import Grid

OutType = Literal["array", "list"]
_CHUNK = 2**18  # real numbers of the largest product at once: one megabyte, as caches go
_NOTHING = 1e-10  # a block of a filter below this part of its largest value is left out


class Scattering2D(nn.Module):
    """The scattering transform of images, as kymatio's class of this name computes it.

    It computes where and in what precision its input is.

    Args:
        J: log2 of the scale, at least 1; 2^J must not exceed either side.
        shape: height and width of the images.
        L: orientations in half a turn.
        max_order: 1 or 2.
        pre_pad: whether images come padded already to the size in `padded`.
        out_type: `array` gives one tensor, `list` a dict per path with its tensor under `coef`.

    Raises:
        UserError: if an argument breaks its rule.

    Example:
        >>> scattering = Scattering2D(J=2, shape=(32, 32))
        >>> scattering(torch.randn(5, 3, 32, 32)).shape
        torch.Size([5, 3, 81, 8, 8])
    """

    def __init__(
        self,
        J: int,
        shape: Grid,
        L: int = 8,
        max_order: int = 2,
        pre_pad: bool = False,
        *,
        out_type: OutType = "array",
    ) -> None:
        super().__init__()
        choose("out_type", out_type, get_args(OutType))
        if len(shape) != 2:
            raise UserError(f"shape must be (height, width), got {tuple(shape)}")
        if J < 1 or min(shape) < 2**J:
            raise UserError(
                f"J must be at least 1 and 2^J at most the smaller side {min(shape)}, got {J}"
            )
        if max_order not in (1, 2):
            raise UserError(f"max_order must be 1 or 2, got {max_order}")
        self.J, self.L, self.shape = J, L, tuple(shape)
        self.max_order, self.pre_pad, self.out_type = max_order, pre_pad, out_type
        # one period of the output on either side, and a whole number of them
        self.padded = tuple(((n + 2**J) // 2**J + 1) * 2**J for n in shape)
        self._tables = {(torch.device("cpu"), torch.float64): _tables(J, L, self.padded, max_order)}

    @property
    def channels(self) -> int:
        """The number of coefficients at each place."""
        J, L = self.J, self.L
        return 1 + J * L + (self.max_order == 2) * J * (J - 1) // 2 * L**2

    def forward(self, x: Float[Tensor, "*batch height width"]) -> Any:
        """Coefficients `(*batch, channels, height / 2^J, width / 2^J)`, or a list of dicts.

        Raises:
            UserError: if x has another shape, is not real and floating point, or has NaN.
        """
        self._check(x)
        tables = self._tables_for(x)
        images = x.reshape(-1, *x.shape[-2:])
        if not self.pre_pad:
            images = _padded(images, self.shape, self.padded)
        chunk = max(1, _CHUNK // (2 * self.L * math.prod(self.padded)))
        found = torch.cat([self._transform(part, tables) for part in images.split(chunk)])
        found = found.reshape(*x.shape[:-2], *found.shape[1:])
        return found if self.out_type == "array" else self._listed(found)

    def paths(self) -> list[dict[str, tuple[int, ...]]]:
        """The scales `j` and orientations `theta` of every channel, in order.

        Example:
            >>> Scattering2D(J=2, shape=(8, 8), L=2).paths()[-1]
            {'j': (0, 1), 'n': (1, 3), 'theta': (1, 1)}
        """
        one = [(n,) for n in range(self.J * self.L)]
        two = [(a, b) for (a,) in one for (b,) in one if b // self.L > a // self.L]
        return [
            {
                "j": tuple(n // self.L for n in path),
                "n": path,
                "theta": tuple(n % self.L for n in path),
            }
            for path in [(), *one, *(two if self.max_order == 2 else [])]
        ]

    def _listed(self, found: Tensor) -> list[dict[str, Any]]:
        return [
            {"coef": coefficient, **path}
            for coefficient, path in zip(found.unbind(-3), self.paths(), strict=True)
        ]

    def _transform(
        self, images: Float[Tensor, "batch height width"], tables: _Tables
    ) -> Float[Tensor, "batch channels out_rows out_columns"]:
        """All coefficients of one chunk."""
        lows = tables.lows
        zero = lows[0](images).unsqueeze(1)
        spectrum = torch.fft.fft2(images)
        first, second = [], []
        for j, wavelets in enumerate(tables.first):
            maps = modulus(wavelets(spectrum))
            first.append(lows[j](maps))
            if tables.second[j]:
                second.append(self._second(maps, j, tables))
        return torch.cat([zero, *first, *second], 1)

    def _second(
        self, maps: Float[Tensor, "batch L rows columns"], j: int, tables: _Tables
    ) -> Float[Tensor, "batch paths out_rows out_columns"]:
        """The coefficients of order 2 whose first wavelet has scale j."""
        found = []
        # the products hold L maps for each of these, at half the rate along both axes; where even
        # few are beyond any cache, calls cost more than memory does
        chunk = max(self.L // 2, 4 * _CHUNK // (2 * self.L * maps[0, 0].numel() * len(maps)), 1)
        for part in maps.split(chunk, 1):
            spectrum = torch.fft.fft2(part)
            deeper = [
                low(modulus(wavelets(spectrum)))
                for wavelets, low in zip(tables.second[j], tables.lows[j + 1 :], strict=True)
            ]
            found.append(torch.cat(deeper, 2).flatten(1, 2))
        return torch.cat(found, 1)

    def _tables_for(self, x: Tensor) -> _Tables:
        key = x.device, x.dtype
        if key not in self._tables:
            self._tables[key] = self._tables[torch.device("cpu"), torch.float64].to(*key)
        return self._tables[key]

    def _check(self, x: Tensor) -> None:
        shape = self.padded if self.pre_pad else self.shape
        if x.ndim < 2 or tuple(x.shape[-2:]) != shape:
            raise UserError(
                f"x must have shape (*batch, {shape[0]}, {shape[1]}), got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise UserError(f"x must be real and floating point, got {x.dtype}")
        if not x.detach().isfinite().all():
            raise UserError("x must be finite, got NaN or infinity")


@dataclass(frozen=True)
class _Wavelets:
    """All orientations of one scale at one rate: product, folding, inverse transform.

    `blocks` holds, for each block of the spectrum that is not left out, where it begins and the
    responses there, each twice, since spectra are held as pairs of real numbers.
    """

    size: Grid
    blocks: tuple[tuple[Grid, Float[Tensor, "L rows columns 2"]], ...]

    def __call__(self, spectrum: Tensor) -> Tensor:
        pairs = torch.view_as_real(spectrum).unsqueeze(-4)
        rows, columns = self.size
        product: Tensor | None = None
        for (row, column), response in self.blocks:
            block = pairs[..., row : row + rows, column : column + columns, :]
            if product is None:
                product = block * response
            else:
                product.addcmul_(block, response)
        assert product is not None
        return torch.fft.ifft2(torch.view_as_complex(product))

    def to(self, device: torch.device, dtype: torch.dtype) -> _Wavelets:
        blocks = tuple((place, response.to(device, dtype)) for place, response in self.blocks)
        return _Wavelets(self.size, blocks)


@dataclass(frozen=True)
class _LowPass:
    """phi at one rate with decimation and cropping: rows @ map @ columns^T."""

    rows: Float[Tensor, "out_rows rows"]
    columns: Float[Tensor, "out_columns columns"]

    def __call__(self, maps: Tensor) -> Tensor:
        narrow = F.linear(maps, self.columns).transpose(-1, -2)
        # contiguous: one flat product instead of a small one for every map
        return F.linear(narrow.contiguous(), self.rows).transpose(-1, -2)

    def to(self, device: torch.device, dtype: torch.dtype) -> _LowPass:
        return _LowPass(self.rows.to(device, dtype), self.columns.to(device, dtype))


@dataclass(frozen=True)
class _Tables:
    """Everything that is computed once: by scale of the first wavelet, then of the second."""

    first: tuple[_Wavelets, ...]
    second: tuple[tuple[_Wavelets, ...], ...]
    lows: tuple[_LowPass, ...]

    def to(self, device: torch.device, dtype: torch.dtype) -> _Tables:
        where = device, dtype
        return _Tables(
            tuple(one.to(*where) for one in self.first),
            tuple(tuple(one.to(*where) for one in several) for several in self.second),
            tuple(one.to(*where) for one in self.lows),
        )


def _tables(J: int, L: int, grid: Grid, max_order: int) -> _Tables:
    bank = morlet(J, L)(grid)
    scales = bank.filters[:, 0].unflatten(0, (J, L))
    first = tuple(_wavelets(scales[j], 2**j) for j in range(J))
    second = tuple(
        tuple(
            _wavelets(_at_rate(scales[k], j), 2 ** (k - j))
            for k in range(j + 1, J)
            if max_order == 2
        )
        for j in range(J)
    )
    # the Gaussian is a product of its values on the two axes
    low = bank.output / bank.output[0, 0].sqrt()
    lows = tuple(
        _LowPass(*(_low_matrix(_at_rate(axis, j), 2 ** (J - j)) for axis in (low[:, 0], low[0])))
        for j in range(J)
    )
    return _Tables(first, second, lows)


def _at_rate(response: Tensor, j: int) -> Tensor:
    """A response on the grid that is 2^j times coarser: the bins below the new Nyquist frequency.

    Kymatio cuts the rest off instead of folding it in, and so do we.
    """
    for axis in range(-min(2, response.ndim), 0):
        size = response.shape[axis]
        half = size >> (j + 1)
        if j:
            parts = response.narrow(axis, 0, half), response.narrow(axis, size - half, half)
            response = torch.cat(parts, axis)
    return response


def _wavelets(responses: Float[Tensor, "L rows columns"], factor: int) -> _Wavelets:
    rows, columns = (size // factor for size in responses.shape[1:])
    largest = responses.abs().max()
    blocks = []
    for row, column in _corners(rows, columns, factor):
        block = responses[:, row : row + rows, column : column + columns]
        if block.abs().max() > _NOTHING * largest:
            pairs = (block / factor**2).unsqueeze(-1).repeat(1, 1, 1, 2)
            blocks.append(((row, column), pairs))
    return _Wavelets((rows, columns), tuple(blocks))


def _corners(rows: int, columns: int, factor: int) -> Iterator[Grid]:
    for row in range(factor):
        for column in range(factor):
            yield row * rows, column * columns


def _low_matrix(response: Float[Tensor, " size"], step: int) -> Float[Tensor, "out size"]:
    """Circular convolution, every `step`-th value, without the first and the last."""
    size = len(response)
    taps = torch.fft.ifft(response).real
    places = torch.arange(step, size - step, step)
    return taps[(places[:, None] - torch.arange(size)) % size]


def _padded(images: Tensor, shape: Grid, padded: Grid) -> Tensor:
    """Reflected at the borders; where the border is as wide as the image, its last line repeats."""
    before = [(p - n) // 2 for n, p in zip(shape, padded, strict=True)]
    after = [(p - n + 1) // 2 for n, p in zip(shape, padded, strict=True)]
    for axis, (size, low, high) in enumerate(zip(shape, before, after, strict=True), start=-2):
        places = torch.arange(-low, size + high, device=images.device)
        images = images.index_select(axis, _reflected(places, size))
    return images


def _reflected(places: Tensor, size: int) -> Tensor:
    if size == 1:
        return torch.zeros_like(places)
    folded = places.abs() % (2 * size - 2)
    return torch.minimum(folded, 2 * size - 2 - folded)
