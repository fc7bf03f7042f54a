"""A push of a finished run, to a stand-in for the Hub."""

from pathlib import Path
from typing import ClassVar

import pytest

from rectified.cli import main
from rectified.errors import UserError
from rectified.runs import hub
from rectified.runs.hub import check_repository, push_to_hub
from tests.drawings import undrawn

RUN = ["prune", "--limit", "200", "--epochs", "1", "--cycles", "1", "--seed", "0", "--quiet"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    undrawn(monkeypatch)


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
