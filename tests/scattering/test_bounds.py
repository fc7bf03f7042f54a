"""Bounds against what is measured, and mutants of the network that some check must catch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rectified.errors import UserError
from rectified.scattering import (
    FilterBank,
    Layer,
    Nonlinearity,
    ScatteringNetwork,
    average,
    bounds,
    curvelets,
    custom_nonlinearity,
    custom_pooling,
    maximum,
    modulus,
    no_pooling,
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
from rectified.scattering.signals import (
    Cartoon,
    Cones,
    Deformation,
    TrigonometricPolynomial,
    grid_points,
)

NETS = {
    "wavelet modulus": [Layer(wavelets(J=2, L=2), modulus, subsample(2))] * 2,
    "weyl_heisenberg tanh": [Layer(weyl_heisenberg(4), tanh)] * 2,
    "weyl_heisenberg sigmoid": [Layer(weyl_heisenberg(4), sigmoid)] * 2,
    "shearlet relu": [Layer(shearlets(J=1, L=2), relu, maximum(2))] * 2,
    "curvelet relu": [Layer(curvelets(J=1, L=2), relu)] * 2,
    "ridgelet modulus": [Layer(ridgelets(J=2, L=1), modulus)] * 2,
    "separable modulus": [Layer(separable(J=1, taps=4), modulus)] * 2,
}
GRID = (16, 16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ratio(layers, grid=GRID, **options) -> float:
    return bounds.adversarial_ratio(
        ScatteringNetwork(layers, grid), generator=generator(), **options
    )


@pytest.mark.parametrize("name", NETS)
def test_the_adversary_comes_near_the_constant_and_not_beyond(name):
    network = ScatteringNetwork(NETS[name], (8, 8))
    assert bounds.is_admissible(network)
    found = bounds.adversarial_ratio(network, generator=generator(), steps=150)
    assert 0.9 < found / bounds.network_constant(network) <= 1 + 1e-9


def test_the_adversary_may_be_complex():
    found = ratio(NETS["shearlet relu"], is_complex=True, steps=60)
    assert 0.8 < found <= 1 + 1e-9


def test_the_recursion_is_far_below_the_published_product():
    for layers in NETS.values():
        network = ScatteringNetwork(layers, GRID)
        assert bounds.network_constant(network) == pytest.approx(1, abs=1e-9)
        assert bounds.product_constant(network) > 1.5


def test_the_recursion_of_one_layer_is_its_largest_sum():
    layer = Layer(
        weyl_heisenberg(4),
        custom_nonlinearity("x3", lambda x: 3 * x, lipschitz=3.0),
        no_pooling(),
        normalise=False,
    )
    network = ScatteringNetwork([layer], GRID)
    bank = network.banks[0]
    expected = (bank.output**2 + 9 * bank.filters[:, 0].square().sum(0)).max()
    assert bounds.depth_constants(network) == pytest.approx([expected.item(), 1.0])
    assert bounds.admissibility(network) == pytest.approx([9.0])
    assert not bounds.is_admissible(network)


def test_estimated_constants_are_labelled():
    mine = custom_nonlinearity("mine", torch.atan)
    assert not bounds.is_exact(ScatteringNetwork([Layer(wavelets(J=1), mine)], GRID))


# mutants: a declared constant that is wrong lets the adversary through


def _undeclared(function, name="mutant") -> Nonlinearity:
    return Nonlinearity(name, function, 1.0)


def _scaled(frame, factor):
    return lambda grid: frame(grid).scaled(factor)


def _everything(grid):
    """A tight bank of one filter that changes nothing: all is up to what follows."""
    nothing = torch.zeros(grid, dtype=torch.float64)
    return FilterBank(nothing, 1 + nothing[None, None])


def _without_output(frame):
    """A bank whose bound forgets chi: the g_l alone are made to have B = 1."""

    def bank(grid):
        made = frame(grid)
        return replace(made, filters=made.filters / math.sqrt(0.5))

    return bank


MUTANTS = {
    "a bank that is 1.3 times too loud": Layer(
        _scaled(wavelets(J=1, L=2), 1.3), modulus, no_pooling(), normalise=False
    ),
    "chi forgotten in the bound": Layer(
        _without_output(weyl_heisenberg(4)), modulus, no_pooling(), normalise=False
    ),
    "a non-linearity steeper than declared": Layer(
        wavelets(J=1, L=2), _undeclared(lambda z: 2 * z.abs()), no_pooling()
    ),
    "squared modulus": Layer(
        wavelets(J=1, L=2), _undeclared(lambda z: z.abs().square()), no_pooling()
    ),
    "overlapping maximum, declared 1": Layer(
        _everything, modulus, replace(maximum(2, window=3), lipschitz=lambda grid: 1.0)
    ),
    "literal S^{d/2} f[Sn]": Layer(
        _everything,
        modulus,
        custom_pooling(
            "literal", 2, lambda x, d: 2 ** (d / 2) * subsample(2)(x, d),
            generator=generator(), lipschitz=1.0,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_the_adversary_catches_every_wrong_constant(name):
    assert ratio([MUTANTS[name]], steps=150) > 1.02


def test_an_unshifted_sigmoid_is_caught_at_zero():
    mutant = Layer(wavelets(J=1, L=2), _undeclared(lambda z: z.abs().sigmoid()), no_pooling())
    network = ScatteringNetwork([mutant], GRID)
    zero = torch.zeros(1, *GRID, dtype=torch.float64)
    assert bounds.sum_of_squares(network(zero)) > 1
    healthy = ScatteringNetwork([Layer(wavelets(J=1, L=2), sigmoid)], GRID)
    assert bounds.sum_of_squares(healthy(zero)) == 0


def test_a_half_bank_that_meets_complex_maps_is_caught():
    half = wavelets(J=1, L=2, symmetry="half")
    hidden = Layer(
        lambda grid: replace(half(grid), half=False), modulus, no_pooling(), normalise=False
    )
    assert ratio([hidden], is_complex=True, steps=150) > 1.1


def test_a_wrong_phase_of_decimation_is_caught_by_equivariance():
    """Blocks that begin at a place which depends on the signal do not move with it."""

    def wandering(maps, dimensions):
        start = int(maps.abs().flatten()[0] > maps.abs().mean())
        return subsample(2)(maps.roll(start, -1), dimensions)

    mutant = custom_pooling("wandering", 2, wandering, generator=generator(), lipschitz=1.0)
    errors = []
    for pooling in (mutant, subsample(2)):
        network = ScatteringNetwork([Layer(wavelets(J=1, L=2), modulus, pooling)], GRID)
        x = torch.randn(8, 1, *GRID, generator=generator(), dtype=torch.float64)
        pairs = [(network(one)[1], network(one.roll(2, -1))[1]) for one in x]
        errors.append(max(float((b - a.roll(1, -1)).norm() / a.norm()) for a, b in pairs))
    assert errors[0] > 0.1
    assert errors[1] < 1e-12


@pytest.mark.parametrize("padding", ["constant", "reflect"])
def test_a_boundary_that_is_not_periodic_is_caught_by_equivariance(padding):
    def padded(maps, dimensions):
        wide = torch.nn.functional.pad(maps, (1, 1, 0, 0), mode=padding)
        return (wide[..., :-2] + wide[..., 2:]) / 2

    mutant = custom_pooling("padded", 1, padded, generator=generator(), lipschitz=1.0)
    network = ScatteringNetwork([Layer(wavelets(J=1, L=2), modulus, mutant)], GRID)
    x = torch.randn(1, *GRID, generator=generator(), dtype=torch.float64)
    moved, before = network(x.roll(3, -1))[1], network(x)[1]
    assert (moved - before.roll(3, -1)).norm() / before.norm() > 1e-3


def test_a_missing_path_is_caught_by_the_energy_identity():
    def errors(frame):
        layers = [Layer(frame, modulus, no_pooling())] * 2
        x = torch.randn(1, *GRID, generator=generator(), dtype=torch.float64)
        found = bounds.energies(ScatteringNetwork(layers, GRID), x)
        return abs(sum(found.put_out[:-1]) + found.led_on[-1] - found.led_on[0]) / found.led_on[0]

    def crippled(grid):
        bank = wavelets(J=1, L=2)(grid)
        return replace(bank, filters=bank.filters[1:], atoms=bank.atoms[1:])

    assert errors(wavelets(J=1, L=2)) < 1e-12
    assert errors(crippled) > 1e-2


def test_translation_bounds_fall_with_depth():
    network = ScatteringNetwork([Layer(wavelets(J=1), modulus, average(2))] * 3, (32, 32))
    found = [bounds.decay_bound(network, (8, 0), depth) for depth in range(4)]
    assert found[1] == pytest.approx(found[0] / 2, rel=0.1)
    assert found == sorted(found, reverse=True)


def test_the_gain_bounds_the_maps():
    network = ScatteringNetwork(NETS["weyl_heisenberg sigmoid"], GRID)
    x = torch.randn(4, 1, *GRID, generator=generator(), dtype=torch.float64)
    for depth, maps in enumerate(network.propagated(x)):
        assert maps.abs().norm() <= bounds.gain(network, depth) * x.norm() * (1 + 1e-12)


# deformations

SIZES = (0.1, 0.3, 0.9)  # points


def moved(signal, tau, side=64):
    points = grid_points(side, side)
    return float((signal(points) - signal(tau(points))).norm() / side)


@pytest.mark.parametrize("seed", range(4))
def test_signals_move_no_further_than_their_class_allows(seed):
    wave = TrigonometricPolynomial.random(8, generator(seed))
    points = grid_points(64, 64)
    for pixels in SIZES:
        tau = Deformation.random(pixels / 64, 2, generator(seed + 10))
        assert tau.delta <= 0.5
        own = wave.moved_at_most(tau.size, tau.delta)
        assert moved(wave, tau) <= own * (1 + 1e-6)
        assert own <= wave.class_moved_at_most(tau.size, tau.delta)
        cones, cartoon = Cones(), Cartoon()
        assert moved(cones, tau) <= cones.moved_at_most(tau.size, tau.delta)
        assert moved(cartoon, tau) <= cartoon.moved_at_most_on(points, tau.size)


def exponent(signal, side=64):
    sizes = [0.1 * 2**k for k in range(5)]
    taus = [Deformation.random(s / side, 2, generator(3)) for s in sizes]
    return np.polyfit(np.log(sizes), np.log([moved(signal, t, side) for t in taus]), 1)[0]


def test_each_class_moves_with_its_own_power_of_the_deformation():
    assert exponent(TrigonometricPolynomial.random(8, generator())) == pytest.approx(1, abs=0.05)
    assert exponent(Cones()) == pytest.approx(1, abs=0.1)
    assert exponent(Cartoon(outside=0.0), side=256) == pytest.approx(0.5, abs=0.1)


def test_the_disc_s_tube_is_what_points_near_its_edge_say():
    points, cartoon, tau = grid_points(512, 512), Cartoon(), 0.01
    share = cartoon.count_near_edge(points, tau) / 512**2
    assert share == pytest.approx(4 * math.pi * cartoon.radius * tau, rel=0.01)
    assert bounds.cartoon_bound(
        0.0, 1.0, 2 * math.pi * cartoon.radius, tau=tau, reach=cartoon.radius
    ) == pytest.approx(math.sqrt(share), rel=0.01)


def test_gradients_of_waves_are_those_of_autograd():
    wave = TrigonometricPolynomial.random(3, generator())
    points = grid_points(8, 8).requires_grad_()
    wave(points).sum().backward()
    torch.testing.assert_close(wave.gradient(points.detach()), points.grad)
    gradient = wave.gradient(grid_points(16, 16))
    assert gradient.square().sum(0).mean().sqrt().item() == pytest.approx(wave.gradient_norm)
    assert wave.norm == pytest.approx(1)


def test_a_constant_shift_attains_the_first_order_bound():
    """f = cos(2 pi x) moved by tau: ||f - F f|| = 2 sin(pi tau) ||f||, bound 2 pi tau ||f||."""
    tau = 1e-3
    exact = 2 * math.sin(math.pi * tau)
    bound = bounds.band_limited_bound(1.0, 1.0, tau=tau, delta=0.0)
    assert exact <= bound <= exact * (1 + 1e-5)


def test_the_jacobian_factor_is_the_published_constant_at_one_half():
    assert bounds.jacobian_factor(0.5) == pytest.approx(4 - 2 * math.sqrt(2))
    for delta in (0.1, 0.3):
        assert bounds.jacobian_factor(delta) == pytest.approx(
            2 * (1 - math.sqrt(1 - delta)) / delta
        )


# energy


def test_layers_needed_are_those_of_the_paper_s_table():
    shares = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
    table = {
        bounds.wavelet_base(2.0): [2, 3, 4, 6, 8, 11],
        bounds.weyl_heisenberg_base(1.0): [2, 4, 5, 8, 10, 14],
        None: [2, 3, 7, 19, 39, 199],
    }
    for base, expected in table.items():
        assert [bounds.layers_needed(share, 1.0, base=base) for share in shares] == expected


def test_energy_that_is_led_on_is_within_its_bound_in_one_dimension():
    octaves, points = 6, 512
    frame = wavelets(J=octaves, symmetry="half")
    network = ScatteringNetwork([Layer(frame, modulus, no_pooling())] * 3, (points,))
    spectrum = torch.zeros(points, dtype=torch.complex128)
    spectrum[1:16] = torch.randn(15, generator=generator(), dtype=torch.complex128)
    signal = torch.fft.ifft(spectrum).real
    found = bounds.energies(network, signal[None])
    spectrum = torch.fft.fft(signal)
    frequency = torch.fft.fftfreq(points, dtype=torch.float64) / 2.0 ** -(octaves + 2)
    # the filters do leave the gap that the bound counts in
    gap = frequency.abs() < 1
    assert network.banks[0].filters[..., gap].abs().max() < 1e-12
    for depth in (1, 2, 3):
        bound = bounds.propagation_bound(
            spectrum / spectrum.norm(), frequency, depth, base=bounds.wavelet_base()
        )
        assert found.led_on[depth] / found.led_on[0] <= bound


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: bounds.translation_bound(net, (1, 0), 1), "multiples of 2 .* got \\(1, 0\\)"),
        (lambda net: bounds.decay_bound(net, (2,), 1), "shift must have 2 multiples"),
        (lambda net: bounds.jacobian_factor(0.6), r"must be in \[0, 1/2\], got 0.6"),
        (
            lambda net: bounds.cartoon_bound(1.0, 1.0, 1.0, tau=0.5, reach=0.1),
            "tau must be at most the reach 0.1, got 0.5",
        ),
        (lambda net: bounds.wavelet_base(1.0), "ratio must be above 1, got 1.0"),
        (lambda net: bounds.weyl_heisenberg_base(2.0), r"bandwidth must be in \(0, 2\), got 2.0"),
        (lambda net: bounds.layers_needed(1.0, 1.0), r"share must be in \(0, 1\), got 1.0"),
        (
            lambda net: bounds.propagation_bound(torch.ones(1), torch.ones(1), 0, base=1.5),
            "depth must be at least 1, got 0",
        ),
    ],
)
def test_impossible_questions_are_refused_in_one_line(make, message):
    network = ScatteringNetwork([Layer(wavelets(J=1))], (8, 8))
    with pytest.raises(UserError, match=message):
        make(network)
