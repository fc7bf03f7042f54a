"""Energy: how much each depth puts out, and how many layers are enough.

For tight banks, the modulus and no pooling the energy is conserved exactly,

    sum_{n < N} |||Phi^n(f)|||^2 + W_N(f) = ||f||^2,       W_N = sum_q ||U[q] f||^2 over depth N,

and with filters that are analytic and pass nothing near zero W_N falls in one dimension as

    W_N <= sum_k |f(k)|^2 (1 - r(|k| / a^(N-1))^2),        r(x) = max(0, 1 - x)^l, l > 1, d = 1

with a = (r^2 + 1)/(r^2 - 1) for wavelets supported in [1/r, r] (5/3 for octaves), a = 1/2 + 1/R for
Weyl-Heisenberg windows of bandwidth R (3/2 for 1). Frequencies count in units of the gap that the
filters leave. `layers_needed` inverts that for band-limited f. For all of L2 no such rate holds
(Führ and Getter, 2024, arXiv 2406.05121): it is a statement about band-limited signals alone.

References:
    Wiatowski, Grohs and Bölcskei, Energy propagation in deep convolutional neural networks, 2018,
    arXiv 1704.03636, Theorem 2; Wiatowski, Grohs and Bölcskei, Topology reduction in deep
    convolutional feature extraction networks, 2017, arXiv 1707.02711.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor

from rectified.errors import UserError
from rectified.scattering.network import ScatteringNetwork

EXPONENT = 1.0001  # l of r; anything above d/2 + 1/2 rounded down, and smaller is tighter


@dataclass(frozen=True)
class Energies:
    """Squared norms at every depth, over a batch.

    Attributes:
        put_out: |||Phi^n(x)|||^2, depths 0 to N.
        led_on: W_n(x), depths 0 to N; W_0 = ||x||^2.
    """

    put_out: list[float]
    led_on: list[float]

    @property
    def remainder(self) -> float:
        """The energy that the last output filter did not take: W_N - |||Phi^N|||^2."""
        return self.led_on[-1] - self.put_out[-1]


def energies(network: ScatteringNetwork, x: Num[Tensor, "*batch channels *grid"]) -> Energies:
    """Measure the energies of a batch.

    Example:
        >>> from rectified.scattering import Layer, ScatteringNetwork, modulus, no_pooling, wavelets
        >>> network = ScatteringNetwork([Layer(wavelets(), modulus, no_pooling())], (8, 8))
        >>> x = torch.randn(1, 8, 8, dtype=torch.float64)
        >>> found = energies(network, x)
        >>> abs(found.put_out[0] + found.led_on[1] - x.square().sum().item()) < 1e-9
        True
    """
    return Energies(
        [_energy(one) for one in network(x)], [_energy(one) for one in network.propagated(x)]
    )


def wavelet_base(ratio: float = 2.0) -> float:
    """a for wavelets supported in [1/ratio, ratio].

    Raises:
        UserError: if the ratio is not above 1.

    Example:
        >>> round(wavelet_base(2.0), 4)
        1.6667
    """
    if ratio <= 1:
        raise UserError(f"ratio must be above 1, got {ratio}")
    return (ratio**2 + 1) / (ratio**2 - 1)


def weyl_heisenberg_base(bandwidth: float = 1.0) -> float:
    """a for Weyl-Heisenberg windows.

    Args:
        bandwidth: R in (0, 2), in units of the gap.

    Raises:
        UserError: if it is outside.

    Example:
        >>> weyl_heisenberg_base(1.0)
        1.5
    """
    if not 0 < bandwidth < 2:
        raise UserError(f"bandwidth must be in (0, 2), got {bandwidth}")
    return 0.5 + 1 / bandwidth


def propagation_bound(
    spectrum: Num[Tensor, " bins"],
    frequency: Float[Tensor, " bins"],
    depth: int,
    *,
    base: float,
    exponent: float = EXPONENT,
) -> float:
    """The bound on W_N, depth N >= 1, for one-dimensional signals.

    Args:
        spectrum: of the signal, normalised so that the sum of |.|^2 is ||f||^2.
        frequency: of its bins, in units of the gap that the filters leave around zero.
        depth: N.
        base: a.
        exponent: l, above 1.

    Raises:
        UserError: if the depth is below 1.

    Example:
        >>> round(propagation_bound(torch.ones(1), torch.tensor([0.5]), 1, base=5 / 3), 3)
        0.75
    """
    if depth < 1:
        raise UserError(f"depth must be at least 1, got {depth}")
    window = (1 - frequency.abs() / base ** (depth - 1)).clamp_min(0) ** exponent
    return float((spectrum.abs() ** 2 * (1 - window**2)).sum())


def layers_needed(
    share: float, bandwidth: float, *, base: float | None = None, exponent: float = EXPONENT
) -> int:
    """Layers whose features hold a share of the energy of a band-limited signal, d = 1.

    Args:
        share: of the energy, in (0, 1).
        bandwidth: of the signal, in units of the gap.
        base: a of the filters; None: any filters that are analytic and leave the gap.
        exponent: l, above 1.

    Raises:
        UserError: if the share is outside (0, 1).

    Example:
        >>> [layers_needed(s, 1.0, base=wavelet_base()) for s in (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)]
        [2, 3, 4, 6, 8, 11]
    """
    if not 0 < share < 1:
        raise UserError(f"share must be in (0, 1), got {share}")
    reach = bandwidth / (1 - share ** (1 / (2 * exponent)))
    return math.ceil(reach - 1) if base is None else math.ceil(math.log(reach, base))


def _energy(maps: Tensor) -> float:
    return float(maps.detach().abs().square().sum(dtype=torch.float64))
