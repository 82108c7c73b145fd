"""Running actors: the inboxes and processes of one group, from when it is opened until it has
stopped.

Complete from the moment that it is made. `areplay._ingest.actor_group` says when that is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from areplay._ingest.actor_config import ActorConfig, ActorGroupConfig
from areplay._ingest.inbox import Inbox, Inboxes, waiting_rows
from areplay._ingest.quiet_watch import QuietWatch
from areplay._ingest.reports import ReportLog
from areplay._processes.closing import InOrder
from areplay._processes.dropped import Holdings
from areplay._processes.supervision import SupervisorConfig
from areplay._processes.supervisor import Supervisor
from areplay._processes.weakly import unless_gone
from areplay._processes.worker import Worker
from areplay.errors import ActorFailed
from areplay.statistics import ActorStatistics, Wait


class RowSink(Protocol):
    """Takes the rows that actors put into their inboxes; the coordinator is one."""

    async def attach(self, inbox: Inbox, name: str, *, is_elastic: bool) -> None:
        """Begin to take rows, as a new stream.

        Args:
            is_elastic: whether fewer rows than fit may wait in the inbox while a limiter or
                selector holds rows back.
        """
        ...

    async def mark_stream_end(self, inbox: Inbox) -> None:
        """End the stream behind all that a dead actor put into its inbox."""
        ...

    async def detach(self, inbox: Inbox) -> None:
        """Take all rows, and stop reading."""
        ...

    def detaching(self, inbox: Inbox) -> Callable[[], bool]:
        """`detach` as a step for `Holdings`: whether it is done."""
        ...


class RunningActors:
    """The inboxes and processes of one group of actors.

    Args:
        on_change: called when an actor finished or failed for good.

    Attributes:
        reports: what the actors reported.
    """

    def __init__(
        self, config: ActorGroupConfig, sink: RowSink, on_change: Callable[[], None]
    ) -> None:
        self._config = config
        self._sink = sink
        self._inboxes = Inboxes(config.spec, config.count, config.inbox.rows)
        self._inbox = inbox_of = [self._inboxes.inbox(index) for index in range(config.count)]
        self.reports = ReportLog(config.count)
        self._supervisor = Supervisor(
            SupervisorConfig(
                kind="actor",
                count=config.count,
                body=config.body,
                arguments=unless_gone(self._arguments, "this group of actors"),
                options=config.supervisor,
                failure=ActorFailed,
                ask=lambda index: inbox_of[index].stop(),
                after_exit=lambda index: sink.mark_stream_end(inbox_of[index]),
                on_change=on_change,
                on_report=self.reports.add,
            )
        )
        self._quiet = QuietWatch(config.quiet, self._supervisor, self._inbox, self.reports)

    async def start(self) -> None:
        """Start the actors; returns when all have said READY."""
        for index, inbox in enumerate(self._inbox):
            name = f"actor {index}"
            await self._sink.attach(inbox, name, is_elastic=self._config.inbox.is_elastic)
        await self._supervisor.start()
        self._quiet.start()

    async def stop_watching(self) -> None:
        """Look for quiet actors no more."""
        await self._quiet.stop()

    def stop_with(self, stack: InOrder) -> None:
        """Have `stack` stop the actors, take all their rows and give back what they held."""
        stack.callback(self._inboxes.close)  # from the last line up
        for inbox in self._inbox:
            stack.push_async_callback(self._sink.detach, inbox)
        stack.push_async_callback(self._supervisor.stop)

    def note(self, holdings: Holdings) -> None:
        """Let go of all if the owner of `holdings` is dropped."""
        holdings.push(self._inboxes.close, *map(self._sink.detaching, self._inbox))
        self._supervisor.note(holdings)

    @property
    def alive(self) -> int:
        """How many actors are running, or being restarted."""
        return self._supervisor.alive

    @property
    def failures(self) -> list[ActorFailed]:
        """The actors that failed for good, as the errors that tell why."""
        failures = self._supervisor.failures
        return [failure for failure in failures if isinstance(failure, ActorFailed)]

    @property
    def inbox_bytes(self) -> int:
        """Shared memory of all inboxes."""
        return self._inboxes.size_bytes

    def statistics(self) -> tuple[ActorStatistics, ...]:
        """One record an actor. From any thread."""
        now = time.monotonic()
        return tuple(self._record(worker, now) for worker in self._supervisor.workers)

    def waits(self, *, counts_failed: bool) -> list[tuple[Inbox, Wait]]:
        """The actors that wait for room or hand in nothing at this moment, each with its inbox.

        Args:
            counts_failed: whether to count those that have failed for good, too.
        """
        found = []
        for record in self.statistics():
            worker = self._supervisor.workers[record.index]
            wait = self._wait(record)
            if wait is None and counts_failed:
                wait = _failure_of(worker)
            if wait is not None:
                found.append((self._inbox[record.index], wait))
        return found

    def _record(self, worker: Worker, now: float) -> ActorStatistics:
        inbox = self._inbox[worker.index]
        is_alive = worker.is_alive
        return ActorStatistics(
            index=worker.index,
            pid=worker.pid,
            is_alive=is_alive,
            restarts=worker.restarts,
            rows=inbox.rows_put,
            waiting_rows=inbox.used,
            inbox_rows=inbox.inbox_rows,
            waited_s=inbox.waited_s if is_alive else 0.0,
            group=self._config.number,
            has_finished=worker.has_finished,
            has_failed=worker.failure is not None,
            last_failure=worker.last_failure,
            quiet_s=self._quiet.lasts_s(worker.index, now) if is_alive else 0.0,
        )

    def _wait(self, record: ActorStatistics) -> Wait | None:
        """Why nothing comes from a living actor, and since when; None if it steps."""
        name = f"actor {record.index}"
        if record.waited_s and record.waiting_rows:
            return Wait(name, waiting_rows(self._inbox[record.index]), record.waited_s)
        if record.quiet_s:
            reason = f"it has handed in nothing: {self._quiet.cause(record.index)}"
            return Wait(name, reason, record.quiet_s)
        return None

    def _arguments(self, index: int, run: int) -> tuple[ActorConfig]:
        self._quiet.starts(index)
        return (self._config.for_actor(self._inboxes, index, run),)


def _failure_of(worker: Worker) -> Wait | None:
    """That an actor failed for good, and since when; None if it did not."""
    failure = worker.failure
    if failure is None:
        return None
    *_, why = failure.details.strip().splitlines() or [""]
    return Wait(
        f"actor {worker.index}",
        f"it failed for good after {failure.restarts} restarts ({why}) and hands in "
        f"nothing more; mend the cause, or raise max_restarts",
        time.monotonic() - worker.failed_at,
    )
