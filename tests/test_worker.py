"""Tests of `_processes.worker`: which ends count as failures, and when a successor may start."""

from __future__ import annotations

import pytest

from areplay._processes import worker as worker_module
from areplay._processes.exits import Exit
from areplay._processes.worker import Worker

FINISHED = Exit(17, 0, True, "")
DIED = Exit(17, -9, False, "signal 9 ended it")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic seconds, which a test sets."""
    now = [1_000.0]
    monkeypatch.setattr(worker_module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("max_restarts", "step_s", "starts"),
    [
        (0, 1.0, 0),
        (3, 1.0, 3),
        (3, 19.9, 3),
        (3, 20.1, 20),
        (0, 60.1, 0),
        (1, 59.9, 1),
        (1, 60.1, 20),
        (None, 0.0, 20),
    ],
)
def test_a_place_fails_for_good_once_too_many_have_died_within_a_minute(
    max_restarts: int | None, step_s: float, starts: int, clock: list[float]
) -> None:
    """Deaths that are longer ago do not count; without a limit there is always a successor."""
    worker = Worker(0)
    started = 0
    while started < 20 and worker.may_restart(max_restarts):
        started += 1
        clock[0] += step_s
    assert started == starts


def test_a_child_that_was_told_to_end_has_failed() -> None:
    """For the reason that it was told for, whatever it says at its end; its successor is judged by
    its own."""
    worker = Worker(0, restarted_for="it was quiet")
    assert worker.judge(FINISHED) == Exit(17, 0, False, "it was quiet")
    assert worker.judge(FINISHED) == FINISHED and worker.judge(DIED) == DIED


def test_the_last_failure_keeps_the_end_of_a_traceback() -> None:
    """Statistics hold no more than that of each child."""
    worker = Worker(0)
    worker.note_failure(Exit(17, 1, False, "x" * 10_000 + "the error"))
    assert worker.last_failure is not None
    assert worker.last_failure.pid == 17 and worker.last_failure.exit_code == 1
    assert worker.last_failure.details.endswith("the error")
    assert len(worker.last_failure.details) == 4_000
