"""The network: a naive twin, and the theory's statements on every kind of layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rectified.errors import UserError
from rectified.scattering import (
    Layer,
    ScatteringNetwork,
    average,
    bounds,
    curvelets,
    features,
    from_convolution,
    identity,
    l2,
    leaky_relu,
    linear,
    lowpass,
    maximum,
    mean,
    modulus,
    no_pooling,
    power,
    random_filters,
    relu,
    ridgelets,
    separable,
    shearlets,
    sigmoid,
    subsample,
    tanh,
    wavelets,
    weyl_heisenberg,
)

few = settings(max_examples=40)
FRAMES = {
    "wavelets": wavelets(J=2, L=2),
    "half wavelets": wavelets(J=2, L=2, symmetry="half"),
    "real curvelets": curvelets(J=2, L=2, symmetry="real"),
    "shearlets": shearlets(J=1, L=2),
    "ridgelets": ridgelets(J=2, L=1),
    "weyl_heisenberg": weyl_heisenberg(4),
    "half weyl_heisenberg": weyl_heisenberg(4, symmetry="half"),
    "separable": separable(J=1, taps=4),
    "random": random_filters(5, 3, generator=torch.Generator().manual_seed(3)),
    "complex random": random_filters(
        4, 3, generator=torch.Generator().manual_seed(4), is_complex=True
    ),
}
NONLINEARITIES = [modulus, relu, tanh, sigmoid, leaky_relu(2.0), identity]
GRIDS = [(16, 16), (12, 20), (15, 9), (24,), (27,)]


def poolings(factor: int, dimensions: int):
    window = torch.tensor([0.2, 0.5, 0.4], dtype=torch.float64)
    window = window if dimensions == 1 else window[:, None] * window
    return [
        subsample(factor),
        average(factor),
        mean(factor),
        maximum(factor),
        maximum(factor, window=factor + 1),
        l2(factor),
        power(factor, 1.0),
        linear(factor, window),
    ]


# what decides two layers on a grid: frame, non-linearity and pooling of each, and the signals' seed
plans = st.tuples(
    st.sampled_from(GRIDS),
    st.lists(
        st.tuples(
            st.sampled_from(list(FRAMES)), st.sampled_from(NONLINEARITIES), st.integers(0, 7)
        ),
        min_size=1,
        max_size=2,
    ),
    st.integers(0, 1000),
)


def built(plan):
    """The network of a plan, and a generator; full banks take the place of half ones."""
    grid, choices, seed = plan
    factor, size, layers, is_real = 3 if grid[0] % 2 else 2, min(grid), [], True
    for name, nonlinearity, place in choices:
        name = name if is_real else name.removeprefix("half ")
        pooling = poolings(factor, len(grid))[place]
        layers.append(Layer(FRAMES[name], nonlinearity, pooling))
        stays_real = is_real and name in ("real curvelets", "random", "separable")
        is_norm = pooling.name.startswith(("maximum", "power"))
        is_real = nonlinearity is modulus or is_norm or stays_real
        size //= factor
        if size < 4:  # too small for the frames
            break
        factor = factor if size % 4 == 0 or size % 9 == 0 else 1
    network = ScatteringNetwork(layers, grid, last=lowpass(0))
    return network, torch.Generator().manual_seed(seed)


@few
@given(plans)
def test_no_pair_of_signals_is_driven_apart(plan):
    network, generator = built(plan)
    assert bounds.is_admissible(network)
    constant = bounds.network_constant(network)
    assert constant <= 1 + 1e-12
    f, h = torch.randn(2, 1, *network.grid, generator=generator, dtype=torch.float64)
    for scale in (1.0, 1e-3):
        other = f + scale * h
        moved = bounds.distance(network(f), network(other))
        assert moved <= constant * (f - other).norm() * (1 + 1e-10)
    assert bounds.sum_of_squares(network(f)) <= f.square().sum() * (1 + 1e-12)


@few
@given(plans)
def test_features_move_with_their_signal(plan):
    network, generator = built(plan)
    x = torch.randn(1, *network.grid, generator=generator, dtype=torch.float64)
    total = bounds.reduction(network, network.depth)
    moved = network(x.roll(total, -1))
    for depth, (before, after) in enumerate(zip(network(x), moved, strict=True)):
        step = total // bounds.reduction(network, depth)
        assert (after - before.roll(step, -1)).norm() <= 1e-12 * x.norm()


@few
@given(plans)
def test_translation_differences_are_within_their_bounds(plan):
    network, generator = built(plan)
    x = torch.randn(1, *network.grid, generator=generator, dtype=torch.float64)
    total = bounds.reduction(network, network.depth)
    shift = (0,) * (len(network.grid) - 1) + (total,)
    moved = network(x.roll(total, -1))
    for depth, (before, after) in enumerate(zip(network(x), moved, strict=True)):
        change = float((after - before).norm() / x.norm())
        sharp = bounds.translation_bound(network, shift, depth)
        assert change <= sharp * (1 + 1e-10) + 1e-14
        assert sharp <= bounds.decay_bound(network, shift, depth) * (1 + 1e-10) + 1e-14


def naive(x, layers, last, grid):
    """Loops over paths with NumPy's transforms; (channels, *grid) -> list of arrays."""
    maps, found = [np.asarray(one) for one in x], []
    for layer in layers:
        bank = layer.bank(grid)
        found.append(smoothed(maps, bank))
        maps = [moved_on(u, g, bank, layer) for u in maps for g in bank.filters[:, 0].numpy()]
        grid = layer.pooling.grid(grid)
    return [*found, smoothed(maps, last(grid))]


def smoothed(maps, bank):
    return np.stack([np.fft.ifftn(np.fft.fftn(u) * bank.output.numpy()) for u in maps])


def moved_on(u, g, bank, layer):
    v = torch.from_numpy(np.fft.ifftn(np.fft.fftn(u) * g))
    v = v.real.contiguous() if bank.has_real_filters and not np.iscomplexobj(u) else v
    return layer.pooling(layer.nonlinearity(v), len(bank.grid)).numpy()


@pytest.mark.parametrize("grid", [(12, 16), (24,)])
def test_the_naive_twin_finds_the_same_features(grid):
    layers = [
        Layer(wavelets(J=2, L=2), modulus, subsample(2)),
        Layer(weyl_heisenberg(2), relu, average(2)),
        Layer(separable(J=1), tanh, maximum(1)),
    ]
    x = torch.randn(2, *grid, dtype=torch.float64)
    found = ScatteringNetwork(layers, grid)(x)
    for one, expected in zip(found, naive(x.numpy(), layers, lowpass(1), grid), strict=True):
        np.testing.assert_allclose(one.numpy(), expected, atol=1e-13)


def test_energy_is_conserved_by_tight_banks_and_the_modulus():
    layers = [Layer(curvelets(J=2, L=2), modulus, no_pooling())] * 2
    x = torch.randn(3, 2, 15, 16, dtype=torch.float64)
    found = bounds.energies(ScatteringNetwork(layers, (15, 16)), x)
    total = x.square().sum().item()
    assert sum(found.put_out[:-1]) + found.led_on[-1] == pytest.approx(total, rel=1e-12)
    assert found.led_on[0] > found.led_on[1] > found.led_on[2] > 0
    assert found.remainder > 0


@pytest.mark.parametrize("pooling", [no_pooling(), average(2), l2(2)], ids=lambda one: one.name)
def test_a_pure_tone_holds_what_the_littlewood_paley_sum_says(pooling):
    """Of a bank that is not tight, so that the sum is not 1."""
    frame = random_filters(4, 5, generator=torch.Generator().manual_seed(0), is_complex=True)
    network = ScatteringNetwork([Layer(frame, modulus, pooling)], (12, 18))
    expected = network.banks[0].littlewood_paley()
    for place in ((0, 0), (3, 5), (6, 9), (11, 17)):
        spectrum = torch.zeros(12, 18, dtype=torch.complex128)
        spectrum[place] = 1
        tone = torch.fft.ifft2(spectrum)[None]
        ratio = bounds.sum_of_squares(network(tone)) / tone.abs().square().sum()
        assert ratio.item() == pytest.approx(expected[place].item(), abs=1e-12)


def test_subsampling_in_frequency_is_subsampling():
    layers = [Layer(wavelets(J=2, L=2), tanh, subsample(3))]
    picks = linear(3, torch.ones(1, 1, dtype=torch.float64) / 3)
    slow = [Layer(wavelets(J=2, L=2), tanh, picks)]
    x = torch.randn(1, 12, 15, dtype=torch.float64)
    for fast, direct in zip(features(x, layers), features(x, slow), strict=True):
        torch.testing.assert_close(fast, direct)


def test_a_learnt_layer_is_the_convolution_layer_with_circular_padding():
    conv = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular", bias=False).double()
    layer = Layer(from_convolution(conv, J=2), identity, no_pooling())
    x = torch.randn(2, 3, 10, 12, dtype=torch.float64)
    maps = ScatteringNetwork([layer], (10, 12)).propagated(x)[1]
    bank = layer.bank((10, 12))
    room = (1 - bank.output**2).clamp_min(0).sqrt()
    direct = torch.fft.ifft2(torch.fft.fft2(conv(x)) * room).real
    ratio = maps.norm() / direct.norm()
    torch.testing.assert_close(maps, ratio * direct)


def test_gradients_reach_the_filters_of_a_learnt_layer():
    conv = nn.Conv2d(1, 4, 3, bias=False)
    found = features(torch.randn(2, 1, 8, 8), [Layer(from_convolution(conv))])
    bounds.sum_of_squares(found).backward()
    assert conv.weight.grad.abs().sum() > 0


def test_gradients_are_those_of_finite_differences():
    network = ScatteringNetwork(
        [Layer(wavelets(J=1, L=1), modulus), Layer(weyl_heisenberg(2), tanh)], (8, 8)
    )
    x = torch.randn(1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tuple(one.abs() for one in network(x)), x)


def test_float32_agrees_with_float64():
    network = ScatteringNetwork([Layer(shearlets(J=2), modulus)] * 2, (16, 24))
    x = torch.randn(1, 16, 24, dtype=torch.float64)
    for low, high in zip(network(x.float()), network(x), strict=True):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low.double(), high, atol=2e-6, rtol=1e-5)


def test_batches_and_chunks_change_nothing(monkeypatch):
    network = ScatteringNetwork([Layer(wavelets(J=1, L=2))] * 2, (8, 12))
    x = torch.randn(2, 3, 2, 8, 12)
    together = network(x)
    monkeypatch.setattr("rectified.scattering.network._CHUNK", 1)
    for one, chunked in zip(together, network(x), strict=True):
        assert one.shape[:2] == (2, 3)
        torch.testing.assert_close(one, chunked)
    torch.testing.assert_close(network(x[1, 2])[2], together[2][1, 2])


def test_counts_of_paths_are_those_of_the_features():
    network = ScatteringNetwork([Layer(wavelets(J=1, L=2)), Layer(weyl_heisenberg(2))], (8, 8))
    found = network(torch.randn(3, 8, 8))
    assert [network.count_paths(depth, 3) for depth in range(3)] == [len(one) for one in found]


def test_a_network_is_a_module_without_weights():
    network = ScatteringNetwork([Layer(wavelets())], (8, 8))
    model = nn.Sequential(network)
    assert not list(model.parameters())
    assert model.state_dict() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same():
    network = ScatteringNetwork([Layer(curvelets(J=2), relu)] * 2, (16, 16))
    x = torch.randn(1, 16, 16, dtype=torch.float64)
    for here, there in zip(network(x), network(x.cuda()), strict=True):
        torch.testing.assert_close(here, there.cpu())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: net(torch.zeros(1, 8, 9)), r"x must have shape \(\*batch, channels, 8, 8\)"),
        (lambda net: net(torch.zeros(8, 8)), "x must have shape"),
        (lambda net: net(torch.full((1, 8, 8), math.nan)), "x must be finite"),
        (lambda net: net(torch.zeros(1, 8, 8) * 1j), "a half bank is for real maps"),
        (
            lambda net: ScatteringNetwork([Layer(wavelets(J=1), modulus, average(3))], (8, 8)),
            "divisible by the pooling factor 3",
        ),
        (
            lambda net: ScatteringNetwork([Layer(wavelets(J=3))] * 2, (8, 8)),
            "at least 8 points an axis for J = 3, got 4x4",
        ),
        (
            lambda net: features(
                torch.zeros(4, 8, 8), [Layer(from_convolution(nn.Conv2d(3, 2, 3)))]
            ),
            "maps in groups of 3, got 4 maps",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(make, message):
    network = ScatteringNetwork([Layer(wavelets(J=1, symmetry="half"))], (8, 8))
    with pytest.raises(UserError, match=message):
        make(network)
