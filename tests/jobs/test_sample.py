"""`rectified sample RUN`: what each option does, and what is no run that can be sampled."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from rectified import flow
from rectified.cli import main
from rectified.jobs import JOBS, job_of
from rectified.jobs.flow.data import FlowData
from rectified.jobs.flow.networks import load_field
from tests.jobs.conftest import quick_studies
from tests.jobs.toy import ENTRY

FAST = (
    "--updates 6 --pairs 40 --pair-steps 2 --samples 20 --batch-size 8 --limit 100 --seed 0 "
    "--device cpu --quiet --steps 1,2"
)
REFLOWED = f"{FAST} --reflow-updates 6 --rounds 2"
FLAGS = {  # name -> verb and flags of a run
    "moons": f"flow --data moons {REFLOWED}",
    "transfer": f"flow --data moons --source gaussians8 --distil {REFLOWED}",
    "edm": f"flow --data moons --path edm --predict edm {FAST} --rounds 1",
    "digits": f"flow --data digits {FAST} --rounds 1",
    # much training of few images, so that labels and guidance come to say something
    "labelled": f"flow --data digits --conditional {FAST} --rounds 1 --updates 30 --ema 0",
    "diffusion": f"diffusion --data moons --no-control --rectify-updates 6 {FAST}",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs by name."""
    folder = tmp_path_factory.mktemp("runs")
    with quick_studies():
        for name, flags in FLAGS.items():
            assert main([*flags.split(), "--out", str(folder / name)]) == 0
    return folder


def transfer_of(source):
    """What the runs on points go from, and to."""
    return FlowData("moons", source, 100, None).transfer(seed=0, many=20)


def sampled(run, out, flags=""):
    assert main(["sample", str(run), "--out", str(out), "--device", "cpu", *flags.split()]) == 0
    return torch.from_numpy(np.load(out / "samples.npy", allow_pickle=False))


def refused(capsys, words):
    capsys.readouterr()
    assert main(["sample", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rectified: ")
    assert said.count("\n") == 1
    return said


# ---- what is drawn


def test_samples_are_what_the_kept_flow_makes_of_seeded_noise_in_the_datas_own_unit(runs, tmp_path):
    found = sampled(runs / "moons", tmp_path / "a", "--count 30 --steps 3 --seed 5")
    field, about = load_field(runs / "moons" / "model.safetensors")
    made, _ = flow.generate(field, flow.noise_like((30, 2), 5), steps=3, step=flow.euler)
    mean, deviation = (
        torch.tensor([float(word) for word in about[name].split(",")])
        for name in ("mean", "deviation")
    )
    torch.testing.assert_close(found, made * deviation + mean)
    transfer = transfer_of("gaussian")
    torch.testing.assert_close(found, transfer.unscaled(made))


def test_a_transfer_begins_at_points_of_its_source(runs, tmp_path):
    found = sampled(runs / "transfer", tmp_path / "a", "--count 30 --steps 2 --seed 5")
    field, _ = load_field(runs / "transfer" / "model.safetensors")
    transfer = transfer_of("gaussians8")
    x0 = transfer.draw(5, 30, held_out=True)
    torch.testing.assert_close(found, flow.generate(field, x0, steps=2, step=flow.euler)[0])


def test_a_seed_gives_the_same_samples_and_another_gives_others(runs, tmp_path):
    first, same, other = (
        sampled(runs / "moons", tmp_path / name, f"--count 8 --seed {seed}")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert torch.equal(first, same)
    assert not torch.isclose(first, other).any()


def test_fewer_samples_are_the_first_of_more(runs, tmp_path):
    few, many = (sampled(runs / "moons", tmp_path / str(n), f"--count {n}") for n in (8, 16))
    torch.testing.assert_close(few, many[:8])


def test_every_step_is_an_evaluation_and_is_said(runs, tmp_path, capsys):
    sampled(runs / "edm", tmp_path / "a", "--count 7 --steps 3")
    assert "7 samples, 3 evaluations each: " in capsys.readouterr().out
    sampled(runs / "labelled", tmp_path / "b", "--count 7 --steps 3 --guidance 2")
    assert "7 samples, " in capsys.readouterr().out


def test_one_step_and_64_samples_go_to_the_runs_own_folder_by_default(runs, capsys):
    assert main(["sample", str(runs / "diffusion"), "--quiet"]) == 0
    place = runs / "diffusion" / "samples"
    assert f"64 samples, 1 evaluations each: {place / 'samples.png'}" in capsys.readouterr().out
    assert np.load(place / "samples.npy").shape == (64, 2)
    assert Image.open(place / "samples.png").width > 100


def test_images_are_a_grid_of_at_most_256_and_numbers_of_all(runs, tmp_path):
    found = sampled(runs / "digits", tmp_path / "a", "--count 300")
    assert found.shape == (300, 1, 8, 8)
    assert Image.open(tmp_path / "a" / "samples.png").size == ((16 * 9 - 1) * 8,) * 2


def test_a_distilled_network_is_another_one(runs, tmp_path):
    plain, one = (
        sampled(runs / "transfer", tmp_path / name, f"--count 9 {flag}")
        for name, flag in (("a", ""), ("b", "--distilled"))
    )
    field, about = load_field(runs / "transfer" / "distilled.safetensors")
    assert about["recipe"] == "2rf+distil"
    transfer = transfer_of("gaussians8")
    x0 = transfer.draw(0, 9, held_out=True)
    torch.testing.assert_close(one, x0 + field(x0, torch.tensor(0.0)).detach())
    assert not torch.allclose(plain, one)


# ---- classes


def test_a_label_is_the_class_of_all_and_without_one_classes_take_turns(runs, tmp_path):
    field, about = load_field(runs / "labelled" / "model.safetensors")
    assert about["classes"] == "10"
    x0 = flow.noise_like((12, 1, 8, 8), 0)
    for name, flag, labels in (
        ("turns", "", torch.arange(12) % 10),
        ("three", "--label 3", torch.full((12,), 3)),
    ):
        found = sampled(runs / "labelled", tmp_path / name, f"--count 12 --steps 2 {flag}")
        made, _ = flow.generate(field, x0, steps=2, step=flow.euler, labels=labels)
        torch.testing.assert_close(found, made)


def test_guidance_moves_samples_away_from_those_without_a_label(runs, tmp_path):
    none, one, two = (
        sampled(
            runs / "labelled", tmp_path / str(weight), f"--count 6 --label 3 --guidance {weight}"
        )
        for weight in (0, 1, 2)
    )
    torch.testing.assert_close(two - one, one - none, atol=1e-5, rtol=1e-4)  # in one step
    assert not torch.allclose(one, two)


# ---- mistakes


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("moons", "--count 0", "count must be at least 1, got 0"),
        ("moons", "--steps 0", "steps must be at least 1, got 0"),
        ("moons", "--seed -1", "seed must be at least 0, got -1"),
        ("moons", "--length 60", "a run of flow takes no length: leave it out"),
        ("diffusion", "--length 60", "a run of diffusion takes no length"),
        ("moons", "--label 3", "this flow has no classes: leave out --label and --guidance"),
        ("moons", "--guidance 2", "this flow has no classes"),
        ("moons", "--guidance nan", "guidance must be a number, got nan"),
        ("labelled", "--label 10", "label must be in 0..9, got 10"),
        ("labelled", "--label -1", "label must be in 0..9, got -1"),
        ("transfer", "--distilled --steps 2", "makes its samples in one step, got steps 2"),
        ("moons", "--distilled", "no flow at {run}/distilled.safetensors: write --distil"),
        ("moons", "--count two", "--count"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(runs, tmp_path, capsys, name, flags, message):
    words = [str(runs / name), "--out", str(tmp_path / "new"), *flags.split()]
    assert message.format(run=runs / name) in refused(capsys, words)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(runs, capsys):
    assert "cuda" in refused(capsys, [str(runs / "moons"), "--device", "cuda"])


def test_what_is_no_finished_run_is_named(runs, tmp_path, capsys):
    assert "name the folder of a finished run" in refused(capsys, [])
    said = refused(capsys, [str(tmp_path)])
    assert f"{tmp_path} has no results.json: it is not a finished run" in said
    results = {"verb": "prune", "config": {}, "environment": {}, "rows": [], "summary": []}
    (tmp_path / "results.json").write_text(json.dumps(results))
    said = refused(capsys, [str(tmp_path)])
    assert "is a run of prune, which has no samples: give one of flow, protein, diffusion" in said


@pytest.mark.parametrize("damage", ["missing", "damaged", "of another kind"])
def test_a_run_whose_network_cannot_be_read_is_one_line(runs, tmp_path, capsys, damage):
    (tmp_path / "results.json").write_bytes((runs / "moons" / "results.json").read_bytes())
    weights = (runs / "moons" / "model.safetensors").read_bytes()
    if damage == "damaged":
        (tmp_path / "model.safetensors").write_bytes(weights[:-20])
    if damage == "of another kind":
        changed = weights.replace(b'"model":"mlp"', b'"model":"dit"')
        assert changed != weights
        (tmp_path / "model.safetensors").write_bytes(changed)
    said = refused(capsys, [str(tmp_path)])
    assert ("no flow at" if damage == "missing" else "is damaged or no flow of ours") in said


# ---- the other verbs


def test_a_rectified_pipeline_is_sampled_by_diffusers(tmp_path, capsys):
    settings = {"pipeline": "somewhere"}
    results = {
        "verb": "diffusion",
        "config": settings,
        "environment": {},
        "rows": [],
        "summary": [],
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "pipeline").mkdir()
    said = refused(capsys, [str(tmp_path)])
    assert "sample it with diffusers, DiffusionPipeline.from_pretrained(" in said


def test_a_run_of_any_verb_is_given_its_own_options(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(JOBS, "toy", ENTRY)
    run = tmp_path / "run"
    assert main(["toy", "--out", str(run), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["sample", "--count", "2", str(run), "--seed", "5", "--label", "3"]) == 0
    assert capsys.readouterr().out == f"2 samples: {run / 'samples' / 'samples.txt'}\n"
    assert (run / "samples" / "samples.txt").read_text() == "[2, 7, 5, 3]"
    for flags in (["--length", "9"], ["--guidance", "2"], ["--distilled"]):
        name = flags[0].removeprefix("--")
        assert f"a run of toy takes no {name}: leave it out" in refused(capsys, [str(run), *flags])
    assert "unknown options: other" in refused(capsys, [str(run), "other"])


def test_a_protein_run_takes_a_length_and_nothing_of_a_flow(tmp_path, capsys):
    results = {"verb": "protein", "config": {}, "environment": {}, "rows": [], "summary": []}
    (tmp_path / "results.json").write_text(json.dumps(results))
    for flags in (["--label", "1"], ["--guidance", "2"], ["--distilled"]):
        name = flags[0].removeprefix("--")
        said = refused(capsys, [str(tmp_path), *flags])
        assert f"a run of protein takes no {name}: leave it out" in said
    assert "length" in job_of("protein").sampler.takes
