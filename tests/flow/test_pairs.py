"""The store of pairs: whole shards or none, and nobody else's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rectified.errors import UserError
from rectified.flow import PairStore, fingerprint, noise_like
from rectified.flow.pairs import fill

COUNT, SHARD = 25, 10  # three shards, the last of 5


def store(folder: Path, **changes) -> PairStore:
    facts = {"model": "a", "steps": 4}
    given = {"count": COUNT, "shard": SHARD, "seed": 7, "identity": facts, **changes}
    return PairStore(folder / "pairs", **given)


def make(seed: int, count: int) -> dict[str, torch.Tensor]:
    return {"x1": noise_like((count, 2), seed) + 1, "labels": torch.arange(count)}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "pairs").iterdir())


def test_what_was_made_is_what_is_read(tmp_path):
    kept = store(tmp_path)
    assert kept.shards == 3
    assert [kept.size(i) for i in range(3)] == [10, 10, 5]
    fill(kept, make)
    found = store(tmp_path).load()  # opened anew
    parts = [make(7 + i, kept.size(i)) for i in range(3)]
    for name in ("x1", "labels"):
        assert torch.equal(found[name], torch.cat([part[name] for part in parts]))
        assert len(found[name]) == COUNT


def test_noise_is_made_again_from_its_seed():
    assert torch.equal(noise_like((5, 2), 3), noise_like((5, 2), 3))
    assert not torch.equal(noise_like((5, 2), 3), noise_like((5, 2), 4))
    assert noise_like((5, 2), 3, dtype=torch.float64).dtype == torch.float64
    # the same on every machine: the first numbers, as printed by this expression on a first one
    assert noise_like((1, 2), 3)[0].tolist() == pytest.approx([1.41817, -0.68236], abs=1e-4)


def test_filling_goes_on_where_it_stopped(tmp_path):
    made = []

    def stops(seed, count):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(seed)
        return make(seed, count)

    with pytest.raises(KeyboardInterrupt):
        fill(store(tmp_path), stops)
    assert store(tmp_path).missing() == [2]
    fill(store(tmp_path), lambda seed, count: made.append(seed) or make(seed, count))
    assert made == [7, 8, 9]
    fill(store(tmp_path), lambda *_: pytest.fail("nothing is missing"))
    assert len(store(tmp_path).load()["x1"]) == COUNT


def test_a_kill_loses_at_most_the_shard_in_work(tmp_path):
    script = (
        "import signal, sys, torch\n"
        "from pathlib import Path\n"
        "from rectified.flow.pairs import PairStore, fill, noise_like\n"
        "def make(seed, count):\n"
        "    if seed == 2:\n"
        "        print('now', flush=True)\n"
        "        signal.pause()\n"
        "    return {'x1': noise_like((count, 2), seed)}\n"
        "fill(PairStore(Path(sys.argv[1]), count=40, shard=10), make)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "pairs")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout.readline() == "now\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = PairStore(tmp_path / "pairs", count=40, shard=10)
    assert kept.missing() == [2, 3]
    assert torch.equal(kept.read(1)["x1"], noise_like((10, 2), 1))
    fill(kept, lambda seed, count: {"x1": noise_like((count, 2), seed)})
    assert torch.equal(kept.load()["x1"][20:30], noise_like((10, 2), 2))


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    kept = store(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        kept.write(0, make(7, 10))
    assert files(tmp_path) == ["store.json"]


@pytest.mark.parametrize("damage", [b"", b"not a shard", None])
def test_a_damaged_shard_is_named_and_alone_made_anew(tmp_path, damage):
    kept = store(tmp_path)
    fill(kept, make)
    whole = kept.load()
    path = kept.path(1)
    path.write_bytes(path.read_bytes()[:-7] if damage is None else damage)
    with pytest.raises(UserError, match=r"pairs-00001.safetensors is damaged .* remove that file"):
        store(tmp_path).load()
    path.unlink()
    made = []
    fill(store(tmp_path), lambda seed, count: made.append(seed) or make(seed, count))
    assert made == [8]
    assert torch.equal(store(tmp_path).load()["x1"], whole["x1"])


def test_a_shard_of_another_size_is_named(tmp_path):
    kept = store(tmp_path)
    fill(kept, make)
    kept.path(0).write_bytes(kept.path(2).read_bytes())  # 5 pairs instead of 10
    with pytest.raises(UserError, match=r"pairs-00000\S* must hold 10 pairs, got \[5\]"):
        kept.load()


def test_shards_of_different_things_are_named(tmp_path):
    kept = store(tmp_path)
    fill(kept, make)
    kept.write(1, {"x1": torch.zeros(10, 2)})
    with pytest.raises(UserError, match=r"pairs-00001\S* holds x1, the first shard labels, x1"):
        kept.load()


def test_an_unfinished_store_cannot_be_read(tmp_path):
    kept = store(tmp_path)
    kept.write(1, make(8, 10))
    with pytest.raises(UserError, match="lacks 2 of 3 shards: fill it first"):
        kept.load()
    with pytest.raises(UserError, match=r"pairs-00000\S* is damaged or missing"):
        kept.read(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": {"model": "b", "steps": 4}}, r"another model \('a', wanted 'b'\)"),
        ({"identity": {"model": "a", "steps": 8}}, r"another steps \(4, wanted 8\)"),
        ({"identity": {"model": "a", "steps": 4, "guidance": 2.0}}, "another guidance"),
        ({"count": 30}, r"another count \(25, wanted 30\)"),
        ({"shard": 5}, "another shard"),
        ({"seed": 8}, "another seed"),
    ],
)
def test_a_store_of_something_else_is_refused(tmp_path, changes, message):
    store(tmp_path)
    with pytest.raises(UserError, match=f"{message}.*give another folder, or remove it"):
        store(tmp_path, **changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ('{"a":' * 100_000, "is damaged"),
        ("[]", "is not a store of pairs that this version reads"),
        ('{"format": 99}', "is not a store of pairs that this version reads"),
    ],
)
def test_a_foreign_folder_is_refused(tmp_path, content, message):
    store(tmp_path)
    (tmp_path / "pairs" / "store.json").write_text(content)
    with pytest.raises(UserError, match=rf"store.json {message}"):
        store(tmp_path)


def test_another_order_of_time_is_refused(tmp_path):
    store(tmp_path)
    file = tmp_path / "pairs" / "store.json"
    facts = json.loads(file.read_text())
    assert facts["order"] == "t = 0 source, t = 1 target"
    file.write_text(json.dumps({**facts, "order": "t = 1 source, t = 0 target"}))
    with pytest.raises(UserError, match=r"another order \('t = 1 source"):
        store(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pairs_that_are_not_finite_are_refused(tmp_path, value):
    kept = store(tmp_path)
    bad = make(7, 10)
    bad["x1"][3, 1] = value
    with pytest.raises(UserError, match="x1 of shard 0 is not finite: what makes the pairs"):
        kept.write(0, bad)
    assert kept.missing() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"shard": 0}, "shard must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_impossible_stores_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        store(tmp_path, **changes)
    assert not (tmp_path / "pairs").exists()


def test_a_tensor_has_a_row_a_pair(tmp_path):
    with pytest.raises(UserError, match="x1 must have 10 rows in shard 0, got 9"):
        store(tmp_path).write(0, {"x1": torch.zeros(9, 2)})


def test_a_fingerprint_is_of_weights_alone():
    torch.manual_seed(0)
    one, other = nn.Linear(2, 3), nn.Linear(2, 3)
    assert fingerprint(one) != fingerprint(other)
    other.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(other)
    with torch.no_grad():
        other.weight[0, 0] += 1e-7 + other.weight[0, 0].abs() * 1e-6
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(nn.Linear(2, 3).bfloat16())  # a type that NumPy does not have
