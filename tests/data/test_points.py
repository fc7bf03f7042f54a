"""Points in the plane: what the distributions are, and files of points."""

from __future__ import annotations

import io
import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons

from rectified import seeds
from rectified.data import DISTRIBUTIONS, draw_points, read_points
from rectified.errors import UserError

every_one = pytest.mark.parametrize("name", DISTRIBUTIONS)


@every_one
def test_draws_are_those_of_the_seed(name):
    first, again, other = (draw_points(name, 100, seed) for seed in (3, 3, 4))
    assert first.shape == (100, 2)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_one
def test_an_odd_point_is_drawn_too(name):
    assert draw_points(name, 1, 0).shape == (1, 2)


def test_moons_are_scikit_learn_s():
    theirs = int(torch.randint(2**32, (), generator=seeds.generator(5, "moons")))
    wanted, _ = make_moons(50, noise=0.2, random_state=theirs)
    np.testing.assert_allclose(draw_points("moons", 50, 5), 3 * wanted - 1, rtol=1e-6, atol=1e-6)


def test_eight_gaussians_lie_on_a_circle_of_radius_5():
    points = draw_points("gaussians8", 40_000, 0)
    eighth = torch.atan2(points[:, 1], points[:, 0]).div(math.pi / 4).round().remainder(8)
    assert torch.bincount(eighth.long(), minlength=8).min() > 4500
    for number in range(8):
        angle = number * math.pi / 4
        heap = points[eighth == number]
        centre = heap.mean(0).tolist()
        assert centre == pytest.approx([5 * math.cos(angle), 5 * math.sin(angle)], abs=0.05)
        # the published deviation: a variance of sqrt(0.1)
        assert float(heap.var(0).mean()) == pytest.approx(0.1**0.5, rel=0.1)


def test_rings_have_radius_2_and_4_alike():
    radius = draw_points("rings", 20_000, 0).norm(dim=1)
    inner = radius < 3
    assert float(inner.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(radius[inner].mean()) == pytest.approx(2, abs=0.02)
    assert float(radius[~inner].mean()) == pytest.approx(4, abs=0.02)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_an_array_is_read(tmp_path, kind):
    table = np.arange(12).reshape(4, 3).astype(kind)
    np.save(tmp_path / "points.npy", table)
    found = read_points(tmp_path / "points.npy")
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, table)


@pytest.mark.parametrize("head", ["", "x,y\n", '"first","second"\n'])
def test_a_table_is_read_with_or_without_a_head(tmp_path, head):
    (tmp_path / "points.csv").write_text(head + "1,2\n3.5,-4e1\n")
    assert read_points(tmp_path / "points.csv").tolist() == [[1, 2], [3.5, -40]]


def test_a_single_row_and_a_single_column_are_tables(tmp_path):
    (tmp_path / "row.csv").write_text("1,2,3\n")
    assert read_points(tmp_path / "row.csv").shape == (1, 3)
    (tmp_path / "column.csv").write_text("1\n2\n")
    assert read_points(tmp_path / "column.csv").shape == (2, 1)


def head(shape: tuple[int, ...]) -> bytes:
    """An array of that shape, says its head; four numbers follow."""
    file = io.BytesIO()
    said = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, said)
    return file.getvalue() + bytes(16)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.csv", None, "is not a table of numbers"),
        ("missing.npy", None, "is not a table of numbers"),
        ("empty.csv", b"", "must be a table with a row a point"),
        ("empty.npy", b"", "is not a table of numbers"),
        ("head.csv", b"x,y\n", "must be a table with a row a point"),
        ("words.csv", b"x,y\n1,two\n", "is not a table of numbers"),
        ("ragged.csv", b"1,2\n3\n", "is not a table of numbers"),
        ("binary.csv", b"\xff\xfe\x00\x81", "is not a table of numbers"),
        ("nan.csv", b"1,2\nnan,3\n", "row 2 holds a NaN or infinity"),
        ("inf.csv", b"1,2\n3,4\n5,inf\n", "row 3 holds a NaN or infinity"),
        ("noise.npy", b"\x93NUMPY but no array", "is not a table of numbers"),
        ("terabytes.npy", head((10**12, 2)), "is not a table of numbers"),
        ("endless.npy", head((10**30, 2)), "is not a table of numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_what_is_no_table_of_points_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.* {message}"):
        read_points(tmp_path / name)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 1), (0, 2), (3, 0)])
def test_an_array_of_another_shape_is_refused(tmp_path, shape):
    np.save(tmp_path / "points.npy", np.zeros(shape))
    with pytest.raises(UserError, match=r"must be a table with a row a point, got shape \("):
        read_points(tmp_path / "points.npy")


def test_a_file_executes_nothing(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("executed",))

    array = np.array([Trap()], dtype=object)
    with (tmp_path / "points.npy").open("wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=True)
    with pytest.raises(UserError, match="is not a table of numbers"):
        read_points(tmp_path / "points.npy")
    (tmp_path / "pure.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="is not a table of numbers"):
        read_points(tmp_path / "pure.npy")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: draw_points("moon", 5, 0), "unknown distribution 'moon'; choose from moons"),
        (lambda: draw_points("moons", 0, 0), "count must be at least 1, got 0"),
    ],
)
def test_impossible_draws_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
