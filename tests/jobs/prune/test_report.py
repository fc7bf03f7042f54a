"""The report: comparisons that others can compute again, and words that say no more than these."""

import json
import math
import re
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import stats

from rectified.jobs.job import html, open_run
from rectified.jobs.prune.comparisons import Comparison, Effect, comparisons, effects, verdicts
from rectified.jobs.prune.report import card
from rectified.runs import read_json, write_text
from rectified.statistics import Interval, judge
from tests.jobs.prune.studies import prune


@pytest.fixture
def results(study):
    """The study, as it is read back."""
    return open_run(study[0])


def changed(results, rows=None, **details):
    """The same with other rows, or with other details."""
    contents = {**results.contents, **({} if rows is None else {"rows": rows})}
    return replace(results, contents=contents, details={**results.details, **details})


# ---- comparisons


def test_the_effect_is_paired_over_seeds(results):
    found = {(one.of.ap, one.of.base): one for one in effects(results)}
    assert set(found) == {("lite", "off"), ("pro", "off_pro"), ("off_pro", "off")}

    def by_seed(ap):
        rows = [row for row in results.rows if row["ap"] == ap and row["cycle"]]
        return [np.mean([r["accuracy"] for r in rows if r["seed"] == seed]) for seed in range(3)]

    reference = stats.ttest_rel(by_seed("pro"), by_seed("off_pro"))
    accuracy = found["pro", "off_pro"].accuracy
    low, high = reference.confidence_interval(0.95)
    assert accuracy.difference == pytest.approx((low + high) / 2, rel=1e-9)
    assert accuracy.low == pytest.approx(low, rel=1e-9)
    assert accuracy.high == pytest.approx(high, rel=1e-9)


def test_p_values_are_corrected_for_all_comparisons_of_the_run(results):
    raw = [
        one.difference(results.rows, quantity).p
        for one in comparisons(results.rows)
        for quantity in ("accuracy", "dynamic_dnr")
    ]
    corrected = [row["p"] for row in results.verdicts]
    assert len(raw) == len(corrected) == 6
    assert min(corrected) == pytest.approx(min(1.0, 6 * min(raw)))
    assert all(ours >= theirs for ours, theirs in zip(corrected, raw, strict=True))


def test_verdicts_are_in_the_results_and_follow_from_their_rows(results):
    assert [asdict(one) for one in verdicts(results.rows)] == results.verdicts
    assert {row["outcome"] for row in results.verdicts} <= {"gain", "loss", "no evidence"}


def test_a_run_of_version_0_1_shows_the_same_without_verdicts(results):
    old = {key: value for key, value in results.contents.items() if key != "verdicts"}
    assert replace(results, contents=old).text == results.text


def test_an_arm_without_a_name_is_compared_under_its_own(results):
    renamed = {"lite": "firing"}
    rows = [{**row, "ap": renamed.get(row["ap"], row["ap"])} for row in results.rows]
    assert ("firing", "off") in {(one.ap, one.base) for one in comparisons(rows)}
    layers = [{**row, "ap": renamed.get(row["ap"], row["ap"])} for row in results.details["layers"]]
    contents = {**results.contents, "rows": rows, "verdicts": []}
    shown = replace(changed(results, layers=layers), contents=contents)
    assert "firing with magnitude" in shown.text
    assert "firing" in html(shown)


# ---- the page and the terminal


def test_the_page_needs_nothing_else_and_says_the_verdict(results):
    page = results.page.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "default-src 'none'" in page
    for effect in effects(results):
        assert card(effect).title in page
        assert card(effect).title in results.text
    for word in ("Layer by layer", "What to do next", "Settings", "Environment"):
        assert word in page


def test_the_page_and_the_terminal_show_the_same_figures(results):
    page = results.page.read_text(encoding="utf-8")
    for line in results.summary:
        if line["cycle"] in (0, 1, 3):
            shown = f"{100 * line['accuracy_mean']:.2f}%"
            assert shown in page
            assert shown in results.text


def test_the_terminal_shows_no_layers(results):
    assert "Weights by layer" in html(results)
    assert "Weights by layer" not in results.text


def test_the_page_warns_where_a_norm_undoes_the_argument_of_ap(results):
    shown = changed(results, notes=["a norm stands there"])
    assert "Mind the norms" in html(shown)
    assert "A norm stands there." in shown.text


def test_undefined_rates_are_shown_as_none(results):
    rows = [{**row, "dynamic_dnr": None, "static_dnr": None} for row in results.rows]
    layers = [{**row, "dynamic": None} for row in results.details["layers"]]
    shown = changed(results, rows, layers=layers)
    shown = replace(shown, contents={**shown.contents, "verdicts": []})
    assert "no evidence for the dynamic dead rate" in shown.text
    assert "nan" not in re.sub(
        r"<style.*?</style>|<script.*?</script>", "", html(shown), flags=re.S
    )


def test_a_study_without_pruning_says_so(tmp_path):
    prune(tmp_path / "run", "--cycles 0 --seed 0 --epochs 0 --ap off")
    assert "Nothing was pruned: give --cycles" in (tmp_path / "run" / "report.html").read_text()


def test_an_old_folder_opens(study, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(study[0], folder)
    for name, key in (("results.json", "verdicts"), ("details.json", "architecture")):
        contents = read_json(folder / name)
        del contents[key]
        write_text(folder / name, json.dumps(contents))
    assert open_run(folder).text == open_run(study[0]).text


# ---- words


def effect(accuracy, dynamic, ap="lite", base="off"):
    def judged(mean, quantity, better):
        found = Interval(mean, 0.01, 0.001 if abs(mean) > 0.01 else 0.5, 5)
        names = {"subject": f"{ap} with lamp", "base": base, "quantity": quantity}
        return judge(found, **names, better=better)

    return Effect(
        Comparison("lamp", ap, base),
        judged(accuracy, "accuracy", "higher"),
        judged(dynamic, "dynamic_dnr", "lower"),
    )


@pytest.mark.parametrize(
    ("accuracy", "dynamic", "words", "tone"),
    [
        (0.02, -0.02, "lowers the dynamic dead rate, a gain in accuracy", "gain"),
        (-0.02, 0.02, "raises the dynamic dead rate, a loss of accuracy", "loss"),
        (0.0, 0.0, "no evidence for the dynamic dead rate, no evidence for accuracy", "neutral"),
    ],
)
def test_cards_say_no_more_than_the_verdict(accuracy, dynamic, words, tone):
    found = card(effect(accuracy, dynamic))
    assert found.title == f"AP-lite with lamp: {words}"
    assert found.tone == tone


def test_a_single_seed_gives_no_evidence():
    one = judge(
        Interval(0.1, math.nan, math.nan, 1),
        subject="lite with lamp",
        base="off",
        quantity="accuracy",
        better="higher",
    )
    found = card(Effect(Comparison("lamp", "lite", "off"), one, one))
    assert found.tone == "neutral"
    assert "one seed: no interval" in found.text


def test_pro_against_off_is_told_to_be_unequal_training():
    assert "trained twice as long" in card(effect(0.0, 0.0, "pro")).text
    assert "trained twice as long" not in card(effect(0.0, 0.0, "pro", "off_pro")).text
