"""`rectified scatter`: bounds hold, what is finished is kept, and mistakes cost one line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from rectified.cli import main
from rectified.errors import UserError
from rectified.jobs.job import Results, html, perform
from rectified.jobs.scatter import JOB, report, study
from rectified.jobs.scatter.cases import row
from rectified.jobs.scatter.ridge import fit_ridge
from rectified.jobs.scatter.settings import NETWORKS, ScatterConfig, resolve
from rectified.jobs.scatter.study import summarise
from rectified.runs import Run

DEFAULT = ScatterConfig()
SMALL = replace(DEFAULT, grid=32, steps=3, limit=60, networks=("ridgelet_modulus",))
PLAIN = replace(DEFAULT, limit=40, orientations=2, networks=("none",))


def results(path):
    return json.loads((path / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = Run(tmp_path_factory.mktemp("scatter") / "run")
    text = perform(JOB, SMALL, folder, {"command": "rectified scatter"}, False).text
    folder.close()
    return folder.path, text


def test_no_measured_value_exceeds_its_bound(finished):
    rows = results(finished[0])["rows"]
    assert report.violations(rows) == []
    checked = {one["quantity"] for one in rows if one["bound"] is not None}
    assert checked == set(report.CLAIMS)


def test_rows_and_summary_have_the_public_fields(finished):
    found = results(finished[0])
    assert {tuple(one) for one in found["rows"]} == {
        ("case", "depth", "quantity", "measured", "bound")
    }
    assert {tuple(one) for one in found["summary"]} == {("case", "quantity", "worst_ratio")}
    assert found["verb"] == "scatter"


def test_the_report_and_the_text_say_what_was_found(finished):
    path, text = finished
    page = (path / "report.html").read_text()
    for words in ("Littlewood-Paley", "within their bounds", "ridgelet_modulus", "accuracy"):
        assert words in page
    assert "mathdefault" not in page  # axes are labelled in plain words
    assert "are within their bounds" in text
    assert "are broken" not in text


def test_a_broken_bound_is_told_first(tmp_path):
    rows = [row("a", 1, "translation", 2.0, 1.0)]
    rows += [row(name, 0, "accuracy", 0.5, None) for name in ("pixels", "scattering order 2")]
    settings = {"data": "digits", "networks": [], "seed": None}
    contents = {"verb": "scatter", "config": settings, "environment": {}}
    broken = Results(tmp_path, {**contents, "rows": rows, "summary": summarise(rows)})
    for shown in (broken.text, html(broken)):
        assert "1 of 1 bounds are broken" in shown
        assert "a, depth 1, translation: 2" in shown


def test_digits_are_learnt_from_200_of_them(tmp_path):
    folder = Run(tmp_path / "run")
    perform(JOB, replace(PLAIN, limit=200, orientations=8, seeds=2), folder, {}, False)
    folder.close()
    rows = [one for one in results(tmp_path / "run")["rows"] if one["case"] == "scattering order 2"]
    assert len(rows) == 2
    assert sum(one["measured"] for one in rows) / 2 >= 0.96  # the mean of many seeds is 97 %


def test_a_killed_run_goes_on_to_the_same_result(tmp_path, monkeypatch):
    whole = Run(tmp_path / "whole")
    perform(JOB, replace(PLAIN, seeds=2), whole, {}, False)
    whole.close()

    real, calls = study.classifier_rows, []

    def killed(plan, seed):
        calls.append(seed)
        if seed == 1 and calls.count(1) == 1:
            raise KeyboardInterrupt
        yield from real(plan, seed)

    monkeypatch.setattr(study, "classifier_rows", killed)
    first = Run(tmp_path / "part")
    with pytest.raises(KeyboardInterrupt):
        perform(JOB, replace(PLAIN, seeds=2), first, {}, False)
    first.close()
    again = Run(tmp_path / "part", resume=True)
    perform(JOB, replace(PLAIN, seeds=2), again, {}, False)
    again.close()
    assert calls == [0, 1, 1]
    assert results(tmp_path / "part")["rows"] == results(tmp_path / "whole")["rows"]


def test_the_command_line_runs_it(tmp_path, capsys):
    out = str(tmp_path / "run")
    words = ["scatter", "--networks", "none", "--limit", "50", "--orientations", "2"]
    words += ["--out", out, "--quiet"]
    assert main(words) == 0
    assert "scattering order 2" in capsys.readouterr().out
    assert results(tmp_path / "run")["config"]["networks"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 1}, "limit must be at least 2, got 1"),
        ({"scale": 0}, "scale must be at least 1, got 0"),
        ({"orientations": 0}, "orientations must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"grid": 40}, "grid must be a multiple of 16 and at least 32, got 40"),
        ({"networks": ("fourier",)}, "unknown network 'fourier'; choose from wavelet_modulus"),
        ({"seeds": 0}, "seeds must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        resolve(replace(DEFAULT, **change))


def test_a_scale_beyond_the_pictures_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="scale must be at most log2 of the smaller side, got 6"):
        perform(JOB, replace(PLAIN, scale=6), Run(tmp_path / "run"), {}, False)
    assert not (tmp_path / "run").exists()


def test_at_least_eight_networks_are_checked():
    assert resolve(DEFAULT).config.networks == NETWORKS
    assert len(NETWORKS) >= 8


@pytest.mark.parametrize("shape", [(30, 5), (6, 20)])
def test_ridge_is_scikit_learns(shape):
    from sklearn.linear_model import Ridge

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    y = torch.arange(shape[0]) % 3
    found = fit_ridge(x, y, (x, y))
    unit = float((x - x.mean(0)).square().sum() / len(x))
    twin = Ridge(found.penalty * unit).fit(x.numpy(), torch.nn.functional.one_hot(y).numpy())
    torch.testing.assert_close(found.weights.T, torch.from_numpy(twin.coef_), atol=1e-9, rtol=1e-6)
    assert found.accuracy(x, y) == pytest.approx(
        float((torch.from_numpy(twin.predict(x.numpy())).argmax(1) == y).double().mean())
    )
