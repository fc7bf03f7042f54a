"""`rectified VERB [options]` from the first word to the exit code.

It knows verbs by the registry (`rectified.jobs`) alone, so that help loads no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from rectified import __version__
from rectified.cli import verbs
from rectified.cli.exits import exit_code
from rectified.errors import choose
from rectified.jobs import JOBS, TOOLS, tool_of

_HELP, _VERSION = ("-h", "--help", "help"), ("-V", "--version")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(partial(_dispatch, words))


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in _HELP:
        print(_help())
    elif words[0] in _VERSION:
        print(f"rectified {__version__}")
    else:
        _run(words[0], words[1:])


def _run(verb: str, words: list[str]) -> None:
    choose("verb", verb, [*JOBS, *TOOLS])
    if verb in JOBS:
        verbs.run_job(verb, words)
        return
    from rectified.jobs.job import Tool

    tool = tool_of(verb)
    if isinstance(tool, Tool):
        verbs.run_tool(verb, tool, words)
    else:
        verbs.run_sweep(verb, tool, words)


def _help() -> str:
    entries = {**JOBS, **TOOLS}
    lines = [
        "usage: rectified VERB [options]",
        "",
        "Make neural networks lean, and see what that cost.",
        "",
        *(f"  {verb:<10}{entry.summary}" for verb, entry in entries.items()),
        "",
        "rectified VERB --help lists a verb's options, with examples.",
        "",
        "examples:",
        *(f"  rectified {verb} {one.examples[0]}".rstrip() for verb, one in entries.items()),
    ]
    return "\n".join(lines)
