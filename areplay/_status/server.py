"""Watching: a running replay answers whoever of the same user asks how it is. Read-only, and for local eyes only.

A `Watchpost` listens on a socket of AF_UNIX with an abstract name, "areplay-<uid>-<pid>-<number>": no file, gone with
its process, listed in /proc/net/unix. To connect is to ask: the answer, one JSON document, is written and the
connection closed. Whatever a client sends is not read. The kernel says who it is (SO_PEERCRED): anybody but the same
user or root is turned away. See docs/decisions/007.

It has a thread of its own, which sleeps until somebody asks, so that a learner that blocks its event loop is answered
for all the same, and so that nobody pays for it while nobody asks. The thread never waits for a client: one that does
not read its answer within `CLIENT_S` is dropped, and there are at most `MAX_CLIENTS` at a time.

`posts` and `ask` are the other side.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areplay._base import forks
from areplay.errors import Closed, NotWatchable, ResourceUnavailable

logger = logging.getLogger(__name__)

FORMAT, VERSION = "areplay replay", 1
CLIENT_S = 2.0
"""How long a client may take to read its answer."""
MAX_CLIENTS = 8
"""At a time; others wait to be accepted, CLIENT_S at most."""
MAX_ANSWER_BYTES = 8 << 20
"""More is no answer: a description has some 500 bytes an actor, and parsed JSON takes up to twenty times its text."""

_NUMBERS = 1_000  # of replays of one process, and of other processes that are called the same in their container
_LISTENS = 1 << 16  # __SO_ACCEPTCON, in /proc/net/unix
_NAME = re.compile(r"areplay-(\d+)-(\d+)-(\d+)")
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_PIECE_BYTES = 1 << 16
_REST_MS = 20
_NUMBER_DIGITS, _LARGEST_NUMBER = 40, 2.0**63  # of JSON; no count or time of ours is larger
_TEXT_CHARACTERS = 500
_BACKLOG = 64


class Watchpost:
    """Answers, from its making until `close`. Never raises: where no socket can be had, a warning says so.

    Args:
        answer: what there is to say, called in the post's thread; raises `Closed` if it is too late for that. Who asked
            is told so, and also that it failed, if it raises anything else.
    """

    def __init__(self, answer: Callable[[], dict[str, Any]]) -> None:
        self._answer = answer
        self._listener: socket.socket | None = None
        self._clients: dict[int, _Client] = {}  # by the descriptors of their connections
        self._is_closing = False
        forks.register(self)
        try:
            self._listener = listening_socket()
            self._thread = threading.Thread(target=self._run, args=(self._listener,), name="areplay-watch", daemon=True)
            self._thread.start()
        except (OSError, RuntimeError) as error:
            if self._listener is not None:
                self._listener.close()
                self._listener = None
            logger.warning("this replay cannot be watched by `areplay top`, it runs all the same: %s", error)

    @property
    def name(self) -> str:
        """Of the socket; empty if there is none."""
        return "" if self._listener is None else bytes(self._listener.getsockname()[1:]).decode()

    def close(self) -> None:
        """Answer nobody any more; those who are being answered are cut off. Takes no time. May be called twice."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._is_closing = True
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread, also if a child has inherited the descriptor
        self._thread.join()
        listener.close()

    def after_fork(self) -> None:
        """Close the forked child's copies: it would seem to listen under this name, and clients would see no end."""
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
            # Nobody is accepted while there is no room; the listener stays registered, since it tells of the end.
            poll.register(listener, select.POLLIN if len(clients) < MAX_CLIENTS else 0)
            ready = poll.poll(_milliseconds_left(clients))
            for descriptor, _ in ready:
                if descriptor in clients and clients[descriptor].write():
                    clients[descriptor].deadline = 0.0
            now = time.monotonic()
            for descriptor in [key for key, client in clients.items() if client.deadline <= now]:
                poll.unregister(descriptor)
                clients.pop(descriptor).connection.close()
            if self._is_closing or not any(descriptor == listener.fileno() for descriptor, _ in ready):
                continue
            client = self._accept(listener)
            if client is not None:
                clients[client.connection.fileno()] = client
                poll.register(client.connection, select.POLLOUT)
        for client in clients.values():
            client.connection.close()

    def _accept(self, listener: socket.socket) -> _Client | None:
        """The next one who asks, with the answer for it; None if nobody is there after all, or it gets none."""
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
                "failure": f"its description has {len(document):,} bytes, {MAX_ANSWER_BYTES:,} may be sent"
            }
        except Closed:
            excuse = {"closed": True}
        except Exception as error:
            logger.exception("somebody asked how this replay is, and could not be told")
            excuse = {"failure": f"{type(error).__name__}: {error}"}
        return json.dumps({"format": FORMAT, "version": VERSION, **excuse}).encode()

    def __repr__(self) -> str:
        return f"<Watchpost {self.name or 'closed'}>"


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
            self.rest = self.rest[self.connection.send(self.rest[:_PIECE_BYTES], socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return False
        except OSError:
            return True  # it is gone
        return not self.rest


def _rest(listener: socket.socket) -> None:
    """Do nothing for a moment; over at once if the listener is shut down."""
    poll = select.poll()
    poll.register(listener, 0)
    poll.poll(_REST_MS)


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


# The other side.


@dataclass(frozen=True, slots=True, order=True)
class Post:
    """A replay that may be asked: of which process (as that one calls itself), and which of its replays."""

    pid: int
    number: int
    uid: int

    @property
    def name(self) -> str:
        """Of the socket."""
        return f"areplay-{self.uid}-{self.pid}-{self.number}"

    def __str__(self) -> str:
        return f"{self.pid}.{self.number}"


def posts(root: Path = Path("/")) -> list[Post]:
    """The replays that run at this moment in this network namespace, of this user; of all, for root.

    Raises:
        NotWatchable: the kernel does not tell.
    """
    try:
        lines = (root / "proc/net/unix").read_text(errors="replace").splitlines()[1:]
    except OSError as error:
        raise NotWatchable(
            "running replays",
            f"/proc/net/unix cannot be read ({error})",
            "`areplay top` has to run where /proc is mounted and may be read",
        ) from None
    found = set()
    for line in lines:
        words = line.split()
        if len(words) == 8 and words[7].startswith("@") and int(words[3], 16) & _LISTENS:
            match = _NAME.fullmatch(words[7][1:])
            if match:
                uid, pid, number = map(int, match.groups())
                found.add(Post(pid, number, uid))
    return sorted(post for post in found if os.geteuid() in (post.uid, 0))


def ask(post: Post, timeout_s: float = 5.0) -> dict[str, Any]:
    """What that replay says of itself; see docs/observing.md.

    Raises:
        Closed: it is gone.
        NotWatchable: it may not be asked, does not answer, or not to the end, could not tell, belongs to somebody else,
            or is of a version that is not understood.
        ResourceUnavailable: this process has no descriptor left to ask with, or no memory.
    """
    what = f"replay {post}"
    said = _said(post, timeout_s)
    try:
        answer = json.loads(said, parse_int=_number, parse_float=_number, parse_constant=_number)
    except (json.JSONDecodeError, UnicodeDecodeError):
        if _is_gone(post):
            raise Closed(what) from None
        reason = f"its answer broke off after {len(said):,} bytes" if said else "it hung up without an answer"
        raise NotWatchable(what, reason, "ask again; if it stays so, its log may say why") from None
    except (ValueError, RecursionError):  # numbers that are none, or lists in lists in lists
        raise _no_description(what) from None
    if not isinstance(answer, dict) or answer.get("format") != FORMAT or type(answer.get("version")) is not int:
        raise _no_description(what)
    if answer["version"] > VERSION:
        versions = answer.get("versions")
        newer = _harmless(f"areplay {versions.get('areplay') if isinstance(versions, dict) else ''}".rstrip())
        raise NotWatchable(what, f"it is of a newer version, {newer}", f"use the `areplay top` of {newer}")
    if answer.get("closed"):
        raise Closed(what)
    if "failure" in answer:
        failure = _harmless(str(answer["failure"]))
        raise NotWatchable(what, f"it could not tell how it is ({failure})", "its log has the traceback")
    return answer


def _number(text: str) -> float:
    """A number of JSON, if it is finite and no larger than any count or time of ours.

    Raises:
        ValueError: it is not.
    """
    if len(text) <= _NUMBER_DIGITS:
        number = int(text) if text.lstrip("-").isdigit() else float(text)
        if abs(number) < _LARGEST_NUMBER:
            return number
    raise ValueError(f"no number of a description: {text[:_NUMBER_DIGITS]}")


def _no_description(what: str) -> NotWatchable:
    remedy = "some other program has taken its name: ask for another replay, `areplay top` lists them"
    return NotWatchable(what, "what it says is no description of a replay", remedy)


def _harmless(text: str) -> str:
    """The beginning of a text of another process, without what could move a cursor or change a colour."""
    return "".join(char if char.isprintable() else "?" for char in text[:_TEXT_CHARACTERS])


def _said(post: Post, timeout_s: float) -> bytes:
    """All that it says until it hangs up."""
    what = f"replay {post}"
    deadline = time.monotonic() + timeout_s
    pieces: list[bytes] = []
    listener = 0  # its process, as far as the kernel tells
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            _connect(connection, post, deadline)
            peer = peer_of(connection)
            listener = peer.pid
            if peer.uid not in (os.geteuid(), post.uid if os.geteuid() == 0 else -1):
                remedy = "`areplay top` as the user that runs it, in its container"
                raise NotWatchable(what, "its name is that of another user's socket", remedy)
            left = MAX_ANSWER_BYTES
            while piece := connection.recv(_PIECE_BYTES):
                pieces.append(piece)
                left -= len(piece)
                if left < 0:
                    raise _no_description(what)
                if time.monotonic() > deadline:  # also of one that says a byte now and then
                    raise TimeoutError
                connection.settimeout(max(1e-3, deadline - time.monotonic()))
    except TimeoutError:
        raise _silent(what, timeout_s, listener) from None
    except (ConnectionResetError, BrokenPipeError):
        pass  # it hung up while it was being asked
    except ConnectionRefusedError:
        raise Closed(what) from None
    except OSError as error:
        raise _refused(what, error) from error
    return b"".join(pieces)


def _silent(what: str, timeout_s: float, listener: int) -> NotWatchable:
    """Why nothing was heard in time."""
    reason = f"no answer within {timeout_s:g} s"
    if is_stopped(listener):
        return NotWatchable(what, f"{reason}, its process is stopped", f"`kill -CONT {listener}` lets it go on")
    return NotWatchable(what, f"{reason}, its process is stopped or very busy", "look at it with ps, or ask again")


def _refused(what: str, error: OSError) -> NotWatchable | ResourceUnavailable:
    """Why it could not even be asked."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
        return ResourceUnavailable("socket", f"asking {what}", str(error))
    if error.errno in (errno.EPERM, errno.EACCES):
        remedy = "the sandbox has to allow abstract sockets of AF_UNIX, or `areplay top` has to run outside of it"
        return NotWatchable(what, f"connecting is forbidden here ({error})", remedy)
    return NotWatchable(what, f"it could not be asked ({error})", "`areplay doctor` tries what that takes")


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or by a debugger. False if that is not known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


def _is_gone(post: Post) -> bool:
    """Whether nobody listens under its name any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        return connection.connect_ex("\0" + post.name) == errno.ECONNREFUSED


def _connect(connection: socket.socket, post: Post, deadline: float) -> None:
    """Connect, once there is room among those who wait to be accepted."""
    while True:
        try:
            return connection.connect("\0" + post.name)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(_REST_MS / 1_000)
