"""`rectified protein`: one command from chains to a report, resumable, with clear refusals."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import gemmi
import pytest
import torch

from rectified.cli import main
from rectified.errors import UserError
from rectified.jobs.job import open_run, perform
from rectified.jobs.protein import JOB, measuring, pairs, samples, study
from rectified.jobs.protein.settings import PRESETS, ProteinConfig, resolve
from rectified.protein import model as protein_model
from rectified.protein.chain_sets import save_set
from rectified.protein.checkpoints import load_checkpoint
from rectified.protein.se3_flow import prior
from rectified.protein.structure_files import ChainSet
from rectified.runs import Run
from tests.protein.conftest import SMALL, chain, helix, strand

ROW = (
    *("seed", "round", "steps", "length", "ca_bond_valid", "clashes_per_100", "helix", "strand"),
    *("radius_of_gyration", "seconds_per_sample"),
)
DEFAULT = ProteinConfig()
QUICK = replace(
    DEFAULT,
    lengths=(12,),
    steps=(4, 3),
    samples=3,
    crop=12,
    shortest=12,
    epochs=2,
    batch_size=2,
    pairs=4,
    pair_steps=3,
    reflow_epochs=1,
    seeds=1,
)


@pytest.fixture(scope="module", autouse=True)
def small_network():
    before = dict(protein_model.SIZES)
    windows = measuring._REAL
    protein_model.SIZES["tiny"], measuring._REAL = SMALL, 8
    yield
    protein_model.SIZES.update(before)
    measuring._REAL = windows


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "chains.npz"
    chains = [chain((helix, strand)[n % 2](20 + n), f"c{n}_A", n) for n in range(4)]
    save_set(
        path, ChainSet([*chains, chain(helix(8), "short_A", 9)], [chain(helix(15), "held_A", 8)])
    )
    return str(path)


def results(path):
    return json.loads((path / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    folder = Run(tmp_path_factory.mktemp("protein") / "run")
    text = perform(
        JOB, replace(QUICK, data=data), folder, {"command": "rectified protein"}, False
    ).text
    folder.close()
    return folder.path, text


def test_rows_and_summary_have_the_public_fields(finished):
    found = results(finished[0])
    assert found["verb"] == "protein"
    assert {tuple(row) for row in found["rows"]} == {ROW}
    places = [(row["round"], row["steps"]) for row in found["rows"]]
    assert places == [(1, 4), (1, 3), (2, 4), (2, 3)]
    (keys,) = {tuple(row) for row in found["summary"]}
    assert keys[:3] == ("round", "steps", "length")
    assert "ca_bond_valid_mean" in keys
    assert all(0 <= row["ca_bond_valid"] <= 1 for row in found["rows"])


def test_the_folder_holds_weights_samples_and_no_checkpoint(finished):
    path, _ = finished
    assert not (path / "checkpoint").exists()
    assert load_checkpoint(path).sizes == SMALL
    assert (path / "round1.safetensors").is_file()
    files = sorted((path / "samples").glob("round2-length12-steps3-*.pdb"))
    assert len(files) == 4  # three samples and the way of one
    for file in files:
        assert len(gemmi.read_structure(str(file))[0][0]) == 12
    assert (path / "samples" / "round2-length12-steps3-way.pdb").read_text().count("MODEL ") == 4


def test_the_report_and_the_text_say_what_was_found(finished):
    path, text = finished
    page = (path / "report.html").read_text()
    for words in ("Validity against steps", "Ramachandran", "real chains", "data-pdb", "short_A"):
        assert words in page
    assert "mathdefault" not in page
    assert "points: 3 steps after reflow, 12 residues against 3 before" in text
    assert "1 chains could not be used" in text
    details = json.loads((path / "details.json").read_text())
    assert details["real"]["12"]["values"]["ca_bond_valid"][0] == 1
    titles = [one.title for one in open_run(path).sections]
    assert titles[0] == "What was found"


def same(a, b):
    """Rows but for the seconds."""
    return [{k: v for k, v in row.items() if k != "seconds_per_sample"} for row in a] == [
        {k: v for k, v in row.items() if k != "seconds_per_sample"} for row in b
    ]


@pytest.mark.parametrize("where", ["measuring", "pairs", "reflow"])
def test_a_killed_run_goes_on_to_the_same_result(finished, data, tmp_path, monkeypatch, where):
    calls = []
    if where == "measuring":
        target, name, killed_at = study._Study, "_measure", 2
    elif where == "pairs":
        target, name, killed_at = study._Study, "_sampled", 3
    else:
        target, name, killed_at = study, "fit", 2
    real = getattr(target, name)

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(target, name, killed)
    first = Run(tmp_path / "run")
    config = replace(QUICK, data=data)
    with pytest.raises(KeyboardInterrupt):
        perform(JOB, config, first, {}, False)
    first.close()
    again = Run(tmp_path / "run", resume=True)
    perform(JOB, config, again, {}, False)
    again.close()
    assert same(results(tmp_path / "run")["rows"], results(finished[0])["rows"])


def test_published_weights_are_measured_without_data(finished, tmp_path):
    folder = Run(tmp_path / "run")
    config = replace(
        DEFAULT, checkpoint=str(finished[0]), rounds=1, lengths=(12,), steps=(3,), samples=2
    )
    text = perform(JOB, config, folder, {}, False).text
    folder.close()
    assert "first flow" in text
    whole = load_checkpoint(finished[0]).state_dict()
    kept = load_checkpoint(tmp_path / "run").state_dict()
    assert all(torch.equal(whole[name], kept[name]) for name in whole)


def test_a_few_seeds_give_a_row_each(data, tmp_path):
    folder = Run(tmp_path / "run")
    config = replace(QUICK, data=data, seeds=2, rounds=1, steps=(3,), transport=True)
    perform(JOB, config, folder, {}, False)
    folder.close()
    found = results(tmp_path / "run")
    assert [row["seed"] for row in found["rows"]] == [0, 1]
    assert found["summary"][0]["n"] == 2


def write(path, **options):
    return samples.write_samples(open_run(path), SimpleNamespace(**options))


def test_samples_of_a_run_are_written_and_the_same_for_the_same_seed(finished, tmp_path):
    path, _ = finished
    options = {"count": 2, "steps": 3, "length": None, "seed": 5, "device": "cpu"}
    said = write(path, out=tmp_path / "a", **options)
    write(path, out=tmp_path / "b", **options)
    assert "2 backbones of 12 residues" in said
    first = [(tmp_path / name / "sample-0001.pdb").read_text() for name in "ab"]
    assert first[0] == first[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "length must be at least 10, got 0"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"steps": 1}, "steps must be at least 2, got 1"),
    ],
)
def test_impossible_samples_are_refused(finished, tmp_path, change, message):
    options = {"count": 2, "steps": 3, "length": 12, "seed": 5, "device": "cpu"} | change
    with pytest.raises(UserError, match=message):
        write(finished[0], out=tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def test_the_command_line_runs_samples_and_reports(data, tmp_path, capsys):
    out = tmp_path / "run"
    words = [
        "protein",
        "--data",
        data,
        "--rounds",
        "1",
        "--epochs",
        "1",
        "--crop",
        "12",
        "--shortest",
        "12",
    ]
    words += ["--lengths", "12", "--steps", "3", "--samples", "2", "--quiet", "--out", str(out)]
    assert main(words) == 0
    assert "first flow" in capsys.readouterr().out
    assert (
        main(["sample", str(out), "--count", "1", "--steps", "2", "--out", str(out / "more")]) == 0
    )
    assert (out / "more" / "sample-0000.pdb").is_file()
    assert main(["sample", str(out), "--length", "0"]) == 2
    assert re.search("length must be at least 1", capsys.readouterr().err)
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert main(["protein", "--resume", str(out)]) == 2


def test_every_preset_is_possible():
    for name in PRESETS:
        plan = resolve(replace(DEFAULT, data="x", preset=name))
        assert plan.reflow.epochs > 0
    published = resolve(replace(DEFAULT, data="x", preset="reqflow")).first
    assert (published.learning_rate, published.ema, published.clip) == (1e-4, 0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ""}, "data must be a folder of PDB or mmCIF files, or an npz set"),
        ({"lengths": (0,)}, "lengths must be at least 10, got 0"),
        ({"lengths": ()}, "lengths must hold at least one number"),
        ({"steps": (1,)}, "steps must be at least 2, got 1"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"crop": 5}, "crop must be 0 or at least 10, got 5"),
        ({"keep": 1.5}, "keep must be in"),
        ({"keep": 0.0}, "keep must leave at least one pair"),
        ({"compactness": 0.0}, "compactness must be positive"),
        ({"late_times": -0.1}, "late_times must be in"),
        ({"bonds": -1.0}, "bonds must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"shortest": 600}, "at most longest, got 600 and 512"),
        ({"seeds": 0}, "seeds must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        resolve(replace(DEFAULT, **({"data": "chains.npz"} | change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere"}, "no data at nowhere"),
        ({"checkpoint": "nowhere"}, "no checkpoint at nowhere"),
        ({"mpnn": "nowhere"}, r"nowhere has no protein_mpnn_run\.py"),
        ({"crop": 90}, "no chain can be used"),
    ],
)
def test_nothing_is_written_before_a_mistake_is_found(data, tmp_path, change, message):
    config = replace(QUICK, **({"data": data} | change))
    with pytest.raises(UserError, match=message):
        perform(JOB, config, Run(tmp_path / "run"), {}, False)
    assert not (tmp_path / "run").exists()


def test_a_missing_extra_is_one_line_that_names_it(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gemmi", None)
    assert main(["protein", "--data", data, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert 'pip install "rectified[protein]"' in said
    assert not (tmp_path / "run").exists()


def test_the_best_pairs_are_kept_in_their_order():
    noise = prior(4, 12, generator=torch.Generator().manual_seed(0))
    good = chain(helix(12)).frames()
    x1 = torch.stack(
        [noise.translations[0], good.translations, noise.translations[2], good.translations]
    )
    q1 = torch.stack(
        [noise.quaternions[0], good.quaternions, noise.quaternions[2], good.quaternions]
    )
    tensors = {"x0": noise.translations, "q0": noise.quaternions, "x1": x1, "q1": q1}
    kept, _ = pairs.best_pairs(tensors, 0.5)
    assert torch.equal(kept.translations, noise.translations[[1, 3]])
    with pytest.raises(UserError, match="keep must leave at least one pair, got 0"):
        pairs.best_pairs(tensors, 0.0)


def test_settings_come_back_resolved_and_the_network_is_the_last_flow(finished):
    run = open_run(finished[0])
    assert run.settings["epochs"] == 2
    whole = load_checkpoint(finished[0]).state_dict()
    assert all(torch.equal(whole[name], v) for name, v in run.network().state_dict().items())
