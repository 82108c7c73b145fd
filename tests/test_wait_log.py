"""Tests of `_sampling.wait_log`: waits that are over, waits that last, and both at once."""

from __future__ import annotations

import pytest

from areplay._sampling import wait_log as wait_log_module
from areplay._sampling.wait_log import WaitFigures, WaitLog


class Clock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        """As of `time`."""
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of the log."""
    clock = Clock()
    monkeypatch.setattr(wait_log_module, "time", clock)
    return clock


def test_a_learner_that_never_waited_has_no_figures() -> None:
    """All are zero."""
    log = WaitLog()
    assert log.figures() == WaitFigures(0, 0.0, 0.0)
    assert not log.is_waiting and log.lasting_s() == []


def test_a_wait_counts_from_its_beginning_on(clock: Clock) -> None:
    """In the total and as the longest, while it lasts and after."""
    log = WaitLog()
    started = log.begin()
    clock.now_s = 103.0
    assert log.is_waiting and log.lasting_s() == [3.0]
    assert log.figures() == WaitFigures(1, 3.0, 3.0)
    log.end(started)
    clock.now_s = 200.0
    assert not log.is_waiting and log.lasting_s() == []
    assert log.figures() == WaitFigures(1, 3.0, 3.0)


def test_waits_add_up_and_the_longest_stays(clock: Clock) -> None:
    """Whatever comes after it: one that is over at once, and one that lasts."""
    log = WaitLog()
    for seconds in (1.0, 4.0, 2.0):
        started = log.begin()
        clock.now_s += seconds
        log.end(started)
    assert log.figures() == WaitFigures(3, 7.0, 4.0)
    started = clock.now_s
    clock.now_s += 0.5
    log.add(started)
    assert log.figures() == WaitFigures(4, 7.5, 4.0)
    assert not log.is_waiting
    log.begin()
    clock.now_s += 6.0
    assert log.figures() == WaitFigures(5, 13.5, 6.0)


def test_several_waits_end_in_any_order(clock: Clock) -> None:
    """Each takes its own time with it; also two that began at the same moment."""
    log = WaitLog()
    first = log.begin()
    clock.now_s += 1.0
    second, third = log.begin(), log.begin()
    clock.now_s += 1.0
    assert sorted(log.lasting_s()) == [1.0, 1.0, 2.0]
    log.end(second)
    assert sorted(log.lasting_s()) == [1.0, 2.0]
    log.end(first)
    assert log.lasting_s() == [1.0]
    log.end(third)
    assert log.figures() == WaitFigures(3, 4.0, 2.0)
