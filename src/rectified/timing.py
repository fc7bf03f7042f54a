"""Timing: how long calls take, side by side.

A machine's speed drifts, so calls that are compared take turns, round by round, and the median of
each one's rounds counts:

    medians(interleaved({"ours": ours, "theirs": theirs}, rounds=15))

`time.process_time` as the clock counts the CPU time of all threads, which somebody else's work on
the machine disturbs less; the default is the wall's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Call = Callable[[], object]
Clock = Callable[[], float]


def seconds(call: Call, *, at_least: float = 0.0, clock: Clock = time.perf_counter) -> float:
    """Seconds per call, over as many calls as take `at_least` together.

    Args:
        call: what is timed; called once or more.
        at_least: seconds that are filled.
        clock: what measures.

    Example:
        >>> ticks = iter([0.0, 1.0, 2.0, 3.0])
        >>> seconds(lambda: None, at_least=3.0, clock=lambda: next(ticks))
        1.0
    """
    calls, spent, begun = 0, 0.0, clock()
    while not calls or spent < at_least:
        call()
        calls += 1
        spent = clock() - begun
    return spent / calls


def interleaved(
    calls: Mapping[str, Call],
    *,
    rounds: int,
    at_least: float = 0.0,
    quiet: float = 0.0,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call in each round, the calls taking turns.

    Args:
        calls: what is compared, by name; each is called once before the first round.
        rounds: how many times each has its turn.
        at_least: seconds that a turn fills.
        quiet: seconds to wait before a turn, for threads of the call before to come to rest; the
            call is then made once, to wake its own, before it is timed.
        clock: what measures.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if quiet:
                time.sleep(quiet)
                call()
            times[name].append(seconds(call, at_least=at_least, clock=clock))
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each call's rounds.

    Example:
        >>> medians({"a": [1.0, 9.0, 2.0]})
        {'a': 2.0}
    """
    return {name: statistics.median(rounds) for name, rounds in times.items()}
