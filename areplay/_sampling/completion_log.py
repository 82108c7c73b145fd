"""The completion log: the items of a ring in the order in which they became complete, each once.

An item is complete when all the rows that its window needs are written. The threads that write rows
find that out: for each stream they keep the rows whose items are *pending*, and append those that
have become complete to the log. A row by which no item can ever be made any more (its actor died, a
step of it was lost) is dropped.

Shared memory, written by the owner's process under `_lock`, read by samplers without a lock. A
sampler that reads an old count sees fewer items. If the owner dies everything here ends with it.

    order[n % capacity_rows]   index of the row that the n-th item is drawn by. Not written again
                               while the item is due: its row is in the ring until then.
    appended                   how many items there are; stored after their entries.

The log also pins blocks (`BlockPins`): those with rows of an item that is pending or was not yet
released. Items are released in their order, so per block the number
of the last item that needs it is enough; and per stream, the blocks from the first pending row on,
with what its window needs before that.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Array, Indices, Mask
from areplay._base.episode_links import NEXT_OFFSET, PREV_OFFSET
from areplay._shm.layout import WORDS_A_LINE, Layout, int64_word
from areplay._shm.memory_order import order
from areplay._shm.segment import Segment
from areplay._storage.registry import RowListener, WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.window_search import WindowFinder
from areplay._storage.window_walk import Walk
from areplay._storage.windows import Window

_NO_HOP = 1 << 40  # more than any ring has rows: nothing has told yet how far the next step is


@dataclass
class _Stream:
    """What is not yet settled of one stream. Its rows are counted from 0, by *distance* from where
    we began."""

    pending: Indices = field(default_factory=lambda: np.empty(0, np.int64))  # indices
    distances: Indices = field(default_factory=lambda: np.empty(0, np.int64))  # of them
    rows: int = 0
    longest_stride: int = 1
    announced: int = 0  # episodes that are to begin: their final observations are there
    shortest_hop: int = _NO_HOP  # rows from a step to the next one of its environment, at least
    # (place, distance of its end), those that we keep
    blocks: deque[tuple[int, int]] = field(default_factory=deque)


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
        self._streams: dict[int, _Stream] = {}
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
        """Which of these rows were taken in, but are neither pending nor due, if so many items are
        released."""
        with self._lock:
            due = self.entries(max(released, self.appended - len(self._order)), self.appended)
            pending = [state.pending for state in self._streams.values()]
            is_known = indices < self._known.take(
                indices // self._ring.block_rows % self._ring.blocks
            )
        return is_known & ~np.isin(indices, np.concatenate([due, *pending]))

    def begin(
        self,
        registry: WriterRegistry,
        *,
        goes_on: bool,
        without: Callable[[Indices], Mask] | None = None,
    ) -> None:
        """Take in what is in the ring already, oldest first, and, if it `goes_on`, what comes.

        Meanwhile no block is recycled, if the ring has its pins.

        Args:
            without: by which rows of the ring no item is drawn any more.
        """
        with self._lock:
            self._without = without
            if goes_on:  # those who write meanwhile wait for our registry before they tell us
                registry.add_listener(self)
            there = []
            # all blocks first: items reach into later ones
            for serial in np.sort(self._ring.occupied()[0]).tolist():
                place, first = serial % self._ring.blocks, serial * self._ring.block_rows
                found, rows = self._ring.block(place)
                if found == serial:
                    there.append((place, first, first + rows))
                    self._add_block(self._stream_of(serial), place, rows)
            for place, first, end in there:
                self._take_in(place, first, end)
            for stream in list(self._streams):
                if not goes_on or stream not in registry.streams.places:
                    self._end(stream)
            self._without = None
            kept = np.zeros(self._ring.blocks, np.bool_)
            for state in self._streams.values():
                kept[[place for place, _ in state.blocks]] = True
            self._is_pinned = kept  # at once: a writer may look without our registry

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
        """Per place, whether its block has rows that are still needed. See `BlockPins.pinned`."""
        kept: Mask = self._last >= self.released
        kept |= self._is_pinned
        return kept

    def _end(self, stream: int) -> None:
        state = self._streams.pop(stream, None)
        if state is not None:
            self._settle(state, len(state.pending))
            for place, _ in state.blocks:
                self._is_pinned[place] = False

    def _take_in(self, place: int, first: int, end: int) -> None:
        """Rows `first` to `end`, by index, of the block in that place are new."""
        if first >= end:
            return
        self._known[place] = end
        state = self._stream_of(first // self._ring.block_rows)
        indices = np.arange(first, end)
        distances = np.arange(state.rows, state.rows + len(indices))
        state.rows += len(indices)
        self._add_block(
            state, place, state.rows - state.blocks[-1][1] if state.blocks else state.rows
        )
        has_ends = False
        is_broken_off = False
        if self._ring.spec.is_steps:
            is_step = self._look_at_strides(state, place, first, end)
            has_ends = not is_step.all()
            is_broken_off = self._is_broken_off(state, place, first, end)
            if has_ends:
                indices, distances = indices[is_step], distances[is_step]
        if self._without is not None:
            is_wanted = ~self._without(indices)
            indices, distances = indices[is_wanted], distances[is_wanted]
        state.pending = np.concatenate([state.pending, indices])
        state.distances = np.concatenate([state.distances, distances])
        # An item without an episode's end needs the row `forward` hops on. No hop so far was
        # shorter than the shortest one, so none before that row can be complete: those are not
        # looked at. Hops differ where final observations lie between the steps of a vector; there a
        # few rows are looked at too early, and again with the next chunk. A guess by a row's own
        # stride would look at some too late, after a step that may never come. A final observation
        # may complete any item; an episode in the place of a step tells that items never will be.
        due = state.rows - self._window.forward * state.shortest_hop
        looks_at_all = has_ends or is_broken_off
        count = len(state.pending) if looks_at_all else int(state.distances.searchsorted(due))
        self._settle(state, count)
        if is_broken_off:
            self._drop_broken(state)
        self._let_go(state)

    def _look_at_strides(self, state: _Stream, place: int, first: int, end: int) -> Mask:
        """Take note of how far apart the rows of an environment are; which of these rows are
        steps."""
        start = place * self._ring.block_rows + first % self._ring.block_rows
        rows, columns = slice(start, start + end - first), self._ring.columns
        strides = columns[NEXT_OFFSET][rows].astype(np.int64)
        is_step: Mask = strides > 0
        state.longest_stride = max(state.longest_stride, int(np.abs(strides).max()))
        # The last step of an episode leads to its final observation, which may be as near as the
        # next row. The hop to the next step, of an item that goes on across episodes, leads over
        # that one, which tells both parts of it.
        hops = np.where(is_step, strides, columns[PREV_OFFSET][rows] - strides)
        hops = hops[~(is_step & (columns["terminated"][rows] | columns["truncated"][rows]))]
        state.shortest_hop = int(hops.min(initial=state.shortest_hop))
        return is_step

    def _is_broken_off(self, state: _Stream, place: int, first: int, end: int) -> bool:
        """Whether an episode begins with one of these rows in the place of a step that was to come.

        Every other beginning comes after a final observation. Those of a vector come one step after
        theirs, so counting both tells, at the latest with the rest of that step.
        """
        start = place * self._ring.block_rows + first % self._ring.block_rows
        rows = slice(start, start + end - first)
        columns = self._ring.columns
        state.announced += int(np.count_nonzero(columns[NEXT_OFFSET][rows] < 0))
        state.announced -= int(np.count_nonzero(columns[PREV_OFFSET][rows] == 0))
        if state.announced >= 0:
            return False
        state.announced = 0
        return True

    def _stream_of(self, serial: int) -> _Stream:
        return self._streams.setdefault(self._ring.chain(serial)[0], _Stream())

    def _add_block(self, state: _Stream, place: int, rows: int) -> None:
        """So many more rows of the stream are in the block in that place; none if they are known of
        already."""
        end = state.blocks[-1][1] if state.blocks else 0
        if rows > 0 and state.blocks and state.blocks[-1][0] == place:
            state.blocks[-1] = place, end + rows
        elif rows > 0:
            state.blocks.append((place, end + rows))
            self._is_pinned[place] = True

    def _settle(self, state: _Stream, count: int) -> None:
        """Append those of the first `count` pending items that are complete, drop those that never
        will be."""
        if count == 0:
            return
        windows = self._finder.find(state.pending[:count])
        is_done = np.zeros(len(state.pending), np.bool_)
        if len(windows):
            is_done[:count] = np.isin(state.pending[:count], windows.indices, assume_unique=True)
            start = self._appended[0]
            numbers = np.arange(start, start + len(windows))
            self._order[numbers % len(self._order)] = windows.indices
            self._need(state, numbers, *windows.places())
            order()  # the entries before their count
            self._appended[0] = start + len(windows)
        # Each row that its window needs is within so many rows, or was lost.
        reach = 2 * (self._window.forward + 1) * state.longest_stride
        is_done[:count] |= state.distances[:count] + reach < state.rows
        if is_done.any():
            rest = ~is_done
            state.pending, state.distances = state.pending[rest], state.distances[rest]

    def _drop_broken(self, state: _Stream) -> None:
        """Drop pending items whose episode was broken off, or lost a step, before they were
        complete.

        Their reach would tell, too, but only many rows later. In a small ring those may never be
        written: the blocks that such items keep could be all there are.
        """
        walk = Walk(self._ring, self._window, state.pending)
        walk.forward()
        state.pending = state.pending[walk.waits]
        state.distances = state.distances[walk.waits]

    def _need(self, state: _Stream, numbers: Indices, items: Indices, places: Indices) -> None:
        """Note for the blocks of new items who needs them: also for those between, since the way
        leads through them."""
        np.maximum.at(self._last, places, numbers[items])
        if len(items) == len(numbers):  # each item is in one block
            return
        ours = np.array([place for place, _ in state.blocks])
        # per place: which of the stream's blocks it holds; others are older
        nth = np.full(self._ring.blocks, -1)
        nth[ours] = np.arange(len(ours))
        first, last = np.full(len(numbers), len(ours)), np.zeros(len(numbers), np.int64)
        np.minimum.at(first, items, nth[places])
        np.maximum.at(last, items, nth[places])
        for item in np.flatnonzero(last - first > 1).tolist():
            between = ours[max(0, first[item]) : last[item]]
            self._last[between] = np.maximum(self._last[between], numbers[item])

    def _let_go(self, state: _Stream) -> None:
        """Keep no block of the stream that lies before all that is pending and all that comes."""
        first = int(state.distances[0]) if len(state.distances) else state.rows
        first -= 2 * self._window.back * state.longest_stride
        while state.blocks and state.blocks[0][1] <= first:
            place, _ = state.blocks.popleft()
            self._is_pinned[place] = False

    def check(self) -> None:
        """Assert what must always hold: what is due is there, and its blocks are kept."""
        with self._lock:
            due = self.entries(self.released, self.appended)
            kept = self.pinned()
            assert self._ring.committed(due).all(), self
            assert kept[due // self._ring.block_rows % self._ring.blocks].all(), self
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
        pending = sum(len(state.pending) for state in self._streams.values())
        return (
            f"<CompletionLog {self.appended:,} items, {self.released:,} of them released, "
            f"{pending:,} pending>"
        )
