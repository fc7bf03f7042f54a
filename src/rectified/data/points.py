"""Points: distributions in the plane that are drawn, and files of points.

    moons        scikit-learn's two interleaved half circles, times 3, less 1
    gaussians8   eight round heaps on a circle of radius 5
    rings        two concentric circles of radius 2 and 4

A file is a `.npy` array or a `.csv` table (numbers, with or without a head), a row per point.
The first two are those of torchcfm's tutorial (Tong et al., 2023, arXiv 2302.00482).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError  # of a damaged header

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rectified import seeds
from rectified.errors import UserError, choose, first_line

Drawn = Float[Tensor, "count dimensions"]

_HEAP_DEVIATION = 0.1**0.25  # variance sqrt(0.1), as in torchcfm
_NOISE = 0.2


def _moons(count: int, generator: torch.Generator) -> Drawn:
    from sklearn.datasets import make_moons

    seed = int(torch.randint(2**32, (), generator=generator))
    points, _ = make_moons(count, noise=_NOISE, random_state=seed)
    return 3 * torch.from_numpy(points).float() - 1


def _gaussians8(count: int, generator: torch.Generator) -> Drawn:
    angle = torch.randint(8, (count,), generator=generator) * (math.pi / 4)
    centres = 5 * torch.stack([angle.cos(), angle.sin()], 1)
    return centres + _HEAP_DEVIATION * torch.randn(count, 2, generator=generator)


def _rings(count: int, generator: torch.Generator) -> Drawn:
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    radius = torch.where(torch.rand(count, generator=generator) < 0.5, 2.0, 4.0)
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return points + _NOISE * torch.randn(count, 2, generator=generator)


DISTRIBUTIONS: dict[str, Callable[[int, torch.Generator], Drawn]] = {
    "moons": _moons,
    "gaussians8": _gaussians8,
    "rings": _rings,
}


def draw_points(name: str, count: int, seed: int) -> Drawn:
    """Draw from a distribution of this file.

    Args:
        name: one of `DISTRIBUTIONS`.
        count: how many, at least 1.
        seed: the same points for the same seed.

    Raises:
        UserError: for another name, or no points.

    Example:
        >>> draw_points("gaussians8", 1000, 0).norm(dim=1).mean().round().item()
        5.0
    """
    choose("distribution", name, list(DISTRIBUTIONS))
    if count < 1:
        raise UserError(f"count must be at least 1, got {count}")
    return DISTRIBUTIONS[name](count, seeds.generator(seed, name))


def read_points(path: Path) -> Drawn:
    """Read a file of points, executing nothing in it.

    Args:
        path: of a `.npy` or `.csv` file.

    Raises:
        UserError: if it cannot be read, is no table of numbers, is empty or holds a NaN.
    """
    try:
        # mapped, an array whose head asks for more than the file holds takes no memory
        is_array = path.suffix == ".npy"
        table = np.load(path, mmap_mode="r", allow_pickle=False) if is_array else _table(path)
        points = torch.from_numpy(np.array(table, dtype=np.float32))
    except (
        *(OSError, ValueError, TypeError, EOFError, OverflowError),
        *(SyntaxError, TokenError),  # NumPy reads the head of an array as Python's literals
    ) as error:
        raise UserError(f"{path} is not a table of numbers ({first_line(error)})") from error
    if points.ndim != 2 or not points.numel():
        raise UserError(
            f"{path} must be a table with a row a point, got shape {tuple(points.shape)}"
        )
    bad = (~torch.isfinite(points).all(1)).nonzero()
    if len(bad):
        raise UserError(f"{path}: row {int(bad[0]) + 1} holds a NaN or infinity")
    return points


def _table(path: Path) -> np.ndarray:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    has_head = any(not _is_number(cell) for cell in first.split(","))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an empty file, which the caller refuses in our words
        return np.loadtxt(path, delimiter=",", skiprows=int(has_head), ndmin=2, dtype=np.float32)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
