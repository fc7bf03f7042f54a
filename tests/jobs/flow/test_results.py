"""What a study of flows writes: rows, notes, verdicts, networks, page and terminal."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from scipy import stats

from rectified import flow
from rectified.cli import main
from rectified.files import write_text
from rectified.jobs.flow import JOB
from rectified.jobs.flow.comparisons import RATIO, verdicts
from rectified.jobs.flow.data import FlowData
from rectified.jobs.flow.networks import load_field
from rectified.jobs.job import open_run
from tests.jobs.flow.running import of

RESULTS = ["verb", "config", "environment", "rows", "summary"]
ROW = ["seed", "round", "recipe", "solver", "steps", "distance", "distance_name"]
ROW += ["straightness", "transport_cost"]
SUMMARY = ["recipe", "round", "steps", "distance_mean", "distance_ci95", "n"]


def test_results_have_the_public_fields_in_their_order(study):
    _, results = study
    assert list(results) == [*RESULTS, "verdicts", "notes", "warnings"]
    assert results["verb"] == "flow"
    assert all(list(row)[: len(ROW)] == ROW for row in results["rows"])
    assert {tuple(row)[len(ROW) :] for row in results["rows"]} == {
        ("first_order_gap", "evaluations")
    }
    assert all(list(row) == [*SUMMARY, "solver"] for row in results["summary"])
    assert {row["distance_name"] for row in results["rows"]} == {"w2"}


def test_every_recipe_and_round_is_measured_at_every_number_of_steps(study):
    _, results = study
    arms = {(row["recipe"], row["round"]) for row in results["rows"]}
    assert arms == {
        ("1rf", 1),
        *((recipe, number) for recipe in ("2rf", "2rf++") for number in (2, 3)),
        ("2rf+distil", 3),
        ("2rf+++distil", 3),
    }
    for recipe, number in arms:
        for seed in (0, 1):
            found = of(results, recipe=recipe, round=number, seed=seed, solver="euler")
            assert [row["steps"] for row in found] == [1, 2]
            assert [row["evaluations"] for row in found] == [1, 2]
            assert len({row["straightness"] for row in found}) == 1


def test_the_summary_is_what_scipy_makes_of_the_rows(study):
    _, results = study
    for line in results["summary"]:
        keys = ("recipe", "round", "steps", "solver")
        members = [row["distance"] for row in of(results, **{key: line[key] for key in keys})]
        assert line["distance_mean"] == pytest.approx(np.mean(members))
        assert line["n"] == len(members)
        if len(members) > 1:
            low, high = stats.ttest_1samp(members, 0.0).confidence_interval(0.95)
            assert line["distance_ci95"] == pytest.approx((high - low) / 2, rel=1e-6)
        else:
            assert line["distance_ci95"] is None


def test_notes_have_the_floor_the_protocol_and_what_pairs_looked_like(study):
    _, results = study
    notes = results["notes"].values()
    assert len(notes) == 2 * 7
    assert all(note["floor"] > 0 for note in notes)
    assert all("exact W2 of 20 samples" in note["protocol"] for note in notes)
    for note in notes:
        is_first = note["round"] == 1
        assert ("pairs" in note) != is_first
        assert ("optimal_cost" in note) == is_first
        if is_first:
            assert note["optimal_cost"] <= note["independent_cost"]
        else:
            assert note["pairs"] == 40
            assert math.isfinite(note["loss"])
            assert math.isfinite(note["held_out_loss"])
            assert note["one_step_only"] == note["recipe"].endswith("distil")


def test_measured_rows_are_logged_as_they_come(study):
    folder, results = study
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [event for event in events if event["event"] == "measured"]
    assert [event["distance"] for event in logged] == [row["distance"] for row in results["rows"]]


def test_the_page_needs_nothing_else_and_shows_paths_and_pairs(study):
    folder, _ = study
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    for words in ("Trajectories, first flow", "Trajectories, 2rf, round 2", "Distance against"):
        assert words in page
    for words in ("The pairs that reflow was trained on", "real against real", "Protocol"):
        assert words in page


def test_one_page_over_several_runs(study, tmp_path):
    folder, _ = study
    out = tmp_path / "page.html"
    assert main(["report", str(folder), "--out", str(out)]) == 0
    assert "Distance against steps" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["model", "first", "distilled"])
def test_networks_are_kept_with_what_is_needed_to_build_them(study, name):
    folder, _ = study
    field, about = load_field(folder / f"{name}.safetensors")
    assert about["model"] == "mlp"
    assert about["source"] == "gaussians8"
    assert field.path is flow.straight
    assert field(torch.zeros(3, 2), torch.tensor(0.5)).shape == (3, 2)


def test_the_kept_network_is_the_one_that_was_measured(study):
    folder, results = study
    field, _ = load_field(folder / "model.safetensors")
    transfer = FlowData("moons", "gaussians8", limit=100).transfer(seed=0, many=20)
    x0 = transfer.draw(900_000_000, 20, held_out=True)
    samples, _ = flow.generate(field, x0, steps=2, step=flow.euler)
    (row,) = of(results, seed=0, recipe="2rf", round=3, solver="euler", steps=2)
    assert flow.wasserstein2(samples, transfer.reference[:20]) == pytest.approx(row["distance"])


def test_samples_are_a_picture(study):
    from PIL import Image

    assert Image.open(study[0] / "samples.png").size[0] > 100


def test_nothing_of_the_work_is_left(study):
    assert not (study[0] / "checkpoint").exists()


# ---- the same in a terminal, on a page, and when it is opened again


def test_a_figure_of_the_terminal_is_that_of_the_page(study):
    results = open_run(study[0])
    (line,) = (one for one in results.summary if (one["recipe"], one["steps"]) == ("1rf", 2))
    shown = f"{line['distance_mean']:.3g} ± {line['distance_ci95']:.3g}"
    page = (study[0] / "report.html").read_text(encoding="utf-8")
    assert shown in results.text
    assert shown in page
    for title in ("2rf++, round 3, 1 step against 2rf", "first flow (euler)"):
        assert title in results.text
        assert title in page


def test_a_run_without_verdicts_says_the_same(study, tmp_path):
    """As every run of an earlier edition."""
    for name in ("results.json", "details.json"):
        (tmp_path / name).write_bytes((study[0] / name).read_bytes())
    contents = json.loads((tmp_path / "results.json").read_text())
    assert contents.pop("verdicts")
    write_text(tmp_path / "results.json", json.dumps(contents))
    assert open_run(tmp_path).text == open_run(study[0]).text


def test_the_network_of_a_run_is_the_one_that_it_is_about(study):
    network = open_run(study[0]).network()
    x = torch.randn(5, 2)
    field, _ = load_field(study[0] / "model.safetensors")
    assert torch.equal(network(x, torch.zeros(5)), field.network(x, torch.zeros(5)))


# ---- verdicts


def row(recipe, seed, distance, *, steps=1, solver="euler", number=2):
    return {
        "recipe": recipe,
        "round": number,
        "seed": seed,
        "distance": distance,
        "steps": steps,
        "solver": solver,
    }


def test_a_recipe_is_judged_by_its_ratio_to_the_plain_one_seed_by_seed():
    noise = (0.9, 1.1, 1.0, 1.3)
    rows = [row("2rf", seed, scale) for seed, scale in enumerate(noise)]
    rows += [row("2rf++", seed, (0.5 + 0.01 * seed) * scale) for seed, scale in enumerate(noise)]
    (found,) = verdicts(rows)
    test = stats.ttest_1samp([0.5, 0.51, 0.52, 0.53], 1.0)
    low, high = test.confidence_interval(0.95)
    assert (found.subject, found.base, found.quantity) == ("2rf++, round 2, 1 step", "2rf", RATIO)
    assert (found.low, found.high) == (pytest.approx(low - 1), pytest.approx(high - 1))
    assert (found.difference, found.p) == (pytest.approx(-0.485), pytest.approx(test.pvalue))
    assert (found.n, found.outcome) == (4, "gain")


def test_what_is_farther_is_a_loss_and_what_is_no_clearer_is_no_evidence():
    plain = [row("2rf", seed, 1.0) for seed in range(4)]
    far = [row("2rf++", seed, 1.5 + 0.01 * seed) for seed in range(4)]
    near = [row("2rf++", seed, 1.0 + 0.1 * (-1) ** seed) for seed in range(4)]
    assert [verdicts([*plain, *others])[0].outcome for others in (far, near)] == [
        "loss",
        "no evidence",
    ]


def test_one_seed_is_no_evidence_and_an_undefined_distance_no_crash():
    (found,) = verdicts([row("2rf", 0, 1.0), row("2rf++", 0, 0.5)])
    assert (found.difference, found.low, found.p, found.outcome) == (
        -0.5,
        None,
        None,
        "no evidence",
    )
    (found,) = verdicts([row("2rf", 0, None), row("2rf++", 0, 0.5)])
    assert math.isnan(found.difference)


def test_phases_are_judged_in_as_many_steps_and_renoise_in_the_most_that_it_was_tried_in():
    rows = [
        row(recipe, seed, 1.0 + seed, steps=steps)
        for recipe in ("rd", "phased")
        for seed in (0, 1)
        for steps in (1, 2, 3, 8)
    ]
    rows += [row("rd", seed, 0.5 + seed, steps=2, solver="renoise") for seed in (0, 1)]
    found = verdicts(rows)
    assert [one.subject for one in found] == [
        *(f"phased, round 2, {steps}" for steps in ("1 step", "2 steps", "8 steps")),
        "renoise, rd, round 2, 2 steps",
    ]
    assert found[-1].difference == -0.5
    assert found[-1].quantity == "distance"


def test_verdicts_are_corrected_for_their_number(study):
    _, results = study
    written = results["verdicts"]
    assert [one["subject"] for one in written][:2] == [
        "2rf++, round 2, 1 step",
        "2rf++, round 3, 1 step",
    ]
    for one in written:
        assert list(one) == [
            *("subject", "base", "quantity", "better", "difference", "low", "high", "p", "n"),
            "outcome",
        ]
        assert one["n"] == 2 or one["quantity"] != RATIO  # renoise is tried where it is safe
    (plain,) = (one for one in verdicts(of_round(results, 2)) if one.quantity == RATIO)
    assert written[0]["difference"] == plain.difference
    assert written[0]["p"] >= plain.p


def of_round(results, number):
    return [one for one in results["rows"] if one["round"] == number and one["solver"] == "euler"]


# ---- samples of a finished run


class Options:
    """Of `rectified sample`, as far as flows take them."""

    def __init__(self, out, **changes):
        self.count, self.steps, self.seed, self.out = 8, 2, 5, out
        self.label, self.guidance, self.distilled, self.device = None, 1.0, False, "cpu"
        vars(self).update(changes)


def test_samples_begin_at_held_out_points_of_the_source(study, tmp_path):
    words = JOB.sampler.make(open_run(study[0]), Options(tmp_path / "made"))
    assert words == f"8 samples, 2 evaluations each: {tmp_path / 'made' / 'samples.png'}"
    found = np.load(tmp_path / "made" / "samples.npy", allow_pickle=False)
    transfer = FlowData("moons", "gaussians8", limit=100).transfer(seed=0, many=20)
    field, _ = load_field(study[0] / "model.safetensors")
    x0 = transfer.draw(5, 8, held_out=True)
    made, _ = flow.generate(field, x0, steps=2, step=flow.euler)
    np.testing.assert_allclose(found, made.numpy())
