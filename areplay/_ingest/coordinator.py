"""The coordinator: takes the actors' rows out of their inboxes and writes them into blocks.

It has a thread of the learner's process, with an event loop of its own. The learner may then block
its loop with a training step of any length: rows come in all the same, since numpy copies without
the interpreter lock (docs/decisions/002).

This module is the thread and the calls into it. The learner's loop makes them when an actor is
started, has ended or is closed, never for a row: a call crosses into the thread and back (some
50 us). What runs in the thread is in `areplay._ingest.feed_tasks`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import uvloop

from areplay._base import forks
from areplay._ingest.destination import Destination
from areplay._ingest.feed_tasks import FeedTasks
from areplay._ingest.feeds import Feeds
from areplay._ingest.inbox import Inbox
from areplay._processes.backoff import poll
from areplay._processes.completion import in_thread, run_to_completion
from areplay.errors import Closed, ResourceUnavailable, Stalled

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.1
"""How late a caller may notice that the coordinator failed before it did what it was asked."""


@dataclass(frozen=True, slots=True)
class _Running:
    """What the thread has while its event loop runs."""

    loop: asyncio.AbstractEventLoop
    tasks: FeedTasks
    ending: asyncio.Event

    def end(self) -> None:
        """Have the thread end. From any thread."""
        with contextlib.suppress(RuntimeError):  # its loop is closed: it has failed
            self.loop.call_soon_threadsafe(self.ending.set)

    def begin(self, work: Coroutine[Any, Any, None]) -> concurrent.futures.Future[None] | None:
        """Run `work` on the loop; None if that has just closed, by a failure that is reported
        elsewhere. From any thread."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError:
            work.close()
            return None


class Coordinator:
    """Moves rows from inboxes to blocks, in order, each exactly once. The `RowSink` of actors.

    Args:
        on_failure: called in the coordinator's thread when it ends by an error.

    Attributes:
        failure: the error by which the thread has ended; None as long as it has not.
    """

    def __init__(self, destination: Destination, on_failure: Callable[[], None]) -> None:
        self.failure: BaseException | None = None
        self._destination = destination
        self._on_failure = on_failure
        self._feeds = Feeds(destination)
        self._thread: threading.Thread | None = None
        self._running: _Running | None = None
        self._is_begun = False
        self._start_error: ResourceUnavailable | None = None
        # Flags, not concurrent futures, which would keep the loops of all that ever waited.
        self._has_started = False  # its loop runs, or could not be had
        self._has_ended = False  # the thread, for whatever reason
        self._is_stopped = False
        self._origin = forks.current
        destination.admission.on_change = self._feeds.bound_waiting
        destination.admission.take_waiting = self._take_waiting

    async def attach(self, inbox: Inbox, name: str, *, is_elastic: bool = False) -> None:
        """Begin to read an inbox, as a new stream.

        Args:
            is_elastic: whether fewer rows than fit may wait in it while a limiter or selector holds
                rows back.

        Raises:
            Closed: after `stop`.
            ResourceUnavailable: no thread, or no event loop for it, could be had.
            Stalled: the coordinator has failed.
        """
        if self._is_stopped:
            raise Closed("this replay")
        if not self._is_begun:
            self._begin()
        await poll(lambda is_late: self._has_started)
        if self._start_error is not None:
            raise self._start_error
        if self.failure is not None:
            raise Stalled(
                f"rows cannot be taken any more, the coordinator has failed: {self.failure}"
            )
        await self._call(lambda tasks: tasks.attach(inbox, name, is_elastic))

    async def mark_stream_end(self, inbox: Inbox) -> None:
        """End the stream behind all that a dead actor put: what comes next is another. Does nothing
        if the inbox is detached.

        Rows that may be written now are, the others in their turn.
        """
        await self._call(lambda tasks: tasks.mark_stream_end(inbox))

    async def detach(self, inbox: Inbox) -> None:
        """Take all rows, end the stream, and stop reading. Does nothing if the inbox is detached
        already.

        No actor puts rows any more. Those that may not be written yet are in their turn, after this
        has returned.
        """
        await self._call(lambda tasks: tasks.detach(inbox))

    def detaching(self, inbox: Inbox) -> Callable[[], bool]:
        """`detach` as a step for any thread: whether it is done. Call it again until it is."""
        begun: list[concurrent.futures.Future[None]] = []

        def is_detached() -> bool:
            running = self._running
            if running is None or self.failure is not None or self._has_ended:
                return True
            if not begun:
                work = running.begin(running.tasks.detach(inbox))
                if work is None:
                    return True
                begun.append(work)
            return begun[0].done()

        return is_detached

    @property
    def last_rows_at(self) -> float:
        """`time.monotonic()` when rows came in last; 0.0 before the first. From any thread."""
        return self._feeds.last_rows_at

    @property
    def is_writing(self) -> bool:
        """Whether rows have been admitted that are not yet written. From any thread."""
        return self._feeds.is_writing

    @property
    def has_rows(self) -> bool:
        """Whether there are rows of actors that are not in the ring yet. From any thread."""
        return self._feeds.has_rows

    @property
    def has_free_rows(self) -> bool:
        """Whether the next row of an inbox is one that limiters do not count: a final observation.
        From any thread."""
        return self._feeds.has_free_rows

    def held(self) -> list[tuple[Inbox, str, float]]:
        """Each inbox whose rows may not be written yet, its name, and for how many seconds already.
        From any thread."""
        return self._feeds.held()

    async def stop(self) -> None:
        """Detach every inbox, write all rows, and end the thread. Limiters and selectors hold no
        rows back any more.

        May be called twice.
        """
        if self._origin is not forks.current:  # a forked child has no such thread
            return
        self._lift()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        await poll(lambda is_late: self._has_started)
        if self._running is not None:
            self._running.end()
        try:
            await in_thread("areplay-join", thread.join)
        except ResourceUnavailable:  # no thread to wait in: it ends soon, and closing has to end
            thread.join()

    def let_go(self) -> bool:
        """`stop` without an event loop to wait on: whether the thread has ended. Call it again
        until it has."""
        self._lift()
        thread = self._thread
        if thread is None:
            return True
        if self._running is not None:
            self._running.end()
        return not thread.is_alive()

    def _lift(self) -> None:
        self._is_stopped = True
        self._destination.registry.drop_pins()
        self._destination.admission.lift()

    def _begin(self) -> None:
        """Start the thread."""
        self._is_begun = True
        thread = threading.Thread(target=self._run, name="areplay-coordinator", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._start_error = ResourceUnavailable(
                "starting a thread", "the coordinator", str(error)
            )
            self._has_started = True
        else:
            self._thread = thread

    async def _take_waiting(self) -> None:
        """Take what waits in inboxes and may be written now."""
        await self._call(lambda tasks: tasks.take_waiting())

    async def _call(self, work: Callable[[FeedTasks], Coroutine[Any, Any, None]]) -> None:
        """Do work on the coordinator's loop, to its end even if cancelled meanwhile. Does nothing
        if the thread is not there."""
        running = self._running
        is_foreign = self._origin is not forks.current  # a forked child, which has no such thread
        if is_foreign or self.failure is not None or self._thread is None or running is None:
            return
        begun = running.begin(work(running.tasks))
        if begun is None:
            return
        done = asyncio.wrap_future(begun)
        await run_to_completion(self._wait_done(done))
        if done.done() and not done.cancelled():
            done.result()

    async def _wait_done(self, work: asyncio.Future[None]) -> None:
        """Wait for work in the thread, or for the thread's end: a loop that fails may not do it."""
        while not work.done() and not self._has_ended:
            await asyncio.wait({work}, timeout=_LOOK_AGAIN_S)

    # What follows runs in the coordinator's thread.

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main())
        except BaseException as error:
            self._fail(error)
        finally:
            self._has_started = True
            self._has_ended = True

    async def _main(self) -> None:
        ending = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            tasks = FeedTasks(self._feeds, self._destination.admission, group)
            self._running = _Running(asyncio.get_running_loop(), tasks, ending)
            self._has_started = True
            await ending.wait()
            await tasks.detach_all()
        tasks.close()

    def _fail(self, error: BaseException) -> None:
        """Take note of an error; called while it is handled."""
        # Of a task group: its first error made the others end.
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        self.failure = error
        if not self._has_started:
            self._start_error = ResourceUnavailable(
                "starting an event loop", "the coordinator", str(error)
            )
            return
        logger.exception("the coordinator failed; no more rows come in")
        self._feeds.close_writers()
        self._on_failure()
