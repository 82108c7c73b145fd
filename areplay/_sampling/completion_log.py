"""The completion log: the items of a ring in the order in which they became complete, each once.

An item is complete when all the rows that its window needs are written. The threads that write rows
find that out: for each stream they hold the rows whose items are *pending*, and append those that
have become complete to the log. They drop a row by which no item can ever be made any more, since
its actor died or a step of it was lost.

Shared memory, written by the owner's process under `_lock`, read by samplers without a lock. A
sampler that reads an old count sees fewer items. If the owner dies, everything here ends with it.

    order[n % capacity_rows]   index of the row that the n-th item is drawn by. Not written again
                               while the item is due: its row is in the ring until then.
    appended                   how many items there are; stored after their entries.

The log also pins blocks (`BlockPins`): those with rows of an item that is pending or was not yet
released.

    order      0  1  2  3  4  5  6  7           items 0 to 2 are released, 3 to 7 are due
    block      A  A  B  A  B  B  C  C           A is pinned up to item 3, B to 5, C to 7

Items are released in their order, so for each block the number of the last item that needs it is
enough; and for each stream, the blocks from the first pending row on, with what its window needs
before that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Array, Indices, Mask
from areplay._sampling.pending_stream import PendingStream, chosen
from areplay._shm.layout import WORDS_A_LINE, Layout, int64_word
from areplay._shm.memory_order import order
from areplay._shm.segment import Segment
from areplay._storage.registry import RowListener, WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.window_search import WindowFinder
from areplay._storage.window_walk import Walk
from areplay._storage.windows import Window


class CompletionLog(RowListener):
    """The items of such windows in a ring. Pickles into a sampler that is being spawned.

    Args:
        name: of the selector that hands the items out, for messages.
    """

    needs_blocks = True

    def __init__(self, ring: Ring, window: Window, name: str) -> None:
        self.name = name
        self._ring, self._window = ring, window
        layout = Layout(
            "completion log",
            {"appended": ((1, WORDS_A_LINE), np.int64), "order": ((ring.capacity_rows,), np.int64)},
        )
        self._segment = Segment(layout, f"the order of the items of {ring.capacity_rows:,} rows")
        self._view()
        self._lock = forks.register_lock(threading.Lock())
        self._finder = WindowFinder(ring, window)
        self._streams: dict[int, PendingStream] = {}
        # per place: up to which index we have seen its rows
        self._known = np.zeros(ring.blocks, np.int64)
        # per place: number of the last item that needs its block
        self._last = np.full(ring.blocks, -1)
        # per place: for pending items; at first all, until `begin`
        self._is_pinned = np.ones(ring.blocks, np.bool_)
        self.released = 0
        """How many items, from the first on, are not due any more. Raised by the learner's loop."""
        self._without: Callable[[Indices], Mask] | None = None

    def _view(self) -> None:
        arrays = self._segment.arrays
        self._appended = int64_word(arrays["appended"], 0)
        self._order: Indices = arrays["order"]

    # Reading, in any process.

    @property
    def appended(self) -> int:
        """How many items have become complete so far."""
        appended: int = self._appended[0]
        order()
        return appended

    def entries(self, start: int, stop: int) -> Indices:
        """The rows that items `start` to `stop` are drawn by."""
        return self._order.take(np.arange(start, stop) % len(self._order))

    def entries_at(self, numbers: Indices) -> Indices:
        """The rows that the items of these numbers are drawn by."""
        return self._order.take(numbers % len(self._order))

    # Writing, in the owner's process.

    def is_over(self, released: int, indices: Indices) -> Mask:
        """Mask of the rows that were taken in, but are neither pending nor due.

        Args:
            released: the number of items that are released, from the first on.
            indices: (n,) int64.
        """
        with self._lock:
            due = self.entries(max(released, self.appended - len(self._order)), self.appended)
            pending = [stream.pending["index"] for stream in self._streams.values()]
            is_known = indices < self._known.take(self._places(indices))
        return is_known & ~np.isin(indices, np.concatenate([due, *pending]))

    def begin(
        self,
        registry: WriterRegistry,
        *,
        goes_on: bool,
        without: Callable[[Indices], Mask] | None = None,
    ) -> None:
        """Take in what is in the ring already, oldest first.

        Meanwhile no block is recycled, if the log is one of the registry's pins.

        Args:
            goes_on: take in the rows that come, too.
            without: mask of the rows of the ring by which no item is drawn any more.
        """
        with self._lock:
            self._without = without
            if goes_on:  # threads that write meanwhile wait for our lock when they tell us
                registry.add_listener(self)
            self._take_in_ring()
            for number in list(self._streams):
                if not goes_on or number not in registry.streams.places:
                    self._end(number)
            self._without = None
            is_pinned = np.zeros(self._ring.blocks, np.bool_)
            for stream in self._streams.values():
                is_pinned[[place for place, _ in stream.blocks]] = True
            self._is_pinned = is_pinned  # at once: a writer may look without our lock

    def written(self, at: int, count: int, priorities: Array | None) -> None:
        """See `RowListener.written`."""
        with self._lock:
            place = at // self._ring.block_rows
            end = int(self._ring.ends[place])
            self._take_in(place, max(end - count, int(self._known[place])), end)

    def ended(self, stream: int) -> None:
        """See `RowListener.ended`: what is still pending will never be complete."""
        with self._lock:
            self._end(stream)

    def pinned(self) -> Mask:
        """(blocks,) bool: the places whose blocks have rows that are still needed. See
        `BlockPins.pinned`."""
        is_pinned: Mask = self._last >= self.released
        is_pinned |= self._is_pinned
        return is_pinned

    def _take_in_ring(self) -> None:
        there = []
        # All blocks first: items reach into later ones.
        for serial in np.sort(self._ring.occupied()[0]).tolist():
            place = serial % self._ring.blocks
            first = serial * self._ring.block_rows
            found, rows = self._ring.block(place)
            if found == serial:
                there.append((place, first, first + rows))
                self._add_block(self._stream_of(serial), place, rows)
        for place, first, end in there:
            self._take_in(place, first, end)

    def _end(self, number: int) -> None:
        """Append what is complete of a stream, and drop the rest."""
        stream = self._streams.pop(number, None)
        if stream is not None:
            self._append_complete(stream, len(stream.pending))
            for place, _ in stream.blocks:
                self._is_pinned[place] = False

    def _take_in(self, place: int, first: int, end: int) -> None:
        """Take in rows `first` to `end`, by index, of the block in that place."""
        if first >= end:
            return
        self._known[place] = end
        stream = self._stream_of(first // self._ring.block_rows)
        new = stream.take_in(np.arange(first, end))
        taken_in = stream.blocks[-1][1] if stream.blocks else 0
        self._add_block(stream, place, stream.rows - taken_in)
        looks_at_all = False
        is_broken_off = False
        if self._ring.spec.is_steps:
            start = place * self._ring.block_rows + first % self._ring.block_rows
            rows = slice(start, start + end - first)
            is_step = stream.note_strides(self._ring.columns, rows)
            is_broken_off = stream.note_beginnings(self._ring.columns, rows)
            has_finals = not is_step.all()
            # A final observation may complete any item; an episode in the place of a step tells
            # that items never will be complete.
            looks_at_all = has_finals or is_broken_off
            if has_finals:
                new = chosen(new, is_step)
        if self._without is not None:
            new = chosen(new, ~self._without(new["index"]))
        stream.add(new)
        forward = self._window.forward
        count = len(stream.pending) if looks_at_all else stream.may_be_complete(forward)
        self._append_complete(stream, count)
        if is_broken_off:
            self._drop_broken(stream)
        self._unpin(stream)

    def _stream_of(self, serial: int) -> PendingStream:
        number, _, _ = self._ring.chain(serial)
        return self._streams.setdefault(number, PendingStream())

    def _add_block(self, stream: PendingStream, place: int, rows: int) -> None:
        """Note that `rows` more rows of the stream are in the block in that place, and pin it; none
        if they are known already."""
        if rows <= 0:
            return
        end = stream.blocks[-1][1] if stream.blocks else 0
        if stream.blocks and stream.blocks[-1][0] == place:
            stream.blocks[-1] = place, end + rows
        else:
            stream.blocks.append((place, end + rows))
            self._is_pinned[place] = True

    def _append_complete(self, stream: PendingStream, count: int) -> None:
        """Append those of the first `count` pending items that are complete, and drop those that
        never will be."""
        if count == 0:
            return
        pending = stream.pending["index"][:count]
        windows = self._finder.find(pending)
        is_done = np.zeros(len(stream.pending), np.bool_)
        if len(windows):
            is_done[:count] = np.isin(pending, windows.indices, assume_unique=True)
            start = self._appended[0]
            numbers = np.arange(start, start + len(windows))
            self._order[numbers % len(self._order)] = windows.indices
            self._note_needs(stream, numbers, *windows.places())
            order()  # the entries before their count
            self._appended[0] = start + len(windows)
        is_done[:count] |= stream.are_lost(count, self._window.forward)
        if is_done.any():
            stream.keep(~is_done)

    def _drop_broken(self, stream: PendingStream) -> None:
        """Drop pending items whose episode was broken off, or lost a step, before they were
        complete.

        Their reach would tell, too, but only many rows later. In a small ring those may never be
        written: the blocks that such items pin could be all there are.
        """
        walk = Walk(self._ring, self._window, stream.pending["index"])
        walk.forward()
        stream.keep(walk.waits)

    def _note_needs(
        self, stream: PendingStream, numbers: Indices, items: Indices, places: Indices
    ) -> None:
        """Note for the blocks of new items the number of the last item that needs them.

        An item also needs the blocks between its own, since the way leads through them:

            blocks of the stream   |  A  |  B  |  C  |     an item in A and C needs B, too

        Args:
            numbers: of the new items.
            items, places: see `Windows.places`.
        """
        np.maximum.at(self._last, places, numbers[items])
        if len(items) == len(numbers):  # each item is in one block
            return
        ours = np.array([place for place, _ in stream.blocks])
        # For each place which of the stream's blocks it holds; -1: an older one, or none.
        nth = np.full(self._ring.blocks, -1)
        nth[ours] = np.arange(len(ours))
        first = np.full(len(numbers), len(ours))
        last = np.zeros(len(numbers), np.int64)
        np.minimum.at(first, items, nth[places])
        np.maximum.at(last, items, nth[places])
        for item in np.flatnonzero(last - first > 1).tolist():
            between = ours[max(0, first[item]) : last[item]]
            self._last[between] = np.maximum(self._last[between], numbers[item])

    def _unpin(self, stream: PendingStream) -> None:
        """Unpin the blocks of the stream that lie before all that is pending and all that comes."""
        first = stream.needed_from(self._window.back)
        while stream.blocks and stream.blocks[0][1] <= first:
            place, _ = stream.blocks.popleft()
            self._is_pinned[place] = False

    def _places(self, indices: Indices) -> Indices:
        return indices // self._ring.block_rows % self._ring.blocks

    def check(self) -> None:
        """Assert what must always hold: what is due is there, and its blocks are pinned."""
        with self._lock:
            due = self.entries(self.released, self.appended)
            assert self._ring.committed(due).all(), self
            assert self.pinned()[self._places(due)].all(), self
            assert len(np.unique(due)) == len(due), self

    def close(self) -> None:
        """Give back the descriptor. The memory stays mapped for as long as a view of it lives."""
        self._segment.close()

    def __getstate__(self) -> dict[str, object]:
        return {"_ring": self._ring, "_segment": self._segment}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._view()

    def __repr__(self) -> str:
        pending = sum(len(stream.pending) for stream in self._streams.values())
        return (
            f"<CompletionLog {self.appended:,} items, {self.released:,} of them released, "
            f"{pending:,} pending>"
        )
