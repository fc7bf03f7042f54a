"""Who may import whom, as data; what a plain import must not load; and what every verb has."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rectified.cli import main
from rectified.cli.arguments import documented
from rectified.errors import UserError
from rectified.jobs import JOBS, TOOLS, job_of, tool_of
from rectified.jobs.job import Job, Report, Sweeper, Tool
from rectified.jobs.values import from_settings, listings_of
from rectified.runs import read_config, write_config
from tests.jobs.toy import ENTRY
from tests.torture.kill import ROWS

SOURCE = Path(__file__).parents[1] / "src" / "rectified"

FLOOR = {"files", "networks", "foreign", "seeds", "timing", "statistics"}
MAY_IMPORT = {  # room -> rooms; every room may import `errors`, and itself
    "errors": set(),
    **{room: set() for room in FLOOR},
    "runs": FLOOR,
    "training": FLOOR,
    "models": set(),
    "graphs": FLOOR,
    "inference": FLOOR | {"graphs"},
    "data": FLOOR | {"training"},
    "pruning": FLOOR | {"training", "graphs"},
    "binary": FLOOR | {"training", "graphs"},
    "flow": FLOOR | {"training"},
    "protein": FLOOR | {"flow"},
    "scattering": FLOOR,
    "report": FLOOR,
    "jobs": FLOOR
    | {"runs", "training", "models", "data", "graphs", "inference", "pruning", "binary", "flow"}
    | {"protein", "scattering", "report"},
    "cli": FLOOR | {"jobs", "runs", "report", "training"},
    "__main__": {"cli"},
}
HEAVY = ("sklearn", "pyarrow", "PIL", "matplotlib", "datasets", "scipy", "jinja2", "numba")


def _files() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (_second(alias.name) for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively, which the table cannot read"
            if node.module == "rectified":
                yield from (alias.name for alias in node.names)
            elif node.module and _is_ours(node.module):
                yield _second(node.module)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "rectified"


def _second(module: str) -> str:
    return [*module.split("."), ""][1]


def test_the_table_has_every_room():
    assert {_room(path) for path in _files()} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_what_its_room_may(path):
    allowed = MAY_IMPORT[_room(path)] | {_room(path), "errors", "__version__"}
    assert set(_imported_rooms(path)) <= allowed


def _modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in found.stdout.split()}


def test_importing_rectified_loads_no_torch():
    assert "torch" not in _modules_after("import rectified, rectified.cli")


def test_importing_the_pruning_loads_no_reader_no_plotting_and_no_command_line():
    assert not _modules_after("import rectified.pruning") & set(HEAVY)


# ---- what every verb has: the registry says which there are, and nothing else lists them

BAD = {  # a setting that every verb has, or several, and a value that none of them can have
    "seeds": "0",
    "seed": "-1",
    "data": "nowhere",
}
SWEPT = [verb for verb, entry in JOBS.items() if not entry.is_preset]


def _variants(verb: str) -> list[Job[Any, Any]]:
    """The job of a verb, and its variants."""
    job = job_of(verb)
    return [job, *(job.of([name]) for name in job.variants)]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb that joins at run time, by a row."""
    monkeypatch.setitem(JOBS, "toy", ENTRY)


@pytest.mark.parametrize("verb", [*JOBS, *TOOLS, "toy"])
def test_every_verb_has_a_line_and_examples_that_its_help_shows(verb, toy, capsys):
    entry = {**JOBS, **TOOLS}[verb]
    assert main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert entry.summary
    assert entry.examples
    for example in entry.examples:
        assert f"rectified {verb} {example}".strip() in said


@pytest.mark.parametrize("verb", [*JOBS, "toy"])
def test_every_verb_has_a_contract(verb, toy):
    for job in _variants(verb):
        assert isinstance(job, Job)
        assert isinstance(job.report, Report)
        assert job.verb == verb or JOBS[verb].is_preset
        assert hasattr(job.default, "data")
        assert job.default.device


@pytest.mark.parametrize("verb", TOOLS)
def test_every_tool_has_a_contract(verb):
    tool = tool_of(verb)
    assert isinstance(tool, Tool | Sweeper)
    assert asdict(tool.default)


@pytest.mark.parametrize("verb", [*JOBS, "toy"])
def test_every_setting_is_explained_in_help(verb, toy):
    for job in _variants(verb):
        explained = {*documented(type(job.default)), *listings_of(type(job.default))}
        assert explained >= set(asdict(job.default))


@pytest.mark.parametrize("verb", [*JOBS, "toy"])
def test_settings_come_back_from_their_file(verb, toy, tmp_path):
    for job in _variants(verb):
        plain = asdict(job.default)
        write_config(tmp_path / "config.yaml", job.verb, plain)
        _, settings = read_config(tmp_path / "config.yaml")
        assert job_of(job.verb).of(settings).default == job_of(job.verb).of(plain).default
        assert from_settings(type(job.default), settings, source="x") == job.default


@pytest.mark.parametrize("verb", [*JOBS, "toy"])
def test_what_is_resolved_stays_as_it_is(verb, toy):
    for job in _variants(verb):
        open_ones = {"data", "pipeline"} & {k for k, v in asdict(job.default).items() if v == ""}
        config = replace(job.default, **dict.fromkeys(open_ones, "somewhere"))
        resolved = job.resolve(config).config
        assert type(resolved) is type(config)
        assert job.resolve(resolved).config == resolved
        with pytest.raises(UserError, match="seeds must be at least 1, got 0"):
            job.resolve(replace(config, seeds=0, seed=None))


@pytest.mark.parametrize("setting", BAD)
@pytest.mark.parametrize("verb", [*SWEPT, "toy"])
def test_a_sweep_with_an_impossible_point_leaves_nothing(
    verb, setting, toy, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["sweep", verb, "--grid", f"{setting}={BAD[setting]}", "--workers", "1"]
    assert main([*words, "--out", "swept"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rectified: ")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_every_verb_has_a_row_that_tortures_it():
    sweepers = {verb for verb in TOOLS if isinstance(tool_of(verb), Sweeper)}
    assert {row.verb for row in ROWS.values()} == {*JOBS, *sweepers}
