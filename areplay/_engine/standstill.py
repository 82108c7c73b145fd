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

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from areplay._ingest.actor_group import ActorGroup
from areplay._ingest.admission import Admission
from areplay._ingest.coordinator import Coordinator
from areplay._ingest.local_writer import LocalWriter
from areplay._sampling.batch_plan import LocalBatchPlan
from areplay._sampling.stream_records import ProducerState
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring


class Stream(Protocol):
    """What is asked of a stream of batches."""

    @property
    def may_let_rows_in(self) -> bool:
        """Whether it holds writers up, and a learner could take a batch of it and so let some go
        on."""
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
        streams: that are not closed.
        local: what `sample` goes on with, of `Fifo` and `Epochs`.
        groups: of actors, that are not closed.
    """

    def __init__(
        self,
        ring: Ring,
        registry: WriterRegistry,
        admission: Admission,
        local_writer: LocalWriter,
        coordinator: Coordinator,
        streams: Callable[[], Iterable[Stream]],
        local: Callable[[], Iterable[LocalBatchPlan]],
        groups: Callable[[], Iterable[ActorGroup]],
    ) -> None:
        self._ring, self._registry, self._admission = ring, registry, admission
        self._local_writer, self._coordinator = local_writer, coordinator
        self._streams, self._local, self._groups = streams, local, groups

    def supply(self) -> ProducerState:
        """Where the rows come from, at this moment. From any thread."""
        last = self._coordinator.last_rows_at
        return ProducerState(
            actors_alive=sum(group.alive for group in self._groups()),
            is_exhausted=self._is_exhausted,
            last_row=f"last row {time.monotonic() - last:.1f} s ago"
            if last
            else "no row from them yet",
            failure=self.failure(),
            is_stuck=self._is_stuck,
            why_held=self.why_held,
            why_barred=self.why_barred,
        )

    def failure(self) -> BaseException | None:
        """What failed, if no more rows can come because of that. From any thread.

        A learner asks at each turn of its loop, so that the common answer has to be cheap.
        """
        if self._coordinator.failure is not None:
            return self._coordinator.failure
        failures = [failure for group in self._groups() for failure in group.failures]
        return failures[0] if failures and self._is_exhausted else None

    def why_held(self) -> str:
        """Say which rows wait at this moment, and for what; "" if no row waits. From any thread."""
        for wait in self._local_writer.waits():
            return wait.reason
        held = self._coordinator.held()
        why = self._admission.reason() if held else ""
        return f"rows of {held[0][1]} may not be written yet: {why}" if why else ""

    def why_barred(self) -> str:
        """Say why no process can write a row any more, and what to do about it; "" if one can, or
        perhaps can.

        Call it when the caller itself has no batch to take.
        """
        inserted = self._ring.rows_inserted[0]
        why = self._what_bars_rows()
        if not why or any(stream.may_let_rows_in for stream in self._streams()):
            return ""
        if any(local.has_batch for local in self._local()):
            return ""
        # Rows that were admitted before the look above may not be in the ring yet, and no sampler
        # has looked at those that came since: of either an item may be made. Final observations are
        # let in where steps are not.
        own, coordinator = self._local_writer, self._coordinator
        is_in_between = own.is_writing or coordinator.is_writing or coordinator.has_free_rows
        return "" if is_in_between or inserted != self._ring.rows_inserted[0] else why

    def why_hopeless(self) -> str:
        """Say why a call that waits to write rows in this process waits for ever; "" if it perhaps
        does not.

        "" also where a learner waits for a batch: then the learner is told.
        """
        if any(stream.may_find_items or stream.is_waited_for for stream in self._streams()):
            return ""
        return self.why_barred()

    @property
    def _is_exhausted(self) -> bool:
        """Whether all actors of the open contexts are gone, and no other writer ever added a
        row."""
        groups = list(self._groups())
        if not any(group.is_open for group in groups) or any(group.alive for group in groups):
            return False
        return not self._local_writer.any_written and not self._coordinator.has_rows

    def _is_stuck(self) -> bool:
        """Say whether no more rows fit into the ring, and it is no stream's beginning that keeps
        the blocks."""
        return self._is_full and not any(stream.is_beginning for stream in self._streams())

    @property
    def _are_blocks_kept(self) -> bool:
        """Whether all blocks are kept, and no block is open for rows that wait or may come."""
        lacks = self._local_writer.lacks
        return self._registry.is_full(lacks.stream if lacks is not None and lacks.blocks else None)

    @property
    def _is_full(self) -> bool:
        """Whether no more rows fit into the ring before a batch is taken."""
        lacks = self._local_writer.lacks
        return self._are_blocks_kept or (
            lacks is not None and lacks.blocks and not self._may_others_write
        )

    @property
    def _may_others_write(self) -> bool:
        """Whether there are actors, or rows of theirs."""
        return self._coordinator.has_rows or any(group.alive for group in self._groups())

    def _what_bars_rows(self) -> str:
        """Say what keeps every process from writing a row before a batch is taken, and what to do;
        "" if nothing does.

        Rows of actors are written one by one: where there is room for one, they go on. A call of
        this process writes all of its rows at once or nothing: it may wait where there is room, but
        less than it needs.
        """
        limiters, lacks = self._admission.limiters, self._local_writer.lacks
        for limiter in limiters:
            if not limiter.room:
                return (
                    f"{limiter!r} lets none in before a batch is taken: raise "
                    "min_size_to_sample or error_buffer"
                )
        if self._are_blocks_kept:
            blocks = self._ring.blocks
            return (
                f"all {blocks} blocks hold rows that are still needed: raise capacity, or "
                "lower batch_size"
            )
        if lacks is None or self._may_others_write:
            return ""
        for limiter in limiters:
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
