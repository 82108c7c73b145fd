"""The coordinator: takes the actors' rows out of their inboxes and writes them into blocks.

One asyncio task an inbox, all on an event loop of the coordinator's own, in a thread of the
learner's process. The learner may then block its loop with a training step of any length: rows come
in all the same, since numpy copies without the interpreter lock (docs/decisions/002). Everything in
a task between two waits is synchronous, so a row is taken from the inbox if and only if it is in
the ring.

Rows that may not be written yet (see `areplay._ingest.admission`) stay in their inbox, and its
actor waits when that is full. Inboxes whose turn it is get theirs one chunk after the other, in the
order in which they began to wait.

Called from the learner's loop; a call crosses into the thread and back (some 50 us), which happens
when an actor is started, has ended or is closed, never for a row.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from areplay._base import forks
from areplay._base.episode_links import NEXT_OFFSET
from areplay._ingest.admission import Admission, steps_among
from areplay._ingest.inbox import Inbox
from areplay._processes.backoff import poll
from areplay._processes.completion import in_thread, run_to_completion
from areplay._processes.waiter import Waiter
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay.errors import Closed, ResourceUnavailable, Stalled

logger = logging.getLogger(__name__)

BATCHING_DELAY_S = 0.005
"""How long a first row may wait for others, so that a slow actor costs one wake-up in a while and
not one a row."""
_CHUNKS_AN_INBOX = 4
"""An actor rings when its inbox is filled by one part in so many, and one such part is taken at a
time."""
_LEAST_WAITING_ROWS = 4
"""So many may wait in each inbox, however many inboxes share what a limiter lets wait."""
_LOOK_AGAIN_S = 0.1
"""How late a caller may notice that the coordinator failed before it did what it was asked."""


class _Feed:
    """One inbox being read: its task, and the writer of its present stream.

    Attributes:
        is_elastic: whether fewer rows than fit may wait while a limiter or selector holds rows
            back.
        ends: the tails that actors left when they died: there a stream ends.
    """

    def __init__(self, inbox: Inbox, writer: StreamWriter, name: str, is_elastic: bool) -> None:
        self.inbox, self.writer, self.name, self.is_elastic = inbox, writer, name, is_elastic
        self.chunk_rows = max(1, inbox.inbox_rows // _CHUNKS_AN_INBOX)
        self.task: asyncio.Task[None] | None = None
        self.stream_ends: deque[int] = deque()
        self.held_since: float | None = None  # monotonic seconds, while its rows may not be written

    @property
    def wake_rows(self) -> int:
        """Rows from which on they are moved without waiting for more."""
        return max(1, min(self.chunk_rows, self.inbox.may_wait // _CHUNKS_AN_INBOX))


class Coordinator:
    """Moves rows from inboxes to blocks, in order, each exactly once.

    Args:
        on_rows: called in the coordinator's thread after rows were written; must be quick.
        on_failure: called in the coordinator's thread when it ends by an error.

    Attributes:
        last_rows_at: `time.monotonic()` when rows came in last; 0.0 before the first.
        is_writing: whether rows have been admitted that are not yet written. From any thread.
    """

    def __init__(
        self,
        ring: Ring,
        registry: WriterRegistry,
        admission: Admission,
        on_rows: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        self.last_rows_at = 0.0
        self.is_writing = False
        self.failure: BaseException | None = None
        self._ring, self._registry, self._on_rows, self._on_failure = (
            ring,
            registry,
            on_rows,
            on_failure,
        )
        self._admission = admission
        self._admitted = Waiter(admission.coordinator_bell)
        self._feeds: dict[int, _Feed] = {}
        # inboxes without actors, of which rows are still to be written
        self._left: list[_Feed] = []
        self._line: list[_Feed] = []  # those who wait for admission, in order
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._thread: threading.Thread | None = None
        self._is_begun = False
        self._start_error: ResourceUnavailable | None = None
        # Flags, not concurrent futures, which would keep the loops of all that ever waited.
        self._has_started = False  # its loop runs, or could not be had
        self._has_ended = False  # the thread, for whatever reason
        self._is_stopped = False
        self._origin = forks.current
        self._may_wait: int | None = None  # rows in all inboxes together, as it was said last
        # two threads may bound what waits at the same time
        self._bounds_guard = forks.register_lock(threading.Lock())
        admission.on_change, admission.take_waiting = self._bound_waiting, self._take_waiting

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
        await self._in_thread(self._attach(inbox, name, is_elastic))

    async def mark_stream_end(self, inbox: Inbox) -> None:
        """End the stream behind all that a dead actor left: what comes next is another. Does
        nothing if detached.

        What may be written now is, the rest in its turn.
        """
        await self._in_thread(self._mark_stream_end(inbox))

    async def detach(self, inbox: Inbox) -> None:
        """Take all that is there, end the stream, and stop reading. Does nothing if it is detached
        already.

        Rows that may not be written yet are in their turn, after this has returned: nobody puts any
        more.
        """
        await self._in_thread(self._detach(inbox))

    @property
    def has_rows(self) -> bool:
        """Whether there are rows of actors that are not in the ring yet. From any thread."""
        return any(feed.inbox.used for feed in [*self._feeds.values(), *self._left])

    @property
    def has_free_rows(self) -> bool:
        """Whether rows are due in an inbox that no limiter counts: final observations. From any
        thread."""
        return any(_begins_with_final(feed.inbox) for feed in [*self._feeds.values(), *self._left])

    def held(self) -> list[tuple[Inbox, str, float]]:
        """Each inbox whose rows may not be written yet, its name, and for how many seconds already.
        From any thread."""
        now = time.monotonic()
        waits = [(feed, feed.held_since) for feed in [*self._feeds.values(), *self._left]]
        return [(feed.inbox, feed.name, now - since) for feed, since in waits if since is not None]

    def _bound_waiting(self) -> None:
        """Say how many rows may wait in each inbox; they share what limiters and keepers let wait.
        From any thread."""
        with self._bounds_guard:
            feeds = [feed for feed in list(self._feeds.values()) if feed.is_elastic]
            self._may_wait = rows = self._admission.rows_that_may_wait(self._ring.capacity_rows)
            for feed in feeds:
                if rows is None:
                    feed.inbox.limit_waiting(feed.inbox.inbox_rows)
                else:
                    feed.inbox.limit_waiting(max(_LEAST_WAITING_ROWS, -(-rows // len(feeds))))

    async def _take_waiting(self) -> None:
        """Take what waits in inboxes and may be written now."""
        await self._in_thread(self._take_of_all())

    async def stop(self) -> None:
        """Detach every inbox, write what is left, and end the thread. Nobody is held back any more.

        May be called twice.
        """
        if self._origin is not forks.current:  # a forked child has no such thread
            return
        self._is_stopped = True
        self._registry.keep_nothing()
        self._admission.lift()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        await poll(lambda is_late: self._has_started)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has failed
                self._loop.call_soon_threadsafe(self._ending.set)
        try:
            await in_thread("areplay-join", thread.join)
        except ResourceUnavailable:  # no thread to wait in: it ends soon, and closing has to end
            thread.join()

    def let_go(self) -> bool:
        """`stop` without an event loop to wait on: whether the thread has ended. Call it again
        until it has."""
        self._is_stopped = True
        self._registry.keep_nothing()
        self._admission.lift()
        thread = self._thread
        if thread is None:
            return True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._loop.call_soon_threadsafe(self._ending.set)
        return not thread.is_alive()

    def detaching(self, inbox: Inbox) -> Callable[[], bool]:
        """`detach` as a step for any thread: whether it is done. Call it again until it is."""
        begun: list[concurrent.futures.Future[None]] = []

        def is_detached() -> bool:
            if self.failure is not None or self._has_ended or self._loop is None:
                return True
            if not begun:
                work = self._detach(inbox)
                try:
                    begun.append(asyncio.run_coroutine_threadsafe(work, self._loop))
                except RuntimeError:  # its loop has just closed
                    work.close()
                    return True
            return begun[0].done()

        return is_detached

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

    async def _in_thread(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` on the coordinator's loop, to its end even if cancelled meanwhile."""
        is_foreign = self._origin is not forks.current  # a forked child, which has no such thread
        if is_foreign or self.failure is not None or self._thread is None or self._loop is None:
            work.close()
            return
        try:
            done = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
        except RuntimeError:  # its loop has just closed, by a failure that is reported elsewhere
            work.close()
            return
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
            # of the task group: its first error made the others end
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self.failure = error
            if not self._has_started:
                self._start_error = ResourceUnavailable(
                    "starting an event loop", "the coordinator", str(error)
                )
                return
            logger.exception("the coordinator failed; no more rows come in")
            for feed in self._feeds.values():
                feed.writer.close()
            self._on_failure()
        finally:
            self._has_started = True
            self._has_ended = True

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._has_started = True
            await self._ending.wait()
            for feed in list(self._feeds.values()):
                await self._detach(feed.inbox)
        self._admitted.close()

    async def _attach(self, inbox: Inbox, name: str, is_elastic: bool) -> None:
        assert self._group is not None
        feed = _Feed(inbox, self._new_writer(), name, is_elastic)
        self._feeds[id(inbox)] = feed
        self._bound_waiting()
        feed.task = self._group.create_task(
            self._serve(feed), name=f"areplay coordinator of {name}"
        )

    async def _mark_stream_end(self, inbox: Inbox) -> None:
        feed = self._feeds.get(id(inbox))
        if feed is not None:
            feed.stream_ends.append(inbox.rows_put)
            self._take_all(feed)

    async def _detach(self, inbox: Inbox) -> None:
        feed = self._feeds.pop(id(inbox), None)
        if feed is None or feed.task is None:
            return
        self._bound_waiting()
        self._left.append(feed)
        feed.task.cancel()
        await asyncio.wait({feed.task})
        self._take_all(feed)
        if inbox.used == 0:
            feed.writer.close()
            self._left.remove(feed)
            return
        assert self._group is not None
        feed.task = self._group.create_task(
            self._write_left(feed), name=f"areplay coordinator of what {feed.name} left"
        )

    async def _take_of_all(self) -> None:
        for feed in self._feeds.values():
            if feed not in self._line:  # else it takes its turn
                self._take_all(feed)

    async def _serve(self, feed: _Feed) -> None:
        """Move rows whenever there are some, until cancelled."""
        inbox = feed.inbox
        rows = Waiter(inbox.rows_bell)

        def has_chunk() -> bool:
            return inbox.used >= feed.wake_rows or inbox.is_flush_requested

        try:
            while True:
                inbox.set_wake(1)
                await rows.wait(lambda: inbox.used > 0, None)
                inbox.set_wake(feed.wake_rows)
                await rows.wait_briefly(has_chunk, BATCHING_DELAY_S)
                await self._move_chunk(feed)
                while has_chunk():
                    await asyncio.sleep(0)
                    await self._move_chunk(feed)
        finally:
            rows.close()

    async def _write_left(self, feed: _Feed) -> None:
        """Write what is left in an inbox that has no actor any more."""
        while feed.inbox.used > 0:
            await self._move_chunk(feed)
        feed.writer.close()
        self._left.remove(feed)

    async def _move_chunk(self, feed: _Feed) -> None:
        """Move a chunk, or as much of it as may be written; wait until that is a row. Cancelled:
        nothing was moved."""
        if (self._line and not self._admission.is_lifted) or not self._take_chunk(feed):
            await self._wait_admission(feed)
            self._take_chunk(feed)

    async def _wait_admission(self, feed: _Feed) -> None:
        """Wait until it is this one's turn, and a row of it may be written."""

        self._line.append(feed)
        feed.held_since = time.monotonic()
        try:
            await self._admitted.wait(lambda: self._turn() is feed, lambda: self._reason(feed))
        finally:
            feed.held_since = None
            self._line.remove(feed)
            if self._line:
                self._admitted.wake()  # whose turn is next

    def _turn(self) -> _Feed | None:
        """The first in line who may write a row; others do not wait for one who only lacks a block.

        A final observation needs no room in a limiter. It may complete the item that the learner
        waits for, so it must not wait behind steps that the limiter lets in only when the learner
        has taken that.
        """
        has_room, has_place = self._admission.has_room, self._registry.has_place()
        for feed in self._line:
            if (has_room or _begins_with_final(feed.inbox)) and (
                has_place or feed.writer.has_open_block
            ):
                return feed
        return None

    def _reason(self, feed: _Feed) -> str:
        if self._line[0] is not feed or not (why := self._admission.reason()):
            return ""
        names = ", ".join(other.name for other in self._line[:8]) + (
            ", ..." if len(self._line) > 8 else ""
        )
        return f"rows of {names} wait, they may not be written yet: {why}"

    def _take_all(self, feed: _Feed) -> None:
        """Take what may be written, and end the streams that end there."""
        while self._take_chunk(feed) and feed.inbox.used > 0:
            pass

    def _take_chunk(self, feed: _Feed) -> bool:
        """Take what may be written of the oldest chunk; whether that was something, or there was
        nothing to take.

        From the look at the rows to their publication there is no await.
        """
        inbox = feed.inbox
        columns, priorities, start, stop = inbox.peek()
        stop = min(stop, start + feed.chunk_rows)
        taken = inbox.rows_taken
        if feed.stream_ends:
            stop = min(stop, start + feed.stream_ends[0] - taken)
        # before the rows are admitted: a learner that sees no room left looks at this next
        self.is_writing = True
        try:
            rows, admitted = self._admission.admit_rows(columns, start, stop)
            written = len(feed.writer.write(columns, start, start + rows, priorities))
            if written < rows:
                self._admission.give_back(
                    admitted, steps_among(columns, start + written, start + rows)
                )
            if admitted.by and self._may_wait != self._admission.rows_that_may_wait(
                self._ring.capacity_rows
            ):
                self._bound_waiting()
            if written:
                inbox.consume(written)
                self.last_rows_at = time.monotonic()
                self._on_rows()
        finally:
            self.is_writing = False
        while feed.stream_ends and feed.stream_ends[0] == taken + written:
            feed.stream_ends.popleft()
            feed.writer.begin_stream()
        return written > 0 or start == stop

    def _new_writer(self) -> StreamWriter:
        return StreamWriter(self._ring, self._ring.block_locks(), self._registry)


def _begins_with_final(inbox: Inbox) -> bool:
    """Whether the oldest row of an inbox is a final observation."""
    columns, _, start, stop = inbox.peek()
    return start < stop and NEXT_OFFSET in columns and bool(columns[NEXT_OFFSET][start] < 0)
