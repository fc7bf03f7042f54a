"""The contract of a job, and the one way to do one.

    words --resolve--> Plan --check--> Plan --study--> Findings --perform--> Results
    (config)           values          what data       rows                  the folder,
                                       decide                                read back

`resolve` reads no file: a sweep calls it for every point of its grid before anything is written.
`check` reads data and network and tries one batch through everything, still before a folder exists.
`study` works in the folder, and goes on from what is there. `perform` does the rest, once for all:
settings and environment, results, the page. A page is made of what the files say, where an
undefined number is None; so a run shows the same when it is opened again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from rectified import jobs
from rectified.errors import UserError
from rectified.report import Code, KeyValues, Page, Section, render, terminal
from rectified.runs import RESULTS, Run, read_json, read_results, to_json

if TYPE_CHECKING:
    from torch import nn

Row = Mapping[str, Any]
C = TypeVar("C")  # settings
P = TypeVar("P", bound="Plan")  # what they mean
DETAILS, PAGE = "details.json", "report.html"


class Plan(Protocol):
    """The result of `resolve`: values, no words to be read again."""

    @property
    def config(self) -> Any:
        """The settings with everything filled in that is known: what config.yaml says."""


@dataclass(frozen=True)
class Context:
    """The run folder of a study, and whether it shows progress.

    Attributes:
        folder: its run folder, begun.
        progress: whether to show progress.
    """

    folder: Run
    progress: bool = False

    def words(self, text: str) -> str:
        """`text` for a progress bar, or nothing where none is shown."""
        return text if self.progress else ""


@dataclass(frozen=True)
class Findings:
    """The findings of a study.

    Attributes:
        rows: one per arm, seed and point.
        summary: over seeds.
        verdicts: comparisons, as values (`rectified.statistics.Verdict`).
        more: what the verb alone has in results.json.
        details: what only the page shows; None: nothing.
    """

    rows: Sequence[Row]
    summary: Sequence[Row]
    verdicts: Sequence[Any] = ()
    more: Row = field(default_factory=dict)
    details: Row | None = None


@dataclass(frozen=True)
class Report:
    """The report of a verb's results.

    Attributes:
        title: of the page.
        subtitle: what was run, in one line.
        sections: of the page; the first of them, and others that are brief, are also what the
            terminal says.
    """

    title: str
    subtitle: Callable[[Results], str]
    sections: Callable[[Results], Iterable[Section]]


@dataclass(frozen=True)
class Sampler:
    """The maker of a finished run's samples.

    Attributes:
        make: from the run and the options of `rectified sample`, `steps` and `out` filled in, to a
            line that says what was written.
        steps: of the solver, by default.
        takes: options that not every verb has: length, label, guidance, distilled.
    """

    make: Callable[[Results, Any], str]
    steps: int
    takes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job(Generic[C, P]):
    """A study behind a verb.

    Attributes:
        verb: as results.json has it.
        default: the settings when nothing is said: a frozen dataclass, whose fields are the flags;
            `device` and `data` are among its attributes.
        resolve: words to values; raises `UserError`, reads no file.
        check: reads data and network, and tries them; returns the plan with what they decide.
        study: the work, in a folder that has begun; goes on from what is there.
        report: how its results are shown.
        network: a finished run's network; None: it has none.
        sampler: a finished run's samples; None: it has none.
        variants: a setting that, where it is given, makes it another job: name to `module:JOB`.
        out: a folder of its own, in which a run replaces the one before; None: a new one each time.
    """

    verb: str
    default: C
    resolve: Callable[[C], P]
    check: Callable[[P], P]
    study: Callable[[P, Context], Findings]
    report: Report
    network: Callable[[Results], nn.Module] | None = None
    sampler: Sampler | None = None
    variants: Mapping[str, str] = field(default_factory=dict)
    out: Path | None = None

    def of(self, given: Iterable[str]) -> Job[Any, Any]:
        """This job, or the variant that one of the `given` settings asks for."""
        for name in given:
            if name in self.variants:
                return jobs.load(self.variants[name])
        return self


@dataclass(frozen=True)
class Tool:
    """A verb that works on what jobs leave.

    Attributes:
        operand: what stands behind the verb: `RUN`, a finished run's folder, or `RUN...`, several.
        default: its options when nothing is said: a frozen dataclass, whose fields are the flags.
        run: from the folders and the options to what the terminal says.
    """

    operand: Literal["RUN", "RUN..."]
    default: Any
    run: Callable[[Sequence[Path], Any], str]


@dataclass(frozen=True)
class Sweeper:
    """A verb that runs another one many times, in one folder: a study over jobs.

    Attributes:
        default: its own options when nothing is said: a frozen dataclass, whose fields are flags.
        whole: the settings of a run of it, a frozen dataclass with `data` and `device`: from the
            verb, what its runs share, and the options.
        parts: the way back, from what config.yaml says: the verb, what its runs share, and the
            options.
        perform: does it, as `perform` does a job: settings, folder, environment, progress.
        report: how its results are shown.
    """

    default: Any
    whole: Callable[[str, Any, Any], Any]
    parts: Callable[[Row], tuple[str, Row, Row]]
    perform: Callable[[Any, Run, Row, bool], Results]
    report: Report


@dataclass(frozen=True)
class Results:
    """A finished run, read from its folder.

    Attributes:
        folder: of the run.
        contents: results.json.
        details: what only the page shows.
    """

    folder: Path
    contents: Row
    details: Row = field(default_factory=dict)

    @property
    def verb(self) -> str:
        """The verb that made it."""
        return self.contents["verb"]

    @property
    def settings(self) -> Row:
        """All of them, resolved."""
        return self.contents["config"]

    @property
    def environment(self) -> Row:
        """Versions, machine, command."""
        return self.contents["environment"]

    @property
    def rows(self) -> Sequence[Row]:
        """One per arm, seed and point; an undefined number is None."""
        return self.contents["rows"]

    @property
    def summary(self) -> Sequence[Row]:
        """Over seeds."""
        return self.contents["summary"]

    @property
    def verdicts(self) -> Sequence[Row]:
        """Comparisons; none in a run of version 0.1."""
        return self.contents.get("verdicts", [])

    @property
    def page(self) -> Path:
        """The report."""
        return self.folder / PAGE

    @property
    def job(self) -> Job[Any, Any]:
        """The job that made it."""
        return jobs.job_of(self.verb).of(self.settings)

    @property
    def report(self) -> Report:
        """The report that shows it."""
        made_by = jobs.tool_of(self.verb) if self.verb in jobs.TOOLS else self.job
        if isinstance(made_by, Tool):
            raise UserError(f"{self.folder / RESULTS} is of {self.verb}, which leaves no results")
        return made_by.report

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The sections of the page: what was found, and how it was made."""
        return (*self.report.sections(self), _origin(self))

    @property
    def text(self) -> str:
        """The text for the terminal."""
        return terminal([section for section in self.sections if section.is_brief])

    def network(self) -> nn.Module:
        """The network that the run saved.

        Raises:
            UserError: if its verb saves none.
        """
        if self.job.network is None:
            raise UserError(f"{self.folder} is a run of {self.verb}, which saves no network")
        return self.job.network(self)

    def frame(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
            UserError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError(
                "frame needs pandas: pip install 'rectified[frames]', or take .rows"
            ) from None
        return pandas.DataFrame(list(self.rows))


def _origin(results: Results) -> Section:
    command = results.environment.get("command")
    return Section(
        "How this was made",
        (
            *([Code(command)] if command else []),
            KeyValues("Settings", results.settings),
            KeyValues("Environment", results.environment),
        ),
    )


def html(results: Results) -> str:
    """The page of a run."""
    report = results.report
    return render(Page(report.title, report.subtitle(results), results.sections))


def perform(job: Job[C, P], config: C, folder: Run, facts: Row, progress: bool) -> Results:
    """Do a job in its folder.

    Args:
        job: what to do.
        config: its settings; what is left open is resolved.
        folder: where results go; nothing is written before the settings prove possible.
        facts: the environment, for the record.
        progress: whether to show progress.

    Raises:
        UserError: if the settings, the data or the network cannot be used, or the run is finished.
    """
    if folder.resume and folder.finished:
        raise UserError(f"{folder.path} is finished: see {folder.path / PAGE}")
    plan = job.check(job.resolve(config))
    settings = asdict(plan.config)
    folder.begin(job.verb, settings, facts)
    found = job.study(plan, Context(folder, progress))
    return finish(folder, contents_of(job.verb, settings, facts, found), found.details)


def contents_of(verb: str, settings: Row, facts: Row, found: Findings) -> dict[str, Any]:
    """The contents of results.json."""
    return {
        "verb": verb,
        "config": dict(settings),
        "environment": dict(facts),
        "rows": found.rows,
        "summary": found.summary,
        "verdicts": found.verdicts,
        **found.more,
    }


def finish(folder: Run, contents: Row, details: Row | None = None) -> Results:
    """Write page and results of a run; results.json last, since a folder that has it is done."""
    plain = json.loads(to_json(contents))
    results = Results(folder.path, plain, json.loads(to_json(details or {})))
    if details is not None:
        folder.write_json(DETAILS, details)
    folder.write_text(PAGE, html(results))
    folder.write_results(**contents)
    return results


def open_run(path: str | Path) -> Results:
    """A finished run, read from its folder.

    Raises:
        UserError: if there is none at `path`, or it is damaged.
    """
    folder = Path(path)
    contents, file = read_results(folder), folder / DETAILS
    return Results(folder, contents, read_json(file) if file.is_file() else {})
