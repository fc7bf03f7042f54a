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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from rectified import __version__
from rectified.errors import UserError, choose

if TYPE_CHECKING:
    from rectified.runs import Run

VERBS = {  # verb -> what it does, and examples
    "demo": ("the main job on embedded data, with a report", ("",)),
    "prune": (
        "iterative pruning with and without AP (Activate-while-Pruning)",
        (
            "--data digits --model mlp --ap off,lite --seeds 16",
            "--data PATH/cifar10 --model resnet20 --score lamp,magnitude --target 0.02",
            "--data PATH --model mine:factory --weights mine.safetensors --rewind finetune",
        ),
    ),
    "scatter": (
        "scattering features, their bounds and what was measured against them",
        (
            "--data digits",
            "--data PATH/cifar10 --limit 10000",
            "--networks none --limit 200 --seeds 5",
        ),
    ),
    "flow": (
        "learn a flow between two sets, straighten it, generate in few steps",
        (
            "--data moons --source gaussians8 --rounds 2 --steps 1,2,4,100",
            "--data digits --recipe 2rf++ --seeds 3",
            "--data PATH/cifar10 --recipe 2rf++ --model unet --seeds 1 --precision bf16",
            "--data PATH/horses --source PATH/zebras --image-size 32",
        ),
    ),
    "diffusion": (
        "rectify a diffusion model on its own pairs: few steps, in its own form",
        (
            "--data digits --steps 1,2,4,50",
            "--data digits --path scaled_linear --predict noise",
            "--data digits --phases 4 --steps 1,2,4,50",
        ),
    ),
    "sample": (
        "samples from a finished run of flow, diffusion or protein",
        ("runs/RUN --count 64 --steps 1", "runs/RUN --label 3 --guidance 2 --out samples"),
    ),
    "report": ("one page over finished run folders", ("runs/demo runs/other --out page.html",)),
}


@dataclass(frozen=True)
class Job:
    """What a verb runs: a module of `rectified.jobs`, its default settings, its default folder.

    A verb with a folder of its own replaces what an earlier run of it left there.
    """

    module: str
    default: str
    out: Path | None = None


_JOBS = {
    "prune": Job("prune", "DEFAULT"),
    "demo": Job("prune", "DEMO", Path("runs/demo")),
    "scatter": Job("scatter", "DEFAULT"),
    "flow": Job("flow", "DEFAULT"),
    "diffusion": Job("diffusion", "DEFAULT"),
}
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
    print("rectified: " + " ".join(message.split()), file=sys.stderr)
    return 2


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
        {"report": _report, "sample": _sample}.get(verb, lambda rest: _run(verb, rest))(rest)
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
    lines += [f"  {verb:<10}{words}" for verb, (words, _) in VERBS.items()]
    lines += ["", "rectified VERB --help lists a verb's options, with examples.", ""]
    lines += [
        "examples:",
        *(f"  rectified {verb} {ex[0]}".rstrip() for verb, (_, ex) in VERBS.items()),
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
    """

    out: Path | None = None
    config: Path | None = None
    resume: Path | None = None
    quiet: bool = False


def _run(verb: str, arguments: list[str]) -> None:
    from rectified.runs import Run, default_path, environment

    job = _JOBS[verb]
    module = import_module(f"rectified.jobs.{job.module}")
    default = _default(job, getattr(module, job.default), arguments)
    options, config = _parse(verb, default, arguments)
    from rectified.training import accelerator

    _quieten()
    process = accelerator(config.device)
    folder = Run(
        options.resume or options.out or job.out or default_path(verb, config.data),
        resume=options.resume is not None,
        replace=options.out is None and options.resume is None and job.out is not None,
        writer=process.is_main_process,
    )
    if options.resume is not None and folder.finished:
        raise UserError(f"{folder.path} is finished: see {folder.path / 'report.html'}")
    shows = process.is_main_process and not options.quiet
    with contextlib.closing(folder), _resumable(verb, folder):
        text = module.run(config, folder, environment(), shows)
    if process.is_main_process:
        print(f"{text}\n\nreport: {folder.path / 'report.html'}")


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


def _default(job: Job, default: Any, arguments: Sequence[str]) -> Any:
    """The settings that flags override: the verb's own, or those of an earlier run."""
    from rectified.runs import CONFIG, read_config

    resume, file = _value(arguments, "--resume"), _value(arguments, "--config")
    if resume is not None:
        flags = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        extra = sorted(flags - {"--resume", "--quiet", "--no-quiet"})
        if extra:
            raise UserError(f"--resume goes on with the run's own settings: leave out {extra[0]}")
        if not (Path(resume) / CONFIG).is_file():
            raise UserError(f"nothing to resume in {resume}: it has no {CONFIG}")
        file = str(Path(resume) / CONFIG)
    if file is None:
        return default
    verb, settings = read_config(Path(file))
    if verb != job.module:
        raise UserError(f"{file} is for `rectified {verb}`, not for `rectified {job.module}`")
    return from_settings(type(default), settings, source=file)


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
    from typeguard import TypeCheckError, check_type

    hints = get_type_hints(config)
    known = {f.name for f in fields(config)}
    values = {}
    for name, value in settings.items():
        choose(f"setting in {source}", name, sorted(known))
        value = tuple(value) if isinstance(value, list) else value
        value = float(value) if hints[name] is float and isinstance(value, int) else value
        try:
            values[name] = check_type(value, hints[name])
        except TypeCheckError:
            raise UserError(f"{name} in {source} has an unusable value: {value!r}") from None
    return config(**values)


def _parse(verb: str, default: Any, arguments: list[str]) -> tuple[RunOptions, Any]:
    """Read flags over `default`, and where the run goes."""
    arguments_of = make_dataclass("Arguments", [("run", RunOptions), (verb, type(default))])
    parsed = _parse_only(verb, arguments_of(RunOptions(), default), arguments)
    return parsed.run, getattr(parsed, verb)


def _parse_only(verb: str, default: Any, arguments: list[str], usage: str = "") -> Any:
    """Read flags over `default`; tyro's own errors become one line."""
    import tyro

    words, examples = VERBS[verb]
    epilogue = "\n".join(f"  rectified {verb} {example}" for example in examples)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                type(default),
                args=arguments,
                prog=f"rectified {verb} {usage}".strip(),
                description=f"{words[0].upper()}{words[1:]}.\n\nexamples:\n{epilogue}",
                default=default,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(said.getvalue(), verb)) from None


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
    options = _parse_only("sample", SampleOptions(), rest, usage="RUN ")
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
