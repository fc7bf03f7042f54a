"""The study of flows: what it trains, how it goes on, and what it warns of."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest

from rectified import flow
from rectified.cli import main
from rectified.errors import UserError
from rectified.jobs.flow import pairs, plan, training
from rectified.jobs.flow.networks import as_field, build_network
from rectified.jobs.flow.settings import DEFAULT, FlowConfig, resolve
from rectified.jobs.flow.study import check
from rectified.jobs.flow.trial import trial_of
from rectified.jobs.flow.warnings import warnings
from rectified.jobs.job import Context, html, open_run
from rectified.runs import FileStore, Run, read_results
from tests.jobs.conftest import quick_studies
from tests.jobs.flow.running import FAST, of, refused, run

quick = pytest.mark.usefixtures("no_figures", "untrained")


# ---- training that is what it is said to be


@quick
def test_recipes_of_a_round_are_trained_on_the_same_pairs(study):
    _, results = study
    for seed in (0, 1):
        notes = [n for n in results["notes"].values() if n["seed"] == seed and n["round"] == 2]
        assert len({note["pairs_distance"] for note in notes}) == 1
    later = [n for n in results["notes"].values() if n["round"] == 3 and n["seed"] == 0]
    assert len({note["pairs_distance"] for note in later}) > 1  # each on its own recipe's


@quick
def test_seeds_do_not_depend_on_each_other(tmp_path, study):
    _, results = study
    flags = "--data moons --source gaussians8 --recipe 2rf --rounds 2 --seed 1"
    alone = run(tmp_path / "run", flags)
    for row in alone["rows"]:
        (same,) = of(results, **{k: row[k] for k in ("recipe", "round", "solver", "steps", "seed")})
        assert same == row


@quick
def test_more_training_brings_the_flow_nearer(tmp_path):
    flags = "--data gaussians8 --limit 2000 --samples 300 --rounds 1 --batch-size 128 --steps 20"
    near, far = (
        run(tmp_path / str(n), f"{flags} --updates {n} --learning-rate 0.003")["rows"][0][
            "distance"
        ]
        for n in (400, 1)
    )
    assert near < 0.7 * far


# ---- going on


STOPPED = "--data moons --recipe 2rf++ --distil"


@contextmanager
def in_small_parts():
    """Of three updates and ten pairs, so that there is much to stop between."""
    with quick_studies(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "SHARD", 10)
        patch.setattr(plan, "updates_per_epoch", lambda updates: min(updates, 3))
        yield


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory):
    with in_small_parts():
        return run(tmp_path_factory.mktemp("whole") / "run", STOPPED)


@pytest.mark.parametrize(
    ("owner", "what", "stop"),
    [(FileStore, "save", 2), (FileStore, "save", 5), (flow.PairStore, "write", 3)],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_rows(
    tmp_path, monkeypatch, unstopped, owner, what, stop
):
    """Between parts of a training, between rounds, between shards of pairs."""
    plain, count = getattr(owner, what), 0

    def stops(self, *arguments):
        nonlocal count
        plain(self, *arguments)
        count += 1
        if count == stop:
            raise KeyboardInterrupt

    with in_small_parts():
        with monkeypatch.context() as patched:
            patched.setattr(owner, what, stops)
            words = [*FAST.split(), *STOPPED.split()]
            assert main(["flow", "--out", str(tmp_path / "cut"), *words]) == 130
        assert count == stop
        assert main(["flow", "--resume", str(tmp_path / "cut"), "--quiet"]) == 0
    resumed = read_results(tmp_path / "cut")
    for name in ("rows", "notes", "summary"):
        assert resumed[name] == unstopped[name]


@quick
def test_a_damaged_shard_is_named_and_the_run_goes_on_without_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pairs, "SHARD", 10)
    train, calls = training.fit, []

    def second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(training, "fit", second)
        assert main(["flow", "--out", str(tmp_path / "run"), *FAST.split()]) == 130
    (shard,) = (tmp_path / "run" / "checkpoint").rglob("pairs-00002.safetensors")
    shard.write_bytes(b"damaged")
    capsys.readouterr()
    assert main(["flow", "--resume", str(tmp_path / "run"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert str(shard) in said
    assert "remove that file and run again" in said
    shard.unlink()
    assert main(["flow", "--resume", str(tmp_path / "run"), "--quiet"]) == 0


@quick
def test_a_store_of_another_model_is_refused(tmp_path):
    config = FlowConfig(pairs=20, updates=1, samples=4, limit=50, seed=0, batch_size=4)
    known = check(resolve(config))
    one = trial_of(known, 0, Context(Run(tmp_path / "run")))
    first, reflow, *_ = known.stages
    field, other = (
        as_field(known, one, build_network("mlp", (2,), 0, seed=seed)) for seed in (0, 1)
    )
    pairs.make_pairs(known, one, reflow, first, field)
    with pytest.raises(UserError, match=r"holds pairs of another model .* remove it"):
        pairs.make_pairs(known, one, reflow, first, other)


# ---- what a user is warned of


@quick
def test_noise_on_a_path_of_large_gain_is_warned_of(tmp_path, capsys):
    results = run(tmp_path / "a", "--predict noise --path vp_linear --rounds 1")
    assert "terminal gain 152: one step multiplies the error" in results["warnings"][0]
    assert f"Mind this\n  {results['warnings'][0]}" in capsys.readouterr().out
    results = run(tmp_path / "b", "--predict noise --rounds 1")
    assert "terminal gain infinite" in results["warnings"][0]
    assert run(tmp_path / "c", "--predict v_prediction --rounds 1")["warnings"] == []


@quick
def test_renoise_where_it_is_not_safe_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr("rectified.jobs.flow.warnings.RENOISE_GAP", 0.0)
    results = run(tmp_path / "run", "--solver renoise --rounds 1 --steps 1,9")
    assert any("no consistent solver" in words for words in results["warnings"])
    assert any("worse with more than 8 steps" in words for words in results["warnings"])


@quick
def test_renoise_is_tried_only_where_it_is_safe(tmp_path, monkeypatch):
    steps = "--steps 1,2,8,9"
    monkeypatch.setattr(plan, "RENOISE_GAP", math.inf)
    safe = run(tmp_path / "a", steps)
    assert {(r["round"], r["steps"]) for r in of(safe, solver="renoise")} == {(2, 2), (2, 8)}
    monkeypatch.setattr(plan, "RENOISE_GAP", 0.0)
    assert of(run(tmp_path / "b", steps), solver="renoise") == []


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("data", ["moons"])
def test_a_flow_that_has_diverged_is_told_and_no_crash(tmp_path, capsys, data):
    """In its last update, after which there is no loss to see it by."""
    flags = f"--data {data} --learning-rate 1e38 --ema 0 --updates 1"
    results = run(tmp_path / "run", f"{flags} --rounds 1")
    assert any("has diverged: its samples grow without bound" in w for w in results["warnings"])
    assert all(row["straightness"] is None for row in results["rows"])
    for opened in (open_run(tmp_path / "run").text, html(open_run(tmp_path / "run"))):
        assert "has diverged" in opened
        assert "nan" not in opened.lower().split()
    assert "is not finite: what makes the pairs diverges" in refused(
        capsys, tmp_path / "two", f"{flags} --rounds 2"
    )


def test_a_training_that_diverges_is_one_line(tmp_path, capsys):
    said = refused(capsys, tmp_path / "run", "--learning-rate 1e38")
    assert "the loss is nan in epoch 1: lower learning_rate" in said


def test_pairs_that_look_exchanged_are_warned_of():
    notes = {"a": {"first_order_gap": 0.1, "oriented": False, "has_diverged": False}}
    assert warnings(resolve(DEFAULT), notes) == [
        "The pairs of a look exchanged: x1 is nearer to noise than x0."
    ]
