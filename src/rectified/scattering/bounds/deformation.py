"""Deformations F f(x) = e^{2 pi i w(x)} f(x - tau(x)): how far a signal of a class can move.

A network with constant c moves at most c times as far as the signal, whatever its layers
(`network_constant`), so a bound on ||F f - f|| for a class of signals is a bound for the features:

    band-limited to R   ( 2 pi kappa R |tau| + 2 pi |w| ) ||f||
    any smooth f        kappa |tau| ||grad f|| + 2 pi |w| ||f||
    cartoon f1 + 1_D f2 smooth parts + ||f2||_inf |{x : dist(x, dD) <= |tau|}|^(1/2)
    Lipschitz, K        K |tau| |supp f + B(|tau|)|^(1/2)

with |tau|, |w| suprema, delta = d |D tau|_inf <= 1/2, kappa = 2 (1 - sqrt(1 - delta)) / delta, at
most 4 - 2 sqrt(2). So the constant of the first is 2 pi kappa <= 7.37; the second is tighter for
each signal; the third is of order |tau|^(1/2). Lengths are in periods, norms are integrals.

Proof of the second line. f(x) - f(x - tau) is the integral of grad f(x - s tau) . tau over s in
[0, 1]; x -> x - s tau(x) is a diffeomorphism with determinant at least 1 - s delta (Brent, Osborn
and Smith); so the norm is at most |tau| ||grad f|| times the integral of (1 - s delta)^(-1/2).

References:
    Wiatowski and Bölcskei, 2018, arXiv 1512.06293, Theorem 2; Grohs, Wiatowski and Bölcskei, Deep
    convolutional neural networks on cartoon functions, 2016, arXiv 1605.00031.
"""

from __future__ import annotations

import math

from rectified.errors import UserError


def jacobian_factor(delta: float) -> float:
    """kappa(delta), with its limit 1 at 0.

    Args:
        delta: d times the largest entry of D tau in modulus, in [0, 1/2].

    Raises:
        UserError: if delta is outside.

    Example:
        >>> jacobian_factor(0.0), round(jacobian_factor(0.5), 4)
        (1.0, 1.1716)
    """
    if not 0 <= delta <= 0.5:
        raise UserError(f"d |D tau| must be in [0, 1/2], got {delta:g}")
    return 2 / (1 + math.sqrt(1 - delta))  # the same, without the 0/0


def gradient_bound(
    gradient: float, norm: float, *, tau: float, delta: float, omega: float = 0.0
) -> float:
    """kappa |tau| ||grad f|| + 2 pi |w| ||f||.

    Args:
        gradient: ||grad f||, in L2.
        norm: ||f||, in L2.
        tau: sup |tau|, at least 0.
        delta: d sup |D tau|, in [0, 1/2].
        omega: sup |w|, at least 0.

    Example:
        >>> gradient_bound(2.0, 1.0, tau=0.1, delta=0.0)
        0.2
    """
    return jacobian_factor(delta) * tau * gradient + 2 * math.pi * omega * norm


def band_limited_bound(
    radius: float, norm: float, *, tau: float, delta: float, omega: float = 0.0
) -> float:
    """(2 pi kappa R |tau| + 2 pi |w|) ||f|| for signals of frequencies up to R.

    Args:
        radius: R, in periods.
        norm: ||f||, in L2.
        tau: sup |tau|.
        delta: d sup |D tau|, in [0, 1/2].
        omega: sup |w|.

    Example:
        >>> round(band_limited_bound(8.0, 1.0, tau=0.01, delta=0.5), 4)
        0.5889
    """
    return gradient_bound(2 * math.pi * radius * norm, norm, tau=tau, delta=delta, omega=omega)


def cartoon_bound(
    smooth: float, jump: float, length: float, *, tau: float, reach: float, area: float = 1.0
) -> float:
    """A piecewise smooth picture f1 + 1_D f2 in the plane.

    Args:
        smooth: sup |grad f1| + sup |grad f2|.
        jump: sup |f2|.
        length: of the boundary of D, a C2 curve.
        tau: sup |tau|, at most `reach`.
        reach: of the boundary: the radius up to which its tubes do not meet (that of a disc).
        area: of the support of the smooth parts.

    Raises:
        UserError: if tau is beyond the reach.

    Example:
        >>> round(cartoon_bound(0.0, 1.0, 6.283, tau=0.01, reach=1.0), 4)
        0.3545
    """
    if tau > reach:
        raise UserError(f"tau must be at most the reach {reach:g}, got {tau:g}")
    return smooth * tau * math.sqrt(area) + jump * math.sqrt(2 * tau * length)


def lipschitz_bound(constant: float, area: float, *, tau: float) -> float:
    """K |tau| |supp f + B(|tau|)|^(1/2).

    Args:
        constant: K.
        area: of the support, already grown by |tau|; 1 is always enough on the torus.
        tau: sup |tau|.

    Example:
        >>> lipschitz_bound(3.0, 0.25, tau=0.1)
        0.15000000000000002
    """
    return constant * tau * math.sqrt(area)
