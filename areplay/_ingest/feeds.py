"""Feeds: the inboxes that the coordinator reads, and how their rows get into blocks.

Rows that may not be written yet (see `areplay._ingest.admission`) stay in their inbox, and its
actor waits when that is full. The feeds whose rows wait stand in a line. They get their turn one
chunk after the other, in the order in which they began to wait.

Decisions only, all in the coordinator's thread except where a docstring says otherwise. From the
look at rows to their publication nothing waits, so a row leaves its inbox if and only if it is in
the ring. `areplay._ingest.feed_tasks` waits for rows and for admission.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from areplay._base import forks
from areplay._base.arrays import Array, Columns
from areplay._base.episode_links import NEXT_OFFSET
from areplay._ingest.admission import steps_among
from areplay._ingest.destination import Destination
from areplay._ingest.inbox import Inbox
from areplay._storage.stream_writer import StreamWriter

_CHUNKS_AN_INBOX = 4
"""A chunk is a quarter of an inbox: the coordinator takes one at a time, the actor rings for it."""
_LEAST_WAITING_ROWS = 4
"""At least as many rows may wait in each inbox, however many inboxes share what a limiter lets
wait."""
_NAMED = 8  # feeds at most, where a wait says which


class Feed:
    """One inbox being read, and the writer of its present stream.

    Attributes:
        name: of the actor, for warnings.
        is_elastic: whether fewer rows than fit may wait while a limiter or selector holds rows
            back.
        held_since: monotonic seconds since when its rows may not be written; None while they may.
    """

    def __init__(self, inbox: Inbox, writer: StreamWriter, name: str, is_elastic: bool) -> None:
        self.inbox = inbox
        self.writer = writer
        self.name = name
        self.is_elastic = is_elastic
        self.held_since: float | None = None
        self._chunk_rows = max(1, inbox.inbox_rows // _CHUNKS_AN_INBOX)
        # The tails that actors left when they died: there a stream ends.
        self._stream_ends: deque[int] = deque()

    @property
    def wake_rows(self) -> int:
        """Rows from which on they are moved without waiting for more."""
        return max(1, min(self._chunk_rows, self.inbox.may_wait // _CHUNKS_AN_INBOX))

    @property
    def has_chunk(self) -> bool:
        """Whether to move rows now, without waiting for more."""
        used = self.inbox.used
        # A whole chunk first: it is never less than `wake_rows`, and cheaper to ask for.
        return used >= self._chunk_rows or used >= self.wake_rows or self.inbox.is_flush_requested

    @property
    def begins_with_final(self) -> bool:
        """Whether the oldest row is a final observation. From any thread."""
        columns, _, start, stop = self.inbox.peek()
        return start < stop and NEXT_OFFSET in columns and bool(columns[NEXT_OFFSET][start] < 0)

    def oldest_chunk(self) -> tuple[Columns, Array, int, int]:
        """`(columns, priorities, start, stop)`: rows of one stream that lie in one piece."""
        columns, priorities, start, stop = self.inbox.peek()
        stop = min(stop, start + self._chunk_rows)
        if self._stream_ends:
            stop = min(stop, start + self._stream_ends[0] - self.inbox.rows_taken)
        return columns, priorities, start, stop

    def mark_stream_end(self) -> None:
        """End the stream behind the rows that are there now."""
        self._stream_ends.append(self.inbox.rows_put)

    def begin_streams(self) -> None:
        """Begin a new stream for each end that the rows taken so far have reached."""
        while self._stream_ends and self._stream_ends[0] == self.inbox.rows_taken:
            self._stream_ends.popleft()
            self.writer.begin_stream()


class Feeds:
    """All inboxes that are read.

    Attributes:
        last_rows_at: `time.monotonic()` when rows came in last; 0.0 before the first.
        is_writing: whether rows have been admitted that are not yet written. From any thread.
    """

    def __init__(self, destination: Destination) -> None:
        self.last_rows_at = 0.0
        self.is_writing = False
        self._destination = destination
        self._admission = destination.admission
        self._on_rows = destination.on_rows
        self._attached: dict[int, Feed] = {}
        self._orphaned: list[Feed] = []  # without an actor; some of their rows are not written yet
        self._line: list[Feed] = []
        self._may_wait: int | None = None  # rows in all inboxes together, as it was said last
        # Two threads may bound what waits at the same time.
        self._bounds_guard = forks.register_lock(threading.Lock())

    @property
    def attached(self) -> list[Feed]:
        """The feeds whose actors may put more rows. From any thread."""
        return list(self._attached.values())

    @property
    def _all(self) -> list[Feed]:
        return list(dict.fromkeys([*self._attached.values(), *self._orphaned]))

    @property
    def has_rows(self) -> bool:
        """Whether there are rows of actors that are not in the ring yet. From any thread."""
        return any(feed.inbox.used for feed in self._all)

    @property
    def has_free_rows(self) -> bool:
        """Whether the next row of an inbox is one that limiters do not count: a final observation.
        From any thread."""
        return any(feed.begins_with_final for feed in self._all)

    def held(self) -> list[tuple[Inbox, str, float]]:
        """Each inbox whose rows may not be written yet, its name, and for how many seconds already.
        From any thread."""
        now = time.monotonic()
        waits = [(feed, feed.held_since) for feed in self._all]
        return [(feed.inbox, feed.name, now - since) for feed, since in waits if since is not None]

    def find(self, inbox: Inbox) -> Feed | None:
        """The feed of an inbox; None if that is not attached."""
        return self._attached.get(id(inbox))

    def attach(self, inbox: Inbox, name: str, is_elastic: bool) -> Feed:
        """Read an inbox from now on, as a new stream."""
        feed = Feed(inbox, self._destination.new_writer(), name, is_elastic)
        self._attached[id(inbox)] = feed
        self.bound_waiting()
        return feed

    def orphan(self, feed: Feed) -> None:
        """No actor puts rows into its inbox any more. Those that are there are still to be
        written."""
        self._orphaned.append(feed)  # before it leaves: other threads must not miss its rows
        del self._attached[id(feed.inbox)]
        self.bound_waiting()

    def end(self, feed: Feed) -> None:
        """Forget a feed that was orphaned. All of its rows are written."""
        feed.writer.close()
        self._orphaned.remove(feed)

    def close_writers(self) -> None:
        """End all streams where they are: no more rows are written."""
        for feed in self._all:
            feed.writer.close()

    def bound_waiting(self) -> None:
        """Say how many rows may wait in each inbox; elastic ones share what limiters and keepers
        let wait. From any thread."""
        with self._bounds_guard:
            feeds = [feed for feed in self.attached if feed.is_elastic]
            rows = self._rows_that_may_wait()
            self._may_wait = rows
            for feed in feeds:
                if rows is None:
                    feed.inbox.limit_waiting(feed.inbox.inbox_rows)
                else:
                    feed.inbox.limit_waiting(max(_LEAST_WAITING_ROWS, -(-rows // len(feeds))))

    def take_in_turn(self, feed: Feed) -> bool:
        """Take a chunk, unless others wait before it; False if it has to wait for its turn."""
        if self._line and not self._admission.is_lifted:
            return False
        return self.take_chunk(feed)

    def take_all(self, feed: Feed) -> None:
        """Take what may be written, and end the streams that end there."""
        while self.take_chunk(feed) and feed.inbox.used > 0:
            pass

    def take_all_out_of_line(self) -> None:
        """Take what may be written of each feed that does not stand in line."""
        for feed in self.attached:
            if feed not in self._line:
                self.take_all(feed)

    def take_chunk(self, feed: Feed) -> bool:
        """Take what may be written of the oldest chunk.

        Returns:
            Whether rows were taken, or there were none to take.
        """
        columns, priorities, start, stop = feed.oldest_chunk()
        # Before the rows are admitted: a learner that sees no room left looks at this next.
        self.is_writing = True
        try:
            rows, admitted = self._admission.admit_rows(columns, start, stop)
            written = len(feed.writer.write(columns, start, start + rows, priorities))
            if written < rows:
                steps = steps_among(columns, start + written, start + rows)
                self._admission.give_back(admitted, steps)
            if admitted.by and self._may_wait != self._rows_that_may_wait():
                self.bound_waiting()
            if written:
                feed.inbox.consume(written)
                self.last_rows_at = time.monotonic()
                self._on_rows()
        finally:
            self.is_writing = False
        feed.begin_streams()
        return written > 0 or start == stop

    def join_line(self, feed: Feed) -> None:
        """Wait for admission from now on, behind those that wait already."""
        self._line.append(feed)
        feed.held_since = time.monotonic()

    def leave_line(self, feed: Feed) -> bool:
        """Wait no longer; whether others still do."""
        feed.held_since = None
        self._line.remove(feed)
        return bool(self._line)

    def has_turn(self, feed: Feed) -> bool:
        """Whether that feed is the first in line that may write a row.

        Feeds do not wait for one before them that only lacks a block. A final observation needs no
        room in a limiter. It may complete the item that the learner waits for, so it must not wait
        behind steps that the limiter lets in only when the learner has taken that.
        """
        has_room = self._admission.has_room
        has_place = self._destination.registry.has_place()
        for first in self._line:
            is_admitted = has_room or first.begins_with_final
            if is_admitted and (has_place or first.writer.has_open_block):
                return first is feed
        return False

    def why_held(self, feed: Feed) -> str:
        """Why the rows of the line wait, said by its first feed; "" by the others, and if they may
        be written."""
        if self._line[0] is not feed:
            return ""
        why = self._admission.reason()
        if not why:
            return ""
        names = [waiting.name for waiting in self._line[:_NAMED]]
        if len(self._line) > _NAMED:
            names.append("...")
        return f"rows of {', '.join(names)} wait, they may not be written yet: {why}"

    def _rows_that_may_wait(self) -> int | None:
        return self._admission.rows_that_may_wait(self._destination.ring.capacity_rows)
