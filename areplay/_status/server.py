"""The status server: a running replay tells programs of the same user how it is.

A `StatusServer` listens on a socket of AF_UNIX with an abstract name,
"areplay-<uid>-<pid>-<number>": no file, gone with its process, listed in /proc/net/unix. To connect
is to ask: the server writes one JSON document and closes the connection. It reads nothing that a
client sends, and a client can change nothing. The kernel says who the client is (SO_PEERCRED): any
user but the same one and root is turned away. See docs/decisions/007.

The server has one thread, which sleeps until a client asks. So a learner that blocks its event loop
is answered for all the same, and without clients the server costs nothing. The thread never waits
for a client: one that does not read its answer within `CLIENT_S` is dropped, and there are at most
`MAX_CLIENTS` at a time.

`areplay._status.client` is the other side.
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

FORMAT = "areplay replay"
VERSION = 1
CLIENT_S = 2.0
"""How long a client may take to read its answer."""
MAX_CLIENTS = 8
"""Clients at a time. Others wait to be accepted, for `CLIENT_S` at most."""
MAX_ANSWER_BYTES = 8 << 20
"""More is no answer: a description has some 500 bytes an actor, and parsed JSON takes up to twenty
times its text."""
PIECE_BYTES = 1 << 16
REST_MS = 20
# Replays of one process, and of processes of other containers with the same pid.
_NUMBERS = 1_000
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_BACKLOG = 64
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class StatusServer:
    """Answers clients, from its making until `close`.

    Never raises: if the system refuses a socket or a thread, a warning says so.

    Args:
        answer: makes the document, in the server's thread. If it raises, the client is told that
            the replay is closed (`Closed`), or that the answer failed (anything else).
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
        """The name of the socket; empty without one."""
        return "" if self._listener is None else bytes(self._listener.getsockname()[1:]).decode()

    def close(self) -> None:
        """Stop answering, and cut off the clients that are being answered.

        Does not wait for clients. May be called twice.
        """
        listener = self._listener
        self._listener = None
        if listener is None:
            return
        self._is_closing = True
        with contextlib.suppress(OSError):
            # This wakes the thread, also if a child has inherited the descriptor.
            listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        listener.close()

    def after_fork(self) -> None:
        """Close the forked child's copies.

        The child would seem to listen under this name, and clients would see no end.
        """
        for client in self._clients.values():
            client.connection.close()
        if self._listener is not None:
            self._listener.close()
        self._listener = None
        self._clients = {}

    # What follows runs in the server's thread.

    def _run(self, listener: socket.socket) -> None:
        clients = self._clients
        poll = select.poll()
        while not self._is_closing:
            # While there is no room, no client is accepted. The listener stays registered, since it
            # tells of the end.
            poll.register(listener, select.POLLIN if len(clients) < MAX_CLIENTS else 0)
            ready = {descriptor for descriptor, _ in poll.poll(_milliseconds_left(clients))}
            for descriptor in ready & clients.keys():
                if clients[descriptor].write():
                    clients[descriptor].deadline = 0.0
            now = time.monotonic()
            for descriptor in [key for key, client in clients.items() if client.deadline <= now]:
                poll.unregister(descriptor)
                clients.pop(descriptor).connection.close()
            if self._is_closing or listener.fileno() not in ready:
                continue
            client = self._accept(listener)
            if client is not None:
                clients[client.connection.fileno()] = client
                poll.register(client.connection, select.POLLOUT)
        for client in clients.values():
            client.connection.close()

    def _accept(self, listener: socket.socket) -> _Client | None:
        """Accept the next client, with the answer for it; None if there is no such client.

        A client of another user, or that is gone already, gets no answer.
        """
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                _rest(listener)  # the client still waits to be accepted
            return None
        try:
            connection.setblocking(False)
            uid = peer_of(connection).uid
            if uid not in (os.geteuid(), 0):
                logger.debug("user %d asked how this replay is, and was turned away", uid)
                connection.close()
                _rest(listener)  # so that asking again and again does not take our time
                return None
            return _Client(connection, self._document(), time.monotonic() + CLIENT_S)
        except Exception:
            logger.exception("a client asked how this replay is, and could not be answered")
            connection.close()
        return None

    def _document(self) -> bytes:
        """The answer as JSON; or why there is no answer."""
        try:
            document = json.dumps(self._answer()).encode()
            if len(document) <= MAX_ANSWER_BYTES:
                return document
            size = f"{len(document):,} bytes, {MAX_ANSWER_BYTES:,} may be sent"
            excuse: dict[str, Any] = {"failure": f"its description has {size}"}
        except Closed:
            excuse = {"closed": True}
        except Exception as error:
            logger.exception("a client asked how this replay is, and could not be told")
            excuse = {"failure": f"{type(error).__name__}: {error}"}
        return json.dumps({"format": FORMAT, "version": VERSION, **excuse}).encode()

    def __repr__(self) -> str:
        return f"<StatusServer {self.name or 'closed'}>"


@dataclass
class _Client:
    """A client that is being answered."""

    connection: socket.socket
    rest: bytes
    deadline: float  # monotonic seconds

    def write(self) -> bool:
        """Write what the socket takes; whether the client is done with."""
        try:
            # Without a SIGPIPE, which would end the process if the user's program lets it.
            written = self.connection.send(self.rest[:PIECE_BYTES], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            return True  # it is gone
        self.rest = self.rest[written:]
        return not self.rest


def _rest(listener: socket.socket) -> None:
    """Do nothing for a moment, or until the listener is shut down."""
    poll = select.poll()
    poll.register(listener, 0)
    poll.poll(REST_MS)


def _milliseconds_left(clients: dict[int, _Client]) -> int | None:
    if not clients:
        return None
    left_s = min(client.deadline for client in clients.values()) - time.monotonic()
    return max(0, int(left_s * 1_000) + 1)


def listening_socket() -> socket.socket:
    """Listen under the first name that is free."""
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
    """The process at the other end of a socket, as the kernel says."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """The process that connected, or that listens."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return Peer(pid, uid)
