"""The Fréchet distance of scattering features: what it sees."""

from __future__ import annotations

import pytest
import torch

from rectified.errors import UserError
from rectified.scattering import frechet_distance, frechet_features, gaussian_distance


def digits(first: int, last: int) -> torch.Tensor:
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images[first:last] / 16, dtype=torch.float32)
    return torch.nn.functional.interpolate(images[:, None], scale_factor=2, mode="bilinear")


def test_it_grows_with_noise_and_with_blur():
    real, other = digits(0, 300), digits(300, 600)
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
    found = [frechet_distance(real, other + size * noise, J=2) for size in (0, 0.1, 0.2, 0.4)]
    assert found == sorted(found)
    blurred = [
        frechet_distance(real, torch.nn.functional.avg_pool2d(other, k, 1, k // 2), J=2)
        for k in (1, 3, 5)
    ]
    assert blurred == sorted(blurred)


def test_it_sees_what_mean_and_covariance_of_pixels_do_not():
    real, other = digits(0, 400), digits(400, 800)
    flat = other.flatten(1)
    centred = flat - flat.mean(0)
    mix = torch.randn(400, 400, generator=torch.Generator().manual_seed(0)) / 20
    twin = (flat.mean(0) + mix @ centred).reshape(other.shape)
    pixels = gaussian_distance(real.flatten(1), twin.flatten(1)) / gaussian_distance(
        real.flatten(1), other.flatten(1)
    )
    ours = frechet_distance(real, twin, J=2) / frechet_distance(real, other, J=2)
    assert ours > 2 * pixels


def test_features_are_coefficients_averaged_by_channel():
    assert frechet_features(torch.rand(3, 2, 16, 16), J=2, L=4).shape == (3, 2 * 25)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: frechet_distance(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 9)),
            "both sets must have one shape",
        ),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
