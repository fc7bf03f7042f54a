"""Model cards that the Hub reads, whatever stands in the names; and a push, to a stand-in."""

from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from rectified.cards import card, escaped
from rectified.cli import main
from rectified.errors import UserError
from rectified.jobs import hub, job
from rectified.jobs.hub import check_repository, push_to_hub

RUN = ["prune", "--limit", "200", "--epochs", "1", "--cycles", "1", "--seed", "0", "--quiet"]
HOSTILE = "<script>alert(1)</script> [x](javascript:y) `a` |\n---\n# b\n![](http://c)"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "html", lambda _: "<html></html>")


def results(**config):
    summary = [{"ap": "off", "accuracy_mean": 0.5, "accuracy_ci95": None, "n": 1}]
    return {"verb": "prune", "config": config, "environment": {}, "summary": summary}


def test_a_run_with_weights_has_a_card_that_the_hub_reads():
    from huggingface_hub import ModelCard

    assert main([*RUN, "--out", "run"]) == 0
    found = ModelCard.load("run/README.md")
    assert found.data.library_name == "rectified"
    assert found.data.tags == ["rectified", "prune"]
    assert "density" in found.text
    assert "accuracy" in found.text


def test_data_of_the_hub_are_linked_and_others_are_not():
    linked = card(results(data="owner/set"), {})
    assert yaml.safe_load(linked.split("---")[1])["datasets"] == ["owner/set"]
    for data in ("digits", "/a/b", "../x", "a/b/c", HOSTILE):
        assert "datasets" not in yaml.safe_load(card(results(data=data), {}).split("---")[1])


def test_names_can_form_no_markup():
    made = card(results(data=HOSTILE, model=HOSTILE, **{HOSTILE: [HOSTILE]}), {HOSTILE: HOSTILE})
    front, body = made.split("---\n", 2)[1:]
    assert yaml.safe_load(front)["tags"] == ["rectified", "prune"]
    assert "<script" not in body
    assert "[x](" not in body
    assert "![](" not in body
    assert "\n# b" not in body
    assert escaped("a\nb") == "a b"


class Api:
    """A stand-in for the Hub's."""

    calls: ClassVar[list] = []
    error: Exception | None = None

    def create_repo(self, repository, **how):
        if self.error:
            raise self.error
        self.calls.append(("create", repository, how))

    def upload_folder(self, **how):
        self.calls.append(("upload", how))


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_stand_in")
    Api.calls, Api.error = [], None
    return Api


def test_a_finished_run_is_pushed(api, capsys):
    assert main([*RUN, "--out", "run", "--push-to-hub", "me/lean"]) == 0
    assert "pushed to https://huggingface.co/me/lean" in capsys.readouterr().out
    (_, repository, how), (_, upload) = api.calls
    assert (repository, how["private"]) == ("me/lean", True)
    assert upload["folder_path"] == Path("run")
    assert set(hub.LEFT_HERE) == set(upload["ignore_patterns"])


def test_a_push_without_a_token_is_refused_before_the_run(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main([*RUN, "--out", "run", "--push-to-hub", "me/lean"]) == 2
    assert "no token to push to me/lean with: log in" in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize("name", ["lean", "a/b/c", "../x", "me/..", "me/a b", "", "me/--x"])
def test_what_is_no_repository_is_named(name, api):
    with pytest.raises(UserError, match="push_to_hub must be OWNER/NAME"):
        check_repository(name)


def test_a_hub_that_does_not_answer_costs_a_line_and_not_the_run(api, capsys):
    api.error = OSError("no route")
    assert main([*RUN, "--out", "run", "--push-to-hub", "me/lean"]) == 2
    said = capsys.readouterr().err
    assert r"the Hub did not take me/lean (no route); the run is finished" in said
    assert Path("run/results.json").exists()
    with pytest.raises(UserError, match="it is not a finished run"):
        push_to_hub(Path("nowhere"), "me/lean")
