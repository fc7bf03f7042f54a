"""Poolings P from a grid N to the grid N/S, with exact Lipschitz constants R in the counting norm.

    average        S^{-d/2} times the sum of a block: 1; keeps the energy of smooth maps
    subsample      every S-th value: 1
    mean           the mean of a block: S^{-d/2}
    maximum        max |f| over a window of w >= S values: ceil(w/S)^{d/2}
    power          (sum |f|^p)^{1/p} over a block: 1 for p >= 2, else S^{d(1/p - 1/2)}
    linear         S^{d/2} times every S-th value of f * phi: max_k (sum_j |phi(k + jN/S)|^2)^{1/2}

`average` is the discrete counterpart of the theory's S^{d/2} f(S.): on smooth maps it is the same,
and it cannot expand. Literal S^{d/2} f[Sn] can: by aliasing its constant is S^{d/2}.

All commute with translations by multiples of S. Blocks tile the grid, so S must divide it.

References:
    Wiatowski, Tschannen, Stanić, Grohs and Bölcskei, Discrete deep feature extraction, 2016,
    arXiv 1605.08283.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Num
from torch import Tensor

from rectified import seeds
from rectified.errors import UserError
from rectified.scattering.convolution_banks import responses
from rectified.scattering.windows import Grid

_DRAWS = 64  # random pairs from which the constant of a user's pooling is estimated
_ASCENT = 100  # steps of gradient ascent from the best of them


@dataclass(frozen=True)
class Pooling:
    """A pooling with its constant.

    Attributes:
        name: for tables.
        factor: S, by which every axis shrinks.
        function: from maps and their number of dimensions to the pooled maps.
        lipschitz: the constant R on a grid.
        is_subsampling: whether it only picks values, and so may come before the non-linearity.
        is_exact: false if the constant was estimated, and so is only a lower bound.

    Example:
        >>> average(2)(torch.ones(1, 4, 4), 2)[0, 0].tolist(), average(2).lipschitz((4, 4))
        ([2.0, 2.0], 1.0)
    """

    name: str
    factor: int
    function: Callable[[Tensor, int], Tensor]
    lipschitz: Callable[[Grid], float]
    is_subsampling: bool = False
    is_exact: bool = True

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise UserError(f"the pooling factor must be at least 1, got {self.factor}")

    def __call__(self, maps: Num[Tensor, "..."], dimensions: int) -> Num[Tensor, "..."]:
        """Pool over the last `dimensions` axes."""
        return self.function(maps, dimensions)

    def grid(self, grid: Grid) -> Grid:
        """The grid that is left.

        Raises:
            UserError: if the factor does not divide every axis.
        """
        if any(size % self.factor for size in grid):
            raise UserError(
                f"grid must be divisible by the pooling factor {self.factor} along every axis, "
                f"got {'x'.join(map(str, grid))}"
            )
        return tuple(size // self.factor for size in grid)


def subsample(factor: int) -> Pooling:
    """Keep every `factor`-th value.

    Example:
        >>> subsample(2)(torch.arange(6), 1).tolist()
        [0, 2, 4]
    """
    return Pooling(
        "subsample", factor, partial(_subsample, factor=factor), _constant(1.0), factor >= 1
    )


def no_pooling() -> Pooling:
    """Keep every value.

    Example:
        >>> no_pooling().factor
        1
    """
    return subsample(1)


def average(factor: int) -> Pooling:
    """The sum of a block over the root of its size: a projection, which cannot expand.

    Example:
        >>> average(4)(torch.tensor([3.0, 1.0, 1.0, 1.0]), 1)
        tensor([3.])
    """
    return Pooling("average", factor, partial(_average, factor=factor), _constant(1.0))


def mean(factor: int) -> Pooling:
    """The mean of a block.

    Example:
        >>> mean(2).lipschitz((8, 8))
        0.5
    """
    return Pooling(
        "mean", factor, partial(_mean, factor=factor), lambda grid: factor ** (-len(grid) / 2)
    )


def maximum(factor: int, window: int | None = None) -> Pooling:
    """The largest |f| in a window; windows larger than the factor overlap.

    Args:
        factor: S.
        window: length of its side, at least S; S if not given.

    Raises:
        UserError: if the window is smaller than the factor.

    Example:
        >>> maximum(2)(torch.tensor([-3.0, 1.0, 0.0, 2.0]), 1).tolist()
        [3.0, 2.0]
        >>> maximum(2, window=3).lipschitz((8, 8))
        2.0
    """
    side = factor if window is None else window
    if side < factor:
        raise UserError(f"window must be at least the pooling factor {factor}, got {window}")
    overlap = math.ceil(side / factor) if factor >= 1 else 1
    name = "maximum" if side == factor else f"maximum({side})"
    return Pooling(
        name,
        factor,
        partial(_maximum, factor=factor, window=side),
        lambda grid: overlap ** (len(grid) / 2),
    )


def power(factor: int, p: float = 2.0) -> Pooling:
    """The l_p norm of a block; it tends to the maximum as p grows.

    Args:
        factor: S.
        p: at least 1.

    Raises:
        UserError: if p is below 1.

    Example:
        >>> power(2)(torch.tensor([3.0, 4.0]), 1).tolist()
        [5.0]
    """
    if p < 1:
        raise UserError(f"p must be at least 1, got {p}")
    return Pooling(
        f"power({p:g})",
        factor,
        partial(_power, factor=factor, p=p),
        lambda grid: factor ** (len(grid) * max(0.0, 1 / p - 0.5)),
    )


def l2(factor: int) -> Pooling:
    """The Euclidean norm of a block.

    Example:
        >>> l2(2).lipschitz((8, 8))
        1.0
    """
    return power(factor, 2.0)


def linear(factor: int, window: Float[Tensor, "*window"]) -> Pooling:
    """Circular convolution with a window, every S-th value, times S^{d/2}.

    Args:
        factor: S.
        window: real taps of any size, with as many axes as the maps; centred.

    Example:
        >>> haar = linear(2, torch.full((2, 2), 0.25))  # the same as average(2), blocks shifted
        >>> round(haar.lipschitz((8, 8)), 12)
        1.0
    """
    return Pooling(
        "linear",
        factor,
        partial(_linear, factor=factor, window=window),
        partial(_linear_constant, factor=factor, window=window),
    )


def custom_pooling(
    name: str,
    factor: int,
    function: Callable[[Tensor, int], Tensor],
    *,
    generator: torch.Generator,
    lipschitz: float | None = None,
) -> Pooling:
    """A pooling of yours.

    Args:
        name: for tables.
        factor: S, by which it shrinks every axis.
        function: from maps and their number of dimensions to the pooled maps.
        generator: of the pairs on which the constant is estimated.
        lipschitz: its constant if you know it; else it is estimated from below by gradient ascent
            on real maps, and every bound that follows is labelled as such.

    Raises:
        UserError: if it moves 0, gives NaN, or does not shrink the grid by its factor.

    Example:
        >>> first = custom_pooling("first", 2, lambda maps, d: maps[..., ::2],
        ...                        generator=torch.Generator().manual_seed(0))
        >>> round(first.lipschitz((8,)), 2), first.is_exact
        (1.0, False)
    """
    pooling = Pooling(name, factor, function, _constant(lipschitz or 1.0))
    if lipschitz is not None:
        return pooling
    seed = int(torch.randint(2**31, (), generator=generator))
    estimate = partial(_estimated_constant, name=name, function=function, factor=factor, seed=seed)
    return Pooling(name, factor, function, estimate, is_exact=False)


def _constant(value: float) -> Callable[[Grid], float]:
    return partial(_always, value=value)


def _always(grid: Grid, *, value: float) -> float:
    return value


def _subsample(maps: Tensor, dimensions: int, *, factor: int) -> Tensor:
    for axis in range(-dimensions, 0):
        maps = maps.unfold(axis, 1, factor).squeeze(-1)
    return maps


def _blocks(maps: Tensor, dimensions: int, factor: int) -> Tensor:
    """The values of each block, in one last axis."""
    lead = maps.shape[: maps.ndim - dimensions]
    sizes = [size // factor for size in maps.shape[maps.ndim - dimensions :]]
    split = maps.reshape(*lead, *(part for size in sizes for part in (size, factor)))
    within = [len(lead) + 2 * axis + 1 for axis in range(dimensions)]
    return split.movedim(within, list(range(-dimensions, 0))).flatten(-dimensions)


def _average(maps: Tensor, dimensions: int, *, factor: int) -> Tensor:
    return _blocks(maps, dimensions, factor).sum(-1) * factor ** (-dimensions / 2)


def _mean(maps: Tensor, dimensions: int, *, factor: int) -> Tensor:
    return _blocks(maps, dimensions, factor).mean(-1)


def _power(maps: Tensor, dimensions: int, *, factor: int, p: float) -> Tensor:
    blocks = _blocks(maps, dimensions, factor)
    return torch.linalg.vector_norm(blocks.abs() if p != 2 else blocks, p, -1)


def _maximum(maps: Tensor, dimensions: int, *, factor: int, window: int) -> Tensor:
    sizes = maps.abs()
    if window == factor:
        return _blocks(sizes, dimensions, factor).amax(-1)
    for axis in range(-dimensions, 0):
        shifted = torch.stack([sizes.roll(-step, axis) for step in range(window)])
        sizes = shifted.amax(0)
    return _subsample(sizes, dimensions, factor=factor)


def _linear(maps: Tensor, dimensions: int, *, factor: int, window: Tensor) -> Tensor:
    grid = tuple(maps.shape[-dimensions:])
    axes = tuple(range(-dimensions, 0))
    response = responses(window.to(maps)[None, None], grid)[0, 0]
    smooth = torch.fft.ifftn(torch.fft.fftn(maps, dim=axes) * response, dim=axes)
    smooth = smooth if maps.is_complex() else smooth.real
    return _subsample(smooth, dimensions, factor=factor) * factor ** (dimensions / 2)


def _linear_constant(grid: Grid, *, factor: int, window: Tensor) -> float:
    energy = responses(window.double()[None, None], grid)[0, 0].abs() ** 2
    left = tuple(size // factor for size in grid)
    # bins that fall upon one another: k + j N/S, the j of every axis
    split = energy.reshape([part for size in left for part in (factor, size)])
    return float(split.sum(tuple(range(0, split.ndim, 2))).max().sqrt())


def _estimated_constant(
    grid: Grid, *, name: str, function: Callable[[Tensor, int], Tensor], factor: int, seed: int
) -> float:
    """The largest quotient that ascent finds, from the best of some random pairs."""
    generator = seeds.generator(seed)
    pair = torch.randn(2, _DRAWS, *grid, dtype=torch.float64, generator=generator)
    dimensions = len(grid)
    zero = function(torch.zeros_like(pair[0, :1]), dimensions)
    expected = tuple(size // factor for size in grid)
    if tuple(zero.shape[1:]) != expected:
        raise UserError(
            f"{name} must give grid {expected} from {grid}, got {tuple(zero.shape[1:])}"
        )
    if not bool((zero.abs() <= 1e-12).all()):
        raise UserError(f"{name} must keep 0 at 0, got {zero.abs().max().item():g}")
    pair.requires_grad_()
    optimizer = torch.optim.Adam([pair], lr=0.05)
    best = 0.0
    for _ in range(_ASCENT):
        moved = (function(pair[0], dimensions) - function(pair[1], dimensions)).flatten(1)
        if not moved.isfinite().all():
            raise UserError(f"{name} must be finite, got NaN or infinity")
        quotients = moved.norm(dim=1) / (pair[0] - pair[1]).flatten(1).norm(dim=1)
        best = max(best, float(quotients.detach().max()))
        optimizer.zero_grad()
        (-quotients.sum()).backward()
        optimizer.step()
    return best
