"""Tests of `_processes.opening`: what cannot open, or is cancelled while it opens, is closed."""

from __future__ import annotations

import asyncio

import pytest
from kit import ticks

from areplay._processes.opening import ended, opened
from areplay.errors import Closed


class Door:
    """Something that opens slowly and can be closed."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.may_open = asyncio.Event()
        self.closed = 0
        self._error = error
        self.opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        await self.may_open.wait()
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """As the real ones do."""
        self.closed += 1
        await ended(self.opening)


async def test_what_has_opened_is_not_closed() -> None:
    """The usual way."""
    door = Door()
    door.may_open.set()
    await opened(door.opening, door.close, "the door")
    assert door.closed == 0


async def test_what_cannot_open_is_closed_before_the_error_is_raised() -> None:
    """The caller never entered, so nobody else will close it."""
    door = Door(OSError("stuck"))
    door.may_open.set()
    with pytest.raises(OSError, match="stuck"):
        await opened(door.opening, door.close, "the door")
    assert door.closed == 1


async def test_who_is_cancelled_while_it_opens_closes_it() -> None:
    """Opening is cancelled and has ended before the cancellation goes on."""
    door = Door()
    task = asyncio.create_task(opened(door.opening, door.close, "the door"))
    await ticks(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert door.closed == 1
    assert door.opening.cancelled()


async def test_who_waits_for_what_somebody_else_closes_gets_closed() -> None:
    """Not a cancellation that nobody asked for."""
    door = Door()
    task = asyncio.create_task(opened(door.opening, door.close, "the door"))
    await ticks(3)
    await door.close()
    with pytest.raises(Closed, match="the door"):
        await task


async def test_ending_waits_for_what_is_under_way_and_nothing_else() -> None:
    """None and finished ones are fine; a pending one is cancelled, and has ended afterwards."""
    await ended(None)
    door = Door()
    await ended(door.opening)
    assert door.opening.cancelled()
    await ended(door.opening)
