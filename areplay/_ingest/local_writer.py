"""The local writer: rows that the owner's process itself writes, by `Replay.add` and
`Replay.extend`. They are one stream.

One call at a time: each waits for those before it, and until its rows may be written (see
`areplay._ingest.local_admission`). Then it writes them in one step, all or none.

Rule: a call writes the values that its arrays hold when it begins to run. Before it suspends, it
copies what the caller could still change; a call that does not have to wait copies nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Indices, detached
from areplay._base.validation import NO_PRIORITY, one_priority, priority_column
from areplay._ingest.admission import steps_among
from areplay._ingest.destination import Destination
from areplay._ingest.episodes import Episodes
from areplay._ingest.handed_rows import HandedRows, row_count
from areplay._ingest.local_admission import Lacks, LocalAdmission
from areplay._processes.completion import outcome_of, run_to_completion
from areplay.errors import ResourceUnavailable, WouldBlock
from areplay.statistics import Wait

# `extend` writes up to `_INLINE_BYTES` on the loop. A thread writes more. The caller may change its
# arrays meanwhile, so they are copied before, on the loop: for 7 MB that takes the loop 0.6 ms,
# where writing them takes 0.3 ms (measured on 2 cores of an EPYC: page faults of the new memory).
_INLINE_BYTES = 16 << 20
# Up to `_COPIED_BYTES` are copied, at some 10 GB/s. Of more bytes, a copy may be more memory than
# there is: they are written on the loop.
_COPIED_BYTES = 1 << 30


class LocalWriter:
    """The owner's stream.

    Args:
        why_hopeless: says why a call that waits now will wait for ever, and what to do; "" if it
            may go on.

    Attributes:
        writer: of the stream, closed by `close`.
        any_written: whether there ever was a row.
        is_writing: whether rows have been admitted that are not yet written.
    """

    def __init__(
        self,
        destination: Destination,
        why_hopeless: Callable[[], str] = lambda: "",
    ) -> None:
        self.any_written = False
        self.is_writing = False
        self.writer = destination.new_writer()
        self._spec = destination.ring.spec
        self._capacity_rows = destination.ring.capacity_rows
        self._admission = destination.admission
        self._on_rows = destination.on_rows
        self._episodes = Episodes(self._spec) if self._spec.is_steps else None
        self._local_admission = LocalAdmission(destination, self.writer, why_hopeless)
        self._lock = asyncio.Lock()
        self._calls = 0  # that hand in rows, and have not returned
        self._copier: ThreadPoolExecutor | None = None
        self._origin = forks.current

    @property
    def episodes(self) -> Episodes:
        """The episodes that this process is in."""
        return self._episodes_for("autoreset_mode")

    def break_off(self, environments: Any) -> None:
        """See `Replay.end_episode`."""
        self._episodes_for("end_episode").break_off(environments)

    def add(self, row: dict[str, Any], priority: Any) -> Coroutine[Any, Any, int | Indices]:
        """See `Replay.add`."""
        return self._add(self._ticket(), row, priority)

    def extend(self, columns: Mapping[str, Any], priorities: Any) -> Coroutine[Any, Any, Indices]:
        """See `Replay.extend`."""
        return self._extend(self._ticket(), columns, priorities)

    def waits(self) -> list[Wait]:
        """The wait for admission, if there is one at this moment. From any thread."""
        return self._local_admission.waits()

    @property
    def lacks(self) -> Lacks | None:
        """See `LocalAdmission.lacks`."""
        return self._local_admission.lacks

    async def close(self) -> None:
        """End the stream, when the call that is being served is done; those that wait get
        `Closed`."""
        if self._origin is not forks.current:
            return
        self._local_admission.close()
        async with self._lock:
            self.writer.close()
        if self._copier is not None:
            self._copier.shutdown()  # it has no work, so it only has to return
        self._local_admission.unwatch()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that waits for admission, if one ever had to."""
        return self._local_admission.loop

    def unwatch(self) -> None:
        """Let the loop watch nothing of this any more. On that loop, or anywhere once it is
        closed."""
        self._local_admission.unwatch()

    def _episodes_for(self, what: str) -> Episodes:
        if self._episodes is None:
            raise ValueError(
                f"{what} is about steps of environments; make the spec with Spec.steps or from_env"
            )
        return self._episodes

    def _ticket(self) -> int | None:
        """The place of a call in the order of steps; None if rows are no steps."""
        return None if self._episodes is None else self._episodes.ticket()

    async def _add(self, ticket: int | None, row: dict[str, Any], priority: Any) -> int | Indices:
        given = row
        if self._calls:  # this call waits for another: the caller may write to its arrays meanwhile
            row = detached(row)
            priority = detached(priority)
        self._calls += 1
        try:
            async with self._lock:
                self._local_admission.check_open()
                if self._episodes is None or ticket is None:
                    return await self._add_few((row,), priority)
                with self._episodes.step(ticket):
                    rows = self._episodes.rows(row, None if row is given else given)
                    if isinstance(rows, tuple):
                        return await self._add_few(rows, priority)
                    count = self._episodes.environments
                    priorities = priority_column(priority, count, row_count(rows))
                    indices = await self._write(HandedRows(rows, priorities, row))
                    return indices[:count]
        finally:
            self._calls -= 1

    async def _add_few(self, rows: tuple[Mapping[str, Any], ...], priority: Any) -> int:
        """Write a step, and perhaps the final observation after it."""
        given = NO_PRIORITY if priority is None else one_priority(priority)
        while True:
            admitted = self._local_admission.admit_nowait(len(rows), 1)
            if admitted is None:
                rows = tuple(detached(row) for row in rows)
                admitted = await self._local_admission.admit(len(rows), 1)
            try:
                index = self.writer.write_rows(*rows, priority=given)
            except BaseException as error:
                self._admission.give_back(admitted, 1)
                if not isinstance(error, WouldBlock):
                    raise
            else:
                self._announce()
                return index
            finally:
                self.writer.unreserve()

    async def _extend(
        self, ticket: int | None, columns: Mapping[str, Any], priorities: Any
    ) -> Indices:
        is_alone = self._calls == 0
        self._calls += 1
        try:
            if self._episodes is None or ticket is None:
                return await self._extend_rows(columns, priorities, is_alone)
            return await self._extend_steps(self._episodes, ticket, columns, priorities, is_alone)
        finally:
            self._calls -= 1

    async def _extend_rows(
        self, columns: Mapping[str, Any], priorities: Any, is_alone: bool
    ) -> Indices:
        count, arrays = self._spec.convert_columns(columns)
        self._check_fits(count)
        rows = HandedRows(arrays, priority_column(priorities, count, count), columns)
        if not is_alone:
            rows.detach()
        async with self._lock:
            self._local_admission.check_open()
            return await self._write(rows)

    async def _extend_steps(
        self,
        episodes: Episodes,
        ticket: int,
        columns: Mapping[str, Any],
        priorities: Any,
        is_alone: bool,
    ) -> Indices:
        theirs = None
        if not is_alone:
            theirs = columns
            columns = detached(columns)
            priorities = detached(priorities)
        async with self._lock:
            self._local_admission.check_open()
            with episodes.step(ticket):
                steps, which = episodes.columns(columns, theirs)
                count = row_count(steps)
                self._check_fits(count)
                given = priority_column(priorities, len(which), count, which)
                indices = await self._write(HandedRows(steps, given, None))
                return indices[which]

    async def _write(self, rows: HandedRows) -> Indices:
        """Write rows, off the loop if they have many bytes. Once begun, cancelling does not stop
        it.

        What the caller writes to its arrays after the first suspension does not reach the rows.
        """
        if _INLINE_BYTES < len(rows) * self._spec.row_bytes <= _COPIED_BYTES:
            rows.detach()
        parts: list[Indices] = []
        done = 0
        # Once, unless a `Fifo` or `Epochs` began while rows were copied off the loop.
        while done < len(rows):
            part = await self._write_part(rows, done)
            parts.append(part)
            done += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    async def _write_part(self, rows: HandedRows, start: int) -> Indices:
        """Write rows from `start` on, when they may be: all, or, if some are written already, as
        many as there will be room for.

        Returns:
            Their indices; fewer if blocks are kept for a selector that has come meanwhile.
        """
        stop = len(rows)
        if start > 0:  # more than half of the ring may never be free at once
            stop = min(stop, start + self._capacity_rows // 2)
        steps = steps_among(rows.columns, start, stop)
        admitted = self._local_admission.admit_nowait(stop - start, steps)
        if admitted is None:
            rows.detach()
            admitted = await self._local_admission.admit(stop - start, steps, may_refuse=start == 0)
        self.is_writing = True
        try:
            written = await self._write_admitted(rows, start, stop)
        except ResourceUnavailable:  # no row was written
            self._admission.give_back(admitted, steps)
            raise
        finally:
            self.writer.unreserve()
            self._announce()
            self.is_writing = False
        unwritten = steps_among(rows.columns, start + len(written), stop)
        self._admission.give_back(admitted, unwritten)
        return written

    async def _write_admitted(self, rows: HandedRows, start: int, stop: int) -> Indices:
        write = partial(self.writer.write, rows.columns, start, stop, rows.priorities)
        if rows.may_change or len(rows) * self._spec.row_bytes <= _INLINE_BYTES:
            return write()
        try:
            return await self._off_loop(write)
        except ResourceUnavailable:  # no thread could be had
            if start == 0:
                raise
            return write()  # some rows of the call are written, so all of them must be

    async def _off_loop(self, work: Callable[[], Indices]) -> Indices:
        """Do `work` in a thread that stays for the next: to start one takes as long as to copy a
        megabyte.

        To its end even if cancelled meanwhile; then the cancellation is delivered.

        Raises:
            ResourceUnavailable: no thread can be started. The work has not begun.
        """
        if self._copier is None:
            self._copier = ThreadPoolExecutor(1, "areplay-rows")
        copier = self._copier
        try:
            done = asyncio.get_running_loop().run_in_executor(copier, outcome_of, work)
        except RuntimeError as error:
            self._copier = None
            # The work is in its queue, and a thread might come.
            copier.shutdown(wait=False, cancel_futures=True)
            raise ResourceUnavailable("starting a thread", "Replay.extend", str(error)) from error
        return (await run_to_completion(done)).result()

    def _announce(self) -> None:
        self.any_written = True
        self._on_rows()

    def _check_fits(self, rows: int) -> None:
        if rows > self._capacity_rows:
            raise ValueError(
                f"extend takes at most capacity_rows = {self._capacity_rows:,} rows, got "
                f"{rows:,}; raise capacity"
            )
