"""Child processes: starting one, knowing that it runs, hearing from it, and seeing it end.

The life of a child:

    start() ---> STARTING ---READY---> RUNNING ---> EXITED (reaped, `exit` is set)
                    |  no READY within start_timeout_s: killed  ^
                    +-------------------------------------------+

The pidfd alone decides that a child is gone. Its exit code may be unknown: the kernel keeps none if
SIGCHLD is ignored, and other code in this process may collect it first with `os.waitpid(-1)`. So
the child also says through its channel how its body ended.

Starting a child takes 2 ms of pickling and of waiting until the kernel has given the child memory
of its own. So a thread does it, while the learner is at a training step, and not the learner's loop
between two of them (docs/decisions/008). The death signal follows the thread that started the
child, so that thread must live until its last child is reaped.

How a child is started is in `areplay._processes.starting`, `spawned` and `launcher`, what it runs
in `child_main`.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from areplay._base import forks
from areplay._processes.channel import FAILED, FINISHED, NOTICE, READY, RETURNED
from areplay._processes.child_main import Body, main
from areplay._processes.completion import run_to_completion
from areplay._processes.exits import Exit, guess, reaped
from areplay._processes.remains import Remains
from areplay._processes.spawned import SpawnedProcess
from areplay._processes.starting import Launch
from areplay.errors import ResourceUnavailable

logger = logging.getLogger(__name__)

_REAP_AGAIN_S = 0.05  # a debugger that is attached to a child gets its exit code first
_MAX_REAPS = 40
_RECEIVE_BYTES = 1 << 20


class Child:
    """One child process, from its start to its end. Use it on one event loop.

    Args:
        name: what messages call it, such as "actor 3".
        body: importable coroutine function, called in the child as `body(channel, *args)`.
        run: 0 for the first child in its place, 1 for its first successor, and so on.
        on_report: called with each payload that the child reports.
        starter: the thread that starts it, see `starter`.

    Attributes:
        exit: how it ended; None while it is there.
        is_ready: whether it has said READY.
        has_returned: whether its body returned; tasks that the body left may still run.
        has_finished: whether these tasks have ended too, or its process has.
    """

    def __init__(
        self,
        name: str,
        body: Body,
        args: tuple[Any, ...],
        run: int,
        on_report: Callable[[Any], None],
        starter: Executor,
    ) -> None:
        self.name = name
        self.pid = 0
        self.exit: Exit | None = None
        self.is_ready = False
        self.has_returned = False
        self.has_finished = False
        self.remains = Remains()
        self._body = body
        self._args = args
        self._run = run
        self._on_report = on_report
        self._starter = starter
        self._changed = asyncio.Event()
        self._details = ""
        self._last_code: int | None = None  # the exit code that its last word announced
        self._over_at = 0.0  # monotonic seconds, when it said its last word
        self._reaps = 0
        self._pidfd = -1
        self._socket: socket.socket | None = None
        self._childs_end: socket.socket | None = None  # until the process has it
        self._process: SpawnedProcess | None = None
        self._launch: Launch | None = None
        self._origin = forks.current
        self._loop: asyncio.AbstractEventLoop | None = None
        # Descriptors that the loop watches, by number: the reaper may have closed them.
        self._watched: list[int] = []
        self._is_given_up = False
        forks.register(self)

    def after_fork(self) -> None:
        """Close the forked child's copies, and have multiprocessing there forget the process.

        At the end of a process multiprocessing terminates the daemonic children that it knows of.
        """
        for end in (self._socket, self._childs_end):
            if end is not None:
                end.close()
        self._socket = None
        self._childs_end = None
        self._pidfd = forks.close(self._pidfd)
        if self._process is not None:
            self._process.forget()

    # Starting.

    async def start(self, timeout_s: float) -> bool:
        """Start the process; True once it has said READY.

        False if it ended before that, was called off, or was killed since it said nothing for
        `timeout_s`. Before that, pickling its arguments may take as long.

        Cancelled: the process goes on starting; `kill` it.

        Raises:
            ResourceUnavailable: the system refused a descriptor or a process. Nothing is left.
            Exception: what pickling the arguments raised. Nothing is left.
        """
        forks.check(self._origin, self.name)
        if not await self._start_process(timeout_s):
            said = f"its arguments were not pickled within start_timeout_s = {timeout_s:g} s"
            self.exit = Exit(0, 1, False, said)
            self._changed.set()
            return False
        self._watch()
        logger.info("%s started, pid %d", self.name, self.pid)
        try:
            async with asyncio.timeout(timeout_s):
                while not self.is_ready and self.exit is None and not self.is_over:
                    await self._wait_change()
        except TimeoutError:
            self._details = f"it did not say READY within start_timeout_s = {timeout_s:g} s"
            self.kill()
            await self.wait_exit()
        return self.is_ready  # even if it has ended meanwhile: it has begun

    def call_off(self) -> None:
        """Do without the process, if it is not started yet. `start` returns soon."""
        if self._launch is not None:
            self._launch.call_off()

    async def _start_process(self, timeout_s: float) -> bool:
        """Start the process; `False` if that took longer, or was called off, and is undone."""
        launch: Launch | None = None
        try:
            launch = self._begin_launch()
            await run_to_completion(launch.wait(timeout_s))
        except asyncio.CancelledError:
            if self._origin is forks.current and launch is not None and not launch.is_undone:
                self._take(launch)
                self._watch()
            raise
        except GeneratorExit:  # this task is destroyed with its loop; see `Remains`
            raise
        # The system's refusal, or arguments that do not pickle: there is no process.
        except BaseException as error:
            # Or this is a forked child, which has no process either.
            if self._origin is not forks.current:
                raise
            self._release(None)
            if isinstance(error, OSError):
                raise ResourceUnavailable("starting a process", self.name, str(error)) from error
            raise
        self._take(launch)
        return not launch.is_undone

    def _begin_launch(self) -> Launch:
        process, childs_end = self._prepare()
        try:
            launch = Launch(process, childs_end, self.remains, self._starter)
        except RuntimeError as error:
            raise ResourceUnavailable("starting a thread", self.name, str(error)) from error
        self._launch = launch
        return launch

    def _take(self, launch: Launch) -> None:
        if launch.launcher is not None:
            self.pid = launch.launcher.pid
            self._pidfd = launch.launcher.sentinel

    def _prepare(self) -> tuple[SpawnedProcess, socket.socket]:
        """Make the process before its start, and the child's end of its channel."""
        parents_end, childs_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = parents_end
        self._childs_end = childs_end
        parents_end.setblocking(False)
        args = (childs_end, self._body, self._args, self._run)
        process = SpawnedProcess(f"areplay {self.name}", main, args)
        self._process = process
        self.remains.socket = parents_end
        self.remains.process = process
        return process, childs_end

    # Waiting.

    async def wait_over(self) -> None:
        """Wait until its body has returned or raised, or its process is gone.

        Cancelled: nothing changed.
        """
        while self.exit is None and not self.is_over:
            await self._wait_change()

    async def wait_exit(self) -> Exit:
        """Wait until its process is gone; return how it ended. Cancelled: nothing changed."""
        while self.exit is None:
            await self._wait_change()
        return self.exit

    async def wait_exit_or_kill(self, grace_s: float) -> Exit:
        """`wait_exit`, and kill it after `grace_s`. Cancelled: nothing changed."""
        try:
            async with asyncio.timeout(grace_s):
                return await self.wait_exit()
        except TimeoutError:
            logger.info("%s (pid %d) is done but has not ended: SIGKILL", self.name, self.pid)
            self.kill()
            return await self.wait_exit()

    async def _wait_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    @property
    def is_over(self) -> bool:
        """Whether its body has returned or raised; its interpreter may need longer to end."""
        return self._last_code is not None

    @property
    def over_s(self) -> float:
        """For how many seconds its body has been over."""
        return time.monotonic() - self._over_at if self.is_over else 0.0

    # Ending.

    def kill(self) -> None:
        """Send SIGKILL, if the process is still there."""
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process is still there.

        Where this process may not, since one of the two has changed its user, a SIGKILL closes the
        child's lifeline instead: then the kernel kills the child.
        """
        loop_is_closed = self._loop is not None and self._loop.is_closed()
        is_left_to_reaper = self._is_given_up or loop_is_closed
        if self.exit is not None or self._pidfd < 0 or is_left_to_reaper:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            logger.warning(
                "%s (pid %d) cannot be sent %s: %s", self.name, self.pid, number.name, error
            )
            if number == signal.SIGKILL and self._process is not None:
                self._process.cut_lifeline()

    def give_up(self) -> None:
        """Let the loop hear of it no more, for good; `remains` is left.

        Call it on that loop, or when the loop is closed or garbage.
        """
        self._is_given_up = True
        loop = self._loop
        self._loop = None
        if loop is None or loop.is_closed():
            return
        for descriptor in self._watched:
            loop.remove_reader(descriptor)

    # What follows is called by the loop.

    def _watch(self) -> None:
        """Let the loop hear what the child says, and see its end."""
        if self._is_given_up or self._socket is None:
            return
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._watched = [self._socket.fileno()]
        loop.add_reader(self._socket.fileno(), self._on_message)
        if self._pidfd >= 0:
            self._watched.append(self._pidfd)
            loop.add_reader(self._pidfd, self._on_exit)
        else:
            loop.call_soon(self._on_exit)

    def _on_message(self) -> None:
        end = self._socket
        if end is None:
            return
        while True:
            try:
                message = end.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:  # the child's end is closed
                asyncio.get_running_loop().remove_reader(end.fileno())
                return
            self._receive(message)

    def _receive(self, message: bytes) -> None:
        kind, payload = pickle.loads(message)
        if kind == READY:
            self.is_ready = True
        elif kind == FAILED:
            details, code = payload
            self._details = details
            self._hear_last_word(code)
        elif kind == RETURNED:
            self.has_returned = True
        elif kind == FINISHED:
            self.has_finished = True
            self._hear_last_word(0)
        elif kind == NOTICE:
            logger.info("%s (pid %d): %s", self.name, self.pid, payload)
        else:
            self._on_report(payload)
        self._changed.set()

    def _hear_last_word(self, code: int) -> None:
        self._last_code = code
        self._over_at = time.monotonic()

    def _on_exit(self) -> None:
        if self.exit is not None:
            return
        has_ended, code = self._reap()
        if not has_ended and self._reaps < _MAX_REAPS:
            self._reaps += 1
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._pidfd)  # it stays readable
            loop.call_later(_REAP_AGAIN_S, self._on_exit)
            return
        # What the child said last: the loop may see its end and its death in either order.
        self._on_message()
        self._release(code)
        self.has_finished = self.has_finished or self.has_returned
        # A child that was cut short after its last word ended as it had said.
        if code is None or (code == -signal.SIGKILL and self._last_code is not None):
            code = self._last_code
        details = self._details or guess(code, self.is_ready, self.has_finished)
        self.exit = Exit(self.pid, code, self.has_finished, details)
        said = "an unknown code" if code is None else code
        logger.info("%s (pid %d) ended with %s", self.name, self.pid, said)
        self._changed.set()

    def _reap(self) -> tuple[bool, int | None]:
        """Whether the process is gone, and its exit code, None if that is unknown."""
        if self._pidfd < 0 or self._process is None:
            return True, None
        try:
            return reaped(self.pid, self._pidfd)
        # The code is lost, unless multiprocessing has just been asked for its children.
        except ChildProcessError:
            return True, self._process.code

    def _release(self, code: int | None) -> None:
        """Close what this process has of the child."""
        loop = self._loop
        self._loop = None
        self.remains.pidfd = -1
        if self._pidfd >= 0:
            if loop is not None:
                loop.remove_reader(self._pidfd)
            self._pidfd = -1
        if self._socket is not None:
            if loop is not None:
                loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.close(code)
        self.remains.is_gone = True

    def __repr__(self) -> str:
        state = "running" if self.is_ready else "starting"
        return f"<Child {self.name}, pid {self.pid}, {self.exit or state}>"
