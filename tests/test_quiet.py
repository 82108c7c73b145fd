"""Tests of `_ingest.quiet`: what is concluded from the counts of one actor. The clock is the
test's."""

from __future__ import annotations

import os
import signal

import pytest

from areplay._ingest.quiet import Quiet, QuietOptions


class Scene:
    """An actor whose process is this one; nothing of it is run."""

    def __init__(self, quiet_s: float | None = 10.0, restart_after_s: float | None = None) -> None:
        self.quiet = Quiet(QuietOptions(quiet_s, restart_after_s))
        self.quiet.starts(5)
        self.now, self.counts = 100.0, 5

    def look(
        self,
        *,
        after_s: float = 0.0,
        more: int = 0,
        is_excused: bool = False,
        pid: int = os.getpid(),
    ) -> float:
        """Look after so many seconds, in which so much was handed in."""
        self.now += after_s
        self.counts += more
        return self.quiet.look(self.now, pid, self.counts, is_excused=is_excused)

    @property
    def lasts_s(self) -> float:
        """For how long it has been quiet."""
        return self.quiet.lasts_s(self.now, self.counts)


def test_it_lasts_from_the_last_look_at_which_something_had_come() -> None:
    """Nothing is said before quiet_s; whatever comes ends it, and is told with how long it took."""
    scene = Scene()
    scene.look()
    scene.look(after_s=5.0, more=1)
    assert scene.look(after_s=9.0) == scene.lasts_s == 0.0
    scene.look(after_s=2.0)
    assert scene.lasts_s == 11.0
    scene.counts += 1
    assert scene.lasts_s == 0.0, "also before the next look"
    assert scene.look(after_s=1.0) == 12.0
    assert scene.look(after_s=1.0) == scene.lasts_s == 0.0


def test_it_is_due_at_distances_that_double() -> None:
    """After quiet_s, twice that, four times; anew from quiet_s when something has come."""
    scene = Scene()
    scene.look()
    due = []
    for second in range(1, 100):
        scene.look(after_s=1.0)
        if scene.quiet.is_due(scene.now):
            due.append(second)
    assert due == [10, 20, 40, 80]
    scene.look(more=1)
    scene.look(after_s=9.0)
    assert not scene.quiet.is_due(scene.now)
    scene.look(after_s=1.0)
    assert scene.quiet.is_due(scene.now)


def test_time_in_which_it_is_excused_does_not_count() -> None:
    """Held, or starting: quiet begins when that ends, at the look that sees it."""
    scene = Scene(restart_after_s=20.0)
    scene.look()
    scene.look(after_s=9.0, is_excused=True)
    scene.look(after_s=50.0, is_excused=True)
    assert scene.lasts_s == scene.quiet.overdue_s(scene.now) == 0.0 and not scene.quiet.is_due(
        scene.now
    )
    scene.look(after_s=1.0)
    scene.look(after_s=9.0)
    assert scene.lasts_s == 0.0
    scene.look(after_s=11.0)
    assert scene.lasts_s == scene.quiet.overdue_s(scene.now) == 20.0


def test_a_successor_begins_anew() -> None:
    """Another process has its own time, and was not asked to end."""
    scene = Scene(restart_after_s=5.0)
    scene.look()
    scene.look(after_s=6.0)
    scene.quiet.asked_at = scene.now
    assert scene.quiet.overdue_s(scene.now) == 6.0
    scene.look(after_s=1.0, pid=os.getppid())
    assert scene.quiet.asked_at is None and scene.quiet.overdue_s(scene.now) == 0.0


def test_the_cause_tells_a_first_reset_from_a_step() -> None:
    """By what this process has handed in, not by what its predecessors had."""
    scene = Scene()
    scene.look()
    assert "first reset may be slow or hang" in scene.quiet.cause(scene.counts)
    scene.look(more=1)
    assert "its environment may hang" in scene.quiet.cause(scene.counts)
    scene.quiet.starts(scene.counts)
    assert "first reset" in scene.quiet.cause(scene.counts)
    for knob in ("restart_after_s=", "quiet_s"):
        assert knob in scene.quiet.cause(scene.counts)
    assert "environment" not in scene.quiet.cause(scene.counts, has_returned=True)


@pytest.mark.parametrize(
    ("quiet_s", "restart_after_s", "pause_s"),
    [(10.0, None, 1.0), (0.4, None, 0.1), (None, 2.0, 0.5), (10.0, 0.4, 0.1), (None, None, None)],
)
def test_looks_are_as_frequent_as_the_shorter_limit_needs(
    quiet_s: float | None, restart_after_s: float | None, pause_s: float | None
) -> None:
    """Four within it, one a second at least; none where nothing is asked for, and then nothing is
    ever due."""
    assert QuietOptions(quiet_s, restart_after_s).pause_s == pause_s
    scene = Scene(quiet_s, restart_after_s)
    scene.look()
    scene.look(after_s=1_000.0)
    assert (scene.lasts_s > 0) == scene.quiet.is_due(scene.now) == (quiet_s is not None)
    assert (scene.quiet.overdue_s(scene.now) > 0) == (restart_after_s is not None)


def test_a_process_gets_sigterm_once_and_sigkill_when_its_grace_is_over() -> None:
    """No signal before restart_after_s. Then SIGTERM; SIGKILL after 1 s, or grace_s if shorter."""
    for grace_s, killed_after_s in ((5.0, 1.0), (0.5, 0.5)):
        scene = Scene(restart_after_s=5.0)
        scene.look()
        sent = []
        for _ in range(32):
            scene.look(after_s=0.25)
            number = scene.quiet.signal_due(scene.now, grace_s)
            if number is not None:
                sent.append((scene.now - 100.0, number))
        first_kill = 5.0 + killed_after_s
        assert sent[0] == (5.0, signal.SIGTERM)
        kills = [5.25 + k / 4 for k in range(12) if 5.25 + k / 4 >= first_kill]
        assert sent[1:] == [(at_s, signal.SIGKILL) for at_s in kills]


def test_a_process_that_hands_in_again_gets_no_signal() -> None:
    """Also between SIGTERM and SIGKILL; without restart_after_s it never gets one."""
    scene = Scene(restart_after_s=5.0)
    scene.look()
    scene.look(after_s=6.0)
    assert scene.quiet.signal_due(scene.now, 1.0) == signal.SIGTERM
    scene.look(after_s=0.5, more=1)
    scene.look(after_s=1.0)
    assert scene.quiet.signal_due(scene.now, 1.0) is None
    endless = Scene()
    endless.look()
    endless.look(after_s=1_000.0)
    assert endless.quiet.signal_due(endless.now, 1.0) is None
