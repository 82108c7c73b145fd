"""Local admission: whether a call that writes rows in the owner's process may go on.

A call writes all of its rows at once, or nothing. So it needs room for all of its steps in each
limiter, and blocks for all of its rows where a selector keeps blocks. Which of the two holds it
back, and since when, is known here. `areplay._engine.standstill` asks for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from areplay._base import forks
from areplay._ingest.admission import Admitted
from areplay._ingest.destination import Destination
from areplay._processes.waiter import Waiter
from areplay._storage.stream_writer import StreamWriter
from areplay.errors import Closed, Stalled
from areplay.statistics import Wait


@dataclass(frozen=True, slots=True)
class Lacks:
    """What a call that waits needs: all of it at once, or it writes nothing."""

    steps: int
    blocks: bool
    """Whether it lacks blocks, too: what it found at its last look."""
    stream: int
    """The stream that it writes to. That may have an open block, in which the rows do not fit."""


class LocalAdmission:
    """Lets one call at a time write its rows.

    Args:
        writer: of the stream that the calls write to.
        why_hopeless: says why a call that waits now will wait for ever, and what to do; "" if it
            may go on.
    """

    def __init__(
        self, destination: Destination, writer: StreamWriter, why_hopeless: Callable[[], str]
    ) -> None:
        self._ring = destination.ring
        self._registry = destination.registry
        self._admission = destination.admission
        self._writer = writer
        self._why_hopeless = why_hopeless
        self._bell = Waiter(self._admission.owner_bell)
        self._lacks = Lacks(1, False, writer.stream)  # of the call that was held back last
        self._waiting_since: float | None = None  # monotonic seconds
        # How many rows had been inserted when that call was refused, if no other came after it.
        self._refused_at: int | None = None
        self._is_closed = False
        self._origin = forks.current

    @property
    def lacks(self) -> Lacks | None:
        """What the call needs that waits, or that was refused as hopeless when it was the last
        thing that happened; None if no call waits. From any thread.

        A learner that comes after the refusal would wait for those rows as well.
        """
        if self._waiting_since is not None or self._refused_at == self._ring.rows_inserted[0]:
            return self._lacks
        return None

    def waits(self) -> list[Wait]:
        """The call that waits, if there is one at this moment. From any thread."""
        since = self._waiting_since
        reason = self._reason()
        if since is None or not reason:
            return []
        return [Wait("owner", reason, time.monotonic() - since)]

    def admit_nowait(self, rows: int, steps: int) -> Admitted | None:
        """Count `rows` rows, `steps` of them steps, as written, if they may be now.

        Room for them is reserved, until the writer's `unreserve`.

        Returns:
            What was counted; None if they may not be written, and nothing has changed.

        Raises:
            ValueError: they can never be written at once.
        """
        self._refused_at = None
        if not self._registry.pins and not self._admission.limits:
            return Admitted(0, ())
        if not self._writer.reserve(rows):
            self._check_fits_beside_kept(rows)
            self._lacks = Lacks(steps, True, self._writer.stream)
            return None
        admitted = None
        try:
            admitted = self._admission.admit_all(steps)
        finally:
            if admitted is None:
                self._writer.unreserve()
        if admitted is None:
            self._lacks = Lacks(steps, False, self._writer.stream)
        return admitted

    async def admit(self, rows: int, steps: int, *, may_refuse: bool = True) -> Admitted:
        """Wait until `admit_nowait` succeeds. Cancelled: nothing changed.

        Args:
            may_refuse: False for the rest of a call that has written some of its rows.

        Raises:
            Stalled: they can never be written.
            Closed: the replay closes.
        """
        found: list[Admitted] = []

        def is_admitted() -> bool:
            self.check_open()
            admitted = self.admit_nowait(rows, steps)
            if admitted is not None:
                found.append(admitted)
            elif may_refuse:
                self._raise_if_hopeless()
            return admitted is not None

        self._waiting_since = time.monotonic()
        try:
            await self._bell.wait(is_admitted, self._reason)
        finally:
            self._waiting_since = None
        return found.pop()

    def check_open(self) -> None:
        """Raise `Closed` once this was closed, `WrongProcess` in a forked child."""
        if self._origin is not forks.current:
            forks.check(self._origin, "this replay")
        if self._is_closed:
            raise Closed("this replay")

    def close(self) -> None:
        """Let no call in any more: those that wait get `Closed`."""
        self._is_closed = True
        self._bell.wake()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that watches the doorbell, if a call ever had to wait."""
        return self._bell.loop

    def unwatch(self) -> None:
        """Let the loop watch the doorbell no more. On that loop, or anywhere once it is closed."""
        self._is_closed = True
        self._bell.close()

    def _raise_if_hopeless(self) -> None:
        why = self._why_hopeless()
        if why:
            self._refused_at = self._ring.rows_inserted[0]
            raise Stalled(f"{self._reason()}; it never can, since {why}")

    def _check_fits_beside_kept(self, rows: int) -> None:
        capacity = self._ring.capacity_rows
        if 2 * rows > capacity:
            raise ValueError(
                f"{rows:,} rows at once are more than half of capacity_rows = {capacity:,}, while "
                "Fifo() or Epochs() keeps rows; hand them in in smaller parts"
            )

    def _reason(self) -> str:
        why = self._admission.reason(self._lacks.steps, lacks_blocks=self._lacks.blocks)
        return f"Replay.add or extend waits: rows may not be written yet: {why}" if why else ""
