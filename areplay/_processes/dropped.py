"""Dropped objects: a replay, a stream or a group that the user drops without closing it.

Closing takes an event loop, which turns. A finalizer has neither a loop nor time: the garbage
collector runs it in any thread, inside any call, perhaps while the interrupted code holds a lock of
ours or of the user's logging. So the finalizer of an open object takes no lock and waits for
nothing. It puts the object's `Holdings` into a queue:

    last reference    finalizer,        areplay-reaper:     the event loop:      areplay-reaper:
    of the user  -->  any thread:  -->  logs a warning -->  stops watching  -->  ends children and
    goes              queue.put                             descriptors          threads, closes
                                                            (left out if it      descriptors
                                                            is closed)

A loop that was stopped may never turn again. The reaper then ends the children at once, and the
rest follows when the loop turns, is closed, or is collected: what it watches refers to it
(`Supervisor.__del__`), and no step does.

A descriptor is closed only after its loop has stopped watching it: a loop that goes on would watch
the next file that gets the number, and libuv ends the process where it cannot.

Rule: what runs (threads, tasks, callbacks of a loop) and the steps in `Holdings` refer to such an
object only weakly, and steps to nothing on which tasks wait: those tasks may be the user's, and
hold it. In a forked child finalizers do nothing: what they would let go is the parent's. The
reaper is in `areplay._processes.reaper`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from areplay._processes import reaper
from areplay._processes.closing import can_wait

T = TypeVar("T")

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.01

Loop = asyncio.AbstractEventLoop


class Watcher(Protocol):
    """An object for which an event loop watches descriptors."""

    @property
    def loop(self) -> Loop | None:
        """The loop that watches, if there is one."""
        ...

    def unwatch(self) -> None:
        """Let the loop stop, for good. On that loop, or anywhere once it is closed."""
        ...


class Holdings:
    """What an open object holds, as steps that let it go without the object and without a loop.

    A step may run in any thread, and does not refer to the owner.

    Args:
        what: what the owner is, for the warning.

    Attributes:
        is_abandoned: whether the steps have begun: the owner is of no use any more.
        is_done: whether nothing is held any more.
        how: what happened, for the warning; "" without one.
        thread: the one in which the owner was opened.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.is_abandoned = False
        self.is_done = False
        self.how = "was dropped without being closed"
        self.thread = 0
        self._pid = 0
        self._loop: weakref.ref[Loop] | None = None
        self._watchers: list[weakref.ref[Watcher]] = []
        self._unwatched: list[Watcher] = []  # kept, since the steps may need them
        self._steps: list[Callable[[], bool | None]] = []
        self._at_once: list[Callable[[], bool]] = []
        self._turning: weakref.ref[Loop] | None = None  # the loop whose next turn goes on with it
        self._has_no_loop = False
        self._is_announced = False
        self._reaper = reaper.current
        self._finalizer: weakref.finalize[[], object] | None = None

    def begin(self, owner: object) -> None:
        """Let all go if `owner` is dropped before `release`.

        Call it on the loop on which the owner is opened, before the owner holds anything.

        Args:
            owner: the object that the user holds.
        """
        self._pid = os.getpid()
        self.thread = threading.get_ident()
        self._loop = weakref.ref(asyncio.get_running_loop())
        self._reaper = reaper.current
        self._finalizer = weakref.finalize(owner, self._drop)
        self._finalizer.atexit = False  # the reaper sees to the end of the program
        self._reaper.hold(self)

    async def leave(
        self, kind: type[BaseException] | None, close: Callable[[], Awaitable[None]]
    ) -> None:
        """Close the owner in order as its context is left, or let all go where that cannot wait.

        Args:
            kind: of the exception that leaves the context.
        """
        if can_wait(kind):
            await close()
        else:
            self.abandon("was left where no event loop could close it in order")

    async def are_lost(self) -> bool:
        """Whether there is nothing to close in order: the loop was closed, or all was let go.

        Waits until the reaper has let all go. Cancelled: the reaper goes on.
        """
        loop = None if self._loop is None else self._loop()
        if self._loop is not None and (loop is None or loop.is_closed()):
            self.abandon("")
        if not can_wait(sys.exc_info()[0]):
            self.abandon("")
            return True
        while self.is_abandoned and not self.is_done:  # noqa: ASYNC110  the reaper must not need this loop
            await asyncio.sleep(_LOOK_AGAIN_S)
        return self.is_abandoned

    def push(self, *steps: Callable[[], bool | None]) -> None:
        """Add steps, which run in the reaper's thread after the loops have stopped watching.

        The last step that was added comes first. No step may wait: the reaper calls one that
        returns False again later.
        """
        self._steps.extend(steps)

    def push_at_once(self, step: Callable[[], bool]) -> None:
        """Add a step for a loop that stands still and still watches.

        The reaper calls it again and again until it returns True.
        """
        self._at_once.append(step)

    def watched(self, watcher: Watcher) -> None:
        """Let the loop of `watcher` stop watching, before the steps.

        It is referred to weakly: tasks that wait may hold the owner.
        """
        self._watchers.append(weakref.ref(watcher))

    def release(self) -> None:
        """Say that all is closed in order."""
        if self._finalizer is not None and self._finalizer.detach() is not None:
            self.is_done = True
            self._reaper.release(self)

    def abandon(self, how: str) -> None:
        """Let all go now, though the owner is still there.

        Does nothing if that has begun, or after `release`.

        Args:
            how: what happened, for the warning; "" without one, since the user closes the owner.
        """
        if self._finalizer is not None and self._finalizer.detach() is not None:
            self.how = how
            self._drop()

    def abandon_at_exit(self) -> None:
        """Let all go, since the program ends: no loop that stands still will turn again."""
        loop = None if self._loop is None else self._loop()
        if loop is None or not loop.is_running():
            self._has_no_loop = True
        if self.is_abandoned:
            self._reaper.put(self)
        else:
            self.abandon("was still open at the end of the program")

    def _drop(self) -> None:
        """Hand all to the reaper: what the finalizer does, see the module."""
        if os.getpid() != self._pid:
            return
        self.is_abandoned = True
        try:
            # A loop that stands still may never turn again. Nothing can start it now, since this is
            # its own thread.
            if threading.get_ident() == self.thread:
                self._unwatch(lambda loop: not loop.is_running())
        finally:
            self._reaper.put(self)

    def advance(self) -> bool:
        """Let go what can be let go now; False if some of it takes time. In the reaper's thread."""
        turning = self._turning  # the loop may forget it meanwhile
        if turning is not None and not self._has_no_loop:
            return self._advance_at_once(turning())
        while self._watchers:
            watcher = self._watchers[-1]()
            if watcher is not None and self._is_left_to_loop_of(watcher):
                return False
            self._watchers.pop()
            if watcher is not None:
                self._unwatched.append(watcher)
                self._try(watcher.unwatch)
        while self._steps:
            if self._try(self._steps[-1]) is False:
                return False
            if self._steps:
                self._steps.pop()
        self._unwatched.clear()
        self.is_done = True
        return True

    def _is_left_to_loop_of(self, watcher: Watcher) -> bool:
        """Have the watcher's loop stop watching in its next turn; False if it has none to come."""
        loop = None if self._has_no_loop else watcher.loop
        if loop is None or loop.is_closed():
            return False
        turn = _Turn(self)
        self._turning = weakref.ref(loop)  # before the loop can call it
        try:
            loop.call_soon_threadsafe(turn)
        except RuntimeError:  # closed meanwhile
            turn.forget()
            self._turning = None
            return False
        return True

    def _advance_at_once(self, loop: Loop | None) -> bool:
        """Whether there is nothing to do until the loop turns: one that runs may be stopped."""
        if loop is None or loop.is_running():
            return False
        # A step that is not done must not keep the reaper from the ones after it.
        results = [self._try(step) for step in self._at_once]
        return False not in results

    def announce(self) -> None:
        """Log a warning that says what is let go and why, once."""
        if self.how and not self._is_announced:
            self._is_announced = True
            logger.warning(
                "%s %s: its processes and threads are ended, its memory is given back; enter it "
                "with `async with`, or await its close()",
                self.what,
                self.how,
            )

    def _unwatch(self, is_meant: Callable[[Loop], bool]) -> None:
        """Let each loop that is meant stop watching. On that loop, or while it stands still."""
        for reference in list(self._watchers):
            watcher = reference()
            loop = None if watcher is None else watcher.loop
            if watcher is not None and loop is not None and not loop.is_closed() and is_meant(loop):
                self._watchers.remove(reference)
                self._unwatched.append(watcher)
                # Nothing is logged, since this may be a finalizer: logging takes locks.
                with contextlib.suppress(Exception):
                    watcher.unwatch()

    def _try(self, step: Callable[[], T]) -> T | None:
        try:
            return step()
        except Exception:
            logger.exception("%s could not be let go in full", self.what)
            return None

    def __repr__(self) -> str:
        return f"<Holdings of {self.what}: {len(self._watchers)} watched, {len(self._steps)} steps>"


class _Turn:
    """A callback for an event loop, which stops watching; then the reaper goes on.

    If the loop is closed or collected before its next turn, this is dropped uncalled. Then the
    reaper goes on without the loop.
    """

    def __init__(self, holdings: Holdings) -> None:
        self._holdings: Holdings | None = holdings

    def forget(self) -> None:
        """Do nothing."""
        self._holdings = None

    def __call__(self) -> None:
        holdings = self._taken()
        if holdings is not None:
            here = asyncio.get_running_loop()
            holdings._unwatch(lambda loop: loop is here)
            holdings._turning = None
            holdings._reaper.put(holdings)

    def __del__(self) -> None:
        holdings = self._taken()
        if holdings is not None:
            holdings._has_no_loop = True
            holdings._turning = None
            holdings._reaper.put(holdings)

    def _taken(self) -> Holdings | None:
        """The holdings, once; None in a forked child, whose reaper has nothing to do with them."""
        holdings = self._holdings
        self._holdings = None
        if holdings is not None and os.getpid() != holdings._pid:
            return None
        return holdings
