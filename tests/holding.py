"""A process under test waits at a known point until the test has done its part.

Who stops, kills or disturbs a run needs one that is under way, and how long a run lasts is nothing
to rely on. So the process waits just before a file takes its name for the n-th time. Python tells
whoever listens of every renaming (PEP 578), so that the code under test knows nothing of it.

    with held("checkpoint/study.safetensors", 2) as hold:
        process = subprocess.Popen(words, env=hold.environment())
        one, *_ = hold.wait(process)
        os.kill(one, signal.SIGKILL)  # those that wait beside it go on when the block ends
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Hold:
    """A known point of a process.

    Attributes:
        folder: where a process that waits puts a file named by its number; it waits as long as
            the file is there.
        file: the end of a path, as `Path.match` takes it.
        turn: the process waits when a file takes such a name for this time, the first being 1.
    """

    folder: Path
    file: str
    turn: int

    def listen(self) -> None:
        """Let this very process wait there; it cannot be taken back."""
        left = self.turn

        def heard(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event == "os.rename" and Path(os.fsdecode(arguments[1])).match(self.file):
                left -= 1
                if left == 0:
                    self._stay()

        sys.addaudithook(heard)

    def environment(self) -> dict[str, str]:
        """What a Python is started with to wait there, as do the Pythons that it starts."""
        place = self.folder.parent
        (place / "sitecustomize.py").write_text(  # which every Python imports first
            "from pathlib import Path\n"
            "from tests.holding import Hold\n"
            f"Hold(Path({str(self.folder)!r}), {self.file!r}, {self.turn}).listen()\n"
        )
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT), *sys.path])}

    def waiting(self) -> list[int]:
        """The processes that have come there."""
        return [int(mark.name) for mark in self.folder.iterdir()]

    def wait(self, *processes: Any) -> list[int]:
        """Come back with who waits, when somebody does; none of `processes` may end before."""
        until(self.waiting, *processes)
        return self.waiting()

    def release(self) -> None:
        """Let all of them go on, and those pass that have yet to come."""
        with contextlib.suppress(FileNotFoundError):  # it has been done
            self.folder.rename(self.folder.with_name("released"))

    def _stay(self) -> None:
        mark = self.folder / str(os.getpid())
        with contextlib.suppress(FileNotFoundError):  # all have been let go
            mark.touch()
        while mark.exists():
            time.sleep(0.01)


@contextlib.contextmanager
def held(file: str, turn: int = 1) -> Iterator[Hold]:
    """Make a `Hold`, which ends with the block."""
    with tempfile.TemporaryDirectory() as place:
        hold = Hold(Path(place, "waiting"), file, turn)
        hold.folder.mkdir()
        try:
            yield hold
        finally:
            hold.release()


def until(condition: Callable[[], Any], *processes: Any) -> None:
    """Come back when it is so, however busy the machine is: the limit is that of the whole test.

    None of `processes` may end before.
    """
    while not condition():
        gone = [process for process in processes if has_ended(process.pid)]
        assert not gone or condition(), f"{gone} ended before"
        time.sleep(0.01)


def has_ended(process: int) -> bool:
    """Whether it has; its exit code stays for whoever asks."""
    import psutil  # here, since a process that is started to wait does without

    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def family(process: Any) -> set[int]:
    """The processes that it has started, and those that they have."""
    import psutil

    return {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
