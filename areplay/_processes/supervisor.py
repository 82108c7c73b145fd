"""Supervisors: several children of one kind, each kept alive, all stopped in order.

Each place in a supervisor has a task that starts its child, waits for its end and decides: a child
whose coroutine returned is done, however long its interpreter takes to end; any other is restarted
after a back-off, until it has failed more than `max_restarts` times within a minute (None: for
ever). A child that `restart` was called for is restarted likewise, whatever it says at its end.
Before a successor starts, `after_exit` brings what the dead one left in order.

Stopping is a ladder, each rung logged: ask, wait `grace_s`, SIGTERM, wait `grace_s`, SIGKILL, reap.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from areplay._base import forks
from areplay._base.process_state import is_stopped
from areplay._base.validation import seconds, whole_number
from areplay._processes.child import Child
from areplay._processes.child_main import Body
from areplay._processes.completion import run_to_completion
from areplay._processes.dropped import Holdings
from areplay._processes.event_loops import cancel_if_open, drop_quietly
from areplay._processes.exits import Exit
from areplay._processes.remains import Remains
from areplay._processes.starting import starter
from areplay.errors import ChildFailed, Closed
from areplay.statistics import ChildExit

logger = logging.getLogger(__name__)

_RESTART_WINDOW_S = 60.0
_FIRST_BACK_OFF_S = 0.05
_LONGEST_BACK_OFF_S = 5.0
_DETAILS_CHARACTERS = 4_000  # of a traceback, its end, for statistics


@dataclass(frozen=True)
class SupervisorOptions:
    """How a supervisor treats its children; see `Replay.actors` and `Replay.batches`."""

    max_restarts: int | None
    start_timeout_s: float
    grace_s: float


def supervisor_options(
    max_restarts: int | None, start_timeout_s: float, grace_s: float
) -> SupervisorOptions:
    """The options as users pass them; `ValueError` if one is wrong."""
    return SupervisorOptions(
        max_restarts=None
        if max_restarts is None
        else whole_number("max_restarts", max_restarts, at_least=0),
        start_timeout_s=seconds("start_timeout_s", start_timeout_s),
        grace_s=seconds("grace_s", grace_s),
    )


@dataclass
class Worker:
    """One place in a supervisor, and what became of it."""

    index: int
    child: Child | None = None
    restarts: int = 0
    is_alive: bool = False
    has_finished: bool = False
    failure: ChildFailed | None = None
    last_failure: ChildExit | None = None  # of its child that ended last as it should not have
    deaths: deque[float] = field(default_factory=deque)  # monotonic seconds, of the last minute
    failed_at: float = 0.0  # monotonic seconds, when it failed for good
    # why its present child was told to end, so that another takes its place
    restarted_for: str = ""

    @property
    def pid(self) -> int:
        """The pid of its present or last child; 0 before the first."""
        return 0 if self.child is None else self.child.pid

    @property
    def is_stopped(self) -> bool:
        """Whether its child is stopped, by a signal or a debugger."""
        return self.is_alive and self.child is not None and is_stopped(self.child.pid)

    def described(self, kind: str) -> str:
        """Its number, its process, and what keeps that from working, if it is known."""
        if self.child is None or not self.is_alive:
            return f"{kind} {self.index} (being started)"
        state = f", stopped: kill -CONT {self.child.pid} lets it go on" if self.is_stopped else ""
        return f"{kind} {self.index} (pid {self.child.pid}{state})"

    @property
    def is_gone(self) -> bool:
        """Whether it has finished or failed for good."""
        return self.has_finished or self.failure is not None


class Supervisor:
    """`count` children running `body(channel, *arguments(index, run))`.

    Args:
        ask: asks the child at that index to end, by other means than a signal.
        after_exit: awaited after each end of a child, before anything else is done about it.
        on_change: called when a member finished or failed for good.
    """

    def __init__(
        self,
        kind: str,
        count: int,
        body: Body,
        arguments: Callable[[int, int], tuple[Any, ...]],
        options: SupervisorOptions,
        failure: type[ChildFailed],
        *,
        ask: Callable[[int], None],
        after_exit: Callable[[int], Awaitable[None]],
        on_change: Callable[[], None],
        on_report: Callable[[int, Any], None] = lambda index, report: None,
    ) -> None:
        self.kind, self.options = kind, options
        self.workers = [Worker(index) for index in range(count)]
        self._body, self._arguments, self._failure = body, arguments, failure
        self._ask, self._after_exit, self._on_change, self._on_report = (
            ask,
            after_exit,
            on_change,
            on_report,
        )
        self._stopping = asyncio.Event()
        self._origin = forks.current
        # So many at a time: a hundred that import torch at once would each take longer than
        # start_timeout_s.
        self._starters = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        self._starter = starter(kind)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._remains: list[Remains] = []  # of children that are not reaped

    @property
    def alive(self) -> int:
        """How many members have a running child, or will have one again."""
        return sum(not member.is_gone for member in self.workers)

    @property
    def failures(self) -> list[ChildFailed]:
        """The failures for good, one a member at most; copies, since raising one ties it to the
        frames it passes."""
        return [copy.copy(member.failure) for member in self.workers if member.failure is not None]

    async def start(self) -> None:
        """Start all children; returns when all have said READY. Cancelled: none is left.

        Raises:
            ChildFailed: one ended, or said nothing for `start_timeout_s`, before it was ready. None
                is left.
        """
        loop = self._loop = asyncio.get_running_loop()
        started: list[asyncio.Future[None]] = [loop.create_future() for _ in self.workers]
        self._keeper = asyncio.create_task(self._keep(started), name=f"areplay {self.kind}s")
        drop_quietly(self._keeper)  # with its loop: then the reaper sees to the children
        # Not `self`: a stopped loop of libuv's would keep it by this callback for ever.
        starter = self._starter
        # all are reaped, and it has no work
        self._keeper.add_done_callback(lambda keeper: starter.shutdown())
        try:
            await asyncio.gather(*started)
        except GeneratorExit:  # this task is destroyed with its loop, and cannot wait
            raise
        except BaseException:
            await run_to_completion(self.stop())
            for future in started:
                if not future.cancel() and not future.cancelled():
                    # seen: the first one is raised, the others are of the same start
                    future.exception()
            raise

    def restart(self, index: int, reason: str, number: signal.Signals) -> None:
        """Send a signal to a child that is of no use any more; it counts as failed, for that
        reason.

        One whose coroutine has returned has finished by that, and is not restarted. Does nothing if
        there is no such child at the moment, or the supervisor stops.
        """
        member = self.workers[index]
        if member.child is not None and member.is_alive and not self._stopping.is_set():
            if not member.child.has_returned:
                member.restarted_for = member.restarted_for or reason
            member.child.signal(number)

    async def stop(self) -> None:
        """Bring every child to its end, and reap it. May be called twice, and from every state.

        Cancelled: all children that are left are killed, and reaped by and by.
        """
        # a forked child has no such processes
        if self._keeper is None or self._origin is not forks.current:
            return
        self._stopping.set()
        try:
            logger.debug("stopping: %d %ss are asked to end", self.alive, self.kind)
            for member in self.workers:
                self._ask(member.index)
            for number in (signal.SIGTERM, signal.SIGKILL):
                if await self._all_ended():
                    break
                for child in self._running():
                    # its interpreter still ends: nothing of a replay's is lost with it
                    if child.is_over:
                        if child.over_s >= self.options.grace_s or number == signal.SIGKILL:
                            logger.info(
                                "%s (pid %d) is done but has not ended: SIGKILL",
                                child.name,
                                child.pid,
                            )
                            child.kill()
                    else:
                        logger.warning(
                            "%s (pid %d) has not ended, sending %s",
                            child.name,
                            child.pid,
                            number.name,
                        )
                        child.signal(number)
            await self._keeper
        finally:
            for child in self._running():
                child.kill()

    def note(self, holdings: Holdings) -> None:
        """Kill and reap all children, and end the starter's thread, if the owner of `holdings` is
        dropped."""
        remains, starter = self._remains, self._starter

        def end_children() -> bool:
            are_gone = [each.end() for each in remains]
            return all(are_gone)

        def let_go() -> bool:
            gone = [each.let_go() for each in remains]
            if all(gone):
                starter.shutdown(wait=False)
            return all(gone)

        holdings.push(let_go)
        holdings.push_at_once(end_children)
        holdings.watched(self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop of its tasks."""
        return self._loop

    def unwatch(self) -> None:
        """Start no more children, and let the loop hear of them no more.

        Call it on that loop, or when the loop is closed or garbage.
        """
        for member in self.workers:
            if member.child is not None:
                member.child.give_up()
        if self._keeper is not None:
            cancel_if_open(self._keeper)

    def __del__(self) -> None:
        """Leave the loop. A loop that watches a child holds this, so both are garbage by now.

        uvloop never frees a loop that was not closed. What such a loop still watched would keep
        our memory.
        """
        self.unwatch()

    async def _all_ended(self) -> bool:
        assert self._keeper is not None
        done, _ = await asyncio.wait({self._keeper}, timeout=self.options.grace_s)
        return bool(done)

    def _running(self) -> list[Child]:
        return [
            m.child
            for m in self.workers
            if m.child is not None and m.child.exit is None and m.child.pid
        ]

    async def _keep(self, started: list[asyncio.Future[None]]) -> None:
        async with asyncio.TaskGroup() as group:
            for member, future in zip(self.workers, started, strict=True):
                work = self._keep_place(member, future)
                drop_quietly(group.create_task(work, name=f"areplay {self.kind} {member.index}"))

    async def _keep_place(self, member: Worker, started: asyncio.Future[None]) -> None:
        """Supervise one place, then wait for the process of a child that has finished. Cancelled:
        it is killed.

        Exit hooks of the user's may write files while its interpreter ends: until the supervisor
        stops, and `grace_s` longer.
        """
        try:
            await self._supervise(member, started)
            if member.child is not None and member.child.has_finished:
                await member.child.wait_exit()
        finally:
            if member.child is not None:
                member.child.kill()

    async def _supervise(self, member: Worker, started: asyncio.Future[None]) -> None:
        """Keep one place filled until its child finishes, fails for good, or the supervisor
        stops."""
        while not self._stopping.is_set():
            exit_ = await self._run_once(member, started)
            # also if its function returned on SIGTERM: that is no work done
            if member.restarted_for:
                exit_ = dataclasses.replace(exit_, finished=False, details=member.restarted_for)
                member.restarted_for = ""
            if not exit_.finished and not self._stopping.is_set():
                details = exit_.details[-_DETAILS_CHARACTERS:]
                member.last_failure = ChildExit(exit_.pid, exit_.code, details, time.time())
            try:
                await self._after_exit(member.index)
            # what it left cannot be brought in order, so it can have no successor
            except Exception as error:
                self._check_process()
                details = f"{exit_.details}\nits place could not be cleared: {error!r}"
                self._give_up(member, Exit(exit_.pid, exit_.code, False, details), started)
                break
            if exit_.finished:
                break
            if self._stopping.is_set():
                continue
            member.deaths.append(time.monotonic())
            while member.deaths[0] < time.monotonic() - _RESTART_WINDOW_S:
                member.deaths.popleft()
            most = self.options.max_restarts
            if not started.done() or (most is not None and len(member.deaths) > most):
                self._give_up(member, exit_, started)
                break
            member.restarts += 1
            back_off_s = _back_off_s(len(member.deaths), most)
            logger.warning(
                "%s %d (pid %d) ended, restarting it after %.2g s (restart %d, end %d within a "
                "minute): %s",
                self.kind,
                member.index,
                exit_.pid,
                back_off_s,
                member.restarts,
                len(member.deaths),
                exit_.details,
            )
            await self._back_off(back_off_s)
        member.has_finished = member.failure is None
        if not started.done():
            started.set_result(None)
        self._on_change()

    async def _run_once(self, member: Worker, started: asyncio.Future[None]) -> Exit:
        """Start a child for this place and wait for its end; that of its coroutine, if it has
        finished."""
        index, run = member.index, member.restarts
        try:
            arguments = self._arguments(index, run)
        except Closed:  # the group or stream was dropped
            return Exit(0, 0, True, "")
        child = Child(
            f"{self.kind} {index}",
            self._body,
            arguments,
            run,
            lambda report: self._on_report(index, report),
            self._starter,
        )
        member.child = child
        self._remains[:] = [*(each for each in self._remains if not each.is_gone), child.remains]
        try:
            async with self._starters:
                if self._stopping.is_set():
                    return Exit(0, 0, True, "")
                member.is_alive = await child.start(self.options.start_timeout_s)
            if self._stopping.is_set():
                self._ask(index)
            if member.is_alive and not started.done():
                started.set_result(None)
            await child.wait_over()
            if child.has_finished and not member.restarted_for:
                return Exit(child.pid, 0, True, "")
            return await child.wait_exit_or_kill(self.options.grace_s)
        except Exception as error:  # no child: out of descriptors, or arguments that do not pickle
            self._check_process()
            return Exit(child.pid, 1, False, f"it could not be started: {error!r}")
        finally:
            member.is_alive = False
            if not child.has_finished:
                child.kill()

    def _check_process(self) -> None:
        """Raise in a forked child: its copy of the event loop does not run, and any error comes of
        that."""
        forks.check(self._origin, f"this supervisor of {self.kind}s")

    def _give_up(self, member: Worker, exit_: Exit, started: asyncio.Future[None]) -> None:
        name = f"{self.kind} {member.index}"
        member.failed_at = time.monotonic()
        member.failure = self._failure(name, exit_.pid, exit_.code, member.restarts, exit_.details)
        if started.done():
            # as text: a record must not keep the error and its frames alive
            logger.error("%s", str(member.failure))
        else:
            started.set_exception(member.failure)

    async def _back_off(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass


def _back_off_s(deaths: int, max_restarts: int | None) -> float:
    """Seconds before the next start, after so many ends within a minute.

    Pauses before `max_restarts` starts take half of that minute at most, or so many could never be
    reached.
    """
    longest = _LONGEST_BACK_OFF_S
    if max_restarts is not None:
        longest = min(longest, _RESTART_WINDOW_S / 2 / max(max_restarts, 1))
    return min(longest, _FIRST_BACK_OFF_S * 2.0 ** min(deaths - 1, 60))
