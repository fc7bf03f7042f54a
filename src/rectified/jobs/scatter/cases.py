"""The cases of `rectified scatter`: networks, signals and the inequalities that they must obey.

Every function gives rows `case, depth, quantity, measured, bound`. A bound that says "at most" is
raised by `SLACK`, since both sides are sums of millions of rounded numbers; identities have bounds
of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.scattering import (
    Layer,
    ScatteringNetwork,
    average,
    bounds,
    curvelets,
    l2,
    maximum,
    modulus,
    no_pooling,
    prune_paths,
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
from rectified.scattering.signals import (
    Cartoon,
    Cones,
    Deformation,
    TrigonometricPolynomial,
    grid_points,
)
from rectified.seeds import generator

Row = dict[str, Any]
SLACK = 1 + 1e-9
ROUNDING = 1e-11  # what an identity may miss in float64
PIXELS = (0.125, 0.25, 0.5, 1.0, 2.0)  # sup |tau|
SHIFT = 4  # points that pictures are moved by: what two poolings by 2 divide
TONES = 8  # pure tones that a layer is tried on
_OCTAVES_1D, _POINTS_1D, _BAND_1D = 7, 1024, 16


def networks(generator: torch.Generator) -> dict[str, list[Layer]]:
    """Two layers each, with full banks, since ReLU and tanh of complex maps are complex.

    `mixed` has curvelets with the modulus, then Weyl-Heisenberg filters with tanh.
    """
    wave, wave2 = wavelets(J=3, L=4), wavelets(J=2, L=4)
    random = [random_filters(16, 7, generator=generator, J=2) for _ in range(2)]
    return {
        "wavelet_modulus": [
            Layer(wave, modulus, subsample(2)),
            Layer(wave2, modulus, subsample(2)),
        ],
        "weyl_heisenberg_tanh": [Layer(weyl_heisenberg(4), tanh)] * 2,
        "weyl_heisenberg_sigmoid": [Layer(weyl_heisenberg(4), sigmoid)] * 2,
        "shearlet_relu": [Layer(shearlets(J=2, L=2), relu, maximum(2))] * 2,
        "curvelet_relu": [Layer(curvelets(J=2, L=2), relu)] * 2,
        "random_relu": [Layer(frame, relu) for frame in random],
        "ridgelet_modulus": [Layer(ridgelets(J=2, L=2), modulus, l2(2))] * 2,
        "separable_modulus": [Layer(separable(J=2, taps=4), modulus, maximum(2))] * 2,
        "mixed": [
            Layer(curvelets(J=2, L=2), modulus, average(2)),
            Layer(weyl_heisenberg(4), tanh, subsample(2)),
        ],
    }


@dataclass(frozen=True, eq=False)
class Scene:
    """The signals that the networks are shown.

    Attributes:
        pictures: from the data, grey, on the grid.
        grid: side of the grid.
        seed: of everything drawn.
        steps: of the adversary.
    """

    pictures: Float[Tensor, "pictures 1 side side"]
    grid: int
    seed: int
    steps: int

    def generator(self) -> torch.Generator:
        """A fresh one: every case draws the same."""
        return generator(self.seed, "frames")

    def network(self, case: str, side: int | None = None) -> ScatteringNetwork:
        """The network of a case."""
        side = side or self.grid
        return ScatteringNetwork(networks(self.generator())[case], (side, side))


def network_rows(case: str, scene: Scene) -> Iterator[Row]:
    """Everything that is claimed of one network."""
    network = scene.network(case)
    yield from _frames(case, network, scene)
    yield from _adversary(case, scene)
    yield from _translations(case, network, scene)
    yield from _deformations(case, network, scene)
    yield from _energy_shares(case, network, scene)
    yield _pruning(case, network, scene)


def row(case: str, depth: int, quantity: str, measured: float, bound: float | None) -> Row:
    """One line of the results."""
    return {
        "case": case,
        "depth": depth,
        "quantity": quantity,
        "measured": measured,
        "bound": bound,
    }


def _frames(case: str, network: ScatteringNetwork, scene: Scene) -> Iterator[Row]:
    """Pure tones reach the frame bound, and tell a network's energy where that is known."""
    for depth, bank in enumerate(network.banks):
        top = int(bank.littlewood_paley().argmax())
        tone = _tone(bank.grid, top)
        spectrum = torch.fft.fft2(tone)
        passed = torch.fft.ifft2(spectrum * torch.cat([bank.output[None], bank.filters[:, 0]]))
        ratio = float(passed.abs().square().sum() / tone.abs().square().sum())
        yield row(case, depth, "frame_bound", ratio, SLACK)
    if _keeps_tones(network):
        yield row(case, network.depth, "tone_identity", _tone_error(network, scene), ROUNDING)


def _keeps_tones(network: ScatteringNetwork) -> bool:
    """Whether a tone becomes constant maps of the same energy, all of which is then put out."""
    first = network.layers[0]
    return first.nonlinearity is modulus and first.pooling.name in ("average", "power(2)")


def _tone_error(network: ScatteringNetwork, scene: Scene) -> float:
    expected = network.banks[0].littlewood_paley().flatten()
    bins = torch.randint(len(expected), (TONES,), generator=scene.generator()).tolist()
    tones = torch.stack([_tone(network.grid, one) for one in bins])[:, None]
    found = sum(one.abs().square().sum((1, 2, 3)) for one in network(tones))
    assert isinstance(found, Tensor)
    return float((found / math.prod(network.grid) / expected[bins] - 1).abs().max())


def _tone(grid: tuple[int, ...], place: int) -> Tensor:
    spectrum = torch.zeros(math.prod(grid), dtype=torch.complex128)
    spectrum[place] = len(spectrum)
    return torch.fft.ifft2(spectrum.reshape(grid))


def _adversary(case: str, scene: Scene) -> Iterator[Row]:
    """On half the grid: the constant is the same, the ascent four times faster."""
    network = scene.network(case, scene.grid // 2)
    found = bounds.adversarial_ratio(network, generator=scene.generator(), steps=scene.steps)
    constant = bounds.network_constant(network)
    yield row(case, network.depth, "adversarial_ratio", found, constant * SLACK)


def _translations(case: str, network: ScatteringNetwork, scene: Scene) -> Iterator[Row]:
    """Equivariance, and how far features of each depth move with their pictures."""
    moved = network(scene.pictures.roll(SHIFT, -2))
    norms = scene.pictures.flatten(1).norm(dim=1)
    for depth, (before, after) in enumerate(zip(network(scene.pictures), moved, strict=True)):
        step = SHIFT // bounds.reduction(network, depth)
        error = (after - before.roll(step, -2)).flatten(1).norm(dim=1) / norms
        change = (after - before).flatten(1).norm(dim=1) / norms
        sharp, published = (
            bound(network, (SHIFT, 0), depth)
            for bound in (bounds.translation_bound, bounds.decay_bound)
        )
        yield row(case, depth, "equivariance_error", float(error.max()), ROUNDING)
        yield row(case, depth, "translation", float(change.max()), sharp * SLACK)
        yield row(case, depth, "translation_by_decay", float(change.max()), published * SLACK)


def _deformations(case: str, network: ScatteringNetwork, scene: Scene) -> Iterator[Row]:
    """Features move no further than signals, for each class and each size of the deformation."""
    constant = bounds.network_constant(network)
    for name, experiment in signals(scene).items():
        for _, before, after, _ in experiment:
            moved = bounds.distance(network(before), network(after))
            bound = constant * float((after - before).abs().square().sum().sqrt())
            yield row(case, network.depth, f"deformation_{name}", float(moved), bound * SLACK)
    for pixels in PIXELS:
        deformed = _interpolated(scene.pictures, _deformation(pixels, scene), scene)
        moved = bounds.distance(network(scene.pictures), network(deformed))
        bound = constant * float((deformed - scene.pictures).norm())
        yield row(case, network.depth, "deformation_pictures", float(moved), bound * SLACK)


def _energy_shares(case: str, network: ScatteringNetwork, scene: Scene) -> Iterator[Row]:
    """The share of the pictures' energy that the depths up to each have put out."""
    found = bounds.energies(network, scene.pictures)
    total = 0.0
    for depth, energy in enumerate(found.put_out):
        total += energy / found.led_on[0]
        yield row(case, depth, "energy_put_out", total, SLACK)


def _pruning(case: str, network: ScatteringNetwork, scene: Scene) -> Row:
    """Paths dropped within a tenth of the norm: the error that was made against the guaranteed."""
    pruned = prune_paths(network, scene.pictures, tolerance=0.1)
    whole = bounds.sum_of_squares(network(scene.pictures))
    left = bounds.sum_of_squares(pruned.network(scene.pictures))
    error = math.sqrt(max(0.0, float(whole - left))) / float(scene.pictures.norm())
    return row(case, network.depth, "pruning_error", error, pruned.error * SLACK + ROUNDING)


Experiment = list[tuple[float, Tensor, Tensor, float]]
"""sup |tau| in points, the signal, the deformed signal, the bound on their distance."""


def signals(scene: Scene) -> dict[str, Experiment]:
    """Signals of every class, deformed exactly: they are known at every point, not on the grid."""
    wave = TrigonometricPolynomial.random(8, scene.generator())
    return {
        "band_limited": _deformed(scene, wave, lambda t: wave.class_moved_at_most(t.size, t.delta)),
        "band_limited_modulated": _modulated(scene, wave),
        "cartoon": _deformed(
            scene,
            cartoon := Cartoon(),
            lambda t: cartoon.moved_at_most_on(grid_points(scene.grid, scene.grid), t.size),
        ),
        "lipschitz": _deformed(
            scene, cones := Cones(), lambda t: cones.moved_at_most(t.size, t.delta)
        ),
    }


def signal_rows(scene: Scene) -> Iterator[Row]:
    """Signals themselves move no further than the bound of their class."""
    for name, experiment in signals(scene).items():
        for _, before, after, bound in experiment:
            moved = float((after - before).abs().square().sum().sqrt())
            yield row(f"signal {name}", 0, "deformation", moved, bound * (1 + 1e-6))


def _deformation(pixels: float, scene: Scene) -> Deformation:
    return Deformation.random(pixels / scene.grid, 1, scene.generator())


def _deformed(
    scene: Scene, signal: Callable[[Tensor], Tensor], bound: Callable[[Deformation], float]
) -> Experiment:
    points = grid_points(scene.grid, scene.grid)
    found = []
    for pixels in PIXELS:
        tau = _deformation(pixels, scene)
        # bounds are integrals over the unit torus; sums over the grid are grid^2 times as large
        at_most = bound(tau) * scene.grid
        found.append((pixels, signal(points)[None], signal(tau(points))[None], at_most))
    return found


def _modulated(scene: Scene, wave: TrigonometricPolynomial) -> Experiment:
    """e^{2 pi i w(x)} f(x - tau(x)) with sup |w| = sup |tau|."""
    points = grid_points(scene.grid, scene.grid)
    found = []
    for pixels in PIXELS:
        tau = _deformation(pixels, scene)
        omega = tau.size * torch.sin(2 * math.pi * points[1])
        turned = torch.polar(torch.ones_like(omega), 2 * math.pi * omega) * wave(tau(points))
        bound = bounds.band_limited_bound(
            wave.radius, wave.norm, tau=tau.size, delta=tau.delta, omega=tau.size
        )
        found.append((pixels, wave(points)[None] + 0j, turned[None], bound * scene.grid))
    return found


def _interpolated(pictures: Tensor, tau: Deformation, scene: Scene) -> Tensor:
    """Pictures at deformed points, by bilinear interpolation on the torus."""
    points = tau(grid_points(scene.grid, scene.grid)) * scene.grid
    corner = points.floor().long()
    part = points - corner
    found = torch.zeros_like(pictures)
    for down in (0, 1):
        for right in (0, 1):
            weight = (part[0] if down else 1 - part[0]) * (part[1] if right else 1 - part[1])
            rows, columns = (corner[0] + down) % scene.grid, (corner[1] + right) % scene.grid
            found = found + weight * pictures[..., rows, columns]
    return found


def energy_rows(scene: Scene) -> Iterator[Row]:
    """One dimension, tight banks, modulus, no pooling: energy is conserved and falls with depth."""
    frames = {
        "wavelets": wavelets(J=_OCTAVES_1D, symmetry="half"),
        "weyl_heisenberg": weyl_heisenberg(16, symmetry="half"),
    }
    spectrum = torch.zeros(_POINTS_1D, dtype=torch.complex128)
    draws = torch.randn(_BAND_1D, generator=scene.generator(), dtype=torch.complex128)
    spectrum[1 : _BAND_1D + 1] = draws
    signal = torch.fft.ifft(spectrum).real[None]
    for name, frame in frames.items():
        case = f"energy {name}"
        network = ScatteringNetwork([Layer(frame, modulus, no_pooling())] * 3, (_POINTS_1D,))
        found = bounds.energies(network, signal)
        total = found.led_on[0]
        error = abs(sum(found.put_out[:-1]) + found.led_on[-1] - total) / total
        yield row(case, network.depth, "energy_identity", error, ROUNDING)
        for depth in range(1, network.depth + 1):
            bound = _propagation(signal[0], depth) if name == "wavelets" else 1.0
            yield row(case, depth, "energy_led_on", found.led_on[depth] / total, bound * SLACK)


def _propagation(signal: Tensor, depth: int) -> float:
    """The bound on W_N / ||f||^2; the coarsest wavelet begins at 2^-(J+1) of Nyquist."""
    spectrum = torch.fft.fft(signal)
    gap = 2.0 ** -(_OCTAVES_1D + 1) / 2
    frequency = torch.fft.fftfreq(len(signal), dtype=torch.float64) / gap
    return bounds.propagation_bound(
        spectrum / spectrum.norm(), frequency, depth, base=bounds.wavelet_base()
    )
