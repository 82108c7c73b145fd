"""The inbox writer: hands an actor's rows in, and waits while its inbox has no room.

Rule: a call hands in the values that its arrays hold when it begins to run. Before it suspends, it
copies what the caller could still change; a call that does not suspend copies nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from areplay._base import forks
from areplay._base.arrays import detached
from areplay._ingest.handed_rows import HandedRows
from areplay._ingest.inbox import Inbox, waiting_rows
from areplay._processes.backoff import YieldTimer
from areplay._processes.waiter import Waiter
from areplay.errors import Closed, InboxFull, WaitTimeout, WouldBlock

# How long an actor that was asked to stop still waits for room.
_STOPPING_S = 0.2
# An actor that never waits lets its loop turn after this time, for its other tasks and for
# cancellation.
_TURN_S = 0.002
# Bytes a second that are copied for turns of the loop: a hundredth of what memory takes, so turns
# cost 1 % at most.
_TURN_BYTES_S = 100e6
# A call whose arrays have `_DEAR_BYTES` waits `_BLOCKED_S` for room before it copies them and
# suspends.
_DEAR_BYTES = 256 << 10
_BLOCKED_S = 0.002


class InboxWriter:
    """One actor's way into its inbox.

    Args:
        index: of the actor.
        row_bytes: of its rows.
        timeout_s: how long a call waits for the coordinator; None: for ever.
    """

    def __init__(self, inbox: Inbox, index: int, row_bytes: int, timeout_s: float | None) -> None:
        self._inbox = inbox
        self._index = index
        self._row_bytes = row_bytes
        self._timeout_s = timeout_s
        self._room = Waiter(inbox.room_bell)
        self._turns = YieldTimer(_TURN_S)
        self._origin = forks.current

    async def put(self, rows: tuple[Mapping[str, Any], ...], priority: float) -> None:
        """Hand in a row, or a few, together.

        Cancelled: no row was handed in.

        Raises:
            InboxFull, Closed: no row was handed in.
        """
        if self._turns.is_due():
            rows = tuple(detached(row) for row in rows)
            await self._let_loop_turn()
        while True:
            try:
                self._inbox.put(*rows, priority=priority)
                return
            except WouldBlock:
                rows = tuple(detached(row) for row in rows)
                await self._wait_room(len(rows))

    async def extend(self, rows: HandedRows) -> None:
        """Hand in rows, together if they fit into the inbox; else part by part, each together.

        Cancelled: no part is handed in after that.

        Raises:
            InboxFull, Closed: likewise.
        """
        count = len(rows)
        # A turn of the loop costs a copy here, and of many rows a dear one: so it comes later then.
        turn_s = count * self._row_bytes / _TURN_BYTES_S if rows.may_change else 0.0
        if self._turns.is_due(turn_s):
            rows.detach()
            await self._let_loop_turn()
        for start in range(0, count, self._inbox.inbox_rows):
            stop = min(count, start + self._inbox.inbox_rows)
            while not self._extend_nowait(rows, start, stop):
                if rows.may_change and self._has_room_soon(stop - start):
                    continue
                rows.detach()
                await self._wait_room(stop - start)

    async def flush(self) -> None:
        """Wait until the coordinator has taken every row handed in so far. Cancelled: the rows are
        safe all the same.

        Raises:
            WaitTimeout, Closed: likewise.
        """
        inbox = self._inbox
        target = inbox.rows_put
        await self._wait_taken(lambda: inbox.rows_put - inbox.used >= target, WaitTimeout)

    def _extend_nowait(self, rows: HandedRows, start: int, stop: int) -> bool:
        """Hand in rows `start` to `stop`; False if there is not room for all of them."""
        try:
            self._inbox.extend(rows.columns, start, stop, rows.priorities)
        except WouldBlock:
            return False
        return True

    def _has_room_soon(self, rows: int) -> bool:
        """Whether there is room for rows that would have to be copied if the call suspended.

        Blocks the loop for a moment, as the copy would. At full speed room comes in that time. The
        copy would cost throughput: the coordinator needs the memory's bandwidth and the cache, too.
        """
        inbox = self._inbox
        if rows * self._row_bytes < _DEAR_BYTES:
            return False
        inbox.request_flush()
        with inbox.waiting():
            self._room.block_until(lambda: inbox.room >= rows or inbox.is_stopping, _BLOCKED_S)
        return inbox.room >= rows

    async def _let_loop_turn(self) -> None:
        await asyncio.sleep(0)
        forks.check(self._origin, "this actor")  # another task may have forked

    async def _wait_room(self, rows: int) -> None:
        if self._inbox.room < rows:
            await self._wait_taken(lambda: self._inbox.room >= rows, InboxFull)

    async def _wait_taken(self, is_ready: Callable[[], bool], error: type[WaitTimeout]) -> None:
        """Wait until the coordinator has taken enough; request a flush."""
        inbox = self._inbox
        inbox.request_flush()
        late = partial(error, option="add_timeout_s")
        with inbox.waiting():
            await self._room.wait(
                lambda: is_ready() or inbox.is_stopping, self._reason, self._timeout_s, late
            )
            if is_ready():
                return
            # The learner may take no more batches, and then a limiter never lets these rows in.
            await self._room.wait_briefly(is_ready, _STOPPING_S)
            if not is_ready():
                raise Closed(f"the inbox of actor {self._index}, whose actor was asked to stop,")

    def _reason(self) -> str:
        return (
            f"actor {self._index} waits for the coordinator: {waiting_rows(self._inbox)}; the "
            f"learner may be slower than its limiter or selector allows"
        )
