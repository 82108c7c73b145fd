"""Lifetime: how an object that a user enters and leaves is opened and closed, each once.

A replay, a group of actors and a stream of batches share this. Opening and closing run in tasks of
their own, so a cancelled caller leaves neither half done. A process that was forked from the one
that opened the object cannot use it, and closing it there does nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from areplay._base import forks
from areplay._processes.completion import run_to_completion
from areplay._processes.dropped import Holdings
from areplay._processes.opening import ended, opened
from areplay.errors import Closed

Work = Callable[[], Coroutine[Any, Any, None]]


class Lifetime:
    """Opens and closes its owner.

    Args:
        name: of the owner in errors, such as "this replay".
        kind: of the owner in the names of tasks, such as "a replay".
        what: the owner is, for the warning if it is dropped.
        origin: the process that the owner belongs to; None: the one that opens it.

    Attributes:
        holdings: of the owner, let go if it is dropped.
    """

    def __init__(self, name: str, kind: str, what: str, origin: forks.Origin | None) -> None:
        self.holdings = Holdings(what)
        self.origin = origin
        self._name = name
        self._kind = kind
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def is_foreign(self) -> bool:
        """Whether this process was forked from the one that the owner belongs to."""
        return self.origin is not None and self.origin is not forks.current

    @property
    def is_ending(self) -> bool:
        """Whether closing has begun, in order or by letting go."""
        return self._closing is not None or self.holdings.is_abandoned

    @property
    def is_closing(self) -> bool:
        """Whether closing in order has begun, or is over."""
        return self._closing is not None

    @property
    def is_closed(self) -> bool:
        """Whether closing in order is over."""
        return self._closing is not None and self._closing.done()

    def check_process(self) -> None:
        """Raise `WrongProcess` in a process that was forked from the owner's."""
        if self.origin is not None:
            forks.check(self.origin, self._name)

    async def open(self, owner: object, work: Work, close: Callable[[], Awaitable[None]]) -> None:
        """Open the owner; if that fails or is cancelled, close it before that is raised.

        Args:
            owner: the object that the user holds.
            work: opens it.
            close: the owner's `close`.

        Raises:
            Closed: it was opened or closed before.
            BaseException: what `work` raised.
        """
        if self._opening is not None or self._closing is not None:
            raise Closed(f"{self._name}, which was opened before,")
        self.origin = forks.current
        self.holdings.begin(owner)
        self._opening = asyncio.create_task(work(), name=f"areplay opens {self._kind}")
        await opened(self._opening, close, self._name)

    async def close(self, work: Work) -> None:
        """Close the owner in order. May be called twice; does nothing in a forked process.

        Cancelled: the owner is closed all the same, then the cancellation is delivered.

        Args:
            work: closes it, once opening has ended.
        """
        if self.is_foreign:
            return
        if await self.holdings.are_lost():
            return
        if self._closing is None:
            closing = self._close(work)
            self._closing = asyncio.create_task(closing, name=f"areplay closes {self._kind}")
        await run_to_completion(self._closing)

    async def _close(self, work: Work) -> None:
        await ended(self._opening)
        await work()
        self.holdings.release()
