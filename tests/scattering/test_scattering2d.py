"""Kymatio's coefficients: against its own, against a plain computation, and its interface."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rectified.errors import UserError
from rectified.scattering import Scattering2D, morlet

ORACLE = Path(__file__).parents[2] / "../shared/oracles/kymatio_scattering2d.npz"


@pytest.fixture(scope="module")
def oracle():
    if not ORACLE.exists():
        pytest.skip("the oracle is not here")
    return np.load(ORACLE)


def channel_errors(found, expected):
    difference = np.moveaxis(found - expected, -3, 0).reshape(expected.shape[-3], -1)
    size = np.moveaxis(expected, -3, 0).reshape(expected.shape[-3], -1)
    return np.linalg.norm(difference, axis=1) / np.linalg.norm(size, axis=1)


@pytest.mark.parametrize("J", [1, 2, 3])
@pytest.mark.parametrize("order", [1, 2])
def test_kymatio_s_coefficients_are_reproduced(oracle, J, order):
    expected = oracle[f"J{J}_L8_order{order}"]
    found = Scattering2D(J, (32, 32), max_order=order)(torch.from_numpy(oracle["x"])).numpy()
    assert found.shape == expected.shape
    assert channel_errors(found, expected).max() < 2e-6


def test_kymatio_s_coefficients_of_colour_rectangles_are_reproduced(oracle):
    scattering = Scattering2D(2, (48, 40), 6)
    found = scattering(torch.from_numpy(oracle["y"])).numpy()
    assert channel_errors(found, oracle["y_J2_L6_order2"]).max() < 2e-6


@pytest.mark.parametrize("shape", [(16, 16), (19, 24)])
def test_a_plain_computation_at_full_rate_finds_the_same(shape):
    """Without decimation of the maps, which folds in a few percent of white noise."""
    J, L = 2, 4
    x = np.random.default_rng(0).standard_normal(shape)
    scattering = Scattering2D(J, shape, L)
    rows, columns = scattering.padded
    margins = [
        ((p - n) // 2, (p - n + 1) // 2) for n, p in zip(shape, (rows, columns), strict=True)
    ]
    spectrum = np.fft.fft2(np.pad(x, margins, mode="reflect"))
    bank = morlet(J, L)((rows, columns))
    psi, phi = bank.filters[:, 0].numpy(), bank.output.numpy()

    def smooth(u):
        low = np.fft.ifft2(np.fft.fft2(u) * phi).real
        return low[:: 2**J, :: 2**J][1:-1, 1:-1]

    first = [np.abs(np.fft.ifft2(spectrum * g)) for g in psi]
    second = [
        np.abs(np.fft.ifft2(np.fft.fft2(first[a]) * psi[b]))
        for a in range(L)
        for b in range(L, 2 * L)
    ]
    expected = np.stack([smooth(np.fft.ifft2(spectrum).real), *map(smooth, first + second)])
    found = scattering(torch.from_numpy(x)).numpy()
    assert channel_errors(found, expected).max() < 0.05
    # the finest scale is not decimated: there it is the same
    np.testing.assert_allclose(found[: 1 + L], expected[: 1 + L], atol=1e-13)


def test_channels_are_counted_and_named_in_their_order():
    scattering = Scattering2D(3, (16, 16), 4, out_type="list")
    found = scattering(torch.randn(2, 16, 16))
    paths = scattering.paths()
    assert len(found) == len(paths) == scattering.channels == 1 + 12 + 3 * 16
    assert [one["n"] for one in found] == [one["n"] for one in paths]
    assert paths[0] == {"j": (), "n": (), "theta": ()}
    assert paths[13] == {"j": (0, 1), "n": (0, 4), "theta": (0, 0)}
    array = Scattering2D(3, (16, 16), 4)(torch.zeros(1, 16, 16))
    assert array.shape == (1, scattering.channels, 2, 2)


def test_padding_beforehand_is_padding():
    x = torch.randn(2, 16, 16, dtype=torch.float64)
    scattering, bare = Scattering2D(2, (16, 16), 4), Scattering2D(2, (16, 16), 4, pre_pad=True)
    low = (scattering.padded[0] - 16) // 2
    wide = torch.nn.functional.pad(x, (low, low, low, low), mode="reflect")
    torch.testing.assert_close(bare(wide), scattering(x))


def test_images_as_small_as_the_scale_are_padded_by_reflection():
    """The border is as wide as the image, where one reflection is not enough."""
    found = Scattering2D(3, (8, 8), 4)(torch.ones(1, 8, 8, dtype=torch.float64))
    assert found.shape[-2:] == (1, 1)
    assert found[0, 0].item() == pytest.approx(math.pi / 3.1415)
    assert found[0, 1:].abs().max() < 1e-12


def test_batches_and_chunks_change_nothing(monkeypatch):
    x = torch.randn(3, 2, 32, 32, dtype=torch.float64)
    together = Scattering2D(3, (32, 32), 4)(x)
    monkeypatch.setattr("rectified.scattering.scattering2d._CHUNK", 1)
    torch.testing.assert_close(Scattering2D(3, (32, 32), 4)(x), together)
    torch.testing.assert_close(Scattering2D(3, (32, 32), 4)(x[1, 1]), together[1, 1])


def test_gradients_are_those_of_finite_differences():
    scattering = Scattering2D(1, (8, 8), 2)
    x = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scattering, x)
    two = Scattering2D(2, (8, 8), 2)
    assert torch.autograd.gradcheck(two, x)


def test_a_flat_image_has_a_gradient():
    x = torch.zeros(8, 8, requires_grad=True)
    Scattering2D(2, (8, 8), 2)(x).sum().backward()
    assert x.grad.isfinite().all()


def test_it_serves_as_fixed_first_layers():
    from torch import nn

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 1, 16, 16, generator=generator)
    labels = torch.arange(40) % 2
    x[labels == 1] = x[labels == 1].cumsum(-1) / 8  # smooth against rough
    fixed = nn.Sequential(Scattering2D(2, (16, 16), 4), nn.Flatten(1, 2))
    model = nn.Sequential(fixed, nn.BatchNorm2d(25), nn.Flatten(), nn.Linear(25 * 16, 2))
    assert not list(fixed.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(x).argmax(1) == labels).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same():
    x = torch.randn(4, 32, 32, dtype=torch.float64)
    scattering = Scattering2D(2, (32, 32))
    torch.testing.assert_close(scattering(x.cuda()).cpu(), scattering(x))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scattering2D(0, (8, 8)), "J must be at least 1"),
        (lambda: Scattering2D(4, (8, 32)), "2\\^J at most the smaller side 8, got 4"),
        (lambda: Scattering2D(1, (8,)), "shape must be \\(height, width\\)"),
        (lambda: Scattering2D(1, (8, 8), max_order=3), "max_order must be 1 or 2, got 3"),
        (lambda: Scattering2D(1, (8, 8), out_type="dict"), "unknown out_type 'dict'"),
        (lambda: Scattering2D(1, (8, 8))(torch.zeros(8, 9)), "x must have shape"),
        (lambda: Scattering2D(1, (8, 8))(torch.zeros(8, 8, dtype=torch.int64)), "must be real"),
        (lambda: Scattering2D(1, (8, 8))(torch.zeros(8, 8) * 1j), "must be real"),
        (lambda: Scattering2D(1, (8, 8))(torch.zeros(8, 8) / 0), "x must be finite"),
    ],
)
def test_bad_input_is_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()
