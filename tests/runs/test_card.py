"""Model cards that the Hub reads, whatever stands in the names."""

import pytest
import yaml

from rectified.cli import main
from rectified.runs.card import card, escaped
from tests.drawings import undrawn

RUN = ["prune", "--limit", "200", "--epochs", "1", "--cycles", "1", "--seed", "0", "--quiet"]
HOSTILE = "<script>alert(1)</script> [x](javascript:y) `a` |\n---\n# b\n![](http://c)"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    undrawn(monkeypatch)


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
