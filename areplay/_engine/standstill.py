"""Standstill: whether writers and learners wait for each other, so that no row can be written any
more.

Writers wait for a batch to be taken: where a limiter lets no more steps in, or where a `Fifo` or
`Epochs` keeps the blocks. Learners wait for rows of which a batch can be made. These waits never
end if no stream that holds writers up has a batch, and no writer can go on. Then `Stalled` is
raised.

Rule: certain, or not said. A process that may still write a row, or take a batch, ends a
standstill. So do rows that were admitted, until they are written and samplers have looked for items
among them.

Looks at what others own, at one moment, from the learner's loop. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from areplay._engine.producers import Producers
from areplay._sampling.local_sampler import LocalSampler
from areplay._sampling.stream_records import ProducerState
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring


class Stream(Protocol):
    """What the standstill asks of a stream of batches."""

    @property
    def may_let_rows_in(self) -> bool:
        """Whether it holds writers up, and a learner could take a batch of it and so let some
        writers go on."""
        ...

    @property
    def is_beginning(self) -> bool:
        """Whether it keeps all blocks for the moment."""
        ...

    @property
    def may_find_items(self) -> bool:
        """Whether items may be found without more rows though there are no items now."""
        ...

    @property
    def is_waited_for(self) -> bool:
        """Whether a learner waits for its next batch."""
        ...


class Standstill:
    """Finds out whether a replay stands still.

    Args:
        streams: of batches that are not closed.
        sampler: draws the batches of `Replay.sample`.
    """

    def __init__(
        self,
        ring: Ring,
        registry: WriterRegistry,
        producers: Producers,
        streams: Iterable[Stream],
        sampler: LocalSampler,
    ) -> None:
        self._ring = ring
        self._registry = registry
        self._producers = producers
        self._streams = streams
        self._sampler = sampler

    def producer_state(self) -> ProducerState:
        """Look where rows come from, at this moment. From any thread."""
        return self._producers.state(self.is_stuck, self.why_barred)

    def is_stuck(self) -> bool:
        """Say whether no more rows fit into the ring before a learner takes a batch. A stream that
        only begins keeps all blocks for a moment: that does not count."""
        return self._is_full and not any(stream.is_beginning for stream in self._streams)

    def why_barred(self) -> str:
        """Say why no process can write a row any more, and what to do about it; "" if a process
        perhaps can.

        Call it when the caller itself has no batch to take.
        """
        inserted = self._ring.rows_inserted[0]
        why = self._what_bars_rows()
        if not why or any(stream.may_let_rows_in for stream in self._streams):
            return ""
        if self._sampler.has_batch:
            return ""
        # An item may be made of rows that the look above found admitted but not written, and of
        # rows that came since then, among which no sampler has searched.
        if self._producers.are_writing or inserted != self._ring.rows_inserted[0]:
            return ""
        return why

    def why_hopeless(self) -> str:
        """Say why a call that waits to write rows in this process waits for ever; "" if it perhaps
        does not.

        "" also where a learner waits for a batch: then the learner gets the error.
        """
        if any(stream.may_find_items or stream.is_waited_for for stream in self._streams):
            return ""
        return self.why_barred()

    @property
    def _are_blocks_kept(self) -> bool:
        """Whether all blocks are kept, and no block is open for rows that wait or may come."""
        lacks = self._producers.lacks
        return self._registry.is_full(lacks.stream if lacks is not None and lacks.blocks else None)

    @property
    def _is_full(self) -> bool:
        """Whether no more rows fit into the ring before a learner takes a batch."""
        if self._are_blocks_kept:
            return True
        lacks = self._producers.lacks
        if lacks is None or not lacks.blocks:
            return False
        return not self._producers.may_actors_write

    def _what_bars_rows(self) -> str:
        """Say what keeps every process from writing a row before a learner takes a batch, and what
        to do; "" if nothing does.

        The coordinator writes rows of actors one by one: where there is room for one row, they go
        on. A call of this process writes all of its rows at once or nothing. It may wait where
        there is room, but less than it needs.
        """
        for limiter in self._producers.limiters:
            if not limiter.room:
                return (
                    f"{limiter!r} lets none in before a batch is taken: raise "
                    "min_size_to_sample or error_buffer"
                )
        if self._are_blocks_kept:
            return (
                f"all {self._ring.blocks} blocks hold rows that are still needed: raise capacity, "
                "or lower batch_size"
            )
        if self._producers.may_actors_write:
            return ""
        return self._what_bars_the_call()

    def _what_bars_the_call(self) -> str:
        """The same for the call of this process that waits."""
        lacks = self._producers.lacks
        if lacks is None:
            return ""
        for limiter in self._producers.limiters:
            if limiter.room < lacks.steps:
                return (
                    f"{limiter!r} lets no more than {limiter.room:,} steps in before a batch is "
                    f"taken, and add or extend has {lacks.steps:,} at once: raise error_buffer, or "
                    "hand in fewer at once"
                )
        if lacks.blocks:
            return (
                "add or extend has more rows at once than there is room for beside those that are "
                "still needed: raise capacity, lower batch_size, or hand in fewer rows at once"
            )
        return ""
