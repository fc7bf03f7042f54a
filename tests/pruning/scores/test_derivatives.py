"""What the scores that use gradients share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from rectified.errors import UserError
from rectified.pruning.scores import SNIP, Gradient, GraSP, Score, Snapshot
from rectified.pruning.scores.derivatives import reduce_across_processes
from tests.leaving import leave
from tests.pruning.scores.snapshots import classify, perceptron, snapshot_of


def test_scores_of_weights_that_the_loss_does_not_use_are_zero() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 3), "unused": nn.Linear(2, 3)})
    snapshot = snapshot_of(model, 2)
    snapshot = replace(snapshot, objective=lambda m, batch: classify(m["used"], batch))
    assert Gradient()(snapshot)["unused.weight"].count_nonzero() == 0


GRADIENT_SCORES = [Gradient(), SNIP(), GraSP()]


@pytest.mark.parametrize("score", GRADIENT_SCORES, ids=repr)
def test_gradient_scores_need_an_objective_and_a_batch(score: Score) -> None:
    snapshot = snapshot_of(perceptron(3, 3), 3)
    with pytest.raises(UserError, match=r"objective must be given .* got None"):
        score(replace(snapshot, objective=None))
    with pytest.raises(UserError, match="at least one batch, got none"):
        score(replace(snapshot, batches=[]))


@pytest.mark.parametrize(
    ("make_score", "message"),
    [
        (lambda: Gradient(batches=0), "batches must be at least 1, got 0"),
        (lambda: SNIP(batches=-1), "batches must be at least 1, got -1"),
        (lambda: GraSP(batches=0), "batches must be at least 1, got 0"),
        (lambda: Gradient(at="end"), "unknown moment 'end'; choose from initial, trained"),
        (lambda: GraSP(at="end"), "unknown moment 'end'; choose from initial, trained"),
    ],
)
def test_values_out_of_range_are_refused(make_score: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_score()


def test_reducing_within_one_process_changes_nothing() -> None:
    values = {"w": torch.ones(2)}
    assert reduce_across_processes(values) is values


SPLIT_SCORES = [Gradient(), SNIP(), GraSP()]


def split_snapshot() -> Snapshot:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return snapshot_of(perceptron(3, 4, 3), 3)


def score_one_batch_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    whole = split_snapshot()
    part = replace(whole, batches=whole.batches[rank : rank + 1])
    results = [score(part) for score in SPLIT_SCORES]
    results.append(reduce_across_processes({"w": torch.tensor([float(rank)])}))
    torch.save(results, f"{folder}/{rank}.pt")
    leave()


def test_two_processes_with_a_batch_each_agree_with_one_that_has_both(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(score_one_batch_of_two, (str(tmp_path),), nprocs=2)
    expected = [replace(score, batches=2)(split_snapshot()) for score in SPLIT_SCORES]
    expected.append({"w": torch.tensor([0.5])})
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)
