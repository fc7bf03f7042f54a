"""Samples as picture files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rectified.runs import atomic

_ENLARGED = 64  # pixels per side below which small images are enlarged in whole steps


def save_grid(path: Path, images: Float[Tensor, "n channels height width"]) -> None:
    """A square grid of images in [-1, 1], as PNG.

    Args:
        path: of the file.
        images: grey or colour.
    """
    from PIL import Image

    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    _, channels, height, width = images.shape
    canvas = torch.ones(channels, rows * (height + 1) - 1, columns * (width + 1) - 1)
    for i, image in enumerate((images.float() * 0.5 + 0.5).clamp(0, 1)):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[:, top : top + height, left : left + width] = image
    pixels = (canvas * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.repeat(pixels, 3, 2) if channels == 1 else pixels[..., :3])
    times = max(1, _ENLARGED // max(height, width))
    picture = picture.resize(
        (picture.width * times, picture.height * times), Image.Resampling.NEAREST
    )
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")


def save_points(path: Path, points: Float[Tensor, "n dimensions"]) -> None:
    """The first two coordinates of points, as PNG."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(5, 5), layout="constrained")
    axes = canvas.subplots()
    second = points[:, 1] if points.shape[1] > 1 else torch.zeros(len(points))
    axes.scatter(points[:, 0].numpy(), second.numpy(), s=4, linewidths=0)
    axes.set_aspect("equal", adjustable="datalim")
    with atomic(path) as temporary:
        canvas.savefig(temporary, format="png", dpi=120)
