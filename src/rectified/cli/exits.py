"""The end of a command: its exit code, and its last line.

0          done
2          a mistake of the user's, told in one line
1          a fault of ours, with its traceback
130, 143   stopped by Ctrl-C or SIGTERM, with everything saved that `--resume` needs
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rectified.errors import UserError

if TYPE_CHECKING:
    from rectified.runs import Run

USER_ERRNO = {
    errno.ENOSPC: "the disk is full: free some space, or give --out another place",
    errno.EDQUOT: "the quota is used up: free some space, or give --out another place",
    errno.EACCES: "permission denied: give --out a folder that you may write",
    errno.EPERM: "permission denied: give --out a folder that you may write",
    errno.EROFS: "the file system is read-only: give --out a folder that you may write",
    errno.ENOTDIR: "a part of the path is a file: give --out another place",
    errno.ENAMETOOLONG: "the path is too long: give --out a shorter one",
}


class Terminated(BaseException):
    """SIGTERM, as an exception, so that everything is closed on the way out."""


def exit_code(work: Callable[[], None]) -> int:
    """Do `work` and return the exit code; mistakes and interruptions are told on stderr."""
    try:
        with _terminations():
            work()
            sys.stdout.flush()
            return 0
    except UserError as error:
        return _complain(str(error))
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in USER_ERRNO:
            raise
        return _complain(f"{error.filename or 'writing'}: {USER_ERRNO[error.errno]}")
    except (KeyboardInterrupt, Terminated) as stop:
        notes = getattr(stop, "__notes__", [" before anything was written"])
        print(f"\nrectified: interrupted{notes[-1]}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def _complain(message: str) -> int:
    print("rectified: " + printable(" ".join(message.split())), file=sys.stderr)
    return 2


def printable(text: str) -> str:
    """Return `text` with its control characters spelt out.

    Names come from files, too: a terminal must not obey them.
    """
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


@contextlib.contextmanager
def _terminations() -> Iterator[None]:
    def handler(_number: int, _frame: Any) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, handler)
    except ValueError:  # not the main thread: the host decides about signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def resumable(verb: str, folder: Run) -> Iterator[None]:
    """Tell whoever stops the run how to go on with it."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        if folder.begun:
            place = shlex.quote(str(folder.path))
            stop.add_note(f"; go on with: rectified {verb} --resume {place}")
        raise
