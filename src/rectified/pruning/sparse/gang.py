"""A few threads that start together: the smallest pool that is safe with forks and other threads.

`together(task, ranks)` runs `task(0)` on the caller's thread and `task(1)` to `task(ranks - 1)` on
waiting ones, which is worth it when the tasks release the interpreter's lock for longer than the
hand-over takes (about 20 microseconds). The tasks may wait for each other, so either all of them
start or none: if another caller holds the threads, `together` returns False and nothing has run.
A forked child has no threads of its parent's, so it starts with a fresh gang.
"""

import os
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread

Task = Callable[[int], None]


class Gang:
    """Threads that wait for work, started when first needed.

    Example:
        >>> done = []
        >>> Gang().together(done.append, 3), sorted(done)
        (True, [0, 1, 2])
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._posts: list[SimpleQueue[Task]] = []
        self._results: SimpleQueue[BaseException | None] = SimpleQueue()

    def together(self, task: Task, ranks: int) -> bool:
        """Run `task(rank)` for every rank below `ranks`, all at once.

        Args:
            task: what to run; it may wait for the other ranks.
            ranks: how many; 1 runs on the caller's thread alone.

        Returns:
            Whether it ran: False if another caller holds the threads.

        Raises:
            BaseException: what a task raised, after all have ended.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            for post in self._recruit(ranks - 1):
                post.put(task)
            failures = [_outcome(task, 0)]
            for _ in range(ranks - 1):
                failures += self._result()
        finally:
            self._lock.release()
        for failure in failures:
            if failure is not None:
                raise failure
        return True

    def _result(self) -> list[BaseException | None]:
        """Wait for one task, through interrupts: its memory is the caller's until it ends."""
        interrupts: list[BaseException | None] = []
        while True:
            try:
                return [*interrupts, self._results.get()]
            except KeyboardInterrupt as interrupt:
                interrupts.append(interrupt)

    def _recruit(self, count: int) -> list["SimpleQueue[Task]"]:
        while len(self._posts) < count:
            post: SimpleQueue[Task] = SimpleQueue()
            self._posts.append(post)
            rank = len(self._posts)
            Thread(target=_serve, args=(post, self._results, rank), daemon=True).start()
        return self._posts[:count]


def _serve(
    post: "SimpleQueue[Task]", results: "SimpleQueue[BaseException | None]", rank: int
) -> None:
    while True:
        results.put(_outcome(post.get(), rank))


def _outcome(task: Task, rank: int) -> BaseException | None:
    try:
        task(rank)
    except BaseException as failure:  # carried to the caller's thread
        return failure
    return None


_gang = Gang()


def _renew() -> None:
    global _gang
    _gang = Gang()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def together(task: Task, ranks: int) -> bool:
    """`Gang.together` on the gang that the whole process shares.

    Args:
        task: what to run; it may wait for the other ranks.
        ranks: how many; 1 runs on the caller's thread alone.

    Returns:
        Whether it ran: False if another caller holds the threads.

    Example:
        >>> done = []
        >>> together(done.append, 2), sorted(done)
        (True, [0, 1])
    """
    return _gang.together(task, ranks)
