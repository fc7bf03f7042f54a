"""The study of benchmarks/gpu: it runs at a toy's size, and the docs hold what its table says."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.gpu import merge, prune

ROOT = Path(__file__).parents[2]
LANDED = ROOT / "benchmarks" / "results" / "gpu" / "batch-magnitude-lite.json"


def test_a_toy_study_runs_and_its_table_can_be_made(tmp_path, capsys):
    out = tmp_path / "out"
    assert prune.main(["--toy", "--out", str(out), "--work", str(tmp_path / "work")]) == 0
    assert "batch-magnitude-lite     complete" in capsys.readouterr().out
    file = out / "batch-magnitude-lite.json"
    found = json.loads(file.read_text())
    assert (found["complete"], found["code"], len(found["rows"])) == (True, 0, 12)
    assert merge.main([str(file)]) == 0
    assert "| batch norm | magnitude | lite - off | accuracy |" in capsys.readouterr().out


def test_the_docs_hold_the_table_of_the_landed_results(capsys):
    assert merge.main([str(LANDED), "--means"]) == 0
    text = capsys.readouterr().out.strip()
    assert text in (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")


def test_a_dense_networks_seconds_count_once():
    dense = {"seed": 0, "cycle": 0, "seconds": 3.0}
    rows = [{**dense, "ap": "off"}, {**dense, "ap": "lite"}]
    assert prune._trained([*rows, {"seed": 0, "cycle": 1, "ap": "lite", "seconds": 2.0}]) == 5.0
