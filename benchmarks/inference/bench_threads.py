"""Handing half of a short job to another thread: our threads against numba's threading layers.

    python -m benchmarks.inference.bench_threads

A job has two halves of arithmetic in registers, of 2, 10 and 50 microseconds each. It is called
from Python with one thread; on two of `rectified.inference.threads`; and as numba's `parallel=True`
on each threading layer that is installed: `workqueue`, `omp` (GNU OpenMP) and `tbb` (the package
`tbb`). Every layer has a process of its own. Times are medians over calls, in microseconds: in a
loop, and each 10 milliseconds of sleep after the one before. `busy` is the CPU time, in
milliseconds, that the threads take for themselves in the 50 milliseconds after a call. Whether a
process survives a call in a forked child, and calls from two Python threads, is tried out.
`--realtime` gives the process's threads real-time priority while calls are timed, for a machine
that is not quiet; it needs the right to.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Thread
from typing import Any, no_type_check

import numpy as np
from numba import carray, float64, int64, njit, prange

from rectified.inference.threads import address, job, pointer, run

OURS = ("serial", "ours")
LAYERS = (*OURS, "workqueue", "omp", "tbb")
HALVES = (2, 10, 50)  # microseconds
BUSY = 0.05


@njit(float64(int64), nogil=True)
@no_type_check
def arithmetic(steps):
    """Steps that depend on each other, so that no compiler makes fewer of them."""
    x = float(steps)
    for _ in range(steps):
        x = x * 0.999 + 0.001
    return x


@job
@no_type_check
def half(words, part, parts):
    """One half, for our threads."""
    carray(pointer(words[0]), (parts,), np.float64)[part] = arithmetic(words[1])


@njit(parallel=True, nogil=True)
@no_type_check
def halves(out, steps):
    """Both halves, for numba's threads."""
    for part in prange(2):
        out[part] = arithmetic(steps)


def main() -> None:
    """Print one line a layer; with `--layer`, what this process finds of that one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--layer", choices=LAYERS, help="only this one, in this process")
    parser.add_argument("--trial", choices=TRIALS, help="only see whether the layer survives this")
    parser.add_argument("--realtime", action="store_true", help="before all other processes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.trial:
        TRIALS[options.trial](caller(options.layer, 1000))
    elif options.layer:
        print(json.dumps(measure(options.layer, options.calls, options.realtime)))
    else:
        found = {layer: compared(layer, options) for layer in LAYERS}
        for layer, row in found.items():
            print(f"{layer:10} " + ", ".join(f"{name} {value}" for name, value in row.items()))
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")


def compared(layer: str, options: argparse.Namespace) -> dict[str, Any]:
    """What processes that use only this layer find."""
    realtime = ["--realtime"] if options.realtime else []
    done = in_a_process("--layer", layer, "--calls", str(options.calls), *realtime)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
    trials = {trial: in_a_process("--layer", layer, "--trial", trial) for trial in TRIALS}
    return json.loads(done.stdout.splitlines()[-1]) | {
        trial: "survives" if not ended.returncode else "ends the process"
        for trial, ended in trials.items()
    }


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this file with arguments, the second of which is a layer."""
    layers = {} if arguments[1] in OURS else {"NUMBA_THREADING_LAYER": arguments[1]}
    environment = {**os.environ, **layers, "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "benchmarks.inference.bench_threads", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def measure(layer: str, calls: int, realtime: bool) -> dict[str, Any]:
    """Times of one layer."""
    per_microsecond = steps_per_microsecond()
    row: dict[str, Any] = {}
    for size in HALVES:
        call = caller(layer, round(size * per_microsecond))
        with undisturbed() if realtime else nullcontext():
            row[f"{size} us"] = round(median(call, calls), 1)
            row[f"{size} us, rested"] = round(median(call, calls // 10, rest=0.01), 1)
    row["busy ms"] = round(busy(call), 1)
    return row


def caller(layer: str, steps: int) -> Callable[[], object]:
    """A call of both halves."""
    out = np.zeros(2)
    if layer in OURS:
        words, threads = np.array([address(out), steps]), 1 if layer == "serial" else 2
        call: Callable[[], object] = lambda: (run(half, words, 2, threads), out)  # noqa: E731
    else:
        call = lambda: halves(out, steps)  # noqa: E731
    call()
    return call


def steps_per_microsecond() -> float:
    """How many steps one thread does in a microsecond, at best."""
    arithmetic(10)
    times = []
    for _ in range(50):
        begun = time.perf_counter()
        arithmetic(100_000)
        times.append(time.perf_counter() - begun)
    return 0.1 / min(times)


def median(call: Callable[[], object], calls: int, rest: float = 0.0) -> float:
    """Microseconds of a call."""
    times = []
    for _ in range(calls):
        if rest:
            time.sleep(rest)
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return 1e6 * statistics.median(times)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Real-time priority for all threads that there are."""
    threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    for thread in threads:
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        for thread in threads:
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def busy(call: Callable[[], object]) -> float:
    """Milliseconds of CPU time that threads take after a call, while nobody wants anything."""
    found = []
    for _ in range(10):
        call()
        begun = time.process_time()
        time.sleep(BUSY)
        found.append(time.process_time() - begun)
    return 1e3 * statistics.median(found)


def in_a_child(call: Callable[[], object]) -> None:
    """Call once more in a forked child, and end as it does."""
    child = os.fork()
    if child == 0:
        call()
        os._exit(0)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def from_two_threads(call: Callable[[], object]) -> None:
    """Call from two Python threads at once."""

    def often() -> None:
        for _ in range(1000):
            call()

    callers = [Thread(target=often) for _ in range(2)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()


TRIALS = {"a fork": in_a_child, "two callers": from_two_threads}


if __name__ == "__main__":
    main()
