import time

import pytest

from rectified.timing import interleaved, medians, seconds


class Clock:
    """A clock that work moves."""

    now = 0.0

    def __call__(self):
        return self.now

    def work(self, duration):
        def call():
            self.now += duration

        return call


@pytest.mark.parametrize("at_least", [0.0, 3.0, 10.0])
def test_a_call_takes_as_long_however_often_it_is_made(at_least):
    clock = Clock()
    assert seconds(clock.work(2.0), at_least=at_least, clock=clock) == 2.0
    assert clock.now == max(2.0, 2 * -(-at_least // 2))


def test_calls_take_turns_and_an_odd_round_does_not_count():
    turns, clock = [], Clock()
    spent = iter([9.0, 9.0, 1.0, 4.0, 100.0, 4.0, 1.0, 5.0])  # the first of each warms it up

    def call(name):
        turns.append(name)
        clock.now += next(spent)

    ways = {"a": lambda: call("a"), "b": lambda: call("b")}
    times = interleaved(ways, rounds=3, clock=clock)
    assert times == {"a": [1.0, 100.0, 1.0], "b": [4.0, 4.0, 5.0]}
    assert medians(times) == {"a": 1.0, "b": 4.0}
    assert turns == ["a", "b"] * 4


def test_after_a_rest_a_call_is_woken_before_it_is_timed(monkeypatch):
    rests, calls, clock = [], [], Clock()
    monkeypatch.setattr(time, "sleep", rests.append)
    interleaved({"a": lambda: calls.append("a")}, rounds=2, quiet=0.1, clock=clock)
    assert rests == [0.1, 0.1]
    assert len(calls) == 1 + 2 * 2
