"""Sparse programs compute what PyTorch's dense operations do."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("numba")

from rectified.inference.sparse import program
from rectified.inference.sparse.builder import Builder
from rectified.inference.sparse.kernels import LANES
from rectified.inference.sparse.layout import Value, Window

ONE = Window()


def draw(*shape: int, seed: int = 0, density: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=generator) < density
    return torch.randn(shape, generator=generator) * kept


def convolved(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    window: Window,
    *,
    groups: int = 1,
    threads: int = 1,
    halo: int | None = None,
) -> torch.Tensor:
    builder = Builder(halo=window.halo if halo is None else halo)
    value = builder.input(tuple(x.shape[1:]))
    result = builder.convolution(value, weight.numpy(), bias.numpy(), window, groups=groups)
    builder.output(result, flat=False)
    built = builder.finish(threads)
    built(x + 1)  # a second call must not see what the first left behind
    return built(x)[0]


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (5, 3)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 2)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution_equals_the_dense_one(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> None:
    window = Window(kernel, stride, padding, dilation)
    weight, bias = draw(8, 4 // groups, *kernel, density=0.4, seed=1), draw(8, seed=2)
    for height, width in ((11, 9), (16, 16)):
        x = draw(3, 4, height, width)
        expected = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        got = convolved(x, weight, bias, window, groups=groups)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (8, 8), (32, 32), (3, 70)])
def test_every_density_and_image_size_is_exact(density: float, size: tuple[int, int]) -> None:
    x = draw(2, 20, *size)
    weight, bias = draw(24, 20, 3, 3, density=density, seed=1), draw(24, seed=2)
    expected = F.conv2d(x, weight, bias, padding=1)
    got = convolved(x, weight, bias, Window((3, 3), (1, 1), (1, 1)))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-5)


def test_a_wider_halo_than_needed_changes_nothing() -> None:
    x, weight, bias = draw(1, 4, 9, 9), draw(4, 4, 3, 3, seed=1), draw(4, seed=2)
    window = Window((3, 3), (2, 2), (1, 1))
    narrow = convolved(x, weight, bias, window)
    wide = convolved(x, weight, bias, window, halo=3)
    torch.testing.assert_close(wide, narrow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 5])
def test_threads_do_not_change_the_result(threads: int, batch: int) -> None:
    x = draw(batch, 64, 32, 32)
    weight, bias = draw(64, 64, 3, 3, density=0.2, seed=1), draw(64, seed=2)
    window = Window((3, 3), (1, 1), (1, 1))
    alone = convolved(x, weight, bias, window)
    torch.testing.assert_close(
        convolved(x, weight, bias, window, threads=threads), alone, rtol=0, atol=0
    )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, lanes: int) -> torch.Tensor:
    builder = Builder(lanes=lanes)
    value = builder.input((weight.shape[1],))
    result = builder.convolution(value, weight[:, :, None, None].numpy(), bias.numpy(), Window())
    builder.output(result, flat=True)
    return builder.finish(1)(x)[0]


@pytest.mark.parametrize("batch", [1, 2, 15, 16, 17, 100, 129])
@pytest.mark.parametrize("vectors", [0, 1, 2, 4, 8])
def test_linear_layers_equal_the_dense_one_at_any_batch(batch: int, vectors: int) -> None:
    x, weight, bias = draw(batch, 77), draw(45, 77, density=0.3, seed=1), draw(45, seed=2)
    got = linear(x, weight, bias, LANES * vectors or 1)
    torch.testing.assert_close(got, F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


def test_more_inputs_than_the_cache_holds_are_summed_in_blocks() -> None:
    x, weight, bias = draw(128, 3000), draw(40, 3000, density=0.1, seed=1), draw(40, seed=2)
    got = linear(x, weight, bias, 8 * LANES)
    torch.testing.assert_close(got, F.linear(x, weight, bias), rtol=1e-5, atol=1e-4)


def test_offsets_beyond_sixteen_bits_are_exact() -> None:
    x, weight, bias = draw(1, 80, 32, 32), draw(4, 80, 3, 3, seed=1), draw(4, seed=2)
    expected = F.conv2d(x, weight, bias, padding=1)
    got = convolved(x, weight, bias, Window((3, 3), (1, 1), (1, 1)))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_nan_in_the_input_stays_where_it_belongs() -> None:
    x, weight, bias = draw(1, 2, 6, 6), torch.ones(1, 2, 3, 3), torch.zeros(1)
    x[0, 0, 0, 5] = float("nan")
    builder = Builder(halo=1)
    window = Window((3, 3), (1, 1), (1, 1))
    value = builder.input((2, 6, 6))
    result = builder.convolution(value, weight.numpy(), bias.numpy(), window, floor=0.0)
    builder.output(result, flat=False)
    expected = F.conv2d(x, weight, bias, padding=1).relu()
    got = builder.finish(1)(x)[0]
    torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride"), [((2, 2), (2, 2)), ((3, 2), (1, 3)), ((9, 8), (1, 1))]
)
def test_pools_equal_the_dense_ones(
    mean: bool, kernel: tuple[int, int], stride: tuple[int, int]
) -> None:
    x = draw(2, 3, 9, 8)
    for halo in (0, 1):
        builder = Builder(halo=halo)
        builder.output(
            builder.pool(builder.input((3, 9, 8)), Window(kernel, stride), mean=mean), flat=False
        )
        expected = (F.avg_pool2d if mean else F.max_pool2d)(x, kernel, stride)
        torch.testing.assert_close(builder.finish(1)(x)[0], expected)


@pytest.mark.parametrize("halo", [0, 1])
@pytest.mark.parametrize("size", [4, 5])
def test_sums_slices_and_channels_equal_the_dense_ones(halo: int, size: int) -> None:
    x, y = draw(2, 3, size, size), draw(2, 3, size, size, seed=1)
    builder = Builder(halo=halo)
    first, second = builder.input((3, size, size)), builder.input((3, size, size))
    total = builder.add(first, second, floor=0.0)
    joined = builder.concatenate([first, total, second], before=2, after=1)
    half = builder.subsample(joined, range(0, size, 2), range(1, size, 3))
    for value in (total, joined, half):
        builder.output(value, flat=False)
    builder.output(builder.flatten(total), flat=True)
    got = builder.finish(1)(x, y)
    zeros = torch.zeros_like(x)
    expected = (x + y).relu()
    everything = torch.cat([zeros[:, :2], x, expected, y, zeros[:, :1]], 1)
    torch.testing.assert_close(got[0], expected)
    torch.testing.assert_close(got[1], everything)
    torch.testing.assert_close(got[2], everything[:, :, ::2, 1::3])
    torch.testing.assert_close(got[3], expected.flatten(1))


def test_places_that_are_free_are_used_again_with_clean_borders() -> None:
    x, bias = draw(1, 4, 8, 8), np.zeros(4, np.float32)
    weights = [draw(4, 4, 3, 3, seed=seed) for seed in range(6)]
    window = Window((3, 3), (1, 1), (1, 1))
    builder = Builder(halo=1)
    value, expected = builder.input((4, 8, 8)), x
    starts = set()
    for weight in weights:
        before, value = value, builder.convolution(value, weight.numpy(), bias, window)
        builder.release(before)
        starts.add(value.start)
        expected = F.conv2d(expected, weight, padding=1)
    builder.output(value, flat=False)
    assert len(starts) == 2
    got = builder.finish(1)(x)[0]
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_value_counts_its_floats() -> None:
    value = Value(channels=2, height=3, width=4, halo=1, start=100)
    assert (value.pitch, value.plane, value.origin) == (5, 20, 106)
    last = value.origin + value.plane + 2 * value.pitch + 3
    assert value.start + value.size - 1 == last + value.pitch + 1  # the border below and beside


@pytest.mark.parametrize("width", [16, 32, 64, 128, 144])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("density", [0.05, 1.0])
def test_tiles_of_whole_rows_compute_the_same(
    width: int, kernel: int, threads: int, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "GANG_WORK", 0)
    window = Window((kernel, kernel), (1, 1), (kernel // 2, kernel // 2))
    weight = draw(24, 6, kernel, kernel, density=density, seed=1)
    bias = draw(24, seed=2)
    for height in (1, 13, 16):
        x = draw(1, 6, height, width)
        got = convolved(x, weight, bias, window, threads=threads)
        assert (got - F.conv2d(x, weight, bias, padding=kernel // 2)).abs().max() < 1e-4
        # The sum with another image and a ReLU, both in the last operation.
        builder = Builder(halo=window.halo)
        value = builder.input(tuple(x.shape[1:]))
        wide = builder.convolution(value, weight.numpy(), bias.numpy(), window)
        both = builder.convolution(
            value, weight.numpy(), bias.numpy(), window, initial=wide, floor=0.0
        )
        builder.output(both, flat=False)
        doubled = F.relu(2 * F.conv2d(x, weight, bias, padding=kernel // 2))
        assert (builder.finish(threads)(x)[0] - doubled).abs().max() < 1e-4


def test_inputs_whose_planes_share_cache_lines_are_gathered() -> None:
    builder = Builder()
    value = builder.input((4, 32, 32))
    for outputs in (1, 24):  # read rarely, and often enough
        builder.convolution(value, np.ones((outputs, 4, 1, 1), np.float32), np.zeros(outputs), ONE)
    assert [int(row["gathers"]) for row in builder.finish(1)._built[0]] == [0, 4]


@pytest.mark.parametrize("threads", [1, 2])
def test_work_is_counted_over_the_whole_image(threads: int) -> None:
    weight, bias = np.ones((8, 4, 1, 1), np.float32), np.zeros(8, np.float32)
    for width in (32, 33):  # in tiles of rows, and flat
        builder = Builder()
        builder.output(builder.convolution(builder.input((4, 20, width)), weight, bias, ONE), False)
        work = builder.finish(threads)._work
        assert 8 * 4 * 20 * width <= LANES * work <= 1.2 * 8 * 4 * 20 * width


@pytest.mark.parametrize(
    "features",
    ["+avx2,+fma,+avx,+sse4.2,+popcnt", pytest.param("+sse4.2", marks=pytest.mark.slow)],
)
def test_narrower_vectors_compute_the_same(features: str) -> None:
    from llvmlite import binding

    if "x86_64" not in binding.get_process_triple():
        pytest.skip("these are widths of x86")
    code = (
        "import torch, torch.nn.functional as F\n"
        "from test_sparse_builder import LANES, Window, convolved, draw, linear\n"
        "x, w, b = draw(2, 6, 9, 9), draw(8, 6, 3, 3, density=0.5, seed=1), draw(8, seed=2)\n"
        "for s in (1, 2):\n"
        "    y = convolved(x, w, b, Window((3, 3), (s, s), (1, 1)))\n"
        "    assert (y - F.conv2d(x, w, b, s, 1)).abs().max() < 1e-5\n"
        "x = draw(1, 6, 7, 32)\n"
        "y = convolved(x, w, b, Window((3, 3), (1, 1), (1, 1)))\n"
        "assert (y - F.conv2d(x, w, b, 1, 1)).abs().max() < 1e-5\n"
        "x, w, b = draw(37, 21), draw(30, 21, density=0.5, seed=1), draw(30, seed=2)\n"
        "assert (linear(x, w, b, 4 * LANES) - F.linear(x, w, b)).abs().max() < 1e-5\n"
        "print(LANES)\n"
    )
    environment = os.environ | {
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": features,
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["8" if "avx2" in features else "4"], done.stderr
