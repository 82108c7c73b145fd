"""The client of a replay's status: finds the replays of this host, and asks one of them.

Another program may listen under a replay's name. So what comes from there is bounded in size and
time, and checked before it is used.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areplay._base.process_state import is_stopped
from areplay._status.server import FORMAT, MAX_ANSWER_BYTES, PIECE_BYTES, REST_MS, VERSION, peer_of
from areplay.errors import Closed, ResourceUnavailable, StatusUnavailable

_LISTENS = 1 << 16  # __SO_ACCEPTCON, in /proc/net/unix
_NAME = re.compile(r"areplay-(\d+)-(\d+)-(\d+)")
# Of a number in JSON: no count or time of areplay's is larger.
_NUMBER_DIGITS = 40
_LARGEST_NUMBER = 2.0**63
_TEXT_CHARACTERS = 500
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


@dataclass(frozen=True, slots=True, order=True)
class ReplayAddress:
    """A replay that may be asked: its process, by that one's own pid, and which of its replays."""

    pid: int
    number: int
    uid: int

    @property
    def name(self) -> str:
        """The name of its socket."""
        return f"areplay-{self.uid}-{self.pid}-{self.number}"

    def __str__(self) -> str:
        return f"{self.pid}.{self.number}"


def running_replays(root: Path = Path("/")) -> list[ReplayAddress]:
    """List the replays of this user that run in this network namespace; of all users, for root.

    Raises:
        StatusUnavailable: the kernel does not tell.
    """
    try:
        lines = (root / "proc/net/unix").read_text(errors="replace").splitlines()[1:]
    except OSError as error:
        raise StatusUnavailable(
            "running replays",
            f"/proc/net/unix cannot be read ({error})",
            "`areplay top` has to run where /proc is mounted and may be read",
        ) from None
    found = {address for line in lines if (address := _listed(line)) is not None}
    return sorted(address for address in found if os.geteuid() in (address.uid, 0))


def _listed(line: str) -> ReplayAddress | None:
    """The replay that listens on the socket of a line of /proc/net/unix."""
    words = line.split()
    if len(words) != 8 or not words[7].startswith("@"):
        return None
    match = _NAME.fullmatch(words[7][1:])
    if match is None or not int(words[3], 16) & _LISTENS:
        return None
    uid, pid, number = (int(group) for group in match.groups())
    return ReplayAddress(pid, number, uid)


def fetch_report(address: ReplayAddress, timeout_s: float = 5.0) -> dict[str, Any]:
    """Ask a replay for its description; see docs/observing.md.

    Raises:
        Closed: it is gone.
        StatusUnavailable: it may not be asked, belongs to another user, does not answer in time or
            to the end, could not tell, or is of a version that is not understood.
        ResourceUnavailable: this process has no descriptor left to ask with, or no memory.
    """
    what = f"replay {address}"
    said = _said(address, timeout_s)
    try:
        answer = json.loads(said, parse_int=_number, parse_float=_number, parse_constant=_number)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise _broken_off(address, len(said)) from None
    except (ValueError, RecursionError):  # what is no number, or lists in lists in lists
        raise _no_description(what) from None
    if not isinstance(answer, dict) or answer.get("format") != FORMAT:
        raise _no_description(what)
    if type(answer.get("version")) is not int:
        raise _no_description(what)
    if answer["version"] > VERSION:
        raise _newer(what, answer.get("versions"))
    if answer.get("closed"):
        raise Closed(what)
    if "failure" in answer:
        failure = _harmless(str(answer["failure"]))
        reason = f"it could not tell how it is ({failure})"
        raise StatusUnavailable(what, reason, "its log has the traceback")
    return answer


def _broken_off(address: ReplayAddress, count_bytes: int) -> Closed | StatusUnavailable:
    """Why an answer is no whole document."""
    what = f"replay {address}"
    if _is_gone(address):
        return Closed(what)
    reason = "it hung up without an answer"
    if count_bytes:
        reason = f"its answer broke off after {count_bytes:,} bytes"
    return StatusUnavailable(what, reason, "ask again; if it stays so, its log may say why")


def _newer(what: str, versions: object) -> StatusUnavailable:
    version = versions.get("areplay") if isinstance(versions, dict) else ""
    newer = _harmless(f"areplay {version}".rstrip())
    reason = f"it is of a newer version, {newer}"
    return StatusUnavailable(what, reason, f"use the `areplay top` of {newer}")


def _number(text: str) -> float:
    """Read a number of JSON.

    Raises:
        ValueError: it is not finite, or larger than any count or time of areplay's.
    """
    if len(text) <= _NUMBER_DIGITS:
        number = int(text) if text.lstrip("-").isdigit() else float(text)
        if abs(number) < _LARGEST_NUMBER:
            return number
    raise ValueError(f"no number of a description: {text[:_NUMBER_DIGITS]}")


def _no_description(what: str) -> StatusUnavailable:
    remedy = (
        "some other program has taken its name: ask for another replay, `areplay top` lists them"
    )
    return StatusUnavailable(what, "what it says is no description of a replay", remedy)


def _harmless(text: str) -> str:
    """The beginning of a text, without what could move a cursor or change a colour."""
    return "".join(char if char.isprintable() else "?" for char in text[:_TEXT_CHARACTERS])


def _said(address: ReplayAddress, timeout_s: float) -> bytes:
    """All bytes that it writes until it hangs up."""
    what = f"replay {address}"
    deadline = time.monotonic() + timeout_s
    pieces: list[bytes] = []
    listener = 0  # its process, as far as the kernel tells
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            _connect(connection, address, deadline)
            peer = peer_of(connection)
            listener = peer.pid
            if peer.uid not in (os.geteuid(), address.uid if os.geteuid() == 0 else -1):
                remedy = "`areplay top` as the user that runs it, in its container"
                raise StatusUnavailable(what, "its name is that of another user's socket", remedy)
            left = MAX_ANSWER_BYTES
            while piece := connection.recv(PIECE_BYTES):
                pieces.append(piece)
                left -= len(piece)
                if left < 0:
                    raise _no_description(what)
                # The time is for the whole answer, also if bytes come now and then.
                if time.monotonic() > deadline:
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


def _silent(what: str, timeout_s: float, listener: int) -> StatusUnavailable:
    """Why no answer came in time."""
    reason = f"no answer within {timeout_s:g} s, its process is stopped"
    if is_stopped(listener):
        return StatusUnavailable(what, reason, f"`kill -CONT {listener}` lets it go on")
    return StatusUnavailable(what, f"{reason} or very busy", "look at it with ps, or ask again")


def _refused(what: str, error: OSError) -> StatusUnavailable | ResourceUnavailable:
    """Why it could not be asked."""
    if error.errno in _NO_ROOM:
        return ResourceUnavailable("socket", f"asking {what}", str(error))
    if error.errno in (errno.EPERM, errno.EACCES):
        remedy = (
            "the sandbox has to allow abstract sockets of AF_UNIX, or `areplay top` has to "
            "run outside of it"
        )
        return StatusUnavailable(what, f"connecting is forbidden here ({error})", remedy)
    return StatusUnavailable(
        what, f"it could not be asked ({error})", "`areplay doctor` tries what that takes"
    )


def _is_gone(address: ReplayAddress) -> bool:
    """Whether no process listens under its name any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        return connection.connect_ex("\0" + address.name) == errno.ECONNREFUSED


def _connect(connection: socket.socket, address: ReplayAddress, deadline: float) -> None:
    """Connect as soon as there is room among the clients that wait to be accepted."""
    while True:
        try:
            return connection.connect("\0" + address.name)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(REST_MS / 1_000)
