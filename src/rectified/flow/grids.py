"""Grids: the times at which a solver stops, `steps + 1` of them from 0 to 1.

    uniform_grid      equal steps of t
    canonical_grid    equal steps of tau = a / (a + b), the time of the straight path
    log_snr_grid      equal steps of ln(a / b), between the path's ends
    edm_grid          Karras et al.'s levels, sigma^(1/rho) in equal steps, rho = 7

References:
    Karras et al., 2022, arXiv 2206.00364, eq. 5; Lu et al., DPM-Solver, 2022, arXiv 2206.00927.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError
from rectified.flow.paths import AffinePath

Grid = Float[Tensor, " stops"]

_NOISIEST, _CLEANEST = 80.0, 0.002  # EDM's noise levels, where a path itself goes further


def _fractions(steps: int) -> Tensor:
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def uniform_grid(steps: int) -> Grid:
    """Equal steps of t.

    Raises:
        UserError: if `steps` is below 1.

    Example:
        >>> uniform_grid(4).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    return _fractions(steps).float()


def canonical_grid(path: AffinePath, steps: int) -> Grid:
    """Equal steps of tau = a / (a + b): what `uniform_grid` is on the straight path."""
    share = _fractions(steps)
    ends = path.coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    tau = ends.a / (ends.a + ends.b)
    tau = tau[0] + share * (tau[1] - tau[0])
    return _pinned(path.time(tau / (1 - tau)))


def log_snr_grid(path: AffinePath, steps: int) -> Grid:
    """Equal steps of ln(a / b), from at most EDM's largest noise level to its smallest."""
    share = _fractions(steps)
    ends = path.coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    noise = (ends.b / ends.a).clamp(_CLEANEST, _NOISIEST)
    return _pinned(path.time(1 / (noise[0] * (noise[1] / noise[0]) ** share)))


def edm_grid(path: AffinePath, steps: int, rho: float = 7.0) -> Grid:
    """Karras et al.'s noise levels b / a."""
    share = _fractions(steps)
    ends = path.coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    high, low = ((ends.b / ends.a).clamp(_CLEANEST, _NOISIEST) ** (1 / rho)).unbind()
    return _pinned(path.time(1 / (high + share * (low - high)) ** rho))


def _pinned(times: Tensor) -> Grid:
    """Exactly from 0 to 1, whatever the rounding and wherever the levels end."""
    times = times.clamp(0, 1)
    times[0], times[-1] = 0.0, 1.0
    return times.float()


def check_grid(times: Grid) -> None:
    """See that times rise or fall and are at least two.

    Raises:
        UserError: if they are not a grid.
    """
    if times.ndim != 1 or len(times) < 2:
        raise UserError(f"times must be two or more, got shape {tuple(times.shape)}")
