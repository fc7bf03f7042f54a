"""Rotations as unit quaternions: exponential, logarithm, SLERP, conversions, random draws.

A quaternion is (w, x, y, z), last axis, any axes before it; q and -q are the same rotation. A
rotation vector is its axis times its angle, in radians, at most pi long. With the angle `a` and the
unit axis `u`,

    exp(a u) = (cos(a/2), sin(a/2) u)
    log(w, v) = 2 atan2(|v|, w) v / |v|          of the one of q, -q that has w >= 0
    slerp(t, q0, q1) = q0 exp(t log(q0* q1))     the exponential form: increments act on the right

Nothing here divides by sin(a) or takes an arc cosine: the functions are accurate to a few units of
the last place for every angle from 0 to pi, where the logarithm of a rotation *matrix* loses its
sign within 0.01 rad of pi (errors up to 2.6e-2 rad) and has gradients that are not finite. Near a
zero angle the quotients are replaced by their series, and the operands of the square root too, so
that gradients are finite everywhere.

References: Yue, Wang and Xu, "ReQFlow: rectified quaternion flow for efficient and high-quality
protein backbone generation", 2025, arXiv:2502.14637, section 3; Shoemake, "Animating rotation with
quaternion curves", 1985; Nikolayev and Savyolova, "Normal distribution on the rotation group
SO(3)", 1997 (IGSO3).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError

# |v|^2 or angle^2 below which quotients are replaced by series whose next term is below 1e-12
_SMALL = 1e-6
_TABLE = 2048  # angles in the table of an IGSO3 distribution

Quaternions = Float[Tensor, "*batch 4"]
Vectors = Float[Tensor, "*batch 3"]
Matrices = Float[Tensor, "*batch 3 3"]


def identity(*shape: int, like: Tensor | None = None) -> Float[Tensor, "..."]:
    """The rotation that changes nothing, `shape` times.

    Args:
        shape: the axes before the last.
        like: a tensor whose type and device are taken.

    Example:
        >>> identity(2).tolist()
        [[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    """
    like = torch.empty(0) if like is None else like
    return like.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(*shape, 4).clone()


def multiply(p: Float[Tensor, "*#batch 4"], q: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "..."]:
    """The rotation `q` followed by `p`: Hamilton's product p q.

    Example:
        >>> i, j = torch.tensor([0.0, 1, 0, 0]), torch.tensor([0.0, 0, 1, 0])
        >>> multiply(i, j).tolist()
        [0.0, 0.0, 0.0, 1.0]
    """
    pw, px, py, pz = p.unbind(-1)
    qw, qx, qy, qz = q.unbind(-1)
    return torch.stack(
        (
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ),
        -1,
    )


def conjugate(q: Quaternions) -> Quaternions:
    """The inverse of a unit quaternion: (w, -v).

    Example:
        >>> conjugate(torch.tensor([0.5, 0.5, 0.5, 0.5])).tolist()
        [0.5, -0.5, -0.5, -0.5]
    """
    return torch.cat((q[..., :1], -q[..., 1:]), -1)


def normalise(q: Quaternions) -> Quaternions:
    """`q` at length 1.

    Example:
        >>> normalise(torch.tensor([2.0, 0, 0, 0])).tolist()
        [1.0, 0.0, 0.0, 0.0]
    """
    return q / q.norm(dim=-1, keepdim=True)


def exp(vector: Vectors) -> Quaternions:
    """Rotation vector -> unit quaternion; any length, in radians.

    Example:
        >>> exp(torch.tensor([0.0, 0.0, math.pi])).round(decimals=6).tolist()
        [-0.0, 0.0, 0.0, 1.0]
    """
    square = vector.square().sum(-1, keepdim=True)
    is_small = square < _SMALL
    angle = torch.where(is_small, torch.ones_like(square), square).sqrt()
    w = torch.where(is_small, 1 - square / 8, (angle / 2).cos())
    scale = torch.where(is_small, 0.5 - square / 48, (angle / 2).sin() / angle)
    return torch.cat((w, scale * vector), -1)


def log(q: Quaternions) -> Vectors:
    """Unit quaternion -> rotation vector of length at most pi.

    q and -q give the same vector; at exactly pi (w = 0) either of the two is a right answer.

    Example:
        >>> log(torch.tensor([-1.0, 0.0, 0.0, 0.0])).tolist()
        [-0.0, -0.0, -0.0]
    """
    q = torch.where(q[..., :1] < 0, -q, q)
    w, v = q[..., :1], q[..., 1:]
    square = v.square().sum(-1, keepdim=True)
    is_small = square < _SMALL
    length = torch.where(is_small, torch.ones_like(square), square).sqrt()
    safe_w = torch.where(is_small, w, torch.ones_like(w))
    series = 2 / safe_w * (1 - square / (3 * safe_w.square()))
    scale = torch.where(is_small, series, 2 * torch.atan2(length, w) / length)
    return scale * v


def slerp(
    t: float | Float[Tensor, "..."],
    q0: Float[Tensor, "*#batch 4"],
    q1: Float[Tensor, "*#batch 4"],
) -> Float[Tensor, "..."]:
    """The rotation at share `t` of the shortest way from `q0` to `q1`.

    Args:
        t: a number, or a tensor that broadcasts against the batch axes; outside [0, 1] the
            rotation goes on at the same rate.
        q0: unit quaternions at t = 0.
        q1: at t = 1.

    Returns:
        Unit quaternions; their sign follows `q0`.

    Example:
        >>> slerp(0.5, identity(), torch.tensor([0.0, 0.0, 0.0, 1.0]))
        tensor([0.7071, 0.0000, 0.0000, 0.7071])
    """
    share = t.unsqueeze(-1) if isinstance(t, Tensor) else t
    return normalise(multiply(q0, exp(share * between(q0, q1))))


def between(q0: Float[Tensor, "*#batch 4"], q1: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "..."]:
    """log(q0* q1): the rotation vector from `q0` to `q1`, in the axes of `q0`.

    It is the angular velocity (radians in a unit of time) of the way that `slerp` takes, at every
    point of it.

    Example:
        >>> between(identity(), exp(torch.tensor([0.0, 0.25, 0.0])))
        tensor([0.0000, 0.2500, 0.0000])
    """
    return log(multiply(conjugate(q0), q1))


def distance(
    q0: Float[Tensor, "*#batch 4"], q1: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "..."]:
    """The angle between two rotations, in [0, pi] radians.

    Example:
        >>> distance(identity(), -identity()).item()
        0.0
    """
    relative = multiply(conjugate(q0), q1)
    return 2 * torch.atan2(relative[..., 1:].norm(dim=-1), relative[..., 0].abs())


def rotate(
    q: Float[Tensor, "*#batch 4"], points: Float[Tensor, "*#batch 3"]
) -> Float[Tensor, "..."]:
    """Turn points by unit quaternions: p + 2 v x (v x p + w p).

    Example:
        >>> quarter = exp(torch.tensor([0.0, 0.0, math.pi / 2]))
        >>> rotate(quarter, torch.tensor([1.0, 0.0, 0.0])).round(decimals=6).tolist()
        [0.0, 1.0, 0.0]
    """
    w, v = q[..., :1], q[..., 1:]
    v, points = torch.broadcast_tensors(v, points)
    return points + 2 * torch.linalg.cross(v, torch.linalg.cross(v, points) + w * points)


def quaternion_to_matrix(q: Quaternions) -> Matrices:
    """Unit quaternion -> rotation matrix, whose columns are the turned axes.

    Example:
        >>> quaternion_to_matrix(torch.tensor([0.0, 1.0, 0.0, 0.0])).diagonal().tolist()
        [1.0, -1.0, -1.0]
    """
    w, x, y, z = q.unbind(-1)
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def matrix_to_quaternion(matrix: Matrices) -> Quaternions:
    """Rotation matrix -> unit quaternion, by the largest of four pivots (Shepperd, 1978).

    The largest component is positive and at least 1/2, so nothing small is divided by.

    Example:
        >>> matrix_to_quaternion(torch.eye(3)).tolist()
        [1.0, 0.0, 0.0, 0.0]
    """
    m = matrix.flatten(-2)
    xx, xy, xz, yx, yy, yz, zx, zy, zz = m.unbind(-1)
    one = torch.ones_like(xx)
    candidates = torch.stack(  # 4 q_k q, one row for each k
        (
            *(one + xx + yy + zz, zy - yz, xz - zx, yx - xy),
            *(zy - yz, one + xx - yy - zz, yx + xy, xz + zx),
            *(xz - zx, yx + xy, one - xx + yy - zz, zy + yz),
            *(yx - xy, xz + zx, zy + yz, one - xx - yy + zz),
        ),
        -1,
    ).unflatten(-1, (4, 4))
    pivot = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)
    chosen = candidates.gather(-2, pivot[..., None, None].expand(*pivot.shape, 1, 4)).squeeze(-2)
    return normalise(chosen)


def uniform(
    *shape: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "..."]:
    """Rotations that are uniform over SO(3): directions of a normal vector in four dimensions.

    Args:
        shape: the axes before the last.
        generator: of the draws.
        dtype: of the result.
        device: of the result; draws are made where the generator is.
    """
    source = device if generator is None else generator.device
    drawn = torch.randn(*shape, 4, generator=generator, dtype=dtype, device=source)
    return normalise(drawn.to(device))


def igso3(
    *shape: int,
    sigma: float,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "..."]:
    """Rotations around the identity: heat that has spread over SO(3), of width `sigma`.

    The angle has the density (1 - cos a) / pi sum_l (2l+1) exp(-l(l+1) sigma^2 / 2)
    sin((l+1/2) a) / sin(a/2), the axis is uniform. The angle is drawn by inverting a table of its
    distribution, with linear interpolation.

    Args:
        shape: the axes before the last.
        sigma: width in radians, from 0.05 up; beyond 3 the draws are uniform to float32.
        generator: of the draws.
        dtype: of the result.
        device: of the result; draws are made where the generator is.

    Raises:
        UserError: if sigma is below 0.05, where the table is too coarse.
    """
    angles, below = (one.to(device) for one in _igso3_table(sigma))
    source = device if generator is None else generator.device
    draws = torch.rand(*shape, generator=generator, dtype=torch.float64, device=source).to(device)
    right = torch.searchsorted(below, draws).clamp(1, len(below) - 1)
    low, high = below[right - 1], below[right]
    share = (draws - low) / (high - low).clamp(min=1e-300)  # never 0 / 0 where the density is 0
    angle = angles[right - 1] + share * (angles[right] - angles[right - 1])
    axis = torch.randn(*shape, 3, generator=generator, dtype=torch.float64, device=source)
    axis = axis.to(device)
    vector = angle[..., None] * axis / axis.norm(dim=-1, keepdim=True)
    return exp(vector).to(dtype)


@lru_cache(maxsize=8)
def _igso3_table(sigma: float) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Angles in [0, pi] and the probability of a smaller one."""
    if not sigma >= 0.05:
        raise UserError(f"sigma must be at least 0.05, got {sigma:g}")
    angles = torch.linspace(0, math.pi, _TABLE, dtype=torch.float64)
    degrees = torch.arange(math.ceil(9 / sigma) + 2, dtype=torch.float64)  # exp(-9^2/2) = 3e-18
    weights = (2 * degrees + 1) * (-degrees * (degrees + 1) * sigma**2 / 2).exp()
    inner = angles[1:, None]
    waves = ((degrees + 0.5) * inner).sin() / (inner / 2).sin()
    density = (waves @ weights).clamp(min=0) * (1 - angles[1:].cos()) / math.pi
    density = torch.cat((density.new_zeros(1), density))
    below = torch.cumulative_trapezoid(density, angles)
    below = torch.cat((below.new_zeros(1), below))
    return angles, below / below[-1]
