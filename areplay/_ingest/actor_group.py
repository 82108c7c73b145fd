"""A group of actors as the replay keeps it: opened once, closed in order, or let go if the user
drops it.

Users hold `areplay.Actors`, which holds a group. The replay refers to groups only weakly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from areplay._base import forks
from areplay._ingest.actor_config import ActorGroupConfig
from areplay._ingest.inbox import Inbox
from areplay._ingest.reports import Report
from areplay._ingest.running_actors import RowSink, RunningActors
from areplay._processes.closing import InOrder
from areplay._processes.lifetime import Lifetime
from areplay._processes.weakly import notice
from areplay._shm.resource_limits import (
    DESCRIPTORS_A_CHILD,
    DESCRIPTORS_AN_INBOX,
    DESCRIPTORS_TO_START,
    check_descriptors,
)
from areplay.errors import ActorFailed
from areplay.statistics import ActorStatistics, Wait


class ActorGroup:
    """One group of actors, from when `Replay.actors` has made it until it is closed.

    Args:
        sink: takes the rows of the actors.
        on_change: called when an actor finished or failed for good, and when the group is closed.
        check_open: raises `Closed` once the replay is closed.
    """

    def __init__(
        self,
        config: ActorGroupConfig,
        sink: RowSink,
        *,
        on_change: Callable[[], None],
        check_open: Callable[[], object],
    ) -> None:
        self._config = config
        self._sink = sink
        self._on_change = on_change
        self._check_open = check_open
        self._life = Lifetime("this group of actors", "actors", config.what, forks.current)
        self._running: RunningActors | None = None
        self._changed = asyncio.Event()

    async def open(self) -> None:
        """See `Actors.__aenter__`."""
        self.check_process()
        self._check_open()
        await self._life.open(self, self._open, self.close)

    async def _open(self) -> None:
        count = self._config.count
        needed = count * (DESCRIPTORS_A_CHILD + DESCRIPTORS_AN_INBOX) + DESCRIPTORS_TO_START
        check_descriptors(f"{count} actors", needed)
        running = RunningActors(self._config, self._sink, notice(self._notice_change))
        self._running = running
        self._life.holdings.push(self._on_change)
        running.note(self._life.holdings)
        await running.start()

    async def leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See `Actors.__aexit__`."""
        await self._life.holdings.leave(kind, self.close)
        failures = self.failures if error is None and self._config.raises else []
        if failures:
            raise failures[0]

    async def close(self) -> None:
        """See `Actors.close`."""
        await self._life.close(self._close)

    async def _close(self) -> None:
        running = self._running
        if running is not None:
            await running.stop_watching()
            async with InOrder() as stack:  # from the last line up, each even if another failed
                stack.callback(self._on_change)
                stack.callback(self._changed.set)
                running.stop_with(stack)

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed, to the end."""
        self.check_process()
        return self._life.is_closed

    @property
    def is_open(self) -> bool:
        """Whether it has been entered, and not begun to close."""
        self.check_process()
        return self._running is not None and not self._life.is_ending

    @property
    def alive(self) -> int:
        """How many actors are running, or being restarted."""
        self.check_process()
        if self._running is None or self._life.is_closing:
            return 0
        return self._running.alive

    @property
    def failures(self) -> list[ActorFailed]:
        """The actors that failed for good, as the errors that tell why."""
        self.check_process()
        return [] if self._running is None else self._running.failures

    @property
    def failure_to_raise(self) -> ActorFailed | None:
        """The first actor that failed for good, if the learner is to be told at once; None while
        the group is not open."""
        if not self._config.raises or not self.is_open:
            return None
        failures = self.failures
        return failures[0] if failures else None

    @property
    def inbox_bytes(self) -> int:
        """Shared memory of all inboxes."""
        self.check_process()
        return 0 if self._running is None else self._running.inbox_bytes

    def take_reports(self) -> list[Report]:
        """See `Actors.reports`."""
        self.check_process()
        return [] if self._running is None else self._running.reports.take()

    async def wait(self) -> None:
        """See `Actors.wait`."""
        while not self.failures and self.alive:  # which raise in a forked child
            self._changed.clear()
            await self._changed.wait()
        if self.failures:
            raise self.failures[0]

    def statistics(self) -> tuple[ActorStatistics, ...]:
        """One record an actor. From any thread."""
        self.check_process()
        return () if self._running is None else self._running.statistics()

    def waits(self) -> list[tuple[Inbox, Wait]]:
        """The actors that wait for room, hand in nothing or have failed at this moment, each with
        its inbox."""
        self.check_process()
        if self._running is None:
            return []
        return self._running.waits(counts_failed=not self._life.is_closing)

    def check_process(self) -> None:
        """Raise `WrongProcess` in a child that was forked from the process that made this."""
        self._life.check_process()

    def _notice_change(self) -> None:
        self._changed.set()
        self._on_change()
