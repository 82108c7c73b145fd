"""Tests of `_processes.lifetime`: opened once, closed once, in one process."""

from __future__ import annotations

import asyncio

import pytest

import areplay
from areplay._base import forks
from areplay._processes.lifetime import Lifetime


class Owner:
    """An object with a lifetime, which notes what is done to it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.life = Lifetime("this owner", "an owner", "an owner", None)
        self.done: list[str] = []
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self._error = error

    async def open(self) -> None:
        """As of a replay."""
        await self.life.open(self, self._open, self.close)

    async def close(self) -> None:
        """As of a replay."""
        await self.life.close(self._close)

    async def _open(self) -> None:
        await self.goes_on.wait()
        self.done.append("open")
        if self._error is not None:
            raise self._error

    async def _close(self) -> None:
        await self.goes_on.wait()
        self.done.append("close")


async def test_a_second_opening_is_refused_and_changes_nothing() -> None:
    """While it is open, and after it was closed."""
    owner = Owner()
    await owner.open()
    for _ in range(2):
        with pytest.raises(areplay.Closed, match="this owner, which was opened before,"):
            await owner.open()
        await owner.close()
    assert owner.done == ["open", "close"]


async def test_what_was_never_opened_closes_and_stays_closed() -> None:
    """Its `close` is called, which finds nothing to close."""
    owner = Owner()
    assert not owner.life.is_ending
    await owner.close()
    assert owner.life.is_closed and owner.life.is_ending
    with pytest.raises(areplay.Closed):
        await owner.open()
    assert owner.done == ["close"]


async def test_two_tasks_that_close_wait_for_the_same_closing() -> None:
    """It is done once; both return when it is over."""
    owner = Owner()
    await owner.open()
    owner.goes_on.clear()
    closings = [asyncio.create_task(owner.close()) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert owner.life.is_closing and not owner.life.is_closed
    assert not any(closing.done() for closing in closings)
    owner.goes_on.set()
    await asyncio.gather(*closings)
    assert owner.life.is_closed
    assert owner.done == ["open", "close"]


async def test_a_cancelled_caller_leaves_nothing_half_closed() -> None:
    """The closing runs to its end before the cancellation is delivered."""
    owner = Owner()
    await owner.open()
    owner.goes_on.clear()
    closing = asyncio.create_task(owner.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.sleep(0)
    assert not closing.done()
    owner.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert owner.done == ["open", "close"]


async def test_closing_ends_an_opening_that_is_under_way() -> None:
    """The task that opens is told, and the owner is closed once."""
    owner = Owner()
    owner.goes_on.clear()
    opening = asyncio.create_task(owner.open())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    closing = asyncio.create_task(owner.close())
    await asyncio.sleep(0)
    owner.goes_on.set()
    with pytest.raises(areplay.Closed, match="this owner"):
        await opening
    await closing
    assert owner.done == ["close"]


async def test_an_opening_that_fails_is_closed_before_it_is_raised() -> None:
    """With the error of the opening."""
    owner = Owner(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await owner.open()
    assert owner.done == ["open", "close"] and owner.life.is_closed


async def test_another_process_neither_uses_nor_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing returns at once and does nothing; the owner's process closes it later."""
    owner = Owner()
    await owner.open()
    with monkeypatch.context() as patch:
        patch.setattr(forks, "current", forks.Origin())
        assert owner.life.is_foreign
        await owner.close()
        with pytest.raises(areplay.WrongProcess, match="this owner"):
            owner.life.check_process()
    assert owner.done == ["open"] and not owner.life.is_closing
    owner.life.check_process()
    await owner.close()
    assert owner.done == ["open", "close"]


def test_what_is_not_open_belongs_to_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child may open what its parent has only made."""
    life = Lifetime("this owner", "an owner", "an owner", None)
    monkeypatch.setattr(forks, "current", forks.Origin())
    life.check_process()
    assert not life.is_foreign
