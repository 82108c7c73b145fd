"""Watching: a running replay answers whoever of the same user asks how it is. Read-only, and for
local eyes only.

A `StatusServer` listens on a socket of AF_UNIX with an abstract name,
"areplay-<uid>-<pid>-<number>": no file, gone with its process, listed in /proc/net/unix. To connect
is to ask: the answer, one JSON document, is written and the connection closed. Whatever a client
sends is not read. The kernel says who it is (SO_PEERCRED): anybody but the same user or root is
turned away. See docs/decisions/007.

It has a thread of its own, which sleeps until somebody asks, so that a learner that blocks its
event loop is answered for all the same, and so that nobody pays for it while nobody asks. The
thread never waits for a client: one that does not read its answer within `CLIENT_S` is dropped, and
there are at most `MAX_CLIENTS` at a time.

`posts` and `ask` are the other side.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from areplay._base import forks
from areplay.errors import Closed

logger = logging.getLogger(__name__)


FORMAT, VERSION = "areplay replay", 1


CLIENT_S = 2.0
"""How long a client may take to read its answer."""


MAX_CLIENTS = 8
"""At a time; others wait to be accepted, CLIENT_S at most."""


MAX_ANSWER_BYTES = 8 << 20
"""More is no answer: a description has some 500 bytes an actor, and parsed JSON takes up to twenty
times its text."""


# of replays of one process, and of other processes that are called the same in their container
_NUMBERS = 1_000


_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


PIECE_BYTES = 1 << 16


REST_MS = 20


_BACKLOG = 64


class StatusServer:
    """Answers, from its making until `close`. Never raises: where no socket can be had, a warning
    says so.

    Args:
        answer: what there is to say, called in the post's thread; raises `Closed` if it is too late
            for that. Who asked is told so, and also that it failed, if it raises anything else.
    """

    def __init__(self, answer: Callable[[], dict[str, Any]]) -> None:
        self._answer = answer
        self._listener: socket.socket | None = None
        self._clients: dict[int, _Client] = {}  # by the descriptors of their connections
        self._is_closing = False
        forks.register(self)
        try:
            self._listener = listening_socket()
            self._thread = threading.Thread(
                target=self._run, args=(self._listener,), name="areplay-watch", daemon=True
            )
            self._thread.start()
        except (OSError, RuntimeError) as error:
            if self._listener is not None:
                self._listener.close()
                self._listener = None
            logger.warning(
                "this replay cannot be watched by `areplay top`, it runs all the same: %s", error
            )

    @property
    def name(self) -> str:
        """Of the socket; empty if there is none."""
        return "" if self._listener is None else bytes(self._listener.getsockname()[1:]).decode()

    def close(self) -> None:
        """Answer nobody any more; those who are being answered are cut off. Takes no time. May be
        called twice."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._is_closing = True
        with contextlib.suppress(OSError):
            # which wakes the thread, also if a child has inherited the descriptor
            listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        listener.close()

    def after_fork(self) -> None:
        """Close the forked child's copies: it would seem to listen under this name, and clients
        would see no end."""
        for client in self._clients.values():
            client.connection.close()
        if self._listener is not None:
            self._listener.close()
        self._listener, self._clients = None, {}

    # What follows runs in the post's thread.

    def _run(self, listener: socket.socket) -> None:
        clients = self._clients
        poll = select.poll()
        while not self._is_closing:
            # Nobody is accepted while there is no room; the listener stays registered, since it
            # tells of the end.
            poll.register(listener, select.POLLIN if len(clients) < MAX_CLIENTS else 0)
            ready = poll.poll(_milliseconds_left(clients))
            for descriptor, _ in ready:
                if descriptor in clients and clients[descriptor].write():
                    clients[descriptor].deadline = 0.0
            now = time.monotonic()
            for descriptor in [key for key, client in clients.items() if client.deadline <= now]:
                poll.unregister(descriptor)
                clients.pop(descriptor).connection.close()
            if self._is_closing or not any(
                descriptor == listener.fileno() for descriptor, _ in ready
            ):
                continue
            client = self._accept(listener)
            if client is not None:
                clients[client.connection.fileno()] = client
                poll.register(client.connection, select.POLLOUT)
        for client in clients.values():
            client.connection.close()

    def _accept(self, listener: socket.socket) -> _Client | None:
        """The next one who asks, with the answer for it; None if nobody is there after all, or it
        gets none."""
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                _rest(listener)  # whoever it was still waits to be accepted
            return None
        try:
            connection.setblocking(False)
            uid = peer_of(connection).uid
            if uid not in (os.geteuid(), 0):
                logger.debug("user %d asked how this replay is, and was turned away", uid)
                connection.close()
                _rest(listener)  # so that nobody can take our time by asking again and again
                return None
            return _Client(connection, self._document(), time.monotonic() + CLIENT_S)
        except Exception:
            logger.exception("somebody asked how this replay is, and could not be answered")
            connection.close()
        return None

    def _document(self) -> bytes:
        """The answer; or that there is none, and why."""
        try:
            document = json.dumps(self._answer()).encode()
            if len(document) <= MAX_ANSWER_BYTES:
                return document
            excuse: dict[str, Any] = {
                "failure": f"its description has {len(document):,} bytes, {MAX_ANSWER_BYTES:,} may "
                "be sent"
            }
        except Closed:
            excuse = {"closed": True}
        except Exception as error:
            logger.exception("somebody asked how this replay is, and could not be told")
            excuse = {"failure": f"{type(error).__name__}: {error}"}
        return json.dumps({"format": FORMAT, "version": VERSION, **excuse}).encode()

    def __repr__(self) -> str:
        return f"<StatusServer {self.name or 'closed'}>"


@dataclass
class _Client:
    """Somebody who is being answered."""

    connection: socket.socket
    rest: bytes
    deadline: float  # monotonic seconds

    def write(self) -> bool:
        """Write what goes; whether it is done with."""
        try:
            # Without a SIGPIPE, which would end us if the user's program lets it.
            self.rest = self.rest[
                self.connection.send(self.rest[:PIECE_BYTES], socket.MSG_NOSIGNAL) :
            ]
        except BlockingIOError:
            return False
        except OSError:
            return True  # it is gone
        return not self.rest


def _rest(listener: socket.socket) -> None:
    """Do nothing for a moment; over at once if the listener is shut down."""
    poll = select.poll()
    poll.register(listener, 0)
    poll.poll(REST_MS)


def _milliseconds_left(clients: dict[int, _Client]) -> int | None:
    if not clients:
        return None
    left_s = min(client.deadline for client in clients.values()) - time.monotonic()
    return max(0, int(left_s * 1_000) + 1)


def listening_socket() -> socket.socket:
    """A socket under the first name that is free."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        for number in range(_NUMBERS):
            try:
                listener.bind(f"\0areplay-{os.geteuid()}-{os.getpid()}-{number}")
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or number == _NUMBERS - 1:
                    raise
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a socket, as the kernel says."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """The process that connected, or that listens."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return Peer(pid, uid)
