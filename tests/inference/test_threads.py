"""Threads that share one compiled job."""

import os
import subprocess
import sys
import threading
from typing import no_type_check

import numpy as np
import pytest
from filelock import FileLock

pytest.importorskip("numba")

from numba import carray

from rectified.inference import threads
from rectified.inference.threads import (
    Team,
    address,
    fetch_add,
    job,
    load_acquire,
    pause,
    pointer,
    wait,
)
from tests.holding import until


@job
def mark(words, part, parts):
    """Count one in this part's entry, after some work."""
    for _ in range(words[1]):
        pause()
    carray(pointer(words[0]), (parts,), np.int64)[part] += 1


@job
def meet(words, part, parts):
    """Say that this part has begun; part 0 then waits for whatever others have begun to end."""
    begun, ended = words[0], words[0] + 8
    fetch_add(begun)
    for _ in range(1000):
        pause()
    if part:
        fetch_add(ended)
    else:
        wait(ended, load_acquire(begun) - 1)


def marks(own: Team, parts: int, threads: int, work: int = 0) -> list[int]:
    counts = np.zeros(parts, np.int64)
    own.run(mark, np.array([address(counts), work]), parts, threads)
    return counts.tolist()


@pytest.mark.parametrize("cores", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 2, 7, 100])
def test_every_part_is_done_once(cores: int, parts: int) -> None:
    own = Team(cores)
    for count in (1, 2, 4):
        for _ in range(20):
            assert marks(own, parts, count) == parts * [1]
    own.shut_down()


def test_no_more_threads_are_started_than_may_run() -> None:
    own = Team(3)
    marks(own, 100, 1)
    assert len(own._workers) == 0
    marks(own, 2, 8)
    assert len(own._workers) == 1
    marks(own, 100, 8)
    assert len(own._workers) == 2
    own.shut_down()


def test_two_threads_share_the_parts() -> None:
    own, begun = Team(2), 0
    for _ in range(100):
        counts = np.zeros(2, np.int64)
        own.run(meet, np.array([address(counts)]), 2, 2)
        begun = int(counts[0])
    assert begun == 2
    own.shut_down()


def test_workers_sleep_and_are_woken() -> None:
    own = Team(2)
    marks(own, 2, 2)
    for _ in range(5):
        until(lambda: own._asleep)
        assert len(own._asleep) == 1
        assert marks(own, 2, 2) == [1, 1]
    own.shut_down()


@pytest.mark.skipif(threads._core_here is None, reason="the system does not place threads")
def test_a_worker_is_not_woken_where_its_waker_runs() -> None:
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("one core")
    semaphore = threading.Event()
    worker = threading.Thread(target=semaphore.wait)
    worker.start()
    assert worker.native_id is not None
    try:
        os.sched_setaffinity(0, {min(cores)})  # so that it cannot change meanwhile
        os.sched_setaffinity(worker.native_id, cores)
        threads._keep_off_this_core(worker.native_id)
        assert os.sched_getaffinity(worker.native_id) == cores  # no other core: left as it is
        os.sched_setaffinity(0, cores)
        threads._keep_off_this_core(worker.native_id)
        left = os.sched_getaffinity(worker.native_id)
        assert left < cores
        assert len(left) == len(cores) - 1
    finally:
        os.sched_setaffinity(0, cores)
        semaphore.set()
        worker.join()
    threads._keep_off_this_core(2**22)  # no such thread


def test_concurrent_callers_all_get_their_work_done() -> None:
    own, wrong = Team(3), []

    def call(parts: int) -> None:
        for _ in range(300):
            if marks(own, parts, 3, work=10) != parts * [1]:
                wrong.append(parts)

    callers = [threading.Thread(target=call, args=(parts,)) for parts in (2, 3, 5, 8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
    own.shut_down()


def test_a_team_that_was_shut_down_starts_anew() -> None:
    own = Team(2)
    marks(own, 2, 2)
    (worker,) = own._workers
    own.shut_down()
    assert not worker.is_alive()
    assert marks(own, 5, 2) == 5 * [1]
    own.shut_down()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_a_team_of_its_own() -> None:
    assert marks(threads._team, 4, 2) == 4 * [1]
    child = os.fork()
    if child == 0:
        counts = np.zeros(4, np.int64)
        threads.run(mark, np.array([address(counts), 0]), 4, 2)
        os._exit(0 if counts.tolist() == 4 * [1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_interpreter_ends_while_a_worker_spins() -> None:
    code = """
import numpy as np
from rectified.inference import threads
from tests.inference.test_threads import mark
counts = np.zeros(4, np.int64)
threads.SPIN = 0.2
threads.run(mark, np.array([threads.address(counts), 0]), 4, 2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_folder_for_compiled_code_it_is_compiled_anew() -> None:
    code = """
from numba.core.caching import CacheImpl
CacheImpl._locator_classes = []  # as on a read-only disk without a home
from rectified.inference import threads
assert not threads.CACHED
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert threads.CACHED


@no_type_check
def nothing(words, part, parts):
    """Compiled by the tests of the lock."""


def test_two_processes_do_not_compile_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another one's lock, as a process that compiles holds it.
    folder = threads._CACHE
    assert folder is not None
    compiled = threading.Event()
    with FileLock(folder / "compiling.lock"):
        thread = threading.Thread(target=lambda: (job(nothing), compiled.set()))
        thread.start()
        assert not compiled.wait(0.3)
        monkeypatch.setattr(threads, "COMPILING", 0)
        assert job(nothing).address  # who has waited long enough goes on alone
    thread.join()
    assert compiled.is_set()
