"""Code that a settings file names runs only if somebody said so."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from rectified import foreign
from rectified.cli import main
from rectified.errors import UserError
from rectified.foreign import check_consent, factories, imported
from tests.drawings import undrawn

NET = """
from pathlib import Path
Path("ran").touch()
from torch import nn
def net(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""  # noqa: E501
RUN = [
    "prune",
    "--limit",
    "200",
    "--epochs",
    "1",
    "--cycles",
    "0",
    "--seed",
    "0",
    "--quiet",
    "--ap",
    "off",
]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """A folder with somebody's module and somebody's settings, and a home that knows nothing."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    undrawn(monkeypatch)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("theirs.py").write_text(NET)
    sys.modules.pop("theirs", None)
    settings = {"verb": "prune", "model": "theirs:net", "limit": 200, "epochs": 1, "cycles": 0}
    Path("theirs.yaml").write_text(yaml.safe_dump({**settings, "seed": 0, "ap": ["off"]}))


def said(capsys, *words):
    capsys.readouterr()
    assert main(list(words)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "prune --config theirs.yaml --out run",
        "sweep prune --config theirs.yaml --grid seed=0 --out run",
        "prune --config theirs.yaml --model=mlp:x --out run",
    ],
)
def test_a_factory_from_a_file_is_refused_and_not_imported(words, capsys):
    told = said(capsys, *words.split())
    assert "run code" in told or "cannot be imported" in told
    assert not Path("ran").exists()
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("verb", "settings"),
    [
        ("protein", {"data": "chains.npz", "mpnn": "theirs of mine"}),
        ("sweep", {"of": "protein", "grid": "seed=0 mpnn=theirs", "settings": {"data": "a.npz"}}),
    ],
)
def test_a_folder_of_scripts_from_a_file_is_refused(verb, settings, capsys):
    Path("run").mkdir()
    Path("run/config.yaml").write_text(yaml.safe_dump({"verb": verb, **settings}))
    told = said(capsys, verb, "--resume", "run")
    assert "run/config.yaml and would run code" in told
    assert "--mpnn theirs" in told


def test_a_folder_of_scripts_that_was_typed_is_let_through():
    settings = {"mpnn": "theirs"}
    for words in (["--mpnn", "theirs"], ["--mpnn=theirs"], ["--grid", "seed=0 mpnn=theirs,b"]):
        check_consent(settings, words, "theirs.yaml")
        Path(foreign._file()).unlink()
    with pytest.raises(UserError, match=r"'theirs' stands in theirs\.yaml"):
        check_consent(settings, ["--data", "theirs.npz"], "theirs.yaml")


def test_a_run_of_somebody_elses_is_not_resumed_without_a_word(capsys):
    Path("run").mkdir()
    Path("run/config.yaml").write_text(Path("theirs.yaml").read_text())
    told = said(capsys, "prune", "--resume", "run")
    assert "'theirs:net' stands in run/config.yaml and would run code" in told
    assert "--model theirs:net" in told
    assert "leave out --model" in said(capsys, "prune", "--resume", "run", "--model", "mlp")
    assert not Path("ran").exists()
    assert main(["prune", "--resume", "run", "--model", "theirs:net", "--quiet"]) == 0
    assert Path("ran").exists()


def test_ones_own_run_is_resumed_without_another_flag():
    assert main([*RUN, "--model", "theirs:net", "--out", "run"]) == 0
    Path("run/results.json").unlink()
    assert main(["prune", "--resume", "run", "--quiet"]) == 0


def test_what_was_typed_elsewhere_is_no_consent_here(tmp_path, capsys, monkeypatch):
    assert main([*RUN, "--model", "theirs:net", "--out", "run"]) == 0
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    (other / "theirs.yaml").write_text(Path("../work/theirs.yaml").read_text())
    assert "would run code" in said(capsys, "prune", "--config", "theirs.yaml", "--out", "run")


@pytest.mark.parametrize(("answer", "agrees"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_a_person_at_a_terminal_is_asked(answer, agrees, monkeypatch, capsys):
    class Terminal:
        def isatty(self):
            return True

        def readline(self):
            return answer

    monkeypatch.setattr(foreign.sys, "stdin", Terminal())
    monkeypatch.setattr(foreign.sys.stderr, "isatty", lambda: True, raising=False)
    if agrees:
        check_consent({"model": "a:b"}, [], "file.yaml")
        check_consent({"model": "a:b"}, [], "file.yaml")  # remembered
    else:
        with pytest.raises(UserError, match=r"'a:b' stands in file\.yaml"):
            check_consent({"model": "a:b"}, [], "file.yaml")
    assert "Run it? [y/N]" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["{", "[]", '{"a": 3}', None])
def test_a_memory_that_is_damaged_or_cannot_be_kept_is_no_consent(state, tmp_path, monkeypatch):
    if state is None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    else:
        (tmp_path / "state" / "rectified").mkdir(parents=True)
        (tmp_path / "state" / "rectified" / "factories.json").write_text(state)
    with pytest.raises(UserError, match="would run code"):
        check_consent({"model": "a:b"}, [], "file.yaml")
    check_consent({"model": "a:b"}, ["--model", "a:b"], "file.yaml")


def test_factories_are_found_wherever_settings_nest():
    found = {"settings": {"model": "a.b:c"}, "grid": "model=mlp,d:e seed=0..9 x='f:g'"}
    found |= {"cluster": "tcp://host:8786", "rewind": "epoch:2", "scope": "2:4", "n": [1, "h:i"]}
    assert list(factories(found)) == ["a.b:c", "d:e", "f:g", "h:i"]
    assert json.dumps(found)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("nowhere:factory", "No module named 'nowhere'"),
        ("math:missing", "has no attribute 'missing'"),
        ("broken:factory", "division by zero"),
        (":factory", "Empty module name"),
    ],
)
def test_what_cannot_be_imported_is_named_with_the_reason(code, reason):
    Path("broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match=rf"loss '{code}' cannot be imported \(.*{reason}.*write"):
        imported(code, kind="loss")


def test_code_beside_the_caller_is_found():
    Path("beside_the_caller.py").write_text("factory = 3")
    assert imported("beside_the_caller:factory", kind="number") == 3
