"""Remains: what the kernel holds for a child, apart from the tasks that wait for it.

An object that is dropped lets its children go by these, without its event loop: see
`areplay._processes.dropped`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket

from areplay._processes.spawned import SpawnedProcess


class Remains:
    """What the kernel holds for one child.

    Attributes:
        is_launching: whether the starter's thread is starting the process.
        is_reaped: whether the process is gone.
        is_gone: whether nothing is left.
        pidfd: of the process, -1 without one.
        socket: the parent's end of the channel.
        process: the process, before and after its start.
    """

    def __init__(self) -> None:
        self.is_launching = False
        self.is_reaped = False
        self.is_gone = False
        self.pidfd = -1
        self.socket: socket.socket | None = None
        self.process: SpawnedProcess | None = None

    def end(self) -> bool:
        """Kill the process and reap it; whether that is done. Call it again until it is.

        In any thread; never waits. The descriptors stay open, so the loop may still watch them.
        """
        if self.is_launching:
            return False
        if self.pidfd < 0 or self.is_reaped:
            return True
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:
            if self.process is not None:
                self.process.cut_lifeline()
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(0):
            return False
        with contextlib.suppress(OSError):  # ECHILD: other code has reaped it
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        self.is_reaped = True
        return True

    def let_go(self) -> bool:
        """`end` the process, then close its descriptors; whether that is done.

        Call it again until it is. In any thread, after `Child.give_up`, or when there is no `Child`
        any more.
        """
        if not self.end():
            return False
        self.pidfd = -1
        if not self.is_gone:
            self.is_gone = True
            if self.socket is not None:
                self.socket.close()
            if self.process is not None:
                self.process.close(None)
            # The process has its arguments, with all their memory. Others may keep this for long:
            # a stopped loop of libuv's keeps its tasks, and their callbacks know what remains.
            self.process = None
        return True
