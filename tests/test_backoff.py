"""Tests of `_processes.backoff`: when a process naps, and when a coroutine lets its loop turn."""

from __future__ import annotations

import pytest

from areplay._processes import backoff
from areplay._processes.backoff import SleepBackoff, YieldTimer, poll


def test_a_turn_is_due_once_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first at once, then one each period however often it is asked."""
    now = 100.0
    monkeypatch.setattr(backoff.time, "monotonic", lambda: now)
    turns = YieldTimer(0.02)
    seen: list[bool] = []
    for _ in range(9):
        seen.append(turns.is_due())
        now += 0.008
    assert seen == [True, False, False, True, False, False, True, False, False]


def test_a_turn_that_costs_much_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller says how much later; the period stays the least."""
    now = 100.0
    monkeypatch.setattr(backoff.time, "monotonic", lambda: now)
    turns = YieldTimer(0.02)
    assert turns.is_due(5.0)
    now += 1.0
    assert not turns.is_due(5.0) and turns.is_due(0.5)
    now += 0.01
    assert not turns.is_due(0.001)


def test_naps_grow_with_the_time_napped_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is as long as all before it, within bounds: whoever naps notices a change at most half
    as late as it took to come. After about 0.1 s it is time for a doorbell; a reset begins anew."""
    naps: list[float] = []
    monkeypatch.setattr(backoff.time, "sleep", naps.append)
    napper = SleepBackoff()
    for _ in range(2):
        naps.clear()
        while napper.nap():
            assert len(naps) < 1_000
        assert naps[0] <= 100e-6
        assert all(nap <= max(naps[0], sum(naps[:k])) for k, nap in enumerate(naps))
        assert max(naps) <= 0.0021
        assert 0.1 < sum(naps) < 0.11
        assert not napper.nap()
        assert 0.1 < sum(naps) < 0.11
        napper.reset()


async def test_polling_insists_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks once a millisecond, and says so when that has gone on for long."""
    now = 100.0
    pauses: list[float] = []
    asked: list[bool] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        pauses.append(seconds)
        now += 0.4

    def is_done(insist: bool) -> bool:
        asked.append(insist)
        return insist

    monkeypatch.setattr(backoff.time, "monotonic", lambda: now)
    monkeypatch.setattr(backoff.asyncio, "sleep", sleep)
    await poll(is_done)
    assert asked == [False, False, False, True]
    assert pauses == [0.001] * 3
