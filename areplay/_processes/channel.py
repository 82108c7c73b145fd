"""The channel from a child to its parent: one socket, which keeps messages whole (SOCK_SEQPACKET).

A message is a pickled pair of a kind and a payload:

    kind       payload             meaning
    READY      None                the child's body runs
    REPORT     any, below 64 KiB   values of the user's code
    NOTICE     text                something for the log
    FAILED     (text, exit code)   the body raised, with the traceback
    RETURNED   None                the body returned; tasks that it left may still run
    FINISHED   None                these tasks have ended, too

Nothing comes the other way. The parent's end is in `areplay._processes.child`.
"""

from __future__ import annotations

import contextlib
import pickle
import socket

from areplay._base import forks

READY = "ready"
REPORT = "report"
NOTICE = "notice"
FAILED = "failed"
RETURNED = "returned"
FINISHED = "finished"
MAX_MESSAGE_BYTES = 64 << 10
"""Well below what the buffer of a socket takes as one message."""


class Channel:
    """The child's end of its socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        forks.register(self)

    def after_fork(self) -> None:
        """Close the forked child's copy.

        It would keep the socket open after this process has ended.
        """
        self._end.close()

    def send(self, kind: str, payload: object = None) -> None:
        """Send a message, and wait while the buffer is full.

        Does nothing if the parent is gone: then this process will end soon, too.
        """
        with contextlib.suppress(OSError):
            self._end.setblocking(True)
            self._end.send(pickle.dumps((kind, payload)))

    def send_nowait(self, kind: str, payload: object) -> bool:
        """Send a message if the buffer has room for it; False if the message was dropped.

        Raises:
            ValueError: the message is larger than `MAX_MESSAGE_BYTES`.
        """
        message = pickle.dumps((kind, payload))
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(
                f"a report may have {MAX_MESSAGE_BYTES:,} bytes, this one has {len(message):,}"
            )
        try:
            self._end.setblocking(False)
            self._end.send(message)
        except OSError:
            return False
        return True
