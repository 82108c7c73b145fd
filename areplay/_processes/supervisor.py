"""Supervisors: several children of one kind, each kept alive, all stopped in order.

Each place in a supervisor has a task that starts its child, waits for its end and decides. A child
whose body returned is done, however long its interpreter takes to end. Any other is restarted after
a back-off, until more than `max_restarts` have failed within a minute (None: for ever). A child
that `restart` was called for is restarted likewise, whatever it says at its end. Before a successor
starts, `after_exit` clears the place: it puts in order what the dead child left.

Stopping is a ladder, each rung logged: ask, wait `grace_s`, SIGTERM, wait `grace_s`, SIGKILL, reap.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import signal
import time

from areplay._base import forks
from areplay._processes.child import Child
from areplay._processes.completion import run_to_completion
from areplay._processes.dropped import Holdings
from areplay._processes.event_loops import cancel_if_open, drop_quietly
from areplay._processes.exits import Exit
from areplay._processes.remains import Remains
from areplay._processes.starting import starter
from areplay._processes.supervision import SupervisorConfig
from areplay._processes.worker import Worker, back_off_s
from areplay.errors import ChildFailed, Closed

logger = logging.getLogger(__name__)


class Supervisor:
    """Several children that run `body(channel, *arguments(index, run))`: see `SupervisorConfig`."""

    def __init__(self, config: SupervisorConfig) -> None:
        self.workers = [Worker(index) for index in range(config.count)]
        self.kind = config.kind
        self.options = config.options
        self._config = config
        self._stopping = asyncio.Event()
        self._origin = forks.current
        # Few children start at a time: a hundred that import torch at once would each take longer
        # than start_timeout_s.
        self._starters = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        self._starter = starter(config.kind)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._remains: list[Remains] = []  # of children that are not reaped

    @property
    def alive(self) -> int:
        """How many places have a running child, or will have one again."""
        return sum(not worker.is_gone for worker in self.workers)

    @property
    def failures(self) -> list[ChildFailed]:
        """The failures for good, one a place at most.

        These are copies, since raising an error ties it to the frames that it passes.
        """
        return [copy.copy(worker.failure) for worker in self.workers if worker.failure is not None]

    async def start(self) -> None:
        """Start all children; returns when all have said READY. Cancelled: none is left.

        Raises:
            ChildFailed: one ended before it was ready, or said nothing for `start_timeout_s`. No
                child is left.
        """
        loop = asyncio.get_running_loop()
        self._loop = loop
        started: list[asyncio.Future[None]] = [loop.create_future() for _ in self.workers]
        self._keeper = asyncio.create_task(self._keep(started), name=f"areplay {self.kind}s")
        drop_quietly(self._keeper)  # with its loop: then the reaper sees to the children
        # Not `self`: a stopped loop of libuv's would keep it by this callback for ever.
        starter, remains = self._starter, self._remains
        # All children are reaped. So the starter has nothing to do, unless arguments block it.
        self._keeper.add_done_callback(
            lambda keeper: starter.shutdown(wait=not any(each.is_launching for each in remains))
        )
        try:
            await asyncio.gather(*started)
        except GeneratorExit:  # this task is destroyed with its loop, and cannot wait
            raise
        except BaseException:
            await run_to_completion(self.stop())
            for future in started:
                if not future.cancel() and not future.cancelled():
                    # Seen: the first error is raised, the others are of the same start.
                    future.exception()
            raise

    def restart(self, index: int, reason: str, number: signal.Signals) -> None:
        """Send a signal to a child that is of no use any more; it counts as failed for `reason`.

        A child whose body has returned has finished by that, and is not restarted. Does nothing if
        there is no such child at the moment, or the supervisor stops.
        """
        worker = self.workers[index]
        if worker.child is not None and worker.is_alive and not self._stopping.is_set():
            if not worker.child.has_returned:
                worker.restarted_for = worker.restarted_for or reason
            worker.child.signal(number)

    async def stop(self) -> None:
        """Bring every child to its end, and reap it. May be called twice, and from every state.

        Cancelled: all children that are left are killed, and reaped by and by.
        """
        # A forked child has no such processes.
        if self._keeper is None or self._origin is not forks.current:
            return
        self._stopping.set()
        try:
            logger.debug("stopping: %d %ss are asked to end", self.alive, self.kind)
            for worker in self.workers:
                self._config.ask(worker.index)
            for number in (signal.SIGTERM, signal.SIGKILL):
                if await self._all_ended():
                    break
                self._call_off_starts()
                for child in self._running():
                    self._insist(child, number)
            await self._keeper
        finally:
            self._call_off_starts()
            for child in self._running():
                child.kill()

    def _insist(self, child: Child, number: signal.Signals) -> None:
        """Send a signal to a child that has not ended.

        A child that is over gets only SIGKILL, and only after its own grace: its interpreter still
        ends, and nothing of a replay's is lost with it.
        """
        if not child.is_over:
            logger.warning(
                "%s (pid %d) has not ended, sending %s", child.name, child.pid, number.name
            )
            child.signal(number)
        elif number == signal.SIGKILL or child.over_s >= self.options.grace_s:
            logger.info("%s (pid %d) is done but has not ended: SIGKILL", child.name, child.pid)
            child.kill()

    def note(self, holdings: Holdings) -> None:
        """Let the reaper end all children and the starter's thread.

        It does so if the owner of `holdings` is dropped.
        """
        # The steps must not refer to `self`.
        remains = self._remains
        starter = self._starter

        def end_children() -> bool:
            are_gone = [each.end() for each in remains]
            return all(are_gone)

        def let_go() -> bool:
            are_gone = [each.let_go() for each in remains]
            if all(are_gone):
                starter.shutdown(wait=False)
            return all(are_gone)

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
        for worker in self.workers:
            if worker.child is not None:
                worker.child.give_up()
        if self._keeper is not None:
            cancel_if_open(self._keeper)

    def __del__(self) -> None:
        """Leave the loop. A loop that watches a child holds this, so both are garbage by now.

        uvloop never frees a loop that was not closed. What such a loop still watched would keep
        our memory.
        """
        self.unwatch()

    async def _all_ended(self) -> bool:
        """Whether all children have ended within `grace_s`."""
        if self._keeper is None:
            return True
        done, _ = await asyncio.wait({self._keeper}, timeout=self.options.grace_s)
        return bool(done)

    def _call_off_starts(self) -> None:
        for member in self.workers:
            if member.child is not None:
                member.child.call_off()

    def _running(self) -> list[Child]:
        children = [worker.child for worker in self.workers if worker.child is not None]
        return [child for child in children if child.exit is None and child.pid]

    async def _keep(self, started: list[asyncio.Future[None]]) -> None:
        async with asyncio.TaskGroup() as group:
            for worker, future in zip(self.workers, started, strict=True):
                work = self._keep_place(worker, future)
                drop_quietly(group.create_task(work, name=f"areplay {self.kind} {worker.index}"))

    async def _keep_place(self, worker: Worker, started: asyncio.Future[None]) -> None:
        """Supervise one place, then wait for the process of a child that has finished.

        Exit hooks of the user's may write files while its interpreter ends: until the supervisor
        stops, and `grace_s` longer. Cancelled: the child is killed.
        """
        try:
            await self._supervise(worker, started)
            if worker.child is not None and worker.child.has_finished:
                await worker.child.wait_exit()
        finally:
            if worker.child is not None:
                worker.child.kill()

    async def _supervise(self, worker: Worker, started: asyncio.Future[None]) -> None:
        """Keep one place filled until its child finishes, fails for good, or the supervisor stops.

        Args:
            started: done once the first child is ready, or has failed.
        """
        while not self._stopping.is_set():
            exit_ = worker.judge(await self._run_once(worker, started))
            if not exit_.finished and not self._stopping.is_set():
                worker.note_failure(exit_)
            if not await self._clear_place(worker, exit_, started):
                break
            if exit_.finished or self._stopping.is_set():
                break
            # A first child that was never ready has no successor.
            if not worker.may_restart(self.options.max_restarts) or not started.done():
                self._give_up(worker, exit_, started)
                break
            await self._back_off(worker, exit_)
        worker.has_finished = worker.failure is None
        if not started.done():
            started.set_result(None)
        self._config.on_change()

    async def _clear_place(
        self, worker: Worker, exit_: Exit, started: asyncio.Future[None]
    ) -> bool:
        """Put in order what a dead child left; give up and return False where that is impossible.

        A place that is not in order can have no successor.
        """
        try:
            await self._config.after_exit(worker.index)
        except Exception as error:
            self._check_process()
            details = f"{exit_.details}\nits place could not be cleared: {error!r}"
            self._give_up(worker, Exit(exit_.pid, exit_.code, False, details), started)
            return False
        return True

    async def _back_off(self, worker: Worker, exit_: Exit) -> None:
        """Wait before the next start; not if the supervisor stops meanwhile."""
        worker.restarts += 1
        deaths = len(worker.deaths)
        seconds = back_off_s(deaths, self.options.max_restarts)
        logger.warning(
            "%s %d (pid %d) ended, restarting it after %.2g s (restart %d, end %d within a "
            "minute): %s",
            self.kind,
            worker.index,
            exit_.pid,
            seconds,
            worker.restarts,
            deaths,
            exit_.details,
        )
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _run_once(self, worker: Worker, started: asyncio.Future[None]) -> Exit:
        """Start a child for this place, and wait for its end.

        That of its body is enough if it has finished.
        """
        try:
            child = self._new_child(worker)
        except Closed:  # the group or stream was dropped
            return Exit(0, 0, True, "")
        try:
            async with self._starters:
                if self._stopping.is_set():
                    return Exit(0, 0, True, "")
                worker.is_alive = await child.start(self.options.start_timeout_s)
            if self._stopping.is_set():
                self._config.ask(worker.index)
            if worker.is_alive and not started.done():
                started.set_result(None)
            await child.wait_over()
            if child.has_finished and not worker.restarted_for:
                return Exit(child.pid, 0, True, "")
            return await child.wait_exit_or_kill(self.options.grace_s)
        except Exception as error:  # no child: out of descriptors, or arguments that do not pickle
            self._check_process()
            return Exit(child.pid, 1, False, f"it could not be started: {error!r}")
        finally:
            worker.is_alive = False
            if not child.has_finished:
                child.kill()

    def _new_child(self, worker: Worker) -> Child:
        """Make the next child of this place, which is not started yet.

        Raises:
            Closed: the owner was dropped, so there are no arguments.
        """
        config = self._config
        index = worker.index
        child = Child(
            f"{self.kind} {index}",
            config.body,
            config.arguments(index, worker.restarts),
            worker.restarts,
            # By `self`: what a loop watches must hold the supervisor, see `__del__`.
            lambda report: self._config.on_report(index, report),
            self._starter,
        )
        worker.child = child
        left = [each for each in self._remains if not each.is_gone]
        self._remains[:] = [*left, child.remains]
        return child

    def _check_process(self) -> None:
        """Raise in a forked child, where any error comes of the event loop that does not run."""
        forks.check(self._origin, f"this supervisor of {self.kind}s")

    def _give_up(self, worker: Worker, exit_: Exit, started: asyncio.Future[None]) -> None:
        """Let a place fail for good; `started` fails with it, if it is not done."""
        name = f"{self.kind} {worker.index}"
        failure = self._config.failure(name, exit_.pid, exit_.code, worker.restarts, exit_.details)
        worker.failed_at = time.monotonic()
        worker.failure = failure
        if started.done():
            # As text: a record must not keep the error and its frames alive.
            logger.error("%s", str(failure))
        else:
            started.set_exception(failure)
