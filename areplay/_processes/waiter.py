"""Waiters: how a coroutine of areplay sleeps until a doorbell rings.

A `Waiter` sleeps until a condition holds. A long wait is not silent: warnings say which process
waits for which, and why. Every wait ends: it has a timeout, or its condition raises, for example
`Closed` or `Stalled`, once the other side is gone.
"""

from __future__ import annotations

import asyncio
import logging
import select
import time
from collections.abc import Callable

from areplay._base import forks
from areplay._processes.completion import finish
from areplay._processes.event_loops import leave_to_parent
from areplay._shm.doorbell import Doorbell
from areplay.errors import WaitTimeout

logger = logging.getLogger(__name__)

WARN_AFTER_S = 5.0
# A condition may also change without a ring: a process that was killed announces nothing.
_LOOK_AGAIN_S = 1.0


class Waiter:
    """Lets any number of coroutines of one event loop sleep on one doorbell."""

    def __init__(self, bell: Doorbell) -> None:
        self._bell = bell
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched = -1  # the doorbell's descriptor, by number: the reaper may have closed it
        self._asleep: set[asyncio.Future[None]] = set()
        self._waiters = 0
        self._origin = forks.current

    async def wait(
        self,
        is_ready: Callable[[], bool],
        reason: Callable[[], str] | None,
        timeout_s: float | None = None,
        error: Callable[[str, float], WaitTimeout] = WaitTimeout,
    ) -> None:
        """Return as soon as `is_ready()` is true; without suspending if it is true already.

        Cancelled: nothing has changed.

        Args:
            is_ready: the condition. It may raise, and the wait raises that.
            reason: says which process waits for which and why, for warnings and the error. It says
                "" if another wait says the same. None: a rest between two tasks, without warnings.
            timeout_s: how long to wait; None: without a limit.
            error: makes the error from the reason and `timeout_s`.

        Raises:
            WaitTimeout: the one that `error` makes, after `timeout_s`.
            WrongProcess: this process was forked meanwhile, and is the child.
        """
        if is_ready():
            return
        loop = asyncio.get_running_loop()
        self._attach(loop)
        started = loop.time()
        deadline = started + (float("inf") if timeout_s is None else timeout_s)
        warn_after = WARN_AFTER_S
        self._waiters += 1
        try:
            while True:
                forks.check(self._origin, "the doorbell that this call waits for")
                self._bell.arm()
                if is_ready():
                    return
                now = loop.time()
                if timeout_s is not None and now >= deadline:
                    raise error(reason() if reason else "nothing came", timeout_s)
                if reason and now - started >= warn_after:
                    if complaint := reason():
                        logger.warning("%s; waiting for %.0f s", complaint, now - started)
                    warn_after *= 2
                await self._sleep(loop, min(deadline, now + _LOOK_AGAIN_S))
        finally:
            self._leave()

    async def wait_briefly(self, is_ready: Callable[[], bool], seconds: float) -> None:
        """Return when `is_ready()` is true, or after `seconds`. Cancelled: nothing has changed."""
        loop = asyncio.get_running_loop()
        self._attach(loop)
        until = loop.time() + seconds
        self._waiters += 1
        try:
            while True:
                forks.check(self._origin, "the doorbell that this call waits for")
                self._bell.arm()
                if is_ready() or loop.time() >= until:
                    return
                await self._sleep(loop, until)
        finally:
            self._leave()

    def block_until(self, is_ready: Callable[[], bool], seconds: float) -> bool:
        """Wait without suspending, for `seconds` at most; whether `is_ready()` in the end.

        Blocks the event loop. It is for callers that could not suspend without paying about
        `seconds` of work first.
        """
        until = time.monotonic() + seconds
        ring = select.poll()
        ring.register(self._bell.event.descriptor, select.POLLIN)
        self._waiters += 1
        try:
            while True:
                self._bell.arm()
                left_s = until - time.monotonic()
                if is_ready() or left_s <= 0:
                    return is_ready()
                if ring.poll(1e3 * left_s):
                    self._on_ring()  # it may have been meant for a coroutine that waits as well
        finally:
            self._leave()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that watches the doorbell, until `close`; None before the first wait."""
        return self._loop

    def unwatch(self) -> None:
        """`close`: what a `Watcher` of dropped objects does."""
        self.close()

    def wake(self) -> None:
        """Let every waiter look at its condition again. Call it on the loop of the waiters."""
        for future in self._asleep:
            finish(future)

    def close(self) -> None:
        """Stop watching the doorbell, and let every waiter look once more.

        Call it before the doorbell's descriptor is closed. It does nothing in a forked child, whose
        loop watches no doorbell.
        """
        loop = self._loop
        self._loop = None
        if loop is not None and not loop.is_closed() and self._origin is forks.current:
            loop.remove_reader(self._watched)
            self.wake()

    def __del__(self) -> None:
        """Leave a loop that is garbage, too: see `Supervisor.__del__`."""
        self.close()

    def _leave(self) -> None:
        self._waiters -= 1
        if self._waiters == 0:
            self._bell.disarm()

    async def _sleep(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        future: asyncio.Future[None] = loop.create_future()
        self._asleep.add(future)
        timer = loop.call_at(until, finish, future)
        try:
            await future
        finally:
            timer.cancel()
            self._asleep.discard(future)

    def _attach(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            self._loop = loop
            self._watched = self._bell.event.descriptor
            leave_to_parent(loop)
            loop.add_reader(self._watched, self._on_ring)

    def _on_ring(self) -> None:
        self._bell.event.clear()
        self.wake()
