"""The ring's registry: what its writers share, in the owner's process, and who has a say in which
blocks are recycled.

Rule: one lock, held for a few stores at a time; what is in shared memory under it says
`areplay._storage.ring`. It also decides when blocks are split, since it knows the streams, and who
uses blocks at this moment: see `areplay._storage.block_sizes`.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Array, Indices, Mask
from areplay._storage.block_sizes import (
    FEW_STREAMS,
    MAX_SHARE_UNUSED,
    fitting_block_rows,
    most_streams,
)

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

    def table(self, kept: Mask | None) -> Blocks:
        """See `Ring.table`."""
        ...


class Watcher:
    """Who keeps something about each row. Told by the thread that writes it, under the lock of its
    block."""

    needs_blocks = False
    """Whether it keeps something about each block, which must then stay as large as it is."""

    def written(self, at: int, count: int, priorities: Array | None) -> None:
        """Rows were written to positions `at` to `at + count`, with these priorities, if any were
        given (NaN: none)."""

    def cleared(self, at: int, count: int) -> None:
        """No row in positions `at` to `at + count` can be drawn any more, and no new ones are there
        yet."""

    def ended(self, stream: int) -> None:
        """No more rows of that stream will be written."""


class Keeper(Protocol):
    """Who needs blocks to stay."""

    @property
    def name(self) -> str:
        """What the user calls it, for messages: a selector, as "Fifo()"."""
        ...

    def kept(self) -> Mask:
        """(blocks,) bool: in which places they may not be recycled."""
        ...


class WriterRegistry:
    """What the writers of one ring share, in the owner's process: a lock, held for a few stores at
    a time.

    Attributes:
        left: places of blocks that were due to be recycled but held by somebody, until they are due
            again. Their rows are out of every reader's range, and no longer counted.
        watchers: told of rows that were written, and of those that are gone; by the thread that
            wrote, not guarded.
        keepers: their blocks are left for another lap; a writer that finds all of them kept writes
            nothing.
        reserved: how many places are promised to a writer.
        streams: those that are not ended, each with the place of its open block, -1 if it has none.
        on_priorities: called with the priorities of rows that are about to be written, while no
            watcher keeps any.
        ended: of streams that ended and left a block in part empty, the index of its first row and
            how many rows are empty in it; oldest first.
        has_given_size: whether the user has said how large blocks are.
    """

    def __init__(self) -> None:
        self.left: set[int] = set()
        # replaced as a whole: other threads go through them meanwhile
        self.watchers: tuple[Watcher, ...] = ()
        self.keepers: tuple[Keeper, ...] = ()
        self.on_priorities: Callable[[Array], None] | None = None
        self.reserved = 0
        self.streams: dict[int, int] = {}
        # place -> stream: a ring may have a thousand of them, and pass one every 10 us
        self._open: dict[int, int] = {}
        self.ended: deque[tuple[int, int]] = deque()
        self.has_given_size = False
        # of blocks: those of a moment, and those of streams of batches
        self._uses = self._holds = 0
        # so many streams have nothing to ask for, be it that blocks are small enough or cannot be
        self._served = 0
        self._is_split_due = False
        self._warned_streams = 0
        # warnings: a log that is slow must not hold up the writers
        self._unsaid: list[tuple[object, ...]] = []
        # for callers that must not wait; see `__enter__`
        self.lock = forks.register_lock(threading.Lock())

    def begin_use(self, ring: RegisteredRing) -> None:
        """Blocks stay as large as they are from now on, until `end_use`: of a write, a sample, a
        save.

        First they are made as small as they should be; if others are at work, the last of them does
        that.
        """
        with self.lock:  # not by way of our own methods: it is once a write, and half the price
            if len(self.streams) + len(self.ended) > self._served:
                self._fit_blocks(ring)
            self._uses += 1
        if self._unsaid:
            self._say()

    def end_use(self, ring: RegisteredRing) -> None:
        """Blocks may be split again, for all that this one cares."""
        with self.lock:
            self._uses -= 1
            if self._is_split_due and not self._uses:
                self._fit_blocks(ring)
        if self._unsaid:
            self._say()

    def use(self, ring: RegisteredRing) -> BlockUse:
        """`begin_use` and `end_use`, as a context."""
        return BlockUse(self, ring)

    def hold(self, ring: RegisteredRing, *, at_once: bool = False) -> bool:
        """Blocks stay as large as they are until `let_go`, for as long as samplers live or a save
        takes.

        False, and nothing changed: blocks are to be split, which those that use them this moment do
        when they have done; ask again in a moment. Not if it has to be `at_once`.
        """
        with self:
            self._fit_blocks(ring)
            is_held = (
                not self._is_split_due
                or not self._uses
                or at_once
                or self._holds > 0
                or bool(self.keepers)
            )
            self._holds += is_held
        self._say()
        return is_held

    def let_go(self) -> None:
        """End what `hold` began. The next use, or the next who holds, splits blocks if that is
        due."""
        with self:
            self._holds -= 1

    def warn_of_streams(self, ring: RegisteredRing, more_streams: int) -> None:
        """Say so if so many more streams would leave much of the ring unused."""
        with self:
            streams = len(self.streams) + more_streams
            self._warn_if_unused(
                ring, streams, ring.block_rows if self._holds else self.fitting_rows(ring, streams)
            )
        self._say()

    def fitting_rows(self, ring: RegisteredRing, streams: int) -> int:
        """How large blocks should be for so many streams that write."""
        return fitting_block_rows(
            ring.capacity_rows, ring.block_rows, ring.finest_rows, streams, len(self.ended)
        )

    def _fit_blocks(self, ring: RegisteredRing) -> None:
        """Make blocks as small as they should be, if nobody uses them. Under this registry."""
        due = (ring.next_serial[0] - ring.blocks) * ring.block_rows
        while self.ended and self.ended[0][0] < due:
            self.ended.popleft()
        wanted = self.fitting_rows(ring, len(self.streams))
        is_used = (
            self._uses
            or self._holds
            or self.keepers
            or self.reserved
            or any(one.needs_blocks for one in self.watchers)
        )
        self._is_split_due = bool(is_used) and wanted < ring.block_rows
        if not is_used and wanted < ring.block_rows:
            self._split(ring, wanted)
        streams = len(self.streams) + len(self.ended)
        self._served = max(most_streams(ring.capacity_rows, ring.block_rows), streams)
        if wanted == ring.block_rows and wanted > ring.finest_rows:
            return
        self._served = max(self._served, streams + streams // 4)
        self._warn_if_unused(ring, len(self.streams), ring.block_rows)

    def _split(self, ring: RegisteredRing, block_rows: int) -> None:
        parts, before = ring.block_rows // block_rows, ring.block_rows
        moved = ring.split(block_rows, self._open.keys())
        self._open = {moved[place]: stream for place, stream in self._open.items()}
        self.streams = dict.fromkeys(self.streams, -1) | {
            stream: place for place, stream in self._open.items()
        }
        self.left = {place * parts + k for place in self.left for k in range(parts)}
        logger.debug(
            "blocks split from %d to %d rows, for %d streams", before, block_rows, len(self.streams)
        )

    def _warn_if_unused(self, ring: RegisteredRing, streams: int, block_rows: int) -> None:
        """Have it said if so many streams that write, and those that ended, may leave much of the
        ring unused.

        Again when they are twice as many. Under this registry.
        """
        ended = len(self.ended)
        unused = streams * (block_rows - 1) + sum(rows for _, rows in self.ended)
        if unused <= MAX_SHARE_UNUSED * ring.capacity_rows or streams + ended <= max(
            FEW_STREAMS, self._warned_streams
        ):
            return
        self._warned_streams = 2 * (streams + ended)
        smaller = fitting_block_rows(
            ring.capacity_rows, block_rows, ring.finest_rows, streams + ended, 0
        )
        if self.has_given_size:
            remedy = f"lower block_rows from {block_rows}, or leave it out"
        # restarts: samplers hold the size, whoever was first
        elif smaller < block_rows and ended > streams:
            remedy = f"give the replay block_rows={smaller}"
        elif smaller < block_rows:
            remedy = (
                "enter the context of actors before that of batches, or give the replay "
                f"block_rows={smaller}"
            )
        else:
            remedy = f"raise capacity to {math.ceil(unused / MAX_SHARE_UNUSED):,} or more"
        share = min(100.0, 100 * unused / ring.capacity_rows)
        others = f", and {ended} have ended within theirs" if ended else ""
        self._unsaid.append((streams, block_rows, others, share, ring.capacity_rows, remedy))

    def _say(self) -> None:
        """Log the warnings, not under the registry."""
        while self._unsaid:
            with self:
                said = self._unsaid[:1]
                del self._unsaid[:1]
            for values in said:
                logger.warning(
                    "%d streams write to a block of %d rows each%s, so that up to %.0f %% of the "
                    "%d rows of capacity stay unused; %s",
                    *values,
                )

    def watch(self, watcher: Watcher) -> None:
        """Tell it of the rows that come and go from now on."""
        with self:
            self.watchers = (*self.watchers, watcher)

    def keep(self, keeper: Keeper) -> None:
        """Recycle no block any more that it needs."""
        with self:
            self.keepers = (*self.keepers, keeper)

    def forget(self, one: Watcher | Keeper) -> None:
        """Tell it nothing any more, and keep nothing for it."""
        with self:
            self.watchers = tuple(other for other in self.watchers if other is not one)
            self.keepers = tuple(other for other in self.keepers if other is not one)

    def keep_nothing(self) -> None:
        """Recycle blocks whoever needs them, from now on."""
        with self:
            self.keepers = ()

    def kept(self) -> Mask | None:
        """The places that are kept; None if there is no keeper."""
        masks = [keeper.kept() for keeper in self.keepers]
        if not masks:
            return None
        return masks[0] if len(masks) == 1 else np.logical_or.reduce(masks)

    def blocks(self, ring: RegisteredRing) -> Blocks:
        """All blocks that hold rows which can be sampled, or which somebody keeps though they are
        left for a lap."""
        with self:
            return ring.table(self.kept())

    def has_place(self) -> bool:
        """Whether a block may be recycled that is not promised to anybody."""
        with self:
            kept = self.kept()
            return kept is None or self.has_place_among(kept, self.reserved)

    def has_place_among(self, kept: Mask, promised: int) -> bool:
        """Whether there is one beside so many that are promised to others. Under this registry."""
        return not kept.all() and (promised == 0 or self.sure(kept) > promised)

    def is_full(self, besides: int | None = None) -> bool:
        """Whether no row can be written by anybody before a keeper lets a block go.

        Args:
            besides: a stream that waits, since what it is to write does not fit into its open
                block.
        """
        with self:
            kept = self.kept()
            return (
                kept is not None and bool(kept.all()) and not set(self._open.values()) - {besides}
            )

    def goes_on_in(self, stream: int, place: int) -> None:
        """The open block of a stream is in that place now; -1: it has none. Under this registry."""
        before = self.streams.get(stream, -1)
        if before >= 0 and self._open.get(before) == stream:
            del self._open[before]
        self.streams[stream] = place
        if place >= 0:
            self._open[place] = stream

    def forget_stream(self, stream: int) -> None:
        """A stream has ended. Under this registry."""
        self.goes_on_in(stream, -1)
        del self.streams[stream]

    def take_away(self, place: int) -> None:
        """No writer goes on in the block in that place: the ring has passed it. Under this
        registry."""
        stream = self._open.get(place)
        if stream is not None:
            self.goes_on_in(stream, -1)

    def sure(self, kept: Mask) -> int:
        """How many places will not be kept before they are recycled: an open block may still get
        rows that are."""
        return int(np.count_nonzero(~kept)) - sum(not kept[place] for place in self._open)

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()


class BlockUse:
    """A use of blocks, see `WriterRegistry.begin_use`. Not a generator: errors of the user's code
    go through it."""

    def __init__(self, registry: WriterRegistry, ring: RegisteredRing) -> None:
        self._registry, self._ring = registry, ring

    def __enter__(self) -> None:
        self._registry.begin_use(self._ring)

    def __exit__(self, *error: object) -> None:
        self._registry.end_use(self._ring)
