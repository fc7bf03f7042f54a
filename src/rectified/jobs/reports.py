"""`rectified report`: one page over finished run folders, of whichever verbs.

Each run brings the sections of its own report, its folder's name in front; a run of a verb that has
no report of its own shows its summary as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rectified.errors import UserError
from rectified.jobs import (
    binarize_report,
    flow_report,
    protein_report,
    prune_report,
    scatter,
    scatter_report,
    sweep_report,
)
from rectified.report import KeyValues, Page, Part, Section, Table, Text, render
from rectified.runs import RESULTS, read_json, read_results

Row = Mapping[str, Any]

_NONE = ("bound", "worst_ratio")  # columns in which null is no undefined number, but none at all

# verb -> the sections of its report, from its results and details
SECTIONS: dict[str, Callable[[Row, Row], Iterable[Section]]] = {
    "prune": prune_report.sections,
    "binarize": binarize_report.sections,
    "flow": flow_report.sections,
    "diffusion": flow_report.sections,
    "protein": protein_report.sections,
    "scatter": lambda results, _: scatter_report.sections(
        results, scatter.first_banks(results["config"])
    ),
    "sweep": lambda results, _: sweep_report.sections(results),
}
# these have no details; a sweep tells what its columns are by the types in the file: a null is none
AS_WRITTEN = ("sweep", "scatter")


def combined(paths: Sequence[Path]) -> str:
    """One HTML page over run folders.

    Args:
        paths: folders of finished runs, at least one, each once.

    Returns:
        A self-contained page: a table of the runs, then what each of them found.

    Raises:
        UserError: if there is no folder, one is named twice or is not a finished run.
    """
    if not paths:
        raise UserError("paths must name at least one run folder, got none")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"paths must name every run once, got {', '.join(map(str, paths))}")
    runs = [(_name(path, paths), path, read_results(path)) for path in paths]
    overview = Section("Runs", (_overview([(name, results) for name, _, results in runs]),))
    sections = [section for name, path, results in runs for section in _shown(name, path, results)]
    return render(Page("Report", ", ".join(name for name, _, _ in runs), (overview, *sections)))


def _shown(name: str, path: Path, results: Row) -> list[Section]:
    """The sections of a run, which may come from anybody: what cannot be shown is its file's fault.

    Raises:
        UserError: if a part of the results is not as a run of ours leaves it.
    """
    try:
        sections = list(_of(name, path, results))
        render(Page("Report", name, tuple(sections)))
    except UserError:
        raise
    except Exception as error:  # a column that lacks, a text for a number: there is no end to them
        raise UserError(
            f"{path / RESULTS} cannot be shown ({type(error).__name__}: {str(error)[:100]}): it is "
            "damaged, or of another version"
        ) from error
    return sections


def _name(path: Path, paths: Sequence[Path]) -> str:
    """The folder's name; its path, if another has the same name."""
    name = path.resolve().name
    return name if sum(other.resolve().name == name for other in paths) == 1 else str(path)


def _seeds_of(results: Row) -> int | str:
    """How many there were, as the rows say, or else the settings."""
    of_rows = {str(row["seed"]) for row in results["rows"] if "seed" in row}
    told = results["config"].get("seeds")
    return len(of_rows) or (told if isinstance(told, int) else "")


def _overview(runs: Sequence[tuple[str, Row]]) -> Table:
    rows = [
        (
            name,
            results["verb"],
            str(_data_of(results["config"])),
            _seeds_of(results),
            str(results["environment"].get("started", "")),
        )
        for name, results in runs
    ]
    return Table("What this page covers", ("run", "verb", "data", "seeds", "started"), rows)


def _data_of(config: Mapping[str, Any]) -> Any:
    """What a run worked on, wherever its verb says that."""
    settings = config.get("settings")
    inner = settings if isinstance(settings, Mapping) else {}
    return config.get("data") or config.get("pipeline") or inner.get("data") or ""


def _of(name: str, path: Path, results: Row) -> Iterator[Section]:
    sections = SECTIONS.get(results["verb"])
    if sections is None:
        yield Section(name, tuple(_generic(results)))
        return
    details: Row = {}
    if results["verb"] not in AS_WRITTEN:
        details = read_json(path / "details.json")
        results = {**results, **{key: _with_nan(results[key]) for key in ("rows", "summary")}}
    for section in sections(results, details):
        yield replace(section, title=f"{name}: {section.title}")


def _with_nan(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What JSON cannot say, an undefined number, is null there."""
    return [
        {key: math.nan if v is None and key not in _NONE else v for key, v in row.items()}
        for row in rows
    ]


def _generic(results: Row) -> Iterator[Part]:
    """The summary of any verb, column by column, and its settings."""
    columns = tuple(dict.fromkeys(key for row in results["summary"] for key in row))
    if columns:
        rows = [[_cell(row.get(column)) for column in columns] for row in results["summary"]]
        yield Table("Summary, over seeds", columns, rows)
    else:
        yield Text(("This run has no summary.",))
    yield KeyValues("Settings", results["config"])
    yield KeyValues("Environment", results["environment"])


def _cell(value: Any) -> str | float | int | None:
    return value if value is None or isinstance(value, str | int | float) else str(value)
