"""Threads that start together."""

import os
import threading
import time

import pytest

from rectified.pruning.sparse import gang
from rectified.pruning.sparse.gang import Gang, together


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_rank_runs_once_and_may_wait_for_the_others(ranks: int) -> None:
    barrier, seen = threading.Barrier(ranks), []

    def task(rank: int) -> None:
        barrier.wait(10)
        seen.append(rank)

    own = Gang()
    for _ in range(3):
        assert own.together(task, ranks)
    assert sorted(seen) == sorted(3 * list(range(ranks)))


def test_a_second_caller_is_sent_away_instead_of_waiting() -> None:
    own, inside, leave = Gang(), threading.Event(), threading.Event()

    def task(rank: int) -> None:
        inside.set()
        leave.wait(10)

    first = threading.Thread(target=own.together, args=(task, 2))
    first.start()
    assert inside.wait(10)
    assert own.together(task, 2) is False
    leave.set()
    first.join()
    assert own.together(lambda rank: None, 2)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_reaches_the_caller_after_all_have_ended(failing: int) -> None:
    own, ended = Gang(), []

    def task(rank: int) -> None:
        if rank == failing:
            raise RuntimeError(f"rank {rank}")
        time.sleep(0.01)
        ended.append(rank)

    with pytest.raises(RuntimeError, match=f"rank {failing}"):
        own.together(task, 2)
    assert ended == [1 - failing]
    assert own.together(lambda rank: None, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_a_gang_of_its_own() -> None:
    assert together(lambda rank: None, 2)
    child = os.fork()
    if child == 0:
        done: list[int] = []
        os._exit(0 if gang.together(done.append, 2) and sorted(done) == [0, 1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
