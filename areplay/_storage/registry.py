"""The ring's registry: what its writers share, in the owner's process, and which blocks may be
recycled.

Rule: one lock, held for a few stores at a time; `areplay._storage.ring` says what is in shared
memory under it. The registry also decides when blocks are split, since it knows the streams, and
who uses blocks at this moment: see `areplay._storage.block_sizes`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Array, Indices, Mask
from areplay._storage.block_sizes import fitting_block_rows, most_streams
from areplay._storage.open_streams import OpenStreams
from areplay._storage.unused_room import UnusedRoomWarnings

logger = logging.getLogger(__name__)


class Blocks(NamedTuple):
    """Blocks as they were at one moment, oldest first: (n,) int64 each."""

    serials: Indices
    rows: Indices
    streams: Indices
    previous: Indices
    following: Indices


class RegisteredRing(Protocol):
    """What the registry knows of a ring."""

    blocks: int
    block_rows: int
    finest_rows: int
    capacity_rows: int
    next_serial: memoryview

    def split(self, block_rows: int, open_places: Collection[int]) -> dict[int, int]:
        """See `Ring.split`."""
        ...

    def table(self, pinned: Mask | None) -> Blocks:
        """See `Ring.table`."""
        ...


class RowListener:
    """Holds something for each row, such as its priority. The thread that writes a row tells it,
    under the lock of the row's block."""

    needs_blocks = False
    """Whether it holds something for each block, too. Then blocks must stay as large as they
    are."""

    def written(self, at: int, count: int, priorities: Array | None) -> None:
        """Take note that rows were written to positions `at` to `at + count`.

        Args:
            priorities: (count,) float64, NaN where none was given; None: none were given.
        """

    def cleared(self, at: int, count: int) -> None:
        """Take note that no row in positions `at` to `at + count` can be drawn any more. New rows
        are not there yet."""

    def ended(self, stream: int) -> None:
        """Take note that no more rows of that stream will be written."""


class BlockPins(Protocol):
    """Pins blocks: they are not recycled."""

    @property
    def name(self) -> str:
        """What it is called in a message that writers wait for it."""
        ...

    def pinned(self) -> Mask:
        """(blocks,) bool: the places whose blocks may not be recycled."""
        ...


class WriterRegistry:
    """What the writers of one ring share, in the owner's process: a lock, held for a few stores at
    a time.

    Args:
        has_given_size: whether the user has said how large blocks are.

    Attributes:
        lock: for callers for whom `with registry` is too slow.
        skipped: places of blocks that were due to be recycled, but were held or pinned. Their rows
            are out of every reader's range, and no longer counted, until they are due again.
        listeners: told of rows that were written, and of those that are gone, by the thread that
            wrote them, outside the lock.
        pins: a writer leaves pinned blocks for another lap; it writes nothing if all are pinned.
        reserved: how many places are promised to a writer.
        streams: those that have not ended, and their open blocks.
        on_priorities: called, before the listeners, with priorities of rows that were written,
            while there is no table of priorities.
    """

    def __init__(self, *, has_given_size: bool = False) -> None:
        self.lock = forks.register_lock(threading.Lock())
        self.skipped: set[int] = set()
        # Replaced as a whole: other threads go through them meanwhile.
        self.listeners: tuple[RowListener, ...] = ()
        self.pins: tuple[BlockPins, ...] = ()
        self.on_priorities: Callable[[Array], None] | None = None
        self.reserved = 0
        self.streams = OpenStreams()
        # Uses of blocks that last a moment, and those of streams of batches and saves.
        self._uses = 0
        self._holds = 0
        # Up to so many streams blocks need not be split, or cannot be.
        self._served = 0
        self._is_split_due = False
        self._warnings = UnusedRoomWarnings(has_given_size)

    # The size of blocks.

    def begin_use(self, ring: RegisteredRing) -> None:
        """Begin a write, a sample or a save: blocks stay as large as they are until `end_use`.

        Before that this splits them if that is due. If other uses have begun, the last of them
        does that when it ends.
        """
        streams = self.streams
        with self.lock:  # not `with self`, which is a call: each write comes here
            if len(streams.places) + len(streams.part_empty) > self._served:
                self._fit_blocks(ring)
            self._uses += 1
        if self._warnings.unsaid:
            self._warnings.say()

    def end_use(self, ring: RegisteredRing) -> None:
        """End what `begin_use` began."""
        with self.lock:
            self._uses -= 1
            if self._is_split_due and not self._uses:
                self._fit_blocks(ring)
        if self._warnings.unsaid:
            self._warnings.say()

    def use(self, ring: RegisteredRing) -> BlockUse:
        """`begin_use` and `end_use`, as a context."""
        return BlockUse(self, ring)

    def hold(self, ring: RegisteredRing, *, at_once: bool = False) -> bool:
        """Keep blocks as large as they are until `let_go`, while samplers live or a save runs.

        Args:
            at_once: also if blocks are about to be split.

        Returns:
            False, and nothing changed, if the uses of this moment are about to split blocks when
            they end: ask again in a moment.
        """
        with self:
            self._fit_blocks(ring)
            is_split_soon = self._is_split_due and self._uses > 0
            is_split_possible = not self._holds and not self.pins
            is_held = at_once or not (is_split_soon and is_split_possible)
            self._holds += is_held
        self._warnings.say()
        return is_held

    def let_go(self) -> None:
        """End what `hold` began. The next use or hold splits blocks if that is due."""
        with self:
            self._holds -= 1

    def warn_of_streams(self, ring: RegisteredRing, more_streams: int) -> None:
        """Log a warning if `more_streams` more streams would leave much of the ring unused."""
        with self:
            streams = len(self.streams.places) + more_streams
            block_rows = ring.block_rows
            if not self._holds:
                block_rows = self.fitting_rows(ring, streams)
            self._note_unused(ring, streams, block_rows)
        self._warnings.say()

    def fitting_rows(self, ring: RegisteredRing, streams: int) -> int:
        """The size of block that `streams` streams that write want."""
        ended = len(self.streams.part_empty)
        return fitting_block_rows(
            ring.capacity_rows, ring.block_rows, ring.finest_rows, streams, ended
        )

    def _fit_blocks(self, ring: RegisteredRing) -> None:
        """Split blocks if they should be smaller and nothing uses them. Under the lock."""
        open_streams = self.streams
        oldest = (ring.next_serial[0] - ring.blocks) * ring.block_rows
        while open_streams.part_empty and open_streams.part_empty[0][0] < oldest:
            open_streams.part_empty.popleft()
        wanted = self.fitting_rows(ring, len(open_streams.places))
        is_due = wanted < ring.block_rows
        is_used = self._is_used()
        self._is_split_due = is_due and is_used
        if is_due and not is_used:
            self._split(ring, wanted)
        streams = len(open_streams.places) + len(open_streams.part_empty)
        self._served = max(most_streams(ring.capacity_rows, ring.block_rows), streams)
        if wanted == ring.block_rows and wanted > ring.finest_rows:
            return
        # Blocks cannot be smaller now: look again when there are a quarter more streams.
        self._served = max(self._served, streams + streams // 4)
        self._note_unused(ring, len(open_streams.places), ring.block_rows)

    def _is_used(self) -> bool:
        """Whether the size of blocks must stay. Under the lock."""
        return bool(
            self._uses
            or self._holds
            or self.pins
            or self.reserved
            or any(listener.needs_blocks for listener in self.listeners)
        )

    def _split(self, ring: RegisteredRing, block_rows: int) -> None:
        before = ring.block_rows
        parts = before // block_rows
        self.streams.move(ring.split(block_rows, self.streams.open_places))
        self.skipped = {place * parts + part for place in self.skipped for part in range(parts)}
        streams = len(self.streams.places)
        logger.debug("blocks split from %d to %d rows, for %d streams", before, block_rows, streams)

    def _note_unused(self, ring: RegisteredRing, streams: int, block_rows: int) -> None:
        self._warnings.note(self.streams, streams, ring.capacity_rows, block_rows, ring.finest_rows)

    # Listeners and pins.

    def add_listener(self, listener: RowListener) -> None:
        """Tell it of the rows that come and go from now on."""
        with self:
            self.listeners = (*self.listeners, listener)

    def add_pins(self, pins: BlockPins) -> None:
        """Recycle no block any more that it pins."""
        with self:
            self.pins = (*self.pins, pins)

    def remove(self, one: RowListener | BlockPins) -> None:
        """Tell it of no rows any more, and leave no block for its pins."""
        with self:
            self.listeners = tuple(other for other in self.listeners if other is not one)
            self.pins = tuple(other for other in self.pins if other is not one)

    def drop_pins(self) -> None:
        """Recycle all blocks from now on, pinned or not."""
        with self:
            self.pins = ()

    def pinned(self) -> Mask | None:
        """(blocks,) bool: the places that are pinned; None if there are no pins."""
        masks = [pins.pinned() for pins in self.pins]
        if not masks:
            return None
        return masks[0] if len(masks) == 1 else np.logical_or.reduce(masks)

    # Places for new blocks.

    def blocks(self, ring: RegisteredRing) -> Blocks:
        """All blocks that hold rows which can be sampled, and the pinned ones that are left for
        another lap."""
        with self:
            return ring.table(self.pinned())

    def has_place(self) -> bool:
        """Whether a block may be recycled that is not promised to a writer."""
        with self:
            pinned = self.pinned()
            return pinned is None or self.has_place_among(pinned, self.reserved)

    def has_place_among(self, pinned: Mask, promised: int) -> bool:
        """Whether a place is free beside `promised` ones. Under the lock."""
        return not pinned.all() and (promised == 0 or self.free_places(pinned) > promised)

    def free_places(self, pinned: Mask) -> int:
        """The number of places that stay free of pins until they are recycled. An open block may
        still get rows that are pinned. Under the lock."""
        free = int(np.count_nonzero(~pinned))
        return free - sum(not pinned[place] for place in self.streams.open_places)

    def is_full(self, besides: int | None = None) -> bool:
        """Whether no row can be written before a pin is taken away.

        Args:
            besides: a stream that waits, since what it is to write does not fit into its open
                block.
        """
        with self:
            pinned = self.pinned()
            if pinned is None or not pinned.all():
                return False
            return not self.streams.have_room(besides)

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()


class BlockUse:
    """A use of blocks, see `WriterRegistry.begin_use`. Not a generator: errors of the user's code
    go through it."""

    def __init__(self, registry: WriterRegistry, ring: RegisteredRing) -> None:
        self._registry = registry
        self._ring = ring

    def __enter__(self) -> None:
        self._registry.begin_use(self._ring)

    def __exit__(self, *error: object) -> None:
        self._registry.end_use(self._ring)
