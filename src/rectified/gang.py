"""A gang: a few threads that share one compiled job, and are ready again within a microsecond.

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

A worker that has nothing to do watches for `WATCH` seconds and then sleeps. To wake it takes the
system 20 to 50 microseconds, to hand over to one that watches takes less than one; nobody waits for
one that is still waking. Parts are claimed by one compare-and-swap on a word that holds the number
of the run and how many parts are left, so a late worker can never take a part of another run.

Needs numba, the extra `fast`. numba's own threads are no choice: its `omp` layer kills forked
children, and `workqueue` aborts on two Python threads.
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

WATCH = 3e-4  # seconds: longer than Python takes between two calls of a loop
COMPILING = 300  # seconds to wait for another process that compiles, which takes ten or so
PATIENCE = 2000  # looks at a word, a few microseconds, before the core is offered to others

# Words of the board, each group on a cache line of its own.
_STATE, _JOB, _WORDS, _PARTS, _THREADS, _DONE, _BUSY, _LEAVE = 0, 16, 17, 18, 19, 32, 48, 64
_BOARD = 80
_LEFT = 1 << 20  # the state is _LEFT * number of the run + parts left to take

_INT = ir.IntType(64)


def _cache_folder() -> Path | None:
    """Where numba keeps this module's code; some containers have no folder to write to."""
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
    """What `carray` makes an array of, from an address in bytes."""

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
def count_up(typing, address):
    """Add one to the word at an address, for all threads to see, and return what it was."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], _INT.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(_INT, 1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
@no_type_check
def look(typing, address):
    """The word at an address as all threads see it, and whatever was written before it."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], _INT.as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
@no_type_check
def show(typing, address, word):
    """Write a word for all threads to see, after whatever was written before it."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], _INT.as_pointer())
        builder.store_atomic(arguments[1], place, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
@no_type_check
def swap(typing, address, old, new):
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
def give_way(typing):
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
    looks = 0
    while look(address) < count:
        pause()
        looks += 1
        if looks > PATIENCE:
            give_way()


@njit(nogil=True, cache=CACHED)
@no_type_check
def _take_one(board, rank):
    """Do one part if one is left: whether there was one."""
    state = look(board + 8 * _STATE)
    left = state % _LEFT
    if left == 0 or rank >= look(board + 8 * _THREADS):
        return False
    # What is read here is of this very run if the swap succeeds: nobody changes it before the
    # run's last part has been taken.
    job, words = look(board + 8 * _JOB), look(board + 8 * _WORDS)
    parts = look(board + 8 * _PARTS)
    if swap(board + 8 * _STATE, state, state - 1):
        _do(job, words, parts - left, parts)
        count_up(board + 8 * _DONE)
    return True


@njit(nogil=True, cache=CACHED)
@no_type_check
def _serve(board, rank, looks):
    """Do parts until none has come for so many looks."""
    idle = 0
    while idle < looks and look(board + 8 * _LEAVE) == 0:
        if _take_one(board, rank):
            idle = 0
        else:
            pause()
            idle += 1


@njit(nogil=True, cache=CACHED)
@no_type_check
def _run(board, job, array, parts, threads):
    words = array.ctypes.data
    if threads < 2 or parts < 2 or not swap(board + 8 * _BUSY, 0, 1):
        for part in range(parts):
            _do(job, words, part, parts)
        return
    show(board + 8 * _JOB, job)
    show(board + 8 * _WORDS, words)
    show(board + 8 * _PARTS, parts)
    show(board + 8 * _THREADS, threads)
    show(board + 8 * _DONE, 0)
    number = look(board + 8 * _STATE) // _LEFT + 1
    show(board + 8 * _STATE, number * _LEFT + parts)
    while _take_one(board, 0):
        pass
    wait(board + 8 * _DONE, parts)
    show(board + 8 * _BUSY, 0)


class Gang:
    """Threads that wait for work, started when first needed.

    Args:
        cores: how many threads may run at once, the caller's among them; by default as many as
            this process has cores.
    """

    def __init__(self, cores: int | None = None) -> None:
        self._cores = cores_at_hand() if cores is None else cores
        self._memory = np.zeros(_BOARD, np.int64)
        self._board = address(self._memory)
        self._lock = Lock()
        self._workers: list[Thread] = []
        self._asleep: list[tuple[Lock, int]] = []
        self._looks = 0

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
                self._recruit(threads - 1)
            if self._asleep:
                self._wake()
        _run(self._board, job.address, words, parts, threads)

    def dismiss(self) -> None:
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
                bell, worker = self._asleep.pop()
            except IndexError:  # another caller was faster
                return
            _keep_off_this_core(worker)
            bell.release()

    def _recruit(self, count: int) -> None:
        with self._lock:
            if not self._looks:
                self._looks = _looks_in(WATCH)
            while len(self._workers) < count:
                rank = len(self._workers) + 1
                worker = Thread(target=self._work, args=(rank,), name=f"gang-{rank}", daemon=True)
                self._workers.append(worker)
                worker.start()

    def _work(self, rank: int) -> None:
        bell = Lock()
        bell.acquire()
        while not self._memory[_LEAVE]:
            _serve(self._board, rank, self._looks)
            self._asleep.append((bell, get_native_id()))
            bell.acquire()


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
    """What tells the core that the caller is on; None where nothing does, or cores are not ours."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return getattr(ctypes.CDLL(None), "sched_getcpu", None)


_core_here = _find_core_here()


def _looks_in(seconds: float) -> int:
    """How often a worker looks at the board in a given time."""
    memory = np.zeros(_BOARD, np.int64)
    _serve(address(memory), 1, 1)
    before = time.perf_counter()
    _serve(address(memory), 1, 10_000)
    return max(1, round(10_000 * seconds / (time.perf_counter() - before)))


def cores_at_hand() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_gang = Gang()


def _renew() -> None:
    global _gang
    _gang = Gang()


def _dismiss() -> None:
    _gang.dismiss()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
# A thread that comes back from compiled code to an interpreter that is gone would crash.
atexit.register(_dismiss)


def run(job: Any, words: NDArray[np.int64], parts: int, threads: int) -> None:
    """`Gang.run` on the gang that the whole process shares.

    Args:
        job: what `job` made.
        words: what the job reads; must stay until this returns, which the caller sees to.
        parts: how many parts, below a million.
        threads: how many threads may work on it, the caller's among them.
    """
    _gang.run(job, words, parts, threads)
