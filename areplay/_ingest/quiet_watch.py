"""The watch over quiet actors: looks at a group at intervals, warns, and restarts.

What is to be done is decided in `areplay._ingest.quiet`. This runs on the learner's loop, which
therefore has to turn now and then.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref

from areplay._ingest.inbox import Inbox
from areplay._ingest.quiet import Quiet, QuietOptions
from areplay._ingest.reports import ReportLog
from areplay._processes.event_loops import drop_quietly
from areplay._processes.opening import ended
from areplay._processes.supervisor import Supervisor
from areplay._processes.worker import Worker

logger = logging.getLogger(__name__)

_LATE_S = 0.1  # beyond three pauses


class QuietWatch:
    """Sees which actors of one group hand nothing in.

    Args:
        inboxes: of the actors, by index.
        reports: of the actors.
    """

    def __init__(
        self,
        options: QuietOptions,
        supervisor: Supervisor,
        inboxes: list[Inbox],
        reports: ReportLog,
    ) -> None:
        self._options = options
        self._supervisor = supervisor
        self._inboxes = inboxes
        self._reports = reports
        self._quiet = [Quiet(options) for _ in inboxes]
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look at intervals, if the options name a limit."""
        pause_s = self._options.pause_s
        if pause_s is None:
            return
        # The task refers to this only weakly: a group that its owner drops may go.
        looking = _look_at_intervals(weakref.ref(self), pause_s)
        self._task = asyncio.create_task(looking, name="areplay quiet actors")
        drop_quietly(self._task)

    async def stop(self) -> None:
        """Look no more."""
        await ended(self._task)

    def starts(self, index: int) -> None:
        """A process of that actor is about to be started."""
        self._quiet[index].starts(self._counts(index))

    def lasts_s(self, index: int, now: float) -> float:
        """Seconds for which that actor has been quiet, from `quiet_s` on; else 0.0. From any
        thread."""
        return self._quiet[index].lasts_s(now, self._counts(index))

    def cause(self, index: int) -> str:
        """Why nothing may come from that actor, and what the user can do. From any thread."""
        child = self._supervisor.workers[index].child
        has_returned = child is not None and child.has_returned
        return self._quiet[index].cause(self._counts(index), has_returned=has_returned)

    def look(self, *, acts: bool) -> None:
        """Look at all actors.

        Args:
            acts: whether to warn of quiet ones and to restart them, too.
        """
        now = time.monotonic()
        for worker in self._supervisor.workers:
            self._look_at(worker, now)
            if acts:
                self._warn(worker.index, now)
                self._restart(worker.index, now)

    def _look_at(self, worker: Worker, now: float) -> None:
        inbox = self._inboxes[worker.index]
        pid = worker.pid if worker.is_alive else 0
        is_held = inbox.waited_s > 0 and inbox.used > 0
        lasted_s = self._quiet[worker.index].look(
            now,
            pid,
            self._counts(worker.index),
            is_excused=pid == 0 or is_held or inbox.is_stopping,
        )
        quiet_s = self._options.quiet_s
        if quiet_s is not None and lasted_s >= quiet_s:
            logger.info(
                "actor %d (pid %d) hands in again after %.0f s", worker.index, pid, lasted_s
            )

    def _warn(self, index: int, now: float) -> None:
        quiet = self._quiet[index]
        if quiet.is_due(now):
            logger.warning(
                "actor %d (pid %d) has handed in nothing for %.0f s: %s",
                index,
                quiet.pid,
                self.lasts_s(index, now),
                self.cause(index),
            )

    def _restart(self, index: int, now: float) -> None:
        quiet = self._quiet[index]
        number = quiet.signal_due(now, self._supervisor.options.grace_s)
        if number is None:
            return
        reason = (
            f"it handed in nothing for {quiet.overdue_s(now):.1f} s "
            f"(restart_after_s = {self._options.restart_after_s:g})"
        )
        self._supervisor.restart(index, reason, number)

    def _counts(self, index: int) -> int:
        """How much an actor has handed in: its rows, and its reports."""
        return self._inboxes[index].rows_put + self._reports.counts[index]


async def _look_at_intervals(watch: weakref.ref[QuietWatch], pause_s: float) -> None:
    """Let the watch look every `pause_s` seconds, until it is gone or this is cancelled."""
    last = time.monotonic()
    was_late = False
    while True:
        await asyncio.sleep(pause_s)
        # After a look that comes late the whole job may have been stopped (Ctrl-Z), its actors too:
        # they get until the next look. Once only: a learner with long training steps makes each
        # look late.
        is_late = time.monotonic() - last > 3 * pause_s + _LATE_S
        living = watch()
        if living is None:
            return
        living.look(acts=was_late or not is_late)
        del living
        last = time.monotonic()
        was_late = is_late
