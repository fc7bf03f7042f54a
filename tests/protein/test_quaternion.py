"""Quaternions: exact at every angle, finite gradients, and the distributions they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from rectified.errors import UserError
from rectified.protein import quaternion as Q

MILLION = 1_000_000
ANGLES = (0.0, 1e-8, 1e-4, 1e-3, 1.0, math.pi - 1e-2, math.pi - 1e-4, math.pi - 1e-6, math.pi)


def axes(count: int, seed: int = 0) -> torch.Tensor:
    v = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return v / v.norm(dim=-1, keepdim=True)


def angles_of_all_kinds(count: int) -> torch.Tensor:
    """Uniform in [0, pi], but for a third within 1e-4 of either end."""
    u = torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    third = count // 3
    u[:third] *= 1e-4
    u[third : 2 * third] = math.pi - 1e-4 * u[third : 2 * third]
    u[2 * third :] *= math.pi
    return u


def scipy_of(q: torch.Tensor) -> Rotation:
    return Rotation.from_quat(q.double().numpy(), scalar_first=True)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest angle between rotations, radians, in float64."""
    a, b = (q.double() / q.double().norm(dim=-1, keepdim=True) for q in (a, b))
    return float(Q.distance(a, b).max())


def test_log_and_exp_are_those_of_float64_for_a_million_angles_up_to_pi():
    vectors = angles_of_all_kinds(MILLION)[:, None] * axes(MILLION)
    q = torch.from_numpy(Rotation.from_rotvec(vectors.numpy()).as_quat(scalar_first=True))
    single = Q.exp(vectors.float())
    assert difference(single, q) < 1e-5
    back = Q.log(q.float())
    assert not back.isnan().any()
    assert difference(Q.exp(back.double()), q) < 1e-5
    assert back.norm(dim=-1).max() <= math.pi + 1e-6


def test_slerp_is_that_of_float64_for_a_million_pairs():
    generator = torch.Generator().manual_seed(2)
    q0 = Q.uniform(MILLION, generator=generator, dtype=torch.float64)
    vectors = angles_of_all_kinds(MILLION)[:, None] * axes(MILLION, 3)
    q1 = Q.multiply(q0, Q.exp(vectors))
    t = torch.rand(MILLION, generator=generator, dtype=torch.float64)
    exact = Q.multiply(q0, Q.exp(t[:, None] * vectors))
    found = Q.slerp(t.float(), q0.float(), q1.float())
    # within float32 of pi either way round is right: rounding the inputs decides which
    clear = vectors.norm(dim=-1) < math.pi - 1e-6
    assert difference(found[clear], exact[clear]) < 1e-5
    assert not found.isnan().any()
    assert difference(Q.slerp(1.0, q0.float(), q1.float()), q1) < 1e-5


@pytest.mark.parametrize("angle", ANGLES)
def test_exp_undoes_log_at_every_angle(angle):
    q = Q.exp(angle * axes(2000)).float()
    assert difference(Q.exp(Q.log(q)), q) < 2e-6


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("axis", [(0.0, 0.0, 1.0), (0.6, 0.8, 0.0), (0.36, 0.48, 0.8)])
def test_gradients_are_finite_at_every_angle(angle, axis):
    vector = (angle * torch.tensor(axis)).requires_grad_()
    q0 = Q.identity().requires_grad_()
    q1 = Q.exp(vector)
    loss = Q.log(q1).sum() + Q.slerp(0.3, q0, q1).sum() + Q.slerp(0.3, q1, -q0).sum()
    gradients = torch.autograd.grad(loss, (vector, q0))
    assert all(one.isfinite().all() for one in gradients)


def test_gradients_of_a_matrix_and_back_are_finite_at_half_turns():
    for axis in torch.eye(3):
        vector = (math.pi * axis).requires_grad_()
        matrix = Q.quaternion_to_matrix(Q.exp(vector))
        (gradient,) = torch.autograd.grad(Q.matrix_to_quaternion(matrix).sum(), vector)
        assert gradient.isfinite().all()


@given(
    st.lists(st.floats(-1, 1), min_size=8, max_size=8).filter(
        lambda v: min(np.linalg.norm(v[:4]), np.linalg.norm(v[4:])) > 1e-3
    )
)
@settings(max_examples=60)
def test_products_inverses_and_turned_points_are_scipys(numbers):
    p = Q.normalise(torch.tensor(numbers[:4], dtype=torch.float64))
    q = Q.normalise(torch.tensor(numbers[4:], dtype=torch.float64))
    theirs = scipy_of(p) * scipy_of(q)
    assert np.allclose(scipy_of(Q.multiply(p, q)).as_matrix(), theirs.as_matrix(), atol=1e-12)
    assert np.allclose(Q.quaternion_to_matrix(p).numpy(), scipy_of(p).as_matrix(), atol=1e-12)
    assert np.allclose(Q.multiply(p, Q.conjugate(p)).numpy(), [1, 0, 0, 0], atol=1e-12)
    point = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    assert np.allclose(Q.rotate(q, point).numpy(), scipy_of(q).apply(point.numpy()), atol=1e-12)


def test_matrices_come_back_as_the_same_rotations():
    q = Q.uniform(10000, generator=torch.Generator().manual_seed(0))
    back = Q.matrix_to_quaternion(Q.quaternion_to_matrix(q))
    assert difference(back, q) < 1e-5
    assert (back.abs().amax(-1) >= 0.49).all()


def test_slerp_does_not_ask_for_the_sign():
    generator = torch.Generator().manual_seed(0)
    q0, q1 = Q.uniform(2, 1000, generator=generator).unbind(0)
    assert difference(Q.slerp(0.3, q0, q1), Q.slerp(0.3, q0, -q1)) < 2e-6


def test_the_way_is_walked_at_a_constant_rate():
    q0, q1 = Q.uniform(2, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = Q.between(q0, q1)
    for t in (0.1, 0.5, 0.9):
        q_t = Q.slerp(t, q0, q1)
        torch.testing.assert_close(Q.between(q_t, q1) / (1 - t), whole, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(Q.between(q0, q_t), t * whole, atol=1e-9, rtol=1e-9)


def test_a_thousand_steps_do_not_drift():
    q0, q1 = Q.uniform(2, 500, generator=torch.Generator().manual_seed(0)).unbind(0)
    q = q0
    for n in range(1000):
        q = Q.slerp(1 / (1000 - n), q, q1)
    assert difference(q, q1) < 1e-5
    assert (q.norm(dim=-1) - 1).abs().max() < 1e-5


def test_any_batch_axes_will_do():
    q = Q.uniform(2, 3, 5, generator=torch.Generator().manual_seed(0))
    one = Q.slerp(torch.tensor(0.4), q, q.flip(0))
    assert one.shape == (2, 3, 5, 4)
    torch.testing.assert_close(one[1, 2, 3], Q.slerp(0.4, q[1, 2, 3], q.flip(0)[1, 2, 3]))


def test_uniform_rotations_have_the_angles_of_haars_measure():
    q = Q.uniform(100_000, generator=torch.Generator().manual_seed(0))
    angles = Q.log(q).norm(dim=-1)
    # mean angle pi / 2 + 2 / pi (126.5 degrees), share within 0.01 of pi 0.64 % (computed)
    assert abs(angles.mean().item() - (math.pi / 2 + 2 / math.pi)) < 0.01
    assert abs((angles > math.pi - 0.01).float().mean().item() - 0.0064) < 0.001


@pytest.mark.parametrize(("sigma", "degrees"), [(1.5, 114.97), (5.0, 126.48)])
def test_igso3_has_the_published_mean_angle(sigma, degrees):
    q = Q.igso3(200_000, sigma=sigma, generator=torch.Generator().manual_seed(0))
    mean = Q.log(q).norm(dim=-1).mean().rad2deg().item()
    assert abs(mean - degrees) < 0.4


def test_a_narrow_igso3_is_a_normal_distribution_of_rotation_vectors():
    q = Q.igso3(100_000, sigma=0.1, generator=torch.Generator().manual_seed(0))
    deviation = Q.log(q).std(0)
    torch.testing.assert_close(deviation, torch.full((3,), 0.1), atol=2e-3, rtol=0)


def test_too_narrow_an_igso3_is_refused():
    with pytest.raises(UserError, match=r"sigma must be at least 0\.05, got 0\.01"):
        Q.igso3(3, sigma=0.01)


def test_roma_agrees_where_it_is_installed():
    roma = pytest.importorskip("roma")
    vectors = 3 * axes(1000)
    theirs = roma.rotvec_to_unitquat(vectors)[:, [3, 0, 1, 2]]
    assert difference(Q.exp(vectors), theirs) < 1e-12
