"""A Fréchet distance between sets of images that needs no pretrained network.

    d^2 = |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1^{1/2} C_2 C_1^{1/2})^{1/2}

between the means and covariances of spatially averaged scattering coefficients of orders 0 to 2.
It sees what a distance on pixels hardly sees: images that only share the mean and covariance of
the pixels. It grows with noise and blur; it is weak against missing classes.

With a sample of n images the distance of a set to another of its own kind is not 0 but of the order
of features / n. So compare equal numbers, and report what real images give among themselves.

References:
    Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash
    equilibrium, 2017, arXiv 1706.08500; Veeramacheneni et al., Fréchet wavelet distance, 2023,
    arXiv 2312.15289.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError
from rectified.scattering.scattering2d import Scattering2D
from rectified.statistics import gaussian_distance

_BATCH = 256


def frechet_distance(
    first: Float[Tensor, "n channels height width"],
    second: Float[Tensor, "m channels height width"],
    *,
    J: int = 3,
    L: int = 8,
) -> float:
    """The squared Fréchet distance between two sets of images.

    Args:
        first: at least two images, values on any scale; the distance grows with its square.
        second: the same for the other set.
        J: log2 of the largest scale.
        L: orientations.

    Raises:
        UserError: if a set has fewer than two images, or the shapes differ.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = torch.rand(64, 1, 16, 16, generator=generator)
        >>> frechet_distance(images, images, J=2) < 1e-9 < frechet_distance(images, images**2, J=2)
        True
    """
    if first.shape[1:] != second.shape[1:]:
        raise UserError(
            f"both sets must have one shape, got {tuple(first.shape[1:])} and "
            f"{tuple(second.shape[1:])}"
        )
    return gaussian_distance(*(frechet_features(one, J=J, L=L) for one in (first, second)))


@torch.no_grad()
def frechet_features(
    images: Float[Tensor, "n channels height width"], *, J: int = 3, L: int = 8
) -> Float[Tensor, "n features"]:
    """Scattering coefficients averaged over the image: what the distance compares, in float64.

    Args:
        images: real.
        J: log2 of the largest scale; 2^J must not exceed either side.
        L: orientations.

    Example:
        >>> frechet_features(torch.rand(4, 1, 32, 32)).shape
        torch.Size([4, 217])
    """
    scattering = Scattering2D(J, tuple(images.shape[-2:]), L)
    parts = [scattering(part).mean((-2, -1)).flatten(1) for part in images.split(_BATCH)]
    return torch.cat(parts).double()
