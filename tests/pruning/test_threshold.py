"""Exact selection over many tensors, against a stable sort of all of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rectified.errors import UserError
from rectified.pruning import threshold
from rectified.pruning.threshold import drop_smallest, drop_smallest_
from tests.leaving import leave

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def draws(seed: int, *sizes: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def as_masks(*rows: list[int]) -> dict[str, Tensor]:
    return {str(i): torch.tensor(row, dtype=torch.bool) for i, row in enumerate(rows)}


def named(tensors: list[Tensor]) -> dict[str, Tensor]:
    return {str(i): tensor for i, tensor in enumerate(tensors)}


def naive_drop(
    scores: dict[str, Tensor], masks: dict[str, Tensor], count: int
) -> dict[str, Tensor]:
    """Sort everything by score, then position."""
    entries = [
        (float(scores[name].flatten()[i]), position, i, name)
        for position, name in enumerate(masks)
        for i in masks[name].flatten().nonzero().flatten().tolist()
    ]
    dropped = {name: mask.clone() for name, mask in masks.items()}
    for _, _, i, name in sorted(entries)[:count]:
        dropped[name].view(-1)[i] = False
    return dropped


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert list(left) == list(right)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0)


def everywhere(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}


def assert_drops_as_a_sort(scores: dict[str, Tensor], data: st.DataObject) -> None:
    masks = everywhere(scores)
    finite = sum(int((score < math.inf).sum()) for score in scores.values())
    count = data.draw(st.integers(0, finite))
    assert_same(drop_smallest(scores, masks, count), naive_drop(scores, masks, count))


@given(
    values=st.lists(st.lists(st.floats(allow_nan=False, width=32), max_size=8), max_size=4),
    data=st.data(),
)
def test_any_float32_are_dropped_as_by_a_stable_sort(values: list[list[float]], data) -> None:
    assert_drops_as_a_sort(named([torch.tensor(row) for row in values]), data)


@given(values=st.lists(st.floats(allow_nan=False), max_size=12), data=st.data())
def test_any_float64_are_dropped_as_by_a_stable_sort(values: list[float], data) -> None:
    assert_drops_as_a_sort({"w": torch.tensor(values, dtype=torch.float64)}, data)


@given(
    rows=st.lists(
        st.lists(
            st.tuples(st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 2.0, 3.0]), st.booleans()),
            max_size=6,
        ),
        min_size=1,
        max_size=4,
    ),
    data=st.data(),
)
def test_drop_smallest_equals_a_stable_sort_among_many_ties(rows, data) -> None:
    scores = named([torch.tensor([score for score, _ in row]) for row in rows])
    masks = named([torch.tensor([kept for _, kept in row], dtype=torch.bool) for row in rows])
    count = data.draw(st.integers(0, sum(int(mask.sum()) for mask in masks.values())))
    assert_same(drop_smallest(scores, masks, count), naive_drop(scores, masks, count))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [0, 1, 617, 1100])
def test_drop_smallest_drops_exactly_the_count(dtype: torch.dtype, count: int) -> None:
    scores = named(draws(1, 1000, 234, dtype=dtype))
    masks = {name: score > -2.0 for name, score in scores.items()}
    assert_same(drop_smallest(scores, masks, count), naive_drop(scores, masks, count))


def test_tensors_longer_than_a_chunk_give_the_same_answer(monkeypatch) -> None:
    scores = {"a": draws(2, 90)[0].reshape(9, 10).round(), "b": draws(3, 35)[0].round()}
    masks = {name: score < 2 for name, score in scores.items()}
    whole = drop_smallest(scores, masks, 60)
    monkeypatch.setattr(threshold, "CHUNK", 7)
    assert_same(drop_smallest(scores, masks, 60), whole)
    assert_same(whole, naive_drop(scores, masks, 60))


def test_all_equal_scores_are_dropped_in_order_of_position() -> None:
    scores = {"first": torch.ones(2, 2), "second": torch.ones(3)}
    masks = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    dropped = drop_smallest(scores, masks, 5)
    assert dropped["first"].tolist() == [[False, False], [False, False]]
    assert dropped["second"].tolist() == [False, True, True]


def test_negative_zero_ties_with_zero() -> None:
    dropped = drop_smallest({"0": torch.tensor([0.0, -0.0])}, as_masks([1, 1]), 1)
    assert dropped["0"].tolist() == [False, True]


def test_layout_in_memory_does_not_change_the_order_of_ties() -> None:
    scores = {"w": torch.ones(2, 3, 2, 2).to(memory_format=torch.channels_last)}
    masks = {"w": torch.ones_like(scores["w"], dtype=torch.bool)}
    dropped = drop_smallest(scores, masks, 5)["w"]
    assert dropped.flatten().tolist() == [False] * 5 + [True] * 19


def test_scores_of_pruned_weights_do_not_count() -> None:
    masks = as_masks([0, 1, 1, 0])
    scores = {"0": torch.tensor([-9.0, 2.0, 1.0, math.nan])}
    assert drop_smallest(scores, masks, 1)["0"].tolist() == [False, True, False, False]


def test_infinite_scores_are_never_dropped() -> None:
    scores = {"0": torch.tensor([math.inf, 1.0, 2.0])}
    assert drop_smallest(scores, as_masks([1, 1, 1]), 2)["0"].tolist() == [True, False, False]
    with pytest.raises(UserError, match=r"count must be in \[0, 2\], the scores below inf, got 3"):
        drop_smallest(scores, as_masks([1, 1, 1]), 3)


def test_narrow_scores_beside_float64_ones_are_compared_exactly() -> None:
    scores = {
        "0": torch.tensor([0.1], dtype=torch.float32),
        "1": torch.tensor([0.1]).double() - 1e-12,
    }
    dropped = drop_smallest(scores, as_masks([1], [1]), 1)
    assert dropped["0"].tolist() == [True]
    assert dropped["1"].tolist() == [False]


def test_inputs_are_left_alone() -> None:
    scores, masks = {"0": torch.tensor([2.0, -0.0, 1.0])}, as_masks([1, 1, 1])
    for count in (0, 2):
        result = drop_smallest(scores, masks, count)
        result["0"].zero_()
        assert masks["0"].all()
        assert scores["0"].tolist() == [2.0, 0.0, 1.0]
        assert scores["0"][1].signbit()


def test_empty_tensors_are_skipped() -> None:
    scores = {"0": torch.ones(0), "1": torch.tensor([1.0, 2.0])}
    assert drop_smallest(scores, as_masks([], [1, 1]), 1)["1"].tolist() == [False, True]


@pytest.mark.parametrize("count", [-1, 3])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(UserError, match=rf"count must be in \[0, 2\], the kept .* got {count}"):
        drop_smallest({"0": torch.ones(3)}, as_masks([1, 1, 0]), count)


def test_nan_is_refused() -> None:
    with pytest.raises(UserError, match="must be numbers, got nan"):
        drop_smallest({"0": torch.tensor([1.0, math.nan])}, as_masks([1, 1]), 1)


def test_integers_are_refused() -> None:
    with pytest.raises(UserError, match=r"floating-point on every process, got torch\.int64"):
        drop_smallest({"0": torch.tensor([1, 2])}, as_masks([1, 1]), 1)


def test_masks_of_another_shape_name_or_dtype_are_refused() -> None:
    scores = {"0": torch.ones(2)}
    with pytest.raises(UserError, match=r"shapes \(2,\), got \(3,\)"):
        drop_smallest(scores, as_masks([1, 1, 1]), 1)
    with pytest.raises(UserError, match="every mask, missing 1"):
        drop_smallest(scores, as_masks([1, 1], [1]), 1)
    with pytest.raises(UserError, match=r"masks must be torch\.bool, got torch\.float32"):
        drop_smallest(scores, {"0": torch.ones(2)}, 1)


def test_a_key_ranks_without_a_copy_as_scores_that_were_made_before() -> None:
    weights = named(draws(6, 500, 77))
    masks = {name: w < 1 for name, w in weights.items()}
    scores = {name: w.abs() for name, w in weights.items()}
    wanted = drop_smallest(scores, masks, 200)
    assert_same(drop_smallest(weights, masks, 200, key=torch.abs), wanted)
    drop_smallest_(weights, masks, 200, key=torch.abs)
    assert_same(masks, wanted)


def test_masks_that_are_changed_in_place_must_be_contiguous() -> None:
    masks = {"w": torch.ones(2, 3, dtype=torch.bool).T}
    with pytest.raises(UserError, match=r"masks must be contiguous .* 'w' is not"):
        drop_smallest_({"w": torch.ones(3, 2)}, masks, 1)


def shards() -> list[dict[str, Tensor]]:
    """Two processes' scores, full of ties, one of them with a float64 layer."""
    first = {"a": draws(4, 40)[0].mul(2).round(), "b": torch.zeros(5)}
    second = {"a": draws(5, 40)[0].mul(2).round(), "b": torch.zeros(7, dtype=torch.float64)}
    return [first, second]


def everything(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: score < 4 for name, score in scores.items()}


COUNTS = [0, 1, 30, 46, 52, 70]


def one_process_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    scores = shards()[rank]
    world = dist.group.WORLD
    results: dict[str, object] = {
        "masks": [drop_smallest(scores, everything(scores), n, group=world) for n in COUNTS],
        "alone": drop_smallest(scores, everything(scores), 1),
    }
    spoiled = {"a": torch.tensor([math.nan if rank else 1.0])}
    try:
        drop_smallest(spoiled, everywhere(spoiled), 1, group=world)
    except UserError as error:
        results["error"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    leave()


def test_two_processes_with_a_shard_each_agree_with_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_process_of_two, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    # Equal scores go by tensor first, then by process: as if the shards were whole tensors.
    scores = {f"{rank}{name}": shards()[rank][name] for name in ("a", "b") for rank in range(2)}
    masks = everything(scores)
    for i, count in enumerate(COUNTS):
        pooled = {
            f"{rank}{n}": results[rank]["masks"][i][n] for n in ("a", "b") for rank in range(2)
        }
        assert_same(pooled, drop_smallest(scores, masks, count))
    for result, own in zip(results, shards(), strict=True):
        assert_same(result["alone"], drop_smallest(own, everything(own), 1))
    assert all("got nan" in result["error"] for result in results)
