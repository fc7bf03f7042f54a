"""Engines that do the runs of a sweep: joblib, on this machine's cores, on Dask or on Ray.

    loky            processes of this machine; one worker alone works in the sweep's own process
    tcp://...       a Dask scheduler, through joblib's Dask backend (also tls://, ucx://)
    ray://...       a Ray cluster, through Ray's joblib backend

The workers of a cluster need the same version of `rectified` and the sweep's folder under the same
path (a shared file system). Each does one run at a time.

An engine gives outcomes as they come, in any order. When a worker is lost it may stop with
whatever exception it likes: `carry_out` looks at what is not done and begins again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rectified.errors import UserError, first_line
from rectified.jobs.sweep.settings import check_cluster
from rectified.jobs.sweep.tasks import Outcome, Task, work

_CONNECT_SECONDS, _CONNECT_TRIES = 15, 4
_IDLE_ROUNDS = 3  # without a single attempt, until the sweep gives up
_LOOK_SECONDS = 0.5

Engine = Callable[[Sequence[Task]], Iterator[Outcome]]


@contextlib.contextmanager
def engine(cluster: str | None, workers: int, threads: int) -> Iterator[Engine]:
    """The engine for an address, or for this machine; connections are closed at the end.

    Raises:
        UserError: if a package is missing or nobody answers at the address.
    """
    with _local(workers, threads) if cluster is None else _remote(cluster) as made:
        yield made


def _remote(address: str) -> contextlib.AbstractContextManager[Engine]:
    check_cluster(address)
    return _ray(address) if address.startswith("ray://") else _dask(address)


def carry_out(
    tasks: Sequence[Task], run: Engine, heard: Callable[[Outcome], None]
) -> list[Outcome]:
    """Do all runs, again where their workers are lost; the last try of a run is alone.

    A lost worker cannot say which run it died of. So each run that was under way has one try less,
    and on its last one nobody else is there to take along.

    Args:
        tasks: the runs.
        run: the engine.
        heard: called with every outcome as it comes.

    Returns:
        The final outcome of every run.

    Raises:
        UserError: if the engine takes no run at all.
    """
    final: dict[str, Outcome] = {}
    idle = 0
    while left := [task for task in tasks if task.identity not in final]:
        before = len(final), _attempts(left)
        why = [_carry_out_group(group, run, heard, final) for group in _groups(left)]
        idle = idle + 1 if before == (len(final), _attempts(left)) else 0
        if idle == _IDLE_ROUNDS:
            raise UserError(
                f"no worker took any of {len(left)} runs ({why[-1]}): see to the workers"
            )
    return [final[task.identity] for task in tasks]


def _attempts(tasks: Sequence[Task]) -> int:
    return sum(task.attempts for task in tasks)


def _groups(left: Sequence[Task]) -> list[list[Task]]:
    """All that may be under way together; then one by one what is on its last try."""
    together = [task for task in left if task.attempts < max(1, task.tries - 1)]
    return [together] if together else [[task] for task in left]


def _carry_out_group(
    group: Sequence[Task],
    run: Engine,
    heard: Callable[[Outcome], None],
    final: dict[str, Outcome],
) -> str:
    """Keep the outcomes that are final; returns what the engine stopped with, if anything."""
    try:
        with contextlib.closing(run(group)) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                heard(outcome)
                if outcome.state != "again":
                    final[outcome.identity] = outcome
    except UserError:
        raise
    except Exception as error:  # every engine tells of a lost worker in its own way
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


@contextlib.contextmanager
def _local(workers: int, threads: int) -> Iterator[Engine]:
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    def run(tasks: Sequence[Task]) -> Iterator[Outcome]:
        if workers == 1:
            yield from map(work, tasks)
            return
        yield from Parallel(
            n_jobs=max(2, min(workers, len(tasks))),  # with one, joblib would not start a process
            backend="loky",
            batch_size=1,
            return_as="generator_unordered",
            inner_max_num_threads=threads,
        )(delayed(work)(task) for task in tasks)

    # `reuse`: that of the runs; without it, another one, and a second's wait for the workers' end
    try:
        yield run
    except BaseException:
        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)
        raise
    get_reusable_executor(reuse=True).shutdown(wait=False)  # they end while results are merged


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Engine]:
    try:
        from distributed import Client
    except ImportError:
        raise UserError(f'cluster {address} needs Dask: pip install "rectified[dask]"') from None
    for name in ("distributed", "distributed.client", "distributed.comm"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it tells every retry
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise UserError(f"no Dask scheduler answers at {address} ({first_line(error)})") from None
    with client:
        yield _joblib("dask", client=client)


@contextlib.contextmanager
def _ray(address: str) -> Iterator[Engine]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise UserError(f'cluster {address} needs Ray: pip install "rectified[ray]"') from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says what the error says, at length
            _reach(lambda: ray.init(address, logging_level=logging.ERROR, log_to_driver=False))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray head answers at {address} ({_last_line(error)})") from None
    register_ray()
    try:
        yield _watched(_joblib("ray", return_as="list"))
    finally:
        ray.shutdown()


def _reach(connect: Callable[[], Any]) -> None:
    """Connect, again where a head answers but fails to start the client's server.

    It forks that server from a process of many threads, which now and then dies of it.
    """
    for _ in range(_CONNECT_TRIES - 1):
        with contextlib.suppress(ConnectionAbortedError):
            connect()
            return
    connect()


def _watched(run: Engine) -> Engine:
    """Outcomes as the folders show them, for an engine that gives all of them at its end."""

    def watched(tasks: Sequence[Task]) -> Iterator[Outcome]:
        given: list[Outcome] = []
        raised: list[Exception] = []

        def all_of_them() -> None:
            try:
                given.extend(run(tasks))
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=all_of_them, daemon=True)
        thread.start()
        left = {task.identity: task for task in tasks if not task.finished}
        while thread.is_alive():
            thread.join(_LOOK_SECONDS)
            for task in [task for task in left.values() if task.finished]:
                del left[task.identity]
                yield Outcome(task.identity, "finished")
        yield from (outcome for outcome in given if outcome.identity in left)
        if raised:
            raise raised[0]

    return watched


def _joblib(backend: str, *, return_as: str = "generator_unordered", **how: Any) -> Engine:
    """The engine of a cluster that joblib knows."""
    from joblib import Parallel, delayed, parallel_config

    def run(tasks: Sequence[Task]) -> Iterator[Outcome]:
        with parallel_config(backend, **how):
            yield from Parallel(n_jobs=-1, batch_size=1, pre_dispatch="all", return_as=return_as)(
                delayed(work)(task) for task in tasks
            )

    return run


def _last_line(error: Exception) -> str:
    """The message of a server: the last line of the traceback that it sends."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
