"""Closing in order: what an object does that can still wait for its event loop.

What cannot wait is let go by the reaper: see `areplay._processes.dropped`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import ParamSpec

P = ParamSpec("P")


class InOrder(contextlib.AsyncExitStack):
    """Closes in order. If its task is destroyed with its loop, the reaper does the rest."""

    def push_async_callback(  # type: ignore[override]
        self, callback: Callable[P, Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """As of `AsyncExitStack`."""

        async def call() -> None:
            try:
                await callback(*args, **kwargs)
            except GeneratorExit:
                self.pop_all()
                raise

        super().push_async_callback(call)


class Once:
    """A step for the reaper that closing in order takes as well, whichever comes first."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step: Callable[[], object] | None = step

    def __call__(self) -> None:
        """Take the step, unless it was taken before."""
        step = self._step
        self._step = None
        if step is not None:
            step()


def can_wait(kind: type[BaseException] | None = None) -> bool:
    """Whether a coroutine may wait at this moment. Call it in the coroutine itself.

    It may not where no loop runs, nor where it is being destroyed: its task was dropped, with its
    loop closed or not. Then Python raises GeneratorExit in it and complains if it waits. An
    asynchronous generator may: it is closed by a task, which waits with it.

    Args:
        kind: of the exception that leaves the context.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    if kind is None or not issubclass(kind, GeneratorExit):
        return True
    # Up from our caller, past the coroutines that wait for it, to what raised the exception.
    frame = sys._getframe(1).f_back
    while frame is not None and frame.f_code.co_flags & inspect.CO_COROUTINE:
        frame = frame.f_back
    return frame is not None and bool(frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR)
