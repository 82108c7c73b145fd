"""Spawned processes: aiomultiprocess and multiprocessing, and how their traps are avoided.

aiomultiprocess (spawn, uvloop) is a launcher here and nothing else, and no other module imports it:

- Its constructor would start a hidden manager process, which outlives a killed parent. A plain
  namespace is put in the place of that manager.
- Its `join` polls. The kernel tells of a death by a pidfd instead.
- multiprocessing waits for its children by their numbers, at each start of another one and at exit.
  It would take exit codes that are areplay's, or those of another process that has got the number
  since. So it forgets each child as soon as that is started.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from multiprocessing import process as multiprocessing_process
from multiprocessing import resource_tracker
from types import SimpleNamespace
from typing import Any

import aiomultiprocess
import aiomultiprocess.core
import uvloop

from areplay._processes.launcher import Launcher

_UNKNOWN_CODE = 255  # what multiprocessing's forkserver says of such a child


class _WithoutManager:
    """Takes the place of the manager of aiomultiprocess, whose namespace areplay does not use."""

    Namespace = SimpleNamespace


class SpawnedProcess:
    """A process that runs `target(*args)` on a uvloop of its own."""

    def __init__(
        self, name: str, target: Callable[..., Awaitable[None]], args: tuple[Any, ...]
    ) -> None:
        get_manager = aiomultiprocess.core.get_manager
        # For this one call: other code of the program may want its manager.
        aiomultiprocess.core.get_manager = _WithoutManager
        try:
            self._process = aiomultiprocess.Process(
                target=target,
                name=name,
                args=args,
                loop_initializer=uvloop.new_event_loop,
                daemon=True,
            )
        finally:
            aiomultiprocess.core.get_manager = get_manager
        # Instead of the class's own, which may wait for the child.
        self._process.aio_process._Popen = Launcher

    def start(self) -> Launcher:
        """Start the process. In a thread: it takes about 2 ms.

        Raises:
            OSError: the system refused. There is no process.
            BaseException: what pickling the arguments raised. There is no process.
        """
        # Ctrl-C goes to the whole process group, and a child cannot ignore it before its
        # interpreter runs. So the child is born with the signal blocked, and unblocks it once it is
        # ignored there. (The resource tracker unblocks it here.)
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.forget()
        launcher: Launcher = self._process.aio_process._popen
        return launcher

    def forget(self) -> None:
        """Let multiprocessing neither wait for the process nor terminate it at exit."""
        multiprocessing_process._children.discard(self._process.aio_process)  # type: ignore[attr-defined]

    @property
    def code(self) -> int | None:
        """The exit code that multiprocessing knows, None if it knows none."""
        launcher = self._process.aio_process._popen
        return None if launcher is None else launcher.returncode

    def cut_lifeline(self) -> None:
        """Close the pipe that ties the process to this one, upon which the kernel kills it."""
        launcher = self._process.aio_process._popen
        if launcher is not None:
            launcher.cut_lifeline()

    def close(self, code: int | None) -> None:
        """Close the pidfd and the pipe. Does nothing if the process was never started.

        Args:
            code: its exit code, None if it is unknown.
        """
        launcher = self._process.aio_process._popen
        if launcher is not None:
            launcher.returncode = _UNKNOWN_CODE if code is None else code
            self._process.close()
