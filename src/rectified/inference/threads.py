"""A team of threads that share one compiled job, and are ready again within a microsecond.

A *job* is a compiled function `(words, part, parts)` that does part `part` of `parts` of some work;
`words` points to 64-bit integers of its own choosing, mostly addresses of arrays and sizes. `run`
cuts the work into parts, which the caller's thread and the waiting ones take one after another:

    @job
    @no_type_check
    def double(words, part, parts):
        numbers = carray(pointer(words[0]), (words[1],), np.float32)
        for k in range(words[1] * part // parts, words[1] * (part + 1) // parts):
            numbers[k] *= 2

    run(double, np.array([address(x), len(x)]), parts=4, threads=2)

What this promises, and what a job must keep to:

- `run` comes back when every part has been done, each exactly once, by anyone in any order.
- No part may wait for another one to *begin*: if no thread is free (they sleep, the machine has
  one core, or another caller has them), the caller does all parts itself, one after another. It may
  wait for what another part has begun and will finish.
- A job raises nothing (numba would print and ignore it) and never needs the interpreter.
- Any number of threads may call `run`; a forked child starts with fresh threads of its own.

A worker that has nothing to do spins for `SPIN` seconds and then sleeps. To wake it takes the
system 20 to 50 microseconds, to hand over to one that spins takes less than one; nobody waits for
one that is still waking. Parts are claimed by one compare-exchange on a word that holds the number
of the run and how many parts are left, so a late worker can never take a part of another run.

A worker that is woken is first barred from the core that its waker is on: the affinity of these
threads is changed (`sched_setaffinity`, where the system has it), that of no other thread.

Needs numba, the extra `fast`. Its own threading layers do not serve. Measured
(`benchmarks/inference/bench_threads.py`), to hand over one of two halves of 2 microseconds costs 1
microsecond here, 1 to 2 by GNU OpenMP (`omp`), 8 by `tbb` and 48 by `workqueue`; OpenMP ends forked
children, such as those of a data loader, and keeps a core busy for 6 milliseconds after a call,
and `workqueue` ends a process in which two Python threads call.
"""

import atexit
import ctypes
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock, Thread, get_native_id
from typing import Any, no_type_check

import numpy as np
from filelock import FileLock
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

SPIN = 3e-4  # seconds: longer than Python takes between two calls of a loop
COMPILING = 300  # seconds to wait for another process that compiles, which takes ten or so
POLLS_BEFORE_YIELD = 2000  # of a word, a few microseconds, before the core is offered to others

# Words of the control block, each group on a cache line of its own.
_STATE, _JOB, _WORDS, _PARTS, _THREADS, _DONE, _BUSY, _LEAVE = 0, 16, 17, 18, 19, 32, 48, 64
_CONTROL_BLOCK = 80
_LEFT = 1 << 20  # the state is _LEFT * number of the run + parts left to take

_INT = ir.IntType(64)


def _cache_folder() -> Path | None:
    """The folder where numba keeps this module's code; some containers have none to write to."""
    try:
        return Path(str(njit(cache=True)(_cache_folder).stats.cache_path))
    except RuntimeError:
        return None


_CACHE = _cache_folder()
CACHED = _CACHE is not None  # else code is compiled anew in every process, which takes seconds


@contextmanager
def _compiling_alone() -> Iterator[None]:
    """Keep other processes from compiling, as far as the file system can lock.

    numba writes a function's index and its code one after the other, and names the code's file by
    the index that it read. Two processes that compile several signatures of one function into an
    empty cache can thus leave an index that leads to the code of another signature, for good.
    """
    with ExitStack() as held:
        if _CACHE is not None:
            lock = FileLock(_CACHE / "compiling.lock")
            with suppress(OSError, NotImplementedError):  # a timeout is an OSError
                held.enter_context(lock.acquire(timeout=COMPILING))
        yield


def job(function: Any) -> Any:
    """Compile `(words, part, parts)` into what `run` takes; kept in numba's cache, if any."""
    signature = types.void(types.CPointer(types.int64), types.int64, types.int64)
    with _compiling_alone():
        return cfunc(signature, cache=CACHED)(function)


def address(array: NDArray[Any]) -> int:
    """The address of an array's first byte, for the words of a job; it keeps nothing alive."""
    return int(array.__array_interface__["data"][0])


@intrinsic
@no_type_check
def pointer(typing, address):
    """A pointer for `carray`, from an address in bytes."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), generate


@intrinsic
@no_type_check
def address_in(typing, pointer):
    """The address that a pointer holds."""

    def generate(context, builder, signature, arguments):
        return builder.ptrtoint(arguments[0], _INT)

    return types.int64(pointer), generate


@intrinsic
@no_type_check
def fetch_add(typing, address):
    """Add one to the word at an address, for all threads to see, and return what it was."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], _INT.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(_INT, 1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
@no_type_check
def load_acquire(typing, address):
    """The word at an address as all threads see it, and whatever was written before it."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], _INT.as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
@no_type_check
def store_release(typing, address, word):
    """Write a word for all threads to see, after whatever was written before it."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], _INT.as_pointer())
        builder.store_atomic(arguments[1], place, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
@no_type_check
def compare_exchange(typing, address, old, new):
    """Write `new` where `old` is still, and say whether it was."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], _INT.as_pointer())
        pair = builder.cmpxchg(place, arguments[1], arguments[2], "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


_IS_X86 = platform.machine() in ("x86_64", "AMD64")


@intrinsic
@no_type_check
def pause(typing):
    """Wait a few nanoseconds and tell the core so; a plain loop where the core takes no hint."""

    def generate(context, builder, signature, arguments):
        if _IS_X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause")
            builder.call(hint, [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
@no_type_check
def yield_core(typing):
    """Let another thread have this core."""

    def generate(context, builder, signature, arguments):
        if os.name == "posix":
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
@no_type_check
def _do(typing, job, words, part, parts):
    def generate(context, builder, signature, arguments):
        job, words, part, parts = arguments
        kind = ir.FunctionType(ir.VoidType(), [_INT.as_pointer(), _INT, _INT])
        function = builder.inttoptr(job, kind.as_pointer())
        builder.call(function, [builder.inttoptr(words, _INT.as_pointer()), part, parts])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@njit(nogil=True, cache=CACHED)
@no_type_check
def wait(address, count):
    """Come back when the word at an address is at least `count`."""
    polls = 0
    while load_acquire(address) < count:
        pause()
        polls += 1
        if polls > POLLS_BEFORE_YIELD:
            yield_core()


@njit(nogil=True, cache=CACHED)
@no_type_check
def _take_one(control_block, rank):
    """Do one part if one is left: whether there was one."""
    state = load_acquire(control_block + 8 * _STATE)
    left = state % _LEFT
    if left == 0 or rank >= load_acquire(control_block + 8 * _THREADS):
        return False
    # What is read here is of this very run if the exchange succeeds: nobody changes it before the
    # run's last part has been taken.
    job, words = load_acquire(control_block + 8 * _JOB), load_acquire(control_block + 8 * _WORDS)
    parts = load_acquire(control_block + 8 * _PARTS)
    if compare_exchange(control_block + 8 * _STATE, state, state - 1):
        _do(job, words, parts - left, parts)
        fetch_add(control_block + 8 * _DONE)
    return True


@njit(nogil=True, cache=CACHED)
@no_type_check
def _serve(control_block, rank, polls):
    """Do parts until none has come in so many polls."""
    idle = 0
    while idle < polls and load_acquire(control_block + 8 * _LEAVE) == 0:
        if _take_one(control_block, rank):
            idle = 0
        else:
            pause()
            idle += 1


@njit(nogil=True, cache=CACHED)
@no_type_check
def _run(control_block, job, array, parts, threads):
    words = array.ctypes.data
    if threads < 2 or parts < 2 or not compare_exchange(control_block + 8 * _BUSY, 0, 1):
        for part in range(parts):
            _do(job, words, part, parts)
        return
    store_release(control_block + 8 * _JOB, job)
    store_release(control_block + 8 * _WORDS, words)
    store_release(control_block + 8 * _PARTS, parts)
    store_release(control_block + 8 * _THREADS, threads)
    store_release(control_block + 8 * _DONE, 0)
    number = load_acquire(control_block + 8 * _STATE) // _LEFT + 1
    store_release(control_block + 8 * _STATE, number * _LEFT + parts)
    while _take_one(control_block, 0):
        pass
    wait(control_block + 8 * _DONE, parts)
    store_release(control_block + 8 * _BUSY, 0)


class Team:
    """Threads that wait for work, started when first needed.

    Args:
        cores: how many threads may run at once, the caller's among them; by default as many as
            this process has cores.
    """

    def __init__(self, cores: int | None = None) -> None:
        self._cores = cores_at_hand() if cores is None else cores
        self._memory = np.zeros(_CONTROL_BLOCK, np.int64)
        self._control_block = address(self._memory)
        self._lock = Lock()
        self._workers: list[Thread] = []
        self._asleep: list[tuple[Lock, int]] = []
        self._polls = 0

    def run(self, job: Any, words: NDArray[np.int64], parts: int, threads: int) -> None:
        """Do a job in parts; see the module.

        Args:
            job: what `job` made.
            words: what the job reads; must stay until this returns, which the caller sees to.
            parts: how many parts, below a million.
            threads: how many threads may work on it, the caller's among them.
        """
        threads = min(threads, self._cores, parts)
        if threads > 1:
            if threads > len(self._workers) + 1:
                self._start_workers(threads - 1)
            if self._asleep:
                self._wake()
        _run(self._control_block, job.address, words, parts, threads)

    def shut_down(self) -> None:
        """End the threads, and wait for that; the next run starts others."""
        with self._lock:
            self._memory[_LEAVE] = 1
            while any(worker.is_alive() for worker in self._workers):
                self._wake()
                for worker in self._workers:
                    worker.join(0.01)
            self._workers.clear()
            self._asleep.clear()
            self._memory[_LEAVE] = 0

    def _wake(self) -> None:
        while self._asleep:
            try:
                semaphore, worker = self._asleep.pop()
            except IndexError:  # another caller was faster
                return
            _keep_off_this_core(worker)
            semaphore.release()

    def _start_workers(self, count: int) -> None:
        with self._lock:
            if not self._polls:
                self._polls = _polls_in(SPIN)
            while len(self._workers) < count:
                rank = len(self._workers) + 1
                worker = Thread(target=self._work, args=(rank,), name=f"team-{rank}", daemon=True)
                self._workers.append(worker)
                worker.start()

    def _work(self, rank: int) -> None:
        semaphore = Lock()
        semaphore.acquire()
        while not self._memory[_LEAVE]:
            _serve(self._control_block, rank, self._polls)
            self._asleep.append((semaphore, get_native_id()))
            semaphore.acquire()


def _keep_off_this_core(thread: int) -> None:
    """Bar a sleeping thread from the core that the caller is on.

    The system likes to wake a thread where its waker runs. There it would have to wait for the
    caller, who waits for it: for milliseconds, while another core has nothing to do.
    """
    if _core_here is None:
        return
    others = os.sched_getaffinity(0) - {_core_here()}
    if others:
        with suppress(OSError):  # the thread has ended
            os.sched_setaffinity(thread, others)


def _find_core_here() -> Callable[[], int] | None:
    """The C function that gives the caller's core; None without one, or if cores are not ours."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return getattr(ctypes.CDLL(None), "sched_getcpu", None)


_core_here = _find_core_here()


def _polls_in(seconds: float) -> int:
    """The number of times that a worker polls the control block in a given time."""
    memory = np.zeros(_CONTROL_BLOCK, np.int64)
    _serve(address(memory), 1, 1)
    before = time.perf_counter()
    _serve(address(memory), 1, 10_000)
    return max(1, round(10_000 * seconds / (time.perf_counter() - before)))


def cores_at_hand() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_team = Team()


def _renew() -> None:
    global _team
    _team = Team()


def _shut_down() -> None:
    _team.shut_down()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
# A thread that comes back from compiled code to an interpreter that is gone would crash.
atexit.register(_shut_down)


def run(job: Any, words: NDArray[np.int64], parts: int, threads: int) -> None:
    """`Team.run` on the team that the whole process shares.

    Args:
        job: what `job` made.
        words: what the job reads; must stay until this returns, which the caller sees to.
        parts: how many parts, below a million.
        threads: how many threads may work on it, the caller's among them.
    """
    _team.run(job, words, parts, threads)
