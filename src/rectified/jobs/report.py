"""`rectified report RUN...`: one page over finished run folders, of whichever verbs.

Each run brings the sections of its own report, its folder's name in front; a run of a verb that is
not known here, of a newer version say, shows its summary as it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rectified.errors import UserError
from rectified.jobs import JOBS, TOOLS
from rectified.jobs.job import DETAILS, Results, Tool, open_run
from rectified.report import KeyValues, Page, Part, Section, Table, Text, render
from rectified.runs import RESULTS, write_text


@dataclass(frozen=True)
class ReportOptions:
    """The place of the page.

    Attributes:
        out: the page to write.
    """

    out: Path = Path("report.html")


def report(folders: Sequence[Path], options: ReportOptions) -> str:
    """Write one page over run folders; returns a line that says where it is."""
    page = combined(folders)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, page)
    return f"report: {options.out}"


TOOL = Tool("RUN...", ReportOptions(), report)


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
    runs = {_name(path, paths): open_run(path) for path in paths}
    overview = Section("Runs", (_overview(runs),))
    sections = [section for name, results in runs.items() for section in _shown(name, results)]
    return render(Page("Report", ", ".join(runs), (overview, *sections)))


def _name(path: Path, paths: Sequence[Path]) -> str:
    """The folder's name; its path, if another has the same name."""
    name = path.resolve().name
    return name if sum(other.resolve().name == name for other in paths) == 1 else str(path)


def _shown(name: str, results: Results) -> list[Section]:
    """The sections of a run, which may come from anybody: what cannot be shown is its file's fault.

    Raises:
        UserError: if a part of the results is not as a run of ours leaves it.
    """
    try:
        sections = list(_sections(name, results))
        render(Page("Report", name, tuple(sections)))
    except UserError:
        raise
    except Exception as error:  # a column that lacks, a text for a number: there is no end to them
        reason = f"{type(error).__name__}: {str(error)[:100]}"
        lacks = "" if results.details else f", and it has no {DETAILS}"
        raise UserError(
            f"{results.folder / RESULTS} cannot be shown ({reason}){lacks}: it is damaged, or of "
            "another version"
        ) from error
    return sections


def _sections(name: str, results: Results) -> Iterator[Section]:
    if results.verb in {**JOBS, **TOOLS}:
        yield from (
            replace(section, title=f"{name}: {section.title}") for section in results.sections
        )
    else:
        yield Section(name, tuple(_summary(results)))


def _summary(results: Results) -> Iterator[Part]:
    """The summary of any verb, column by column, and its settings."""
    columns = tuple(dict.fromkeys(key for row in results.summary for key in row))
    if columns:
        rows = [[_cell(row.get(column)) for column in columns] for row in results.summary]
        yield Table("Summary, over seeds", columns, rows)
    else:
        yield Text(("This run has no summary.",))
    yield KeyValues("Settings", results.settings)
    yield KeyValues("Environment", results.environment)


def _cell(value: Any) -> str | float | int | None:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _overview(runs: Mapping[str, Results]) -> Table:
    rows = [
        (
            name,
            results.verb,
            str(_data_of(results.settings)),
            _seeds_of(results),
            str(results.environment.get("started", "")),
        )
        for name, results in runs.items()
    ]
    return Table("What this page covers", ("run", "verb", "data", "seeds", "started"), rows)


def _data_of(settings: Mapping[str, Any]) -> Any:
    """The data of a run, wherever its verb says them."""
    inner = settings.get("settings")
    shared = inner if isinstance(inner, Mapping) else {}
    return settings.get("data") or settings.get("pipeline") or shared.get("data") or ""


def _seeds_of(results: Results) -> int | str:
    """The number of seeds, as the rows say, or else the settings."""
    of_rows = {str(row["seed"]) for row in results.rows if "seed" in row}
    asked = results.settings.get("seeds")
    return len(of_rows) or (asked if isinstance(asked, int) else "")
