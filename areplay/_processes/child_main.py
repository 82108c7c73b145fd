"""What runs in a child process: its body, between READY and a last word.

The last word is FAILED with a traceback, or RETURNED and then FINISHED. The exit code of the
process says the same, if the kernel keeps it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, cast

from areplay._base import forks
from areplay._base.failpoints import disarm
from areplay._processes.channel import (
    FAILED,
    FINISHED,
    MAX_MESSAGE_BYTES,
    NOTICE,
    RETURNED,
    Channel,
)
from areplay._processes.event_loops import leave_to_parent
from areplay._processes.launcher import tie_to_parent

Body = Callable[..., Awaitable[None]]
"""An importable coroutine function, which the child calls as `body(channel, *args)`."""


async def main(end: socket.socket, body: Body, args: tuple[Any, ...], run: int) -> None:
    """Run `body`, and tell the parent how it ended.

    Args:
        end: the child's end of the channel.
        run: 0 for the first child in its place. A successor passes every failpoint.

    Raises:
        SystemExit: the body raised; with the exit code of this process.
    """
    # The parent logs a failure, with the traceback.
    logging.getLogger("aiomultiprocess.core").disabled = True
    # A daemonic process may have no children of its own, such as environments.
    multiprocessing.current_process().daemon = False
    if run > 0:
        disarm()
    channel = Channel(end)
    if notice := tie_to_parent():
        channel.send(NOTICE, notice)
    loop = asyncio.get_running_loop()
    leave_to_parent(loop)
    origin = forks.current
    termination = _Termination(loop)
    try:
        await body(channel, *args)
    except BaseException as error:
        # A process that the body has forked ends as its own code says.
        if origin is not forks.current:
            raise
        text = "".join(traceback.format_exception(error))
        if termination.was_asked_for:
            text = "SIGTERM ended it"
        with contextlib.suppress(Exception):
            await _end_loop(loop)
        code = _exit_code(error, termination)
        channel.send(FAILED, (text[-MAX_MESSAGE_BYTES // 2 :], code))
        raise SystemExit(code) from None
    else:
        if origin is forks.current:
            channel.send(RETURNED)
            # Tasks that are left may still hand in rows, or end the process by SystemExit.
            await _end_loop(loop)
            channel.send(FINISHED)
    finally:
        _flush(channel)


class _Termination:
    """SIGTERM, which cancels the task that runs the body.

    Attributes:
        was_asked_for: whether a SIGTERM has come.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.was_asked_for = False
        self._task = cast("asyncio.Task[None]", asyncio.current_task())
        self._handlers = forks.Handlers()
        with self._handlers.replacing(signal.SIGTERM):
            loop.add_signal_handler(signal.SIGTERM, self._cancel_body)

    def _cancel_body(self) -> None:
        self.was_asked_for = True
        self._task.cancel()


def _exit_code(error: BaseException, termination: _Termination) -> int:
    if termination.was_asked_for:
        return 128 + signal.SIGTERM
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 1


async def _end_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel the tasks that the user's code left running, and wait for their end."""
    left = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await loop.shutdown_asyncgens()


def _flush(channel: Channel) -> None:
    """Write out what was printed, or drop it with a notice where that is impossible.

    Otherwise Python would fail at its end.
    """
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        try:
            stream.flush()
        except (AttributeError, ValueError):  # None, or closed
            pass
        except Exception as error:
            channel.send(NOTICE, f"what it printed last to {name} is lost: {error!r}")
            with contextlib.suppress(Exception):
                _discard(stream.fileno())


def _discard(descriptor: int) -> None:
    """Let a standard stream write to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    if null != descriptor:  # the same if the descriptor was closed
        os.dup2(null, descriptor)
        os.close(null)
