"""The door: `rectified VERB [options]` -> a job -> a run folder with its report.

Exit codes: 0 done; 2 a mistake of the user's, told in one line; 1 a fault of ours; 130 and 143
after Ctrl-C and SIGTERM, with everything saved that `--resume` needs.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, make_dataclass, replace
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_type_hints

from rectified import __version__
from rectified.errors import UserError, choose
from rectified.foreign import check_consent, factories, folders
from rectified.jobs import JOBS, TOOLS, job_of, tool_of

if TYPE_CHECKING:
    from rectified.jobs.job import Job
    from rectified.runs import Run

VERBS = {**JOBS, **TOOLS}

_USER_ERRNO = {
    errno.ENOSPC: "the disk is full: free some space, or give --out another place",
    errno.EDQUOT: "the quota is used up: free some space, or give --out another place",
    errno.EACCES: "permission denied: give --out a folder that you may write",
    errno.EPERM: "permission denied: give --out a folder that you may write",
    errno.EROFS: "the file system is read-only: give --out a folder that you may write",
    errno.ENOTDIR: "a part of the path is a file: give --out another place",
    errno.ENAMETOOLONG: "the path is too long: give --out a shorter one",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _terminations():
            _dispatch(arguments)
            sys.stdout.flush()
            return 0
    except UserError as error:
        return _complain(str(error))
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _USER_ERRNO:
            raise
        return _complain(f"{error.filename or 'writing'}: {_USER_ERRNO[error.errno]}")
    except (KeyboardInterrupt, _Terminated) as stop:
        notes = getattr(stop, "__notes__", [" before anything was written"])
        print(f"\nrectified: interrupted{notes[-1]}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)


def _complain(message: str) -> int:
    print("rectified: " + _printable(" ".join(message.split())), file=sys.stderr)
    return 2


def _printable(text: str) -> str:
    """Names come from files, too: a terminal must not obey them."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


class _Terminated(BaseException):
    """SIGTERM, as an exception, so that everything is closed on the way out."""


@contextlib.contextmanager
def _terminations() -> Any:
    def handler(_number: int, _frame: Any) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, handler)
    except ValueError:  # not the main thread: the host decides about signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return
    if arguments[0] in ("-V", "--version"):
        print(f"rectified {__version__}")
        return
    verb, rest = arguments[0], arguments[1:]
    choose("verb", verb, list(VERBS))
    try:
        if verb in TOOLS:
            print(_printable(tool_of(verb).run(rest)))
        else:
            _run(verb, rest)
    except SystemExit as stop:  # a parser that has shown its help
        if stop.code not in (0, None):
            raise


def _help() -> str:
    lines = [
        "usage: rectified VERB [options]",
        "",
        "Make neural networks lean, and see what that cost.",
        "",
    ]
    lines += [f"  {verb:<10}{entry.summary}" for verb, entry in VERBS.items()]
    lines += ["", "rectified VERB --help lists a verb's options, with examples.", ""]
    lines += [
        "examples:",
        *(f"  rectified {verb} {one.examples[0]}".rstrip() for verb, one in VERBS.items()),
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class RunOptions:
    """Where a run goes.

    Attributes:
        out: folder for the results; runs/VERB-DATA-TIME by default.
        config: settings to begin with: the config.yaml of an earlier run; flags override it.
        resume: go on with the unfinished run in this folder; needs no other flag.
        quiet: print nothing but the results.
        push_to_hub: upload the finished run to OWNER/NAME of the Hugging Face Hub.
        tracker: also tell what is logged to TensorBoard (in the run's folder), MLflow or W&B.
    """

    out: Path | None = None
    config: Path | None = None
    resume: Path | None = None
    quiet: bool = False
    push_to_hub: str | None = None
    tracker: Literal["tensorboard", "mlflow", "wandb"] | None = None


def _run(verb: str, arguments: list[str]) -> None:
    chosen, default = _chosen(verb, arguments)
    options, config, _ = _parse(verb, default, arguments)
    check_consent(asdict(config), arguments, _file_of_settings(arguments))
    _do(verb, chosen, options, config)


def _do(verb: str, job: Job[Any, Any], options: RunOptions, config: Any) -> None:
    """Run a job in its folder, and say where its report is."""
    from rectified.jobs.job import perform
    from rectified.runs import Run, default_path, environment
    from rectified.training import accelerator

    _quieten()
    process = accelerator(config.device)
    folder = Run(
        options.resume or options.out or job.out or default_path(verb, config.data),
        resume=options.resume is not None,
        replace=options.out is None and options.resume is None and job.out is not None,
        writer=process.is_main_process,
    )
    if options.push_to_hub is not None:
        from rectified.runs.hub import check_repository, push_to_hub

        check_repository(options.push_to_hub)
    if options.resume is not None and folder.finished and verb != "sweep":
        raise UserError(f"{folder.path} is finished: see {folder.path / 'report.html'}")
    shows = process.is_main_process and not options.quiet
    with contextlib.closing(folder), _resumable(verb, folder), _tracked(options, folder, config):
        results = perform(job, config, folder, environment(), shows)
        text = results.text if process.is_main_process else ""
    if process.is_main_process:
        print(f"{_printable(text)}\n\nreport: {folder.path / 'report.html'}")
        if options.push_to_hub is not None:
            print(f"pushed to {push_to_hub(folder.path, options.push_to_hub)}")
    if process.num_processes > 1:  # left to the interpreter's end, Gloo's threads can abort it
        process.end_training()


def _chosen(verb: str, arguments: Sequence[str]) -> tuple[Job[Any, Any], Any]:
    """The job, and the settings that flags override: its own, or those of an earlier run."""
    from rectified.runs import read_config

    base = job_of(verb)
    file = _file_of_settings(arguments)
    of, settings = (base.verb, {}) if file is None else read_config(Path(file))
    given = [name for name in base.variants if _value(arguments, f"--{name}") is not None]
    chosen = base.of([*settings, *given])
    if file is None:
        return chosen, chosen.default
    if of != base.verb:
        raise UserError(f"{file} is for `rectified {of}`, not for `rectified {base.verb}`")
    return chosen, from_settings(type(chosen.default), settings, source=file)


@contextlib.contextmanager
def _tracked(options: RunOptions, folder: Run, config: Any) -> Any:
    """Let a tracker hear what is logged, where one is asked for."""
    if options.tracker is None or not folder.writer:
        yield
        return
    from rectified.runs.tracker import Tracker

    settings = config.to_dict() if hasattr(config, "to_dict") else asdict(config)
    with contextlib.closing(Tracker(options.tracker, folder.path, settings)) as tracker:
        folder.listeners.append(tracker)
        yield


@contextlib.contextmanager
def _resumable(verb: str, folder: Run) -> Any:
    """Tell whoever stops the run how to go on with it."""
    try:
        yield
    except (KeyboardInterrupt, _Terminated) as stop:
        if folder.begun:
            place = shlex.quote(str(folder.path))
            stop.add_note(f"; go on with: rectified {verb} --resume {place}")
        raise


def _quieten() -> None:
    """Libraries warn about what is not the user's to change."""
    import warnings

    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.|accelerate\.")


def _default(job: Job, module: Any, arguments: Sequence[str]) -> Any:
    """The settings that flags override: the verb's own, or those of an earlier run."""
    from rectified.runs import read_config

    file = _file_of_settings(arguments)
    verb, settings = (job.module, {}) if file is None else read_config(Path(file))
    is_other = job.told_by is not None and (
        job.told_by in settings or _value(arguments, f"--{job.told_by}") is not None
    )
    default = getattr(module, job.other_default if is_other else job.default)
    if file is None:
        return default
    if verb != job.module:
        raise UserError(f"{file} is for `rectified {verb}`, not for `rectified {job.module}`")
    return from_settings(type(default), settings, source=file)


def _sweep(arguments: list[str]) -> None:
    """`rectified sweep VERB [options of the sweep] [options of VERB]`."""
    from rectified.jobs import sweep
    from rectified.runs import default_path

    of = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    found = _sweep_default(of, arguments)
    options, how, others = _parse("sweep", found.how, arguments, all_of_them=False)
    if options.resume is not None:
        grows = _value(arguments, "--grid") is not None
        if not sweep.may_go_on(options.resume, with_grid=grows):
            raise UserError(
                f"{options.resume} is finished: see {options.resume / 'report.html'}, or go on "
                "with a larger --grid"
            )
    _, settings, _ = _parse(found.of, found.settings, others)
    whole = sweep.Sweep(found.of, settings, how)
    check_consent(whole.to_dict(), [*arguments, *others], _file_of_settings(arguments, _GROWS))
    if options.resume is None and options.out is None:
        options = replace(options, out=default_path(f"sweep-{found.of}", settings.data))
    _do("sweep", Job("sweep", ""), sweep, options, whole)


def _sweep_default(of: str | None, arguments: Sequence[str]) -> Sweep:
    """What flags override: defaults, an earlier sweep's settings, or an earlier run's."""
    from rectified.jobs.sweep import Sweep, SweepConfig
    from rectified.runs import read_config

    sweepable = [verb for verb, job in _JOBS.items() if job.module == verb]
    if of is not None:
        choose("verb to sweep", of, sweepable)
    elif {"-h", "--help"} & set(arguments):
        of = sweepable[0]
    file = _file_of_settings(arguments, _GROWS)
    if file is None:
        if of is None:
            raise UserError(f"a sweep needs a verb; choose from {', '.join(sweepable)}")
        return Sweep(of, _defaults_of(of))
    verb, shared = read_config(Path(file))
    how = SweepConfig()
    if verb == "sweep":
        own = {name: value for name, value in shared.items() if name not in ("of", "settings")}
        own.pop("data", None)  # it stands among the settings, too
        how = from_settings(SweepConfig, own, source=file)
        verb, shared = str(shared.get("of")), shared.get("settings", {})
    if verb not in sweepable or of not in (None, verb) or not isinstance(shared, dict):
        raise UserError(f"{file} is for {verb!r}, not for `rectified sweep {of or 'VERB'}`")
    return Sweep(verb, from_settings(type(_defaults_of(verb)), shared, source=file), how)


def _defaults_of(verb: str) -> Any:
    return getattr(import_module(f"rectified.jobs.{_JOBS[verb].module}"), _JOBS[verb].default)


_GROWS = ("--grid", "--cluster", "--workers", "--threads", "--tries")  # with a sweep's --resume
_ALWAYS = ("--resume", "--quiet", "--no-quiet", "--tracker", "--push-to-hub")


def _file_of_settings(arguments: Sequence[str], go_on: Collection[str] = ()) -> str | None:
    """The file that `--config` or `--resume` names; with the latter, only `go_on` may be told."""
    from rectified.runs import CONFIG

    resume, file = _value(arguments, "--resume"), _value(arguments, "--config")
    if resume is None:
        return file
    flags = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    code = _code(Path(resume) / CONFIG)  # typed again, which is how one agrees to it
    same = [flag for flag in ("--model", "--mpnn") if _value(arguments, flag) in code]
    extra = sorted(flags - {*_ALWAYS, *go_on, *same})
    if extra:
        raise UserError(f"--resume goes on with the run's own settings: leave out {extra[0]}")
    if not (Path(resume) / CONFIG).is_file():
        raise UserError(f"nothing to resume in {resume}: it has no {CONFIG}")
    return str(Path(resume) / CONFIG)


def _code(file: Path) -> list[str]:
    """The factories and folders of scripts that a file of settings names."""
    from rectified.runs import read_config

    if not file.is_file():
        return []
    settings = read_config(file)[1]
    return [*factories(settings), *folders(settings)]


def _value(arguments: Sequence[str], flag: str) -> str | None:
    for position, word in enumerate(arguments):
        if word == flag and position + 1 < len(arguments):
            return arguments[position + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def from_settings(config: type, settings: Mapping[str, Any], *, source: str) -> Any:
    """Settings from a file as a config object.

    Raises:
        UserError: for a setting that the config does not have, or a value of another type.
    """
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    every = CollectionCheckStrategy.ALL_ITEMS

    hints = get_type_hints(config)
    known = {f.name for f in fields(config)}
    values = {}
    for name, value in settings.items():
        choose(f"setting in {source}", str(name)[:100], sorted(known))
        value = tuple(value) if isinstance(value, list) else value
        try:
            value = float(value) if hints[name] is float and isinstance(value, int) else value
            values[name] = check_type(value, hints[name], collection_check_strategy=every)
        except (TypeCheckError, OverflowError):  # an integer may be too large for a float
            shown = repr(value)[:100]
            raise UserError(f"{name} in {source} has an unusable value: {shown}") from None
    return config(**values)


def _parse(
    verb: str, default: Any, arguments: list[str], *, all_of_them: bool = True
) -> tuple[RunOptions, Any, list[str]]:
    """Read flags over `default`, and where the run goes.

    Returns:
        Options, settings, and the words that were not understood, where that is allowed.
    """
    arguments_of = make_dataclass("Arguments", [("run", RunOptions), (verb, type(default))])
    whole = arguments_of(RunOptions(), default)
    parsed, others = _parse_flags(verb, whole, arguments, all_of_them=all_of_them)
    return parsed.run, getattr(parsed, verb), others


def _parse_flags(
    verb: str, default: Any, arguments: list[str], *, all_of_them: bool = True, usage: str = ""
) -> tuple[Any, list[str]]:
    """Read flags over `default`; tyro's own errors become one line."""
    import tyro

    words = VERBS[verb].summary
    epilogue = "\n".join(f"  rectified {verb} {example}" for example in VERBS[verb].examples)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            read: Any = tyro.cli  # its overloads want to know beforehand what is asked back
            parsed = read(
                type(default),
                args=arguments,
                prog=f"rectified {verb} {usage}".strip(),
                description=f"{words[0].upper()}{words[1:]}.\n\nexamples:\n{epilogue}",
                default=default,
                config=(tyro.conf.OmitArgPrefixes,),
                return_unknown_args=not all_of_them,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(said.getvalue(), verb)) from None
    return (parsed, []) if all_of_them else parsed


def _one_line(box: str, verb: str) -> str:
    """What tyro says in its frame: the first paragraph, and a flag that it proposes."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ") for line in plain.splitlines()[1:]]
    # the frame is of dashes where the terminal has no line drawing
    runs = groupby(lines, key=lambda line: set(line) <= set("─╰╯-"))
    paragraph = " ".join(next(list(run) for is_frame, run in runs if not is_frame))
    proposed = [line.split()[0] for line in lines if re.match(r"--\w", line)]
    unknown = paragraph.startswith("Unrecognized")
    meant = f"; perhaps {proposed[0]}" if proposed and unknown else ""
    return f"{paragraph.rstrip('.')}{meant}; see rectified {verb} --help"


def _sample(arguments: list[str]) -> None:
    """`rectified sample RUN [options]`."""
    from rectified.jobs.sample import SampleOptions, sample

    folder, rest = _leading_path(arguments)
    options, _ = _parse_flags("sample", SampleOptions(), rest, usage="RUN")
    if folder is None:
        raise UserError("name the folder of a finished run: rectified sample RUN; see --help")
    _quieten()
    print(sample(folder, options))


def _leading_path(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The first word, if it is not a flag, and the rest."""
    if arguments and not arguments[0].startswith("-"):
        return Path(arguments[0]), arguments[1:]
    return None, arguments


def _report(arguments: list[str]) -> None:
    """`rectified report RUN... [--out FILE]`."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{message}; see rectified report --help")

    parser = Parser(
        prog="rectified report",
        description="One page over finished run folders.",
        epilog="example: rectified report runs/demo runs/other --out page.html",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a finished run's folder")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page to write")
    options = parser.parse_args(arguments)
    from rectified.jobs.reports import combined
    from rectified.runs import write_text

    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, combined(options.runs))
    print(f"report: {options.out}")


if __name__ == "__main__":
    sys.exit(main())
