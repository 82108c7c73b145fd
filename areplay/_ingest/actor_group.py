"""A group of actors, as the learner's process sees it: started, watched, restarted, stopped in
order."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import numpy as np

from areplay._base import forks
from areplay._ingest.inbox import Inbox, Inboxes, waiting_rows
from areplay._ingest.quiet import Quiet, QuietOptions
from areplay._ingest.reports import Report, Scalar
from areplay._processes.child import Body
from areplay._processes.completion import run_to_completion
from areplay._processes.dropped import Holdings, InOrder, notice, unless_gone
from areplay._processes.event_loops import drop_quietly
from areplay._processes.opening import ended, opened
from areplay._processes.supervisor import Supervisor, SupervisorOptions, Worker
from areplay._shm.resource_limits import (
    DESCRIPTORS_A_CHILD,
    DESCRIPTORS_AN_INBOX,
    DESCRIPTORS_TO_START,
    check_descriptors,
)
from areplay.errors import ActorFailed, Closed
from areplay.spec import Spec
from areplay.statistics import ActorStatistics, Wait
from areplay.weights import Weights

logger = logging.getLogger(__name__)


ActorFunction = Callable[..., Awaitable[None]]


MAX_REPORTS = 10_000


_QUIET_GRACE_S = 1.0  # at most, from SIGTERM to SIGKILL, for an actor that hands nothing in


class Actors:
    """A group of actors: an async context manager, made by `Replay.actors`. Leaving it stops them
    in order.

    Args:
        body: what each actor's process runs, called with the arguments of
            `areplay.actor.run_actor`.
        raises: whether an actor that failed for good is raised at the learner and on leaving, not
            only logged.
        detaching: `detach` as a step of `Holdings`.
        settle: awaited with an index when that actor's process has ended: takes all that it left in
            its inbox.
        on_change: called when an actor finished or failed for good.
        check_open: raises `Closed` once the replay is closed.
    """

    def __init__(
        self,
        body: Body,
        function: ActorFunction,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        spec: Spec,
        count: int,
        inbox_rows: int,
        seeds: Callable[[int, int], np.random.SeedSequence],
        weights: Weights | None,
        add_timeout_s: float | None,
        options: SupervisorOptions,
        quiet: QuietOptions,
        raises: bool,
        *,
        attach: Callable[[Inbox, int], Awaitable[None]],
        settle: Callable[[Inbox], Awaitable[None]],
        detach: Callable[[Inbox], Awaitable[None]],
        detaching: Callable[[Inbox], Callable[[], bool]],
        on_change: Callable[[], None],
        check_open: Callable[[], object],
        number: int,
    ) -> None:
        self._check_open, self._number = check_open, number
        self._spec, self._count, self._inbox_rows = spec, count, inbox_rows
        self._body, self._function, self._args, self._kwargs = body, function, args, kwargs
        self._seeds, self._weights, self._add_timeout_s = seeds, weights, add_timeout_s
        self._attach, self._settle, self._detach, self._on_change = (
            attach,
            settle,
            detach,
            on_change,
        )
        self._detaching = detaching
        self._holdings = Holdings("an actor" if count == 1 else f"a group of {count} actors")
        self._options, self._quiet_options, self._raises = options, quiet, raises
        self._quiet = [Quiet(quiet) for _ in range(count)]
        self._reported = [0] * count
        self._watch: asyncio.Task[None] | None = None
        self._reports: deque[Report] = deque(maxlen=MAX_REPORTS)
        self._inboxes: Inboxes | None = None
        self._inbox: list[Inbox] = []
        self._supervisor: Supervisor | None = None
        self._gone = asyncio.Event()
        self._origin = forks.current
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Actors:
        """Start the actors; returns when all have said READY.

        Raises:
            MemoryLimitExceeded, DescriptorLimitExceeded, ResourceUnavailable: before any actor was
            started.
            ActorFailed: one could not be started. None is left.
        """
        self._check_process()
        self._check_open()
        if self._opening is not None or self._closing is not None:
            raise Closed("this group of actors, which was opened before,")
        self._holdings.begin(self)
        self._opening = asyncio.create_task(self._open(), name="areplay opens actors")
        await opened(self._opening, self.close, "this group of actors")
        return self

    async def _open(self) -> None:
        needed = self._count * (DESCRIPTORS_A_CHILD + DESCRIPTORS_AN_INBOX) + DESCRIPTORS_TO_START
        check_descriptors(f"{self._count} actors", needed)
        self._inboxes = Inboxes(self._spec, self._count, self._inbox_rows)
        self._inbox = inbox_of = [self._inboxes.inbox(index) for index in range(self._count)]
        settle, me = self._settle, weakref.ref(self)
        self._supervisor = Supervisor(
            "actor",
            self._count,
            self._body,
            unless_gone(self._arguments, "this group of actors"),
            self._options,
            ActorFailed,
            ask=lambda index: inbox_of[index].stop(),
            after_exit=lambda index: settle(inbox_of[index]),
            on_change=notice(self._worker_changed),
            on_report=lambda index, report: (
                None if (group := me()) is None else group._on_report(index, report)
            ),
        )
        self._holdings.push(
            self._on_change, self._inboxes.close, *map(self._detaching, self._inbox)
        )
        self._supervisor.note(self._holdings)
        for index, inbox in enumerate(self._inbox):
            await self._attach(inbox, index)
        await self._supervisor.start()
        if self._quiet_options.pause_s is not None:
            watch = _watch_quiet(weakref.ref(self), self._quiet_options.pause_s)
            self._watch = asyncio.create_task(watch, name="areplay quiet actors")
            drop_quietly(self._watch)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the group.

        Raises:
            ActorFailed: with `on_failure="raise"`, if an actor failed for good and no other error
                leaves the context.
        """
        await self._holdings.leave(kind, self.close)
        if error is None and self._raises and self.failures:
            raise self.failures[0]

    async def close(self) -> None:
        """Stop the actors and take all their rows; leaving the context does it. May be called
        twice.

        Cancelled: it is closed all the same, then the cancellation is delivered. In a process
        forked from the one that opened it, this returns at once and does nothing.
        """
        if self._origin is not forks.current:
            return
        if await self._holdings.are_lost():
            return
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="areplay closes actors")
        await run_to_completion(self._closing)

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed, to the end."""
        self._check_process()
        return self._closing is not None and self._closing.done()

    @property
    def is_open(self) -> bool:
        """Whether it has been entered, and not begun to close."""
        self._check_process()
        return (
            self._supervisor is not None
            and self._closing is None
            and not self._holdings.is_abandoned
        )

    def reports(self) -> list[Report]:
        """What the actors reported since the last call, oldest first; at most the newest 10,000."""
        self._check_process()
        taken = list(self._reports)
        self._reports.clear()
        return taken

    async def wait(self) -> None:
        """Wait until all actors have returned by themselves. Cancelled: nothing changed.

        Raises:
            ActorFailed: one of them failed for good; the others go on.
        """
        while not self.failures and self.alive:  # which raise in a forked child
            self._gone.clear()
            await self._gone.wait()
        if self.failures:
            raise self.failures[0]

    @property
    def alive(self) -> int:
        """How many actors are running, or being restarted."""
        self._check_process()
        return (
            self._supervisor.alive if self._supervisor is not None and self._closing is None else 0
        )

    @property
    def failures(self) -> list[ActorFailed]:
        """The actors that failed for good, as the errors that tell why."""
        self._check_process()
        failures = self._supervisor.failures if self._supervisor is not None else []
        return [failure for failure in failures if isinstance(failure, ActorFailed)]

    @property
    def failure_to_raise(self) -> ActorFailed | None:
        """The first actor that failed for good, while the group is open, if the learner is to be
        told at once."""
        return self.failures[0] if self._raises and self.is_open and self.failures else None

    @property
    def inbox_bytes(self) -> int:
        """Shared memory of all inboxes."""
        self._check_process()
        return self._inboxes.size_bytes if self._inboxes is not None else 0

    def statistics(self) -> tuple[ActorStatistics, ...]:
        """One record an actor. From any thread."""
        self._check_process()
        if self._supervisor is None:
            return ()
        now = time.monotonic()
        return tuple(
            ActorStatistics(
                index=member.index,
                pid=member.child.pid if member.child is not None else 0,
                is_alive=member.is_alive,
                restarts=member.restarts,
                rows=inbox.rows_put,
                waiting_rows=inbox.used,
                inbox_rows=inbox.inbox_rows,
                waited_s=inbox.waited_s if member.is_alive else 0.0,
                group=self._number,
                has_finished=member.has_finished,
                has_failed=member.failure is not None,
                last_failure=member.last_failure,
                quiet_s=self._quiet[member.index].lasts_s(now, self._counts(member.index))
                if member.is_alive
                else 0.0,
            )
            for member, inbox in zip(self._supervisor.workers, self._inbox, strict=True)
        )

    def waits(self) -> list[tuple[Inbox, Wait]]:
        """The actors that wait for room, hand in nothing or have failed at this moment, each with
        its inbox."""
        return [
            (self._inbox[record.index], Wait(f"actor {record.index}", *wait))
            for record in self.statistics()
            if (wait := self._wait(record)) is not None
        ]

    def _wait(self, record: ActorStatistics) -> tuple[str, float] | None:
        """Why nothing comes from an actor, and for how many seconds; None if it steps."""
        assert self._supervisor is not None
        member = self._supervisor.workers[record.index]
        if record.waited_s and record.waiting_rows:
            return waiting_rows(self._inbox[record.index]), record.waited_s
        if record.quiet_s:
            return f"it has handed in nothing: {self._cause_of_quiet(member)}", record.quiet_s
        failure = member.failure
        if failure is not None and self._closing is None:
            *_, why = failure.details.strip().splitlines() or [""]
            return (
                f"it failed for good after {failure.restarts} restarts ({why}) and hands in "
                f"nothing more; mend the cause, or raise max_restarts",
                time.monotonic() - member.failed_at,
            )
        return None

    def _look_for_quiet(self, *, acts: bool) -> None:
        """See which actors hand nothing in; say so or restart them if it `acts`, rather than only
        look."""
        assert self._supervisor is not None
        now = time.monotonic()
        for member, quiet in zip(self._supervisor.workers, self._quiet, strict=True):
            inbox, counts = self._inbox[member.index], self._counts(member.index)
            is_held = inbox.waited_s > 0 and inbox.used > 0
            pid = member.child.pid if member.child is not None and member.is_alive else 0
            lasted_s = quiet.look(
                now, pid, counts, is_excused=pid == 0 or is_held or inbox.is_stopping
            )
            if self._quiet_options.quiet_s is not None and lasted_s >= self._quiet_options.quiet_s:
                logger.info(
                    "actor %d (pid %d) hands in again after %.0f s", member.index, pid, lasted_s
                )
            if acts:
                self._act_on_quiet(member, quiet, now)

    def _cause_of_quiet(self, member: Worker) -> str:
        has_returned = member.child is not None and member.child.has_returned
        counts = self._counts(member.index)
        return self._quiet[member.index].cause(counts, has_returned=has_returned)

    def _act_on_quiet(self, member: Worker, quiet: Quiet, now: float) -> None:
        if quiet.is_due(now):
            logger.warning(
                "actor %d (pid %d) has handed in nothing for %.0f s: %s",
                member.index,
                quiet.pid,
                quiet.lasts_s(now, self._counts(member.index)),
                self._cause_of_quiet(member),
            )
        overdue_s = quiet.overdue_s(now)
        if not overdue_s:
            return
        # SIGTERM first: where only the coroutine waits it runs its `finally`, which closes the
        # environment. It does nothing to a loop that is blocked, nor to a process that is stopped.
        if quiet.asked_at is None:
            quiet.asked_at, number = now, signal.SIGTERM
        elif now - quiet.asked_at >= min(_QUIET_GRACE_S, self._options.grace_s):
            number = signal.SIGKILL
        else:
            return
        limit = self._quiet_options.restart_after_s
        assert self._supervisor is not None
        self._supervisor.restart(
            member.index,
            f"it handed in nothing for {overdue_s:.1f} s (restart_after_s = {limit:g})",
            number,
        )

    def _counts(self, index: int) -> int:
        """How much an actor has handed in: its rows, and its reports."""
        return self._inbox[index].rows_put + self._reported[index]

    def _on_report(self, index: int, report: tuple[float, dict[str, Scalar]]) -> None:
        self._reported[index] += 1
        self._reports.append(Report(index, *report))

    def _arguments(self, index: int, run: int) -> tuple[Any, ...]:
        self._quiet[index].starts(self._counts(index))
        seeds = self._seeds(index, run)
        return (
            self._function,
            self._args,
            self._kwargs,
            self._inboxes,
            index,
            seeds,
            self._weights,
            self._add_timeout_s,
        )

    def _check_process(self) -> None:
        forks.check(self._origin, "this group of actors")

    def _worker_changed(self) -> None:
        self._gone.set()
        self._on_change()

    async def _close(self) -> None:
        await ended(self._opening)
        await ended(self._watch)
        if self._supervisor is None or self._inboxes is None:  # never entered
            self._holdings.release()
            return
        async with InOrder() as stack:  # from the last line up, each even if another failed
            stack.callback(self._on_change)
            stack.callback(self._gone.set)
            stack.callback(self._inboxes.close)
            for inbox in self._inbox:
                stack.push_async_callback(self._detach, inbox)
            stack.push_async_callback(self._supervisor.stop)
        self._holdings.release()


async def _watch_quiet(group: weakref.ref[Actors], pause_s: float) -> None:
    """Let the group look at intervals for actors that hand nothing in, until it is gone or this is
    cancelled."""
    last, was_late = time.monotonic(), False
    while True:
        await asyncio.sleep(pause_s)
        # After a look that comes late the whole job may have been stopped (Ctrl-Z), its actors too:
        # they get until the next look. Once only: a learner with long training steps makes each
        # look late.
        is_late = time.monotonic() - last > 3 * pause_s + 0.1
        actors = group()
        if actors is None:
            return
        actors._look_for_quiet(acts=was_late or not is_late)
        del actors  # a group that its owner drops may go
        last, was_late = time.monotonic(), is_late
