"""A program around replays: its main coroutine on uvloop, and what signals do to it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

import uvloop

from areplay._base import forks
from areplay._processes.event_loops import abandon, leave_to_parent
from areplay._processes.launcher import fill_standard_streams

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run a program's main coroutine on uvloop, as `asyncio.run` does; SIGTERM ends it as orderly
    as Ctrl-C.

    One Ctrl-C cancels `main`, so that replays close in order, and `KeyboardInterrupt` is raised; a
    second one interrupts at once. SIGTERM cancels likewise, and `SystemExit(143)` is raised.

    Standard streams that are closed are opened to /dev/null before.

    A process that is forked meanwhile gets the handlers from before. If it leaves `main`, by
    whatever way, that way leads out of here at once: the other tasks are not cancelled there, since
    they are the parent's.
    """
    fill_standard_streams()
    origin, signals = forks.current, _Signals()
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop, debug=debug)
    try:
        return runner.run(signals.around(main))
    except asyncio.CancelledError:
        if signals.terminated:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        signals.restore()
        if origin is forks.current:
            try:
                runner.close()
            finally:
                signals.restore_termination()
        else:
            abandon(runner.get_loop())


class _Signals:
    """SIGTERM and SIGINT while a main coroutine runs, if that is in the main thread.

    Attributes:
        terminated: whether a SIGTERM has come.
    """

    def __init__(self) -> None:
        self.terminated = self._is_left = False
        self._task: asyncio.Task[Any] | None = None
        self._handler_of_runner: Any = signal.default_int_handler
        self._handlers = forks.Handlers()
        # handlers of SIGTERM: before, and the loop's
        self._termination: tuple[Any, Any] | None = None
        self._is_in_main_thread = threading.current_thread() is threading.main_thread()
        # A handler of the user's stays, as it does under `asyncio.run`.
        self._is_interruptible = (
            self._is_in_main_thread
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )

    async def around(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` and handle what comes meanwhile."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        leave_to_parent(self._loop)
        if self._is_in_main_thread:
            before = signal.getsignal(signal.SIGTERM)
            with self._handlers.replacing(signal.SIGTERM):
                self._loop.add_signal_handler(signal.SIGTERM, self._terminate)
            self._termination = before, signal.getsignal(signal.SIGTERM)
        if self._is_interruptible:
            self._handler_of_runner = signal.getsignal(signal.SIGINT)
            with self._handlers.replacing(signal.SIGINT, before=signal.default_int_handler):
                signal.signal(signal.SIGINT, self._interrupt)
        return await main

    def restore(self) -> None:
        """Leave SIGINT as it was found: `main` has been left, and what may remain of it is
        cancelled.

        Forget its task, which holds what `main` raised, and so the replays in its frames: uvloop
        keeps handlers of signals for ever.
        """
        self._is_left = True
        if self._is_interruptible and signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._task, self._handler_of_runner = None, signal.default_int_handler

    def _terminate(self) -> None:
        self.terminated = True
        if self._task is not None:
            self._task.cancel()

    def restore_termination(self) -> None:
        """Leave SIGTERM as it was found, now that the loop is closed: uvloop leaves a handler that
        does nothing."""
        if self._termination is None:
            return
        before, ours = self._termination
        if signal.getsignal(signal.SIGTERM) == ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """As `asyncio.Runner` does: cancel, and raise the second time, wherever the program is.

        Within `main` that would only be one more reason to close its contexts in order: so the loop
        raises it, too.
        """
        try:
            self._handler_of_runner(number, frame)
        except KeyboardInterrupt:
            if not self._is_left:  # who kept this handler may call it when the loop is closed
                self._loop.call_soon_threadsafe(self._leave)
            raise

    def _leave(self) -> None:
        if not self._is_left:
            raise KeyboardInterrupt
