"""Verbs: settings from defaults, a file and flags, and then the work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectified.cli.arguments import asks_for_help, help_page, refuse_unknown, take
from rectified.cli.exits import printable, resumable
from rectified.cli.request import Request, RunOptions
from rectified.errors import UserError
from rectified.jobs import JOBS, TOOLS, job_of, sweepable
from rectified.jobs.values import from_settings

if TYPE_CHECKING:
    from rectified.jobs.job import Job, Sweeper, Tool
    from rectified.jobs.run import Work
    from rectified.runs import Run


def run_job(verb: str, words: Sequence[str]) -> None:
    """`rectified VERB [options]`.

    Raises:
        UserError: for a setting that is not there, or is impossible.
    """
    from rectified.jobs.run import Work

    request, base = Request.read(verb, words), job_of(verb)
    of, settings = request.file_settings() or (base.verb, {})
    if of != base.verb:
        raise UserError(f"{request.file} is for `rectified {of}`, not for `rectified {base.verb}`")
    job, default = _job_and_settings(base, request, settings)
    given, others = take(request.words, default, verb)
    if asks_for_help(others):
        _show_help(verb, "", {"run": RunOptions(), verb: default})
        return
    refuse_unknown(others, verb, (RunOptions(), default))
    request.check_resume(given, settings)
    config = replace(default, **given)
    request.check_consent(asdict(config))
    _do(request, Work.of_job(verb, job, config))


def _job_and_settings(
    base: Job[Any, Any], request: Request, settings: Mapping[str, Any]
) -> tuple[Job[Any, Any], Any]:
    """The job, or the variant of it that is asked for, and its settings before any flag."""
    asked = [*settings]
    for variant in base.variants:
        default = base.of([variant]).default
        asked += take(request.words, default, request.verb, only=[variant])[0]
    job = base.of(asked)
    return job, _over(job.default, settings, request)


def _over(default: Any, settings: Mapping[str, Any], request: Request) -> Any:
    """The settings of the request's file, if it names one, else `default`."""
    if not settings:
        return default
    return from_settings(type(default), settings, source=str(request.file))


def run_sweep(verb: str, sweeper: Sweeper, words: Sequence[str]) -> None:
    """`rectified sweep VERB [options of the sweep] [options of VERB]`.

    Raises:
        UserError: for a setting that is not there, or is impossible.
    """
    from rectified.jobs.run import Work

    has_operand = bool(words) and not words[0].startswith("-")
    request = Request.read(verb, words[has_operand:])
    given_own, others = take(request.words, sweeper.default, verb)
    if asks_for_help(others):
        _show_help(verb, "VERB", {"run": RunOptions(), verb: sweeper.default})
        return
    request = replace(request, words=others)
    of, shared, own = _parts(sweeper, request, words[0] if has_operand else None)
    job, default = _job_and_settings(sweepable(of), request, shared)
    given, others = take(others, default, of)
    refuse_unknown(others, of, (RunOptions(), sweeper.default, default))
    request.check_resume(given, shared)
    options = replace(_over(sweeper.default, own, request), **given_own)
    work = Work.of_sweep(verb, sweeper, job.verb, replace(default, **given), options)
    request.check_consent(asdict(work.config))
    _do(request, work)


def _parts(
    sweeper: Sweeper, request: Request, of: str | None
) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """The verb, what its runs share, and options of the sweep: from a sweep's file, or a run's."""
    settings = request.file_settings()
    if settings is None:
        request.check_resume({}, {})
        if of is None:
            able = [name for name, entry in JOBS.items() if not entry.is_preset]
            raise UserError(f"a sweep needs a verb; choose from {', '.join(able)}")
        return of, {}, {}
    verb, contents = settings
    parts = sweeper.parts(contents) if verb == request.verb else (verb, contents, {})
    if of not in (None, parts[0]):
        raise UserError(f"{request.file} is for {parts[0]!r}, not for `rectified sweep {of}`")
    return parts


def run_tool(verb: str, tool: Tool, words: Sequence[str]) -> None:
    """`rectified VERB RUN [options]`.

    Raises:
        UserError: for an option or a folder that cannot be used.
    """
    from rectified.jobs.run import calm_libraries

    given, others = take(words, tool.default, verb)
    if asks_for_help(others):
        _show_help(verb, tool.operand, {verb: tool.default})
        return
    flags = [word for word in others if word.startswith("-")]
    runs = [Path(word) for word in others if not word.startswith("-")]
    most = 1 if tool.operand == "RUN" else len(runs)
    refuse_unknown([*flags, *map(str, runs[most:])], verb, (tool.default,))
    if not runs:
        usage = f"rectified {verb} {tool.operand}"
        raise UserError(f"name the folder of a finished run: {usage}; see rectified {verb} --help")
    with calm_libraries():
        print(printable(tool.run(runs, replace(tool.default, **given))))


def _show_help(verb: str, operand: str, groups: Mapping[str, Any]) -> None:
    print(help_page(verb, {**JOBS, **TOOLS}[verb], operand, groups), end="")


def _do(request: Request, work: Work) -> None:
    """Do the work in its folder, and say what was found and where the report is."""
    from rectified.jobs.run import calm_libraries
    from rectified.runs import environment
    from rectified.training import accelerator

    options = request.options
    with calm_libraries():
        process = accelerator(work.config.device)
        folder = work.folder(options.out, options.resume, writer=process.is_main_process)
        push = _pusher(options.push_to_hub)
        shows = process.is_main_process and not options.quiet
        with (
            contextlib.closing(folder),
            resumable(request.verb, folder),
            _tracked(options.tracker, folder, work.config),
        ):
            results = work.perform(work.config, folder, environment(), shows)
            text = results.text if process.is_main_process else ""
        if process.is_main_process:
            print(f"{printable(text)}\n\nreport: {results.page}")
            push(folder.path)
        if process.num_processes > 1:  # left to the interpreter's end, Gloo's threads can abort it
            process.end_training()


def _pusher(repository: str | None) -> Callable[[Path], None]:
    """The upload of a finished run, where that is asked for; it is known to be possible."""
    if repository is None:
        return lambda _: None
    from rectified.runs.hub import check_repository, push_to_hub

    check_repository(repository)
    return lambda path: print(f"pushed to {push_to_hub(path, repository)}")


@contextlib.contextmanager
def _tracked(tracker: str | None, folder: Run, config: Any) -> Iterator[None]:
    """Let a tracker hear what is logged, where one is asked for."""
    if tracker is None or not folder.writer:
        yield
        return
    from rectified.runs.tracker import Tracker

    with contextlib.closing(Tracker(tracker, folder.path, asdict(config))) as one:
        folder.listeners.append(one)
        yield
