"""A program around replays: its main coroutine on uvloop, and what signals do to it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run a program's main coroutine on uvloop, as `asyncio.run` does; SIGTERM ends it as orderly as Ctrl-C.

    One Ctrl-C cancels `main`, so that replays close in order, and `KeyboardInterrupt` is raised; a second one
    interrupts at once. SIGTERM cancels likewise, and `SystemExit(143)` is raised.
    """
    terminated = False

    async def with_sigterm() -> T:
        task = asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        return await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop, debug=debug) as runner:
        try:
            return runner.run(with_sigterm())
        except asyncio.CancelledError:
            if terminated:
                raise SystemExit(128 + signal.SIGTERM) from None
            raise
