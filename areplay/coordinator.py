"""The coordinator: takes the actors' rows out of their inboxes and writes them into blocks.

One asyncio task an inbox, all on an event loop of the coordinator's own, in a thread of the learner's process. The
learner may then block its loop with a training step of any length: rows come in all the same, since numpy copies
without the interpreter lock (docs/decisions/002). Everything in a task between two waits is synchronous, so a row is
taken from the inbox if and only if it is in the ring.

Called from the learner's loop; a call crosses into the thread and back (some 50 us), which happens when an actor is
started, has ended or is closed, never for a row.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from areplay.errors import Closed, ResourceUnavailable, Stalled
from areplay.inbox import Inbox
from areplay.ring import Ring, RingGuard, StreamWriter
from areplay.waiting import Sleeper, run_to_completion

logger = logging.getLogger(__name__)

LINGER_S = 0.005
"""How long a first row may wait for others, so that a slow actor costs one wake-up in a while and not one a row."""
_CHUNKS_AN_INBOX = 4
"""An actor rings when its inbox is filled by one part in so many, and one such part is taken at a time."""


class _Feed:
    """One inbox being read: its task, and the writer of its present stream."""

    def __init__(self, inbox: Inbox, writer: StreamWriter) -> None:
        self.inbox, self.writer = inbox, writer
        self.chunk_rows = max(1, inbox.inbox_rows // _CHUNKS_AN_INBOX)
        self.task: asyncio.Task[None] | None = None


class Coordinator:
    """Moves rows from inboxes to blocks, in order, each exactly once.

    Args:
        on_rows: called in the coordinator's thread after rows were written; must be quick.
        on_failure: called in the coordinator's thread when it ends by an error.

    Attributes:
        last_rows_at: `time.monotonic()` when rows came in last; 0.0 before the first.
    """

    def __init__(
        self, ring: Ring, guard: RingGuard, on_rows: Callable[[], None], on_failure: Callable[[], None]
    ) -> None:
        self.last_rows_at = 0.0
        self.failure: BaseException | None = None
        self._ring, self._guard, self._on_rows, self._on_failure = ring, guard, on_rows, on_failure
        self._feeds: dict[int, _Feed] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._thread: threading.Thread | None = None
        self._started: concurrent.futures.Future[None] | None = None
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()  # the thread, for whatever reason
        self._is_stopped = False

    async def attach(self, inbox: Inbox, name: str) -> None:
        """Begin to read an inbox, as a new stream.

        Raises:
            Closed: after `stop`.
            ResourceUnavailable: no thread, or no event loop for it, could be had.
            Stalled: the coordinator has failed.
        """
        if self._is_stopped:
            raise Closed("this replay")
        if self._started is None:
            self._started = self._begin()
        await run_to_completion(asyncio.wrap_future(self._started))
        if self.failure is not None:
            raise Stalled(f"rows cannot be taken any more, the coordinator has failed: {self.failure}")
        await self._in_thread(self._attach(inbox, name))

    async def settle(self, inbox: Inbox) -> None:
        """Take all that a dead actor left, and end its stream: what comes next is another. Does nothing if detached."""
        await self._in_thread(self._settle(inbox))

    async def detach(self, inbox: Inbox) -> None:
        """Take all that is there, end the stream, and stop reading. Does nothing if it is detached already."""
        await self._in_thread(self._detach(inbox))

    async def stop(self) -> None:
        """Detach every inbox and end the thread. May be called twice."""
        self._is_stopped = True
        thread, self._thread = self._thread, None
        if thread is None or self._started is None:
            return
        await asyncio.wait({asyncio.wrap_future(self._started)})
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has failed
                self._loop.call_soon_threadsafe(self._ending.set)
        await asyncio.to_thread(thread.join)

    def _begin(self) -> concurrent.futures.Future[None]:
        """Start the thread; done when its loop runs."""
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        thread = threading.Thread(target=self._run, args=(started,), name="areplay-coordinator", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            started.set_exception(ResourceUnavailable("starting a thread", "the coordinator", str(error)))
        else:
            self._thread = thread
        return started

    async def _in_thread(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` on the coordinator's loop, to its end even if cancelled meanwhile."""
        if self.failure is not None or self._thread is None or self._loop is None:
            work.close()
            return
        try:
            done = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
        except RuntimeError:  # its loop has just closed, by a failure that is reported elsewhere
            work.close()
            return
        # A loop that is failing at this moment may never run it: then the end of its thread ends the wait.
        either = {done, asyncio.wrap_future(self._ended)}
        await run_to_completion(asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED))
        if done.done() and not done.cancelled():
            done.result()

    # What follows runs in the coordinator's thread.

    def _run(self, started: concurrent.futures.Future[None]) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main(started))
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup):  # of the task group: its first error made the others end
                error = error.exceptions[0]
            self.failure = error
            if not started.done():
                started.set_exception(ResourceUnavailable("starting an event loop", "the coordinator", str(error)))
                return
            logger.exception("the coordinator failed; no more rows come in")
            for feed in self._feeds.values():
                feed.writer.close()
            self._on_failure()
        finally:
            self._ended.set_result(None)

    async def _main(self, started: concurrent.futures.Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            self._group = group
            started.set_result(None)
            await self._ending.wait()
            for feed in list(self._feeds.values()):
                await self._detach(feed.inbox)

    async def _attach(self, inbox: Inbox, name: str) -> None:
        assert self._group is not None
        feed = _Feed(inbox, self._new_writer())
        self._feeds[id(inbox)] = feed
        feed.task = self._group.create_task(self._serve(feed), name=f"areplay coordinator of {name}")

    async def _settle(self, inbox: Inbox) -> None:
        feed = self._feeds.get(id(inbox))
        if feed is not None:
            self._take_all(feed)
            feed.writer.begin_stream()

    async def _detach(self, inbox: Inbox) -> None:
        feed = self._feeds.pop(id(inbox), None)
        if feed is None or feed.task is None:
            return
        feed.task.cancel()
        await asyncio.wait({feed.task})
        self._take_all(feed)
        feed.writer.close()

    async def _serve(self, feed: _Feed) -> None:
        """Move rows whenever there are some, until cancelled."""
        inbox = feed.inbox
        rows = Sleeper(inbox.rows_bell)

        def has_chunk() -> bool:
            return inbox.used >= feed.chunk_rows or inbox.is_hurried

        try:
            while True:
                inbox.set_wake(1)
                await rows.wait(lambda: inbox.used > 0, None)
                inbox.set_wake(feed.chunk_rows)
                await rows.linger(has_chunk, LINGER_S)
                self._take_chunk(feed)  # from the look at the rows to their publication: no await
                while has_chunk():
                    await asyncio.sleep(0)
                    self._take_chunk(feed)
        finally:
            rows.close()

    def _take_all(self, feed: _Feed) -> None:
        while feed.inbox.used > 0:
            self._take_chunk(feed)

    def _take_chunk(self, feed: _Feed) -> None:
        columns, priorities, start, stop = feed.inbox.peek()
        stop = min(stop, start + feed.chunk_rows)
        feed.writer.write(columns, start, stop, priorities)
        feed.inbox.consume(stop - start)
        self.last_rows_at = time.monotonic()
        self._on_rows()

    def _new_writer(self) -> StreamWriter:
        return StreamWriter(self._ring, self._ring.block_locks(), self._guard)
