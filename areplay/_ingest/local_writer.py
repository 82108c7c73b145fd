"""Own rows: what the owner's process itself writes into the ring, by `Replay.add` and
`Replay.extend`: one stream.

One call at a time: each waits for those before it, and until its rows may be written (see
`areplay._ingest.admission`). Then it writes them in one step, all or none.

Rule: a call writes the values that its arrays hold when it begins to run. Before it suspends, it
copies what the caller could still change; a call that does not have to wait copies nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Array, Columns, Indices, detached, own_columns
from areplay._base.validation import NO_PRIORITY, one_priority, priority_column
from areplay._ingest.admission import Admitted, steps_among
from areplay._ingest.destination import Destination
from areplay._ingest.episodes import Episodes
from areplay._processes.completion import outcome_of, run_to_completion
from areplay._processes.waiter import Waiter
from areplay.errors import Closed, ResourceUnavailable, Stalled, WouldBlock
from areplay.statistics import Wait

# `extend` writes up to so many bytes on the loop. A thread writes more. The caller may change its
# arrays meanwhile, so they are copied before, on the loop: for 7 MB that takes the loop 0.6 ms,
# where writing them takes 0.3 ms (measured on 2 cores of an EPYC: page faults of the new memory).
_INLINE_BYTES = 16 << 20
# Up to so many bytes are copied, at some 10 GB/s. Of more bytes, a copy may be more memory than
# there is: they are written on the loop.
_COPIED_BYTES = 1 << 30


class Lacks(NamedTuple):
    """What a call that waits needs: all of it at once, or it writes nothing."""

    steps: int
    blocks: bool
    """Whether it lacks blocks, too: what it found at its last look."""
    stream: int
    """That it writes to. It may have an open block, but one that the rows do not fit into."""


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
        self.any_written = self.is_writing = False
        self._why_hopeless = why_hopeless
        self._ring = destination.ring
        self._registry = destination.registry
        self._admission = destination.admission
        self._on_rows = destination.on_rows
        spec = destination.ring.spec
        self._episodes = Episodes(spec) if spec.is_steps else None
        self.writer = destination.new_writer()
        self._lock = asyncio.Lock()
        self._calls = 0  # that hand in rows, and have not returned
        self._admitted = Waiter(self._admission.owner_bell)
        self._waiting_since: float | None = None  # monotonic seconds
        # what the call that waits found at its last look
        self._lacks_steps, self._lacks_blocks = 1, False
        # and how many rows had been inserted by then
        self._refused: tuple[Lacks | None, int] = None, 0
        self._copier: ThreadPoolExecutor | None = None
        self._is_closing = False
        self._origin = forks.current

    @property
    def episodes(self) -> Episodes:
        """The episodes that this process is in."""
        if self._episodes is None:
            raise ValueError(
                "autoreset_mode is about steps of environments; make the spec with "
                "Spec.steps or from_env"
            )
        return self._episodes

    def break_off(self, environments: Any) -> None:
        """See `Replay.end_episode`."""
        if self._episodes is None:
            raise ValueError(
                "end_episode is about steps of environments; make the spec with "
                "Spec.steps or from_env"
            )
        self._episodes.break_off(environments)

    def add(self, row: dict[str, Any], priority: Any) -> Coroutine[Any, Any, int | Indices]:
        """See `Replay.add`."""
        return self._add(None if self._episodes is None else self._episodes.ticket(), row, priority)

    def extend(self, columns: Mapping[str, Any], priorities: Any) -> Coroutine[Any, Any, Indices]:
        """See `Replay.extend`."""
        return self._extend(
            None if self._episodes is None else self._episodes.ticket(), columns, priorities
        )

    def waits(self) -> list[Wait]:
        """The wait for admission, if there is one at this moment."""
        since, reason = self._waiting_since, self._reason()
        return (
            [] if since is None or not reason else [Wait("owner", reason, time.monotonic() - since)]
        )

    @property
    def lacks(self) -> Lacks | None:
        """What the call needs that waits for admission, or that was refused as hopeless when it was
        the last thing that happened; None if there is none.

        A learner that comes after the refusal would wait for those rows as well.
        """
        if self._waiting_since is not None:
            return Lacks(self._lacks_steps, self._lacks_blocks, self.writer.stream)
        lacks, inserted = self._refused
        return lacks if inserted == self._ring.rows_inserted[0] else None

    async def close(self) -> None:
        """End the stream, when the call that is being served is done; those that wait get
        `Closed`."""
        if self._origin is not forks.current:
            return
        self._is_closing = True
        self._admitted.wake()
        async with self._lock:
            self.writer.close()
        if self._copier is not None:
            self._copier.shutdown()  # it has no work, so it only has to return
        self._admitted.close()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that waits for admission, if one ever had to."""
        return self._admitted.loop

    def unwatch(self) -> None:
        """Let the loop watch nothing of this any more. On that loop, or anywhere once it is
        closed."""
        self._is_closing = True
        self._admitted.close()

    async def _add(self, ticket: int | None, row: dict[str, Any], priority: Any) -> int | Indices:
        given = row
        if self._calls:  # this call waits for another: the caller may write to its arrays meanwhile
            row, priority = detached(row), detached(priority)
        self._calls += 1
        try:
            async with self._lock:
                self._check_open()
                if self._episodes is None or ticket is None:
                    return await self._add_few((row,), priority)
                with self._episodes.step(ticket):
                    rows = self._episodes.rows(row, None if row is given else given)
                    if isinstance(rows, tuple):
                        return await self._add_few(rows, priority)
                    count, length = self._episodes.environments, _length(rows)
                    return (await self._write(rows, priority_column(priority, count, length), row))[
                        :count
                    ]
        finally:
            self._calls -= 1

    async def _add_few(self, rows: tuple[Mapping[str, Any], ...], priority: Any) -> int:
        """Write a step, and perhaps the final observation after it."""
        given = NO_PRIORITY if priority is None else one_priority(priority)
        while True:
            admitted = self._admit_nowait(len(rows), 1)
            if admitted is None:
                rows = tuple(detached(row) for row in rows)
                admitted = await self._admit(len(rows), 1)
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
                rows, arrays = self._ring.spec.convert_columns(columns)
                self._check_fits(rows)
                given = priority_column(priorities, rows, rows)
                if not is_alone:
                    arrays = own_columns(arrays, columns)
                async with self._lock:
                    self._check_open()
                    return await self._write(arrays, given, columns if is_alone else None)
            theirs = columns
            if not is_alone:
                columns, priorities = detached(columns), detached(priorities)
            async with self._lock:
                self._check_open()
                with self._episodes.step(ticket):
                    steps, which = self._episodes.columns(columns, None if is_alone else theirs)
                    self._check_fits(_length(steps))
                    given = priority_column(priorities, len(which), _length(steps), which)
                    return (await self._write(steps, given, None))[which]
        finally:
            self._calls -= 1

    async def _write(
        self, columns: Columns, priorities: Array | None, given: Mapping[str, Any] | None
    ) -> Indices:
        """Write checked columns, off the loop if there are many bytes. Once begun, cancelling does
        not stop it.

        Args:
            given: what the caller handed in, if `columns` may share memory with it; `None` if they
                do not. What the caller writes to its arrays after the first suspension does not
                reach the rows.
        """
        rows, written = _length(columns), np.empty(0, np.int64)
        size_bytes = rows * self._ring.spec.row_bytes
        if given is not None and _INLINE_BYTES < size_bytes <= _COPIED_BYTES:
            columns, given = own_columns(columns, given), None
        # once, unless a `Fifo` or `Epochs` began while rows were copied off the loop
        while len(written) < rows:
            start = len(written)
            # The rest in parts for which there will be room: more than half of the ring may never
            # be free at once.
            stop = rows if start == 0 else min(rows, start + self._ring.capacity_rows // 2)
            steps = steps_among(columns, start, stop)
            admitted = self._admit_nowait(stop - start, steps)
            if admitted is None:
                if given is not None:
                    columns, given = own_columns(columns, given), None
                admitted = await self._admit(stop - start, steps, may_refuse=start == 0)
            self.is_writing = True
            try:
                if given is not None or size_bytes <= _INLINE_BYTES:
                    more = self.writer.write(columns, start, stop, priorities)
                else:
                    work = partial(self.writer.write, columns, start, stop, priorities)
                    more = await self._off_loop(work)
            except ResourceUnavailable:  # no thread: nothing was written
                if start == 0:
                    self._admission.give_back(admitted, steps_among(columns, start, stop))
                    raise
                # all or none, and some are written
                more = self.writer.write(columns, start, stop, priorities)
            finally:
                self.writer.unreserve()
                self._announce()
                self.is_writing = False
            written = np.concatenate([written, more])
            self._admission.give_back(admitted, steps_among(columns, len(written), stop))
        return written

    def _admit_nowait(self, rows: int, steps: int) -> Admitted | None:
        """Count so many rows, so many of them steps, as written, if they may be now; else `None`,
        and nothing changed.

        Room for them is reserved, until `unreserve`.
        """
        self._refused = None, 0
        if not self._registry.keepers and not self._admission.limits:
            return Admitted(0, ())
        self._lacks_blocks = not self.writer.reserve(rows)
        if self._lacks_blocks:
            if 2 * rows > self._ring.capacity_rows:
                raise ValueError(
                    f"{rows:,} rows at once are more than half of capacity_rows = "
                    f"{self._ring.capacity_rows:,}, while Fifo() or Epochs() keeps rows; hand them "
                    "in in smaller parts"
                )
            return None
        is_done = False
        try:
            admitted = self._admission.admit(steps, all_or_none=True)
            is_done = admitted.steps == steps
        finally:
            if not is_done:
                self.writer.unreserve()
        return admitted if is_done else None

    async def _off_loop(self, work: Callable[[], Indices]) -> Indices:
        """What `work` returns, in a thread that stays for the next: to start one takes as long as
        to copy a megabyte.

        To its end even if cancelled meanwhile; then the cancellation is delivered.

        Raises:
            ResourceUnavailable: no thread can be started. The work has not begun.
        """
        if self._copier is None:
            self._copier = ThreadPoolExecutor(1, "areplay-rows")
        try:
            done = asyncio.get_running_loop().run_in_executor(self._copier, outcome_of, work)
        except RuntimeError as error:
            copier, self._copier = self._copier, None
            # the work is in its queue, and a thread might come
            copier.shutdown(wait=False, cancel_futures=True)
            raise ResourceUnavailable("starting a thread", "Replay.extend", str(error)) from error
        return (await run_to_completion(done)).result()

    async def _admit(self, rows: int, steps: int, *, may_refuse: bool = True) -> Admitted:
        """Wait until `_admit_nowait` succeeds; what it counted. Cancelled: nothing changed.

        Args:
            may_refuse: False for the rest of rows of which some are written.

        Raises:
            Stalled: they can never be written.
        """
        admitted: Admitted | None = None

        def is_admitted() -> bool:
            if may_write():
                return True
            if may_refuse and (why := self._why_hopeless()):
                self._refused = self.lacks, self._ring.rows_inserted[0]
                raise Stalled(f"{self._reason()}; it never can, since {why}")
            return False

        def may_write() -> bool:
            nonlocal admitted
            self._check_open()
            admitted = self._admit_nowait(rows, steps)
            return admitted is not None

        self._waiting_since, self._lacks_steps = time.monotonic(), steps
        try:
            await self._admitted.wait(is_admitted, self._reason)
        finally:
            self._waiting_since = None
        assert admitted is not None
        return admitted

    def _reason(self) -> str:
        why = self._admission.reason(self._lacks_steps, lacks_blocks=self._lacks_blocks)
        return f"Replay.add or extend waits: rows may not be written yet: {why}" if why else ""

    def _announce(self) -> None:
        self.any_written = True
        self._on_rows()

    def _check_open(self) -> None:
        if self._origin is not forks.current:
            forks.check(self._origin, "this replay")
        if self._is_closing:
            raise Closed("this replay")

    def _check_fits(self, rows: int) -> None:
        capacity = self._ring.capacity_rows
        if rows > capacity:
            raise ValueError(
                f"extend takes at most capacity_rows = {capacity:,} rows, got "
                f"{rows:,}; raise capacity"
            )


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values())))
