"""Own rows: what the owner's process itself writes into the ring, by `Replay.add` and `Replay.extend`: one stream.

One call at a time: each waits for those before it, and until its rows may be written (see `areplay.admission`). Then it
writes them in one step, all or none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from areplay import forks
from areplay.admission import Admission, Admitted, steps_among
from areplay.episodes import Episodes
from areplay.errors import Closed, ResourceUnavailable, Stalled, WouldBlock
from areplay.options import NO_PRIORITY, one_priority, priority_column
from areplay.ring import Indices, Ring, RingGuard, StreamWriter
from areplay.spec import Array, Columns
from areplay.statistics import Wait
from areplay.waiting import Sleeper, in_thread

_INLINE_BYTES = 4 << 20  # what `extend` copies on the loop; more is copied in a thread meanwhile


class Lacks(NamedTuple):
    """What a call that waits needs: all of it at once, or it writes nothing."""

    steps: int
    blocks: bool
    """Whether it lacks blocks, too: what it found at its last look."""
    stream: int
    """That it writes to. It may have an open block, but one that the rows do not fit into."""


class OwnRows:
    """The owner's stream.

    Args:
        on_rows: called after rows were written.
        why_hopeless: says why a call that waits now will wait for ever, and what to do; "" if it may go on.

    Attributes:
        writer: of the stream, closed by `close`.
        any_written: whether there ever was a row.
        is_writing: whether rows have been admitted that are not yet written.
    """

    def __init__(
        self,
        ring: Ring,
        guard: RingGuard,
        admission: Admission,
        on_rows: Callable[[], None],
        why_hopeless: Callable[[], str] = lambda: "",
    ) -> None:
        self.any_written = self.is_writing = False
        self._why_hopeless = why_hopeless
        self._ring, self._guard, self._admission, self._on_rows = ring, guard, admission, on_rows
        self._episodes = Episodes(ring.spec) if ring.spec.is_steps else None
        self.writer = StreamWriter(ring, ring.block_locks(), guard)
        self._lock = asyncio.Lock()
        self._admitted = Sleeper(admission.owner_bell)
        self._waiting_since: float | None = None  # monotonic seconds
        self._lacks_steps, self._lacks_blocks = 1, False  # what the call that waits found at its last look
        self._refused: tuple[Lacks | None, int] = None, 0  # and how many rows had been inserted by then
        self._is_closing = False
        self._origin = forks.current

    @property
    def episodes(self) -> Episodes:
        """The episodes that this process is in."""
        if self._episodes is None:
            raise ValueError("autoreset_mode is about steps of environments; make the spec with Spec.steps or from_env")
        return self._episodes

    def break_off(self, environments: Any) -> None:
        """See `Replay.end_episode`."""
        if self._episodes is None:
            raise ValueError("end_episode is about steps of environments; make the spec with Spec.steps or from_env")
        self._episodes.break_off(environments)

    def add(self, row: dict[str, Any], priority: Any) -> Coroutine[Any, Any, int | Indices]:
        """See `Replay.add`."""
        return self._add(None if self._episodes is None else self._episodes.ticket(), row, priority)

    def extend(self, columns: Mapping[str, Any], priorities: Any) -> Coroutine[Any, Any, Indices]:
        """See `Replay.extend`."""
        return self._extend(None if self._episodes is None else self._episodes.ticket(), columns, priorities)

    def waits(self) -> list[Wait]:
        """The wait for admission, if there is one at this moment."""
        since, reason = self._waiting_since, self._reason()
        return [] if since is None or not reason else [Wait("owner", reason, time.monotonic() - since)]

    @property
    def lacks(self) -> Lacks | None:
        """What the call needs that waits for admission, or that was refused as hopeless when it was the last thing that
        happened; None if there is none.

        A learner that comes after the refusal would wait for those rows as well.
        """
        if self._waiting_since is not None:
            return Lacks(self._lacks_steps, self._lacks_blocks, self.writer.stream)
        lacks, inserted = self._refused
        return lacks if inserted == self._ring.rows_inserted[0] else None

    async def close(self) -> None:
        """End the stream, when the call that is being served is done; those that wait get `Closed`."""
        self._is_closing = True
        self._admitted.wake()
        async with self._lock:
            self.writer.close()
        self._admitted.close()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that waits for admission, if one ever had to."""
        return self._admitted.loop

    def unwatch(self) -> None:
        """Let the loop watch nothing of this any more. On that loop, or anywhere once it is closed."""
        self._is_closing = True
        self._admitted.close()

    async def _add(self, ticket: int | None, row: dict[str, Any], priority: Any) -> int | Indices:
        async with self._lock:
            self._check_open()
            if self._episodes is None or ticket is None:
                return await self._add_few((row,), priority)
            with self._episodes.step(ticket):
                rows = self._episodes.rows(row)
                if isinstance(rows, tuple):
                    return await self._add_few(rows, priority)
                count, length = self._episodes.environments, _length(rows)
                return (await self._write(rows, priority_column(priority, count, length)))[:count]

    async def _add_few(self, rows: tuple[Mapping[str, Any], ...], priority: Any) -> int:
        """Write a step, and perhaps the final observation after it."""
        given = NO_PRIORITY if priority is None else one_priority(priority)
        while True:
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

    async def _extend(self, ticket: int | None, columns: Mapping[str, Any], priorities: Any) -> Indices:
        if self._episodes is None or ticket is None:
            rows, arrays = self._ring.spec.convert_columns(columns)
            self._check_fits(rows)
            given = priority_column(priorities, rows, rows)
            async with self._lock:
                self._check_open()
                return await self._write(arrays, given)
        async with self._lock:
            self._check_open()
            with self._episodes.step(ticket):
                steps, which = self._episodes.columns(columns)
                self._check_fits(_length(steps))
                given = priority_column(priorities, len(which), _length(steps), which)
                return (await self._write(steps, given))[which]

    async def _write(self, columns: Columns, priorities: Array | None) -> Indices:
        """Write checked columns, off the loop if there are many bytes. Once begun, cancelling does not stop it."""
        rows, written = _length(columns), np.empty(0, np.int64)
        while len(written) < rows:  # once, unless a `Fifo` or `Epochs` began while rows were copied off the loop
            start = len(written)
            # The rest in parts for which there will be room: more than half of the ring may never be free at once.
            stop = rows if start == 0 else min(rows, start + self._ring.capacity_rows // 2)
            admitted = await self._admit(stop - start, steps_among(columns, start, stop), may_refuse=start == 0)
            self.is_writing = True
            try:
                if rows * self._ring.spec.row_bytes <= _INLINE_BYTES:
                    more = self.writer.write(columns, start, stop, priorities)
                else:
                    work = partial(self.writer.write, columns, start, stop, priorities)
                    more = await in_thread("areplay-rows", work)
            except ResourceUnavailable:  # no thread: nothing was written
                self._admission.give_back(admitted, steps_among(columns, start, stop))
                raise
            finally:
                self.writer.unreserve()
                self._announce()
                self.is_writing = False
            written = np.concatenate([written, more])
            self._admission.give_back(admitted, steps_among(columns, len(written), stop))
        return written

    async def _admit(self, rows: int, steps: int, *, may_refuse: bool = True) -> Admitted:
        """Wait until so many rows, so many of them steps, may be written, and count them.

        Cancelled: nothing changed. Room for them is reserved, until `unreserve`.

        Args:
            may_refuse: False for the rest of rows of which some are written.

        Raises:
            Stalled: they can never be written.
        """
        admitted, self._refused = Admitted(0, ()), (None, 0)
        if not self._guard.keepers and not self._admission.limits:
            return admitted

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
            self._lacks_blocks = not self.writer.reserve(rows)
            if self._lacks_blocks:
                if 2 * rows > self._ring.capacity_rows:
                    raise ValueError(
                        f"{rows:,} rows at once are more than half of capacity_rows = {self._ring.capacity_rows:,}, "
                        f"while Fifo() or Epochs() keeps rows; hand them in in smaller parts"
                    )
                return False
            is_done = False
            try:
                admitted = self._admission.admit(steps, all_or_none=True)
                is_done = admitted.steps == steps
            finally:
                if not is_done:
                    self.writer.unreserve()
            return is_done

        self._waiting_since, self._lacks_steps = time.monotonic(), steps
        try:
            await self._admitted.wait(is_admitted, self._reason)
        finally:
            self._waiting_since = None
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
            raise ValueError(f"extend takes at most capacity_rows = {capacity:,} rows, got {rows:,}")


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values())))
