"""Filter banks: tight where they say so, on every grid, and bounds that pure tones reach."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.scattering import (
    FilterBank,
    complemented,
    curvelets,
    daubechies,
    directional,
    from_convolution,
    lowpass,
    morlet,
    random_filters,
    ridgelets,
    separable,
    shearlets,
    wavelets,
    weyl_heisenberg,
)
from rectified.scattering.windows import bands, bumps, meyer, mirrored

GRIDS = [(32, 32), (24, 40), (33, 50), (21, 27), (32,), (45,)]
SYMMETRIES = ["full", "half", "real"]
TIGHT = {
    "wavelets": wavelets,
    "curvelets": curvelets,
    "shearlets": shearlets,
    "ridgelets": ridgelets,
}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def energy_ratio(bank: FilterBank, signal: Tensor) -> float:
    """What leaves a bank over what enters it, in space."""
    axes = tuple(range(-len(bank.grid), 0))
    spectrum = torch.fft.fftn(signal, dim=axes)
    passed = spectrum * torch.cat([bank.output[None], bank.filters[:, 0]])
    out = torch.fft.ifftn(passed, dim=axes).abs().square().sum()
    return float(out / signal.abs().square().sum())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("name", TIGHT)
def test_directional_frames_are_tight_on_every_grid(name, symmetry, grid):
    bank = TIGHT[name](J=2, L=4, symmetry=symmetry)(grid)
    assert abs(bank.lower - 1) < 1e-12
    assert abs(bank.upper - 1) < 1e-12


@pytest.mark.parametrize("grid", [*GRIDS, (12, 10, 8)])
@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_weyl_heisenberg_frames_are_tight_on_every_grid(symmetry, grid):
    bank = weyl_heisenberg(4, symmetry=symmetry)(grid)
    assert abs(bank.lower - 1) < 1e-12
    assert abs(bank.upper - 1) < 1e-12


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("taps", [2, 4, 8])
def test_separable_wavelets_are_tight_on_every_grid(taps, grid):
    bank = separable(J=2, taps=taps)(grid)
    assert abs(bank.lower - 1) < 1e-9
    assert abs(bank.upper - 1) < 1e-9


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("is_complex", [False, True])
def test_random_filters_are_admissible_and_reach_the_limit(is_complex, grid):
    bank = random_filters(6, 5, generator=generator(), is_complex=is_complex)(grid)
    assert bank.upper == pytest.approx(1, abs=1e-12)
    assert bank.has_real_filters is not is_complex


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_a_pure_tone_reaches_the_frame_bound(factor):
    bank = weyl_heisenberg(4)((12, 15)).scaled(factor)
    top = bank.littlewood_paley().argmax()
    spectrum = torch.zeros(12 * 15, dtype=torch.complex128)
    spectrum[top] = 1
    tone = torch.fft.ifft2(spectrum.reshape(12, 15))
    assert energy_ratio(bank, tone) == pytest.approx(factor**2, abs=1e-12)
    assert bank.upper == pytest.approx(factor**2, abs=1e-12)


def test_the_frame_bound_is_the_norm_of_the_matrix_of_all_convolutions():
    frame = random_filters(3, 3, generator=generator(), is_complex=True)
    bank = frame((6, 5))
    taps = torch.fft.ifft2(torch.cat([bank.output[None], bank.filters[:, 0]])).numpy()
    rows = [np.roll(h, (a, b), (0, 1)).ravel() for h in taps for a in range(6) for b in range(5)]
    singular = np.linalg.svd(np.array(rows), compute_uv=False)
    assert bank.upper == pytest.approx(singular[0] ** 2, rel=1e-12)
    assert bank.lower == pytest.approx(singular[-1] ** 2, rel=1e-10)


def test_the_bound_of_a_mixing_bank_is_that_of_the_convolution_layer():
    conv = nn.Conv2d(2, 3, 3, bias=False).double().requires_grad_(False)
    bank = from_convolution(conv)((6, 5))
    plain = bank.filters / (1 - bank.output**2).clamp_min(1e-30).sqrt()
    used = bank.output.abs() < 1 - 1e-9
    raw = torch.fft.fft2(_wrapped_taps(conv.weight, 6, 5))
    scale = float(plain[0, 0][used][0].abs() / raw[0, 0][used][0].abs())
    torch.testing.assert_close(plain[:, :, used], scale * raw[:, :, used])
    rows = []
    for a in range(6):
        for b in range(5):
            impulse = torch.zeros(1, 2, 6, 5, dtype=torch.float64)
            for channel in range(2):
                one = impulse.clone()
                one[0, channel, a, b] = 1
                low = torch.fft.ifft2(torch.fft.fft2(one) * bank.output).real
                high = torch.fft.ifft2((torch.fft.fft2(one) * bank.filters).sum(1)).real
                rows.append(torch.cat([low.flatten(), high.flatten()]).numpy())
    assert bank.upper == pytest.approx(np.linalg.norm(np.array(rows), 2) ** 2, rel=1e-10)
    assert bank.upper == pytest.approx(1, abs=1e-9)


def _wrapped_taps(weight: Tensor, rows: int, columns: int) -> Tensor:
    """The impulse responses of a layer with circular padding."""
    size = weight.shape[-1]
    impulse = torch.zeros(1, 1, rows, columns, dtype=torch.float64)
    impulse[0, 0, 0, 0] = 1
    pad = size // 2
    wrapped = nn.functional.pad(impulse, (pad,) * 4, mode="circular")
    kernels = weight.reshape(-1, 1, size, size)
    return nn.functional.conv2d(wrapped, kernels)[0].reshape(*weight.shape[:2], rows, columns)


def test_gradients_reach_a_learnt_convolution():
    conv = nn.Conv1d(1, 4, 3, bias=False)
    from_convolution(conv)((8,)).filters.abs().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.abs().sum() > 0


def test_half_banks_hold_for_real_signals_and_fail_for_complex_ones():
    half, full = (wavelets(J=2, L=4, symmetry=s)((16, 16)) for s in ("half", "full"))
    real = torch.randn(16, 16, generator=generator(), dtype=torch.float64)
    strong = half.filters[:, 0].square().sum(0) > 1.9
    one_sided = torch.fft.ifft2(torch.where(strong, torch.fft.fft2(real), 0))
    assert energy_ratio(half, real) == pytest.approx(1, abs=1e-12)
    assert energy_ratio(half, one_sided) > 1.9
    assert energy_ratio(full, one_sided) == pytest.approx(1, abs=1e-12)


def test_real_filters_are_real_and_even_in_space():
    bank = shearlets(J=2, symmetry="real")((16, 18))
    taps = torch.fft.ifft2(bank.filters)
    assert taps.imag.abs().max() < 1e-15
    torch.testing.assert_close(taps.real, mirrored(taps.real, 2))
    assert bank.has_real_filters
    assert not wavelets()((16, 18)).has_real_filters


@pytest.mark.parametrize(("alpha", "wedges"), [(1.0, 8), (0.5, 8 * 2), (0.0, 8 * 4)])
def test_alpha_says_how_wedges_multiply(alpha, wedges):
    bank = directional(alpha, "polar", J=3, L=4)((32, 32))
    finest = [atom for atom in bank.atoms if atom.scale == 0]
    assert len(finest) == wedges


def test_atoms_tell_where_filters_look():
    bank = weyl_heisenberg(4)((16, 16))
    tile = bank.filters[3, 0]  # one step down, none across
    place = torch.tensor(np.unravel_index(int(tile.argmax()), (16, 16)))
    assert place.tolist() == [4, 0]
    assert (bank.atoms[3].scale, bank.atoms[3].angle) == (1.0, 0.0)


def test_morlet_filters_are_kymatio_s_periodised_in_space():
    grid, J, L = (24, 20), 2, 6
    bank = morlet(J, L)(grid)
    for index, (j, angle) in enumerate(
        (j, (L - L // 2 - 1 - k) * math.pi / L) for j in range(J) for k in range(L)
    ):
        taps = _morlet_taps(grid, 0.8 * 2**j, angle, 0.75 * math.pi / 2**j, 4 / L)
        np.testing.assert_allclose(bank.filters[index, 0], np.fft.fft2(taps).real, atol=1e-12)


def _morlet_taps(grid, sigma, angle, centre, slant):
    def gabor(xi):
        total = np.zeros(grid, complex)
        for a in range(-4, 5):
            for b in range(-4, 5):
                x, y = np.mgrid[a * grid[0] : (a + 1) * grid[0], b * grid[1] : (b + 1) * grid[1]]
                u = x * np.cos(angle) + y * np.sin(angle)
                v = y * np.cos(angle) - x * np.sin(angle)
                envelope = np.exp(-(u**2 + slant**2 * v**2) / (2 * sigma**2))
                total += envelope * np.exp(1j * xi * u)
        return total / (2 * 3.1415 * sigma**2 / slant)

    wave, envelope = gabor(centre), gabor(0.0)
    return wave - wave.sum() / envelope.sum() * envelope


def test_morlet_banks_are_not_tight():
    bank = morlet(J=3)((48, 48))
    assert 1.0 < bank.upper < 1.05
    assert bank.lower < 0.2


def test_daubechies_taps_are_the_published_ones():
    root = math.sqrt(3)
    expected = torch.tensor([1 + root, 3 + root, 3 - root, 1 - root], dtype=torch.float64)
    torch.testing.assert_close(daubechies(4), expected / (4 * math.sqrt(2)))


def test_separable_filters_are_circular_convolutions_with_dilated_taps():
    bank = separable(J=2, taps=4)((16,))
    low = daubechies(4) / math.sqrt(2)
    spread = torch.zeros(16, dtype=torch.float64)
    spread[0:8:2] = low
    first = torch.zeros(16, dtype=torch.float64)
    first[:4] = low
    torch.testing.assert_close(bank.output, torch.fft.fft(first) * torch.fft.fft(spread))


def test_normalised_banks_are_admissible_and_admissible_ones_stay():
    loud = weyl_heisenberg(4)((16, 16)).scaled(1.3)
    quiet = loud.scaled(0.5)
    assert quiet.normalised(0.25) is quiet
    assert loud.normalised(2.0).upper == pytest.approx(0.25, abs=1e-12)


def test_tightened_banks_are_tight():
    bank = morlet(J=2, L=8)((40, 40)).tightened()
    assert abs(bank.lower - 1) < 1e-12
    assert abs(bank.upper - 1) < 1e-12


def test_windows_share_the_energy():
    position = torch.linspace(-7, 7, 1001, dtype=torch.float64)
    for count in (1, 2, 5):
        total = sum(window**2 for window in bumps(position, 3.0, count))
        torch.testing.assert_close(total, torch.ones_like(position))
    radius = torch.linspace(0, 1.5, 301, dtype=torch.float64)
    low, rings = bands(radius, 3)
    torch.testing.assert_close(low**2 + sum(r**2 for r in rings), torch.ones_like(radius))
    x = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(meyer(x) + meyer(1 - x), torch.ones_like(x))


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wavelets(J=0), "J must be at least 1, got 0"),
        (lambda: wavelets(L=0), "L must be at least 1, got 0"),
        (lambda: wavelets(symmetry="odd"), "unknown symmetry 'odd'"),
        (lambda: directional(1.5, "polar", 2, 2), r"alpha must be in \[0, 1\], got 1.5"),
        (lambda: directional(1, "hexagonal", 2, 2), "unknown tiling 'hexagonal'"),
        (lambda: wavelets(J=5)((16, 16)), "at least 32 points an axis for J = 5, got 16x16"),
        (lambda: wavelets()((8, 8, 8)), "1 or 2 dimensions, got 3"),
        (lambda: weyl_heisenberg(3), "K must be even and at least 2, got 3"),
        (lambda: weyl_heisenberg(8)((4, 16)), "at least 8 points an axis"),
        (lambda: lowpass(-1), "J must be at least 0, got -1"),
        (lambda: morlet(J=0), "J must be at least 1, got 0"),
        (lambda: morlet()((16,)), "2 dimensions, got 1"),
        (lambda: separable(J=0), "J must be at least 1, got 0"),
        (lambda: separable(taps=3), "taps must be even and in 2..20, got 3"),
        (lambda: separable(taps=[1.0, 1.0, 1.0]), "taps must be orthonormal"),
        (lambda: random_filters(0, generator=generator()), "count must be at least 1, got 0"),
        (lambda: random_filters(size=1, generator=generator()), "size must be at least 2, got 1"),
        (lambda: random_filters(generator=generator())((4, 4)), "as large as the filters"),
        (lambda: random_filters(generator=generator())((8,) * 3), "1 or 2 dimensions, got 3"),
        (lambda: from_convolution(nn.Linear(2, 2)), "must be Conv1d or Conv2d, got Linear"),
        (lambda: from_convolution(nn.Conv2d(2, 2, 3, groups=2)), "groups and dilation must be 1"),
        (lambda: from_convolution(nn.Conv1d(1, 2, 3))((8, 8)), "1 dimensions, the grid has 2"),
        (lambda: FilterBank(_zeros(4), _zeros(1, 1, 5)), "filters must have shape"),
        (lambda: FilterBank(_zeros(4) / 0, _zeros(1, 1, 4)), "output of a filter bank must be fin"),
        (lambda: FilterBank(_zeros(4), _zeros(1, 2, 4), half=True), "half bank must have one cha"),
        (lambda: FilterBank(_zeros(4), _zeros(1, 1, 4)).tightened(), "got 0 in 4 of them, first"),
        (lambda: FilterBank(_zeros(4), _zeros(1, 2, 4)).tightened(), "must have one channel"),
        (lambda: FilterBank(_zeros(4), _zeros(1, 1, 4))((5,)), "the bank is for grid 4, got 5"),
        (lambda: complemented(_zeros(4), _zeros(1, 1, 4)), "must pass something"),
    ],
)
def test_bad_banks_are_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()
