"""Inboxes: each actor's ring of rows towards the coordinator, one producer and one consumer.

`put` writes a row behind the tail and then publishes the tail with one aligned store. From that
store on the row is safe, whatever happens to the actor, because the coordinator reads on after its
death; before it, the row never was.

Shared words of each inbox (int64, a cache line each):

    tail       rows put since the start. Written by the actor. A dead actor's successor goes on from
               it.
    head       rows taken since the start. Written by the coordinator, after the rows are in the
               ring.
    wake_at    the tail from which the actor rings the coordinator. Written by the coordinator
               before it sleeps.
    flush_at   the tail up to which the rows are to be taken at once. Written by the actor when it
               waits for room, or flushes.
    rows_sleep, room_sleep   the two doorbells: the coordinator sleeps until rows are there, the
                             actor until room is.
    stopping   1 when the actor is to end. Written by the learner's process.
    waits_since   CLOCK_MONOTONIC, in ns, since when the actor has been waiting for room, or 0.
                  Written by the actor, for statistics only.
    may_wait   rows up to which further ones may join those that wait, at most inbox_rows. Written
               by the learner's process: less where rows are held back, so that only rows grow old
               here that are soon let in. A stale read costs a few rows that wait longer, or one
               more look.

head <= tail <= head + inbox_rows at every instant. The rows from head to tail belong to the
coordinator, the others to the actor.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping

import numpy as np

from areplay._base.arrays import Array
from areplay._base.debug import check_step
from areplay._base.failpoints import failpoint
from areplay._shm.doorbell import Doorbell, EventFd
from areplay._shm.layout import WORDS_A_LINE, Layout, int64_word
from areplay._shm.memory_order import fence, order
from areplay._shm.segment import Segment
from areplay._storage.row_writer import RowWriter
from areplay.errors import WouldBlock
from areplay.spec import Spec

# Tens of milliseconds at 20,000 Atari rows a second, and still small beside the ring.
_TARGET_BYTES = 16 << 20
_MAX_ROWS = 8_192
_MIN_ROWS = 16
# The places of the shared words.
_TAIL = 0
_HEAD = 1
_WAKE_AT = 2
_FLUSH_AT = 3
_ROWS_SLEEP = 4
_ROOM_SLEEP = 5
_STOPPING = 6
_WAITS_SINCE = 7
_MAY_WAIT = 8
_WORDS = 9


def default_inbox_rows(spec: Spec) -> int:
    """Rows an inbox: about 16 MiB of them, from 16 to 8,192."""
    return min(_MAX_ROWS, max(_MIN_ROWS, _TARGET_BYTES // spec.row_bytes))


def waiting_rows(inbox: Inbox) -> str:
    """How many rows of an inbox wait, in words."""
    if inbox.may_wait == inbox.inbox_rows:
        return f"{inbox.used:,} of {inbox.inbox_rows:,} rows of its inbox are not yet taken"
    return (
        f"{inbox.used:,} rows of its inbox are not yet taken, {inbox.may_wait:,} may wait while a "
        f"limiter or selector holds rows back"
    )


class Inboxes:
    """The inboxes of one group of actors, in one segment. Pickles into an actor that is being
    spawned."""

    def __init__(self, spec: Spec, count: int, inbox_rows: int) -> None:
        self.spec = spec
        self.count = count
        self.inbox_rows = inbox_rows
        arrays = {
            "words": ((count, _WORDS, WORDS_A_LINE), np.dtype(np.int64)),
            **{
                f"column:{field.name}": ((count, inbox_rows, *field.shape), field.dtype)
                for field in spec.rows.values()
            },
            "priorities": ((count, inbox_rows), np.dtype(np.float64)),
        }
        self._segment = Segment(
            Layout("inboxes", arrays),
            f"{count} inboxes of {inbox_rows:,} rows of {spec.row_bytes:,} bytes",
        )
        self._segment.arrays["words"][:, _MAY_WAIT, 0] = inbox_rows
        self._events: list[EventFd] = []  # of each inbox the coordinator's, then the actor's
        try:
            for k in range(2 * count):
                self._events.append(EventFd(f"a doorbell of inbox {k // 2}"))
        except BaseException:
            self.close()
            raise

    @property
    def size_bytes(self) -> int:
        """Of all inboxes."""
        return self._segment.size_bytes

    def inbox(self, index: int) -> Inbox:
        """Inbox number `index`, as this process sees it."""
        arrays = self._segment.arrays
        columns = {name: arrays[f"column:{name}"][index] for name in self.spec.rows}
        return Inbox(
            self.spec.rows,
            columns,
            arrays["priorities"][index],
            arrays["words"][index],
            rows_event=self._events[2 * index],
            room_event=self._events[2 * index + 1],
        )

    def close(self) -> None:
        """Give back all descriptors. The memory stays mapped for as long as a view of it lives."""
        self._segment.close()
        for event in self._events:
            event.close()


class Inbox:
    """One inbox. The actor uses `put`, `extend` and `request_flush`; the coordinator `peek`,
    `consume`, `set_wake`."""

    def __init__(
        self,
        spec: Spec,
        columns: Mapping[str, Array],
        priorities: Array,
        words: Array,
        rows_event: EventFd,
        room_event: EventFd,
    ) -> None:
        self.inbox_rows = len(next(iter(columns.values())))
        self.rows_bell = Doorbell(rows_event, int64_word(words, _ROWS_SLEEP))
        self.room_bell = Doorbell(room_event, int64_word(words, _ROOM_SLEEP))
        self._columns = columns
        self._priorities = priorities
        self._tail = int64_word(words, _TAIL)
        self._head = int64_word(words, _HEAD)
        self._wake_at = int64_word(words, _WAKE_AT)
        self._flush_at = int64_word(words, _FLUSH_AT)
        self._stopping = int64_word(words, _STOPPING)
        self._waits_since = int64_word(words, _WAITS_SINCE)
        self._may_wait = int64_word(words, _MAY_WAIT)
        self._writer = RowWriter(spec, columns)
        self._waits_since[0] = 0  # a predecessor may have died while it waited

    @property
    def used(self) -> int:
        """Rows put and not yet taken."""
        used: int = self._tail[0] - self._head[0]
        return used

    @property
    def room(self) -> int:
        """Rows that can be put at once: all that fit into an empty inbox, so that any call has room
        at some time."""
        used = self.used
        return max(0, self.may_wait - used) if used else self.inbox_rows

    @property
    def may_wait(self) -> int:
        """Rows up to which further ones may join those that wait."""
        rows: int = self._may_wait[0]
        return rows

    @property
    def rows_put(self) -> int:
        """Rows put since the start, by all the actors that had this inbox."""
        put: int = self._tail[0]
        return put

    @property
    def rows_taken(self) -> int:
        """Rows taken since the start."""
        taken: int = self._head[0]
        return taken

    @property
    def waited_s(self) -> float:
        """How long the actor has been waiting for room; 0.0 if it does not wait."""
        since: int = self._waits_since[0]
        return max(0, time.monotonic_ns() - since) / 1e9 if since else 0.0

    # The actor's side.

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While this is entered, `waited_s` counts."""
        self._waits_since[0] = time.monotonic_ns()
        try:
            yield
        finally:
            self._waits_since[0] = 0

    def put(self, *rows: Mapping[str, object], priority: float = math.nan) -> None:
        """Put a row, or a few; they become safe together, when this returns.

        Args:
            priority: of each; NaN: none given.

        Raises:
            WouldBlock: there is not room for all of them.
            SpecMismatch: a row does not fit the spec. Either way nothing was put.
        """
        tail = self._tail[0]
        count = len(rows)
        if tail - self._head[0] + count > self._may_wait[0] and self.room < count:
            raise WouldBlock("the inbox is full")
        failpoint("add.before")
        for k, row in enumerate(rows, tail):
            at = k % self.inbox_rows
            self._writer.write(at, row)
            self._priorities[at] = priority
        failpoint("add.written")
        self._publish(tail + count)
        failpoint("add.published")

    def extend(
        self, columns: Mapping[str, Array], start: int, stop: int, priorities: Array | None = None
    ) -> None:
        """Put rows `start` to `stop` of checked columns; they become safe together, when this
        returns.

        Args:
            priorities: float64, of the rows of `columns`; NaN: none given.

        Raises:
            WouldBlock: there is not room for all of them. Nothing was put.
        """
        tail = self._tail[0]
        count = stop - start
        if tail - self._head[0] + count > self._may_wait[0] and self.room < count:
            raise WouldBlock("the inbox is full")
        failpoint("add.before")
        at = tail % self.inbox_rows
        before_seam = min(count, self.inbox_rows - at)
        self._priorities[at : at + before_seam] = math.nan
        self._priorities[: count - before_seam] = math.nan
        if priorities is not None:
            self._priorities[at : at + before_seam] = priorities[start : start + before_seam]
            self._priorities[: count - before_seam] = priorities[start + before_seam : stop]
        for name, column in self._columns.items():
            column[at : at + before_seam] = columns[name][start : start + before_seam]
            if before_seam < count:
                column[: count - before_seam] = columns[name][start + before_seam : stop]
        failpoint("add.written")
        self._publish(tail + count)
        failpoint("add.published")

    def request_flush(self) -> None:
        """Ask the coordinator to take all that was put without waiting for more."""
        self._flush_at[0] = self._tail[0]
        self.rows_bell.notify()

    @property
    def is_stopping(self) -> bool:
        """Whether the actor is to end."""
        return bool(self._stopping[0])

    def _publish(self, tail: int) -> None:
        order()  # the rows before the tail that makes them the coordinator's
        self._tail[0] = tail
        # The tail, before the look at what the coordinator waits for. The coordinator arms, and
        # then looks at the tail.
        fence()
        if tail >= self._wake_at[0]:
            self.rows_bell.notify()
        check_step(self)

    # The coordinator's side.

    def peek(self) -> tuple[Mapping[str, Array], Array, int, int]:
        """`(columns, priorities, start, stop)`: the oldest rows, as many as lie in one piece."""
        head = self._head[0]
        tail = self._tail[0]
        order()  # the tail, before the rows that lie before it are read
        at = head % self.inbox_rows
        return self._columns, self._priorities, at, min(at + tail - head, self.inbox_rows)

    def consume(self, count: int) -> None:
        """Give the room of the oldest `count` rows back to the actor, and wake it if it sleeps."""
        assert 0 <= count <= self.used, self
        order()  # what was read from the rows, before they may be written again
        self._head[0] += count
        self.room_bell.notify()
        check_step(self)

    def set_wake(self, rows: int) -> None:
        """Have the actor ring when `rows` more than were taken are there."""
        self._wake_at[0] = self._head[0] + rows

    def limit_waiting(self, rows: int) -> None:
        """Let at most `rows` rows wait. One call may put more into an empty inbox. From any
        thread."""
        before = self._may_wait[0]
        self._may_wait[0] = min(rows, self.inbox_rows)
        if self._may_wait[0] > before:
            self.room_bell.notify()

    @property
    def is_flush_requested(self) -> bool:
        """Whether the actor waits for its rows to be taken."""
        is_requested: bool = self._flush_at[0] > self._head[0]
        return is_requested

    def stop(self) -> None:
        """Ask the actor to end."""
        self._stopping[0] = 1
        self.room_bell.event.notify()

    def check(self) -> None:
        """Assert what must always hold."""
        assert 0 <= self.used <= self.inbox_rows, self

    def __repr__(self) -> str:
        return f"<Inbox {self.used} of {self.inbox_rows} rows, {self._head[0]} taken>"
