"""Opening: what an object does around the task that opens it, and where hooks' errors go.

An object that opens by awaiting has a task for that, so that closing the object can end it. Hooks
are code of the user's, which may raise anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

from areplay._base import forks
from areplay._base.hooks import HookRaised
from areplay._processes.event_loops import leave_to_parent
from areplay.errors import Closed

T = TypeVar("T")


async def opened(
    opening: asyncio.Task[None], close: Callable[[], Awaitable[None]], what: str
) -> None:
    """Wait until the task `opening` is done; await `close` first if it fails, then raise its error.

    Cancelled: `opening` is cancelled with this task, and `close` has been awaited.

    Raises:
        Closed: another task closed `what` meanwhile, which cancels `opening`.
        WrongProcess: this process was forked meanwhile, and is the child.
        BaseException: what `opening` raised; what a hook raised in it, as `deliver` says.
    """
    leave_to_parent(asyncio.get_running_loop())
    origin = forks.current
    try:
        await opening
    except asyncio.CancelledError:
        forks.check(origin, what)
        await close()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Closed(what) from None
    except HookRaised as raised:
        await close()
        deliver(raised)
    except BaseException:
        await close()
        raise


async def ended(opening: asyncio.Task[None] | None) -> None:
    """Cancel the task `opening` if it is not done, and wait until it is. None: do nothing."""
    if opening is not None and not opening.done():
        opening.cancel()
        await asyncio.wait({opening})


def deliver(raised: HookRaised) -> NoReturn:
    """Raise what a hook raised, in the coroutine that the user awaits.

    Four exceptions would tell the user's coroutine something else than that a hook failed:
    `StopIteration`, `StopAsyncIteration`, `GeneratorExit` and `CancelledError`. They become the
    `__cause__` of a `RuntimeError`, as Python does for a generator that raises one of the first
    two.
    """
    error = raised.error
    if isinstance(
        error, (StopIteration, StopAsyncIteration, GeneratorExit, asyncio.CancelledError)
    ):
        raise RuntimeError(f"{raised.hook} raised {type(error).__name__}") from error
    context = error.__context__
    try:
        raise error
    finally:
        # As it was, and not the `HookRaised` that is being handled here.
        error.__context__ = context
        del error, raised, context


async def delivered(work: Callable[[], Awaitable[T]]) -> T:
    """Await what `work` returns; raise what a hook raises meanwhile as `deliver` does."""
    try:
        return await work()
    except HookRaised as raised:
        deliver(raised)
