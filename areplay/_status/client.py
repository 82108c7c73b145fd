"""The other side of a replay's status: which replays run on this host, and what one of them says of
itself.

Whatever listens under a replay's name may be another program: what it says is checked before it is
believed.
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


_NUMBER_DIGITS, _LARGEST_NUMBER = 40, 2.0**63  # of JSON; no count or time of ours is larger


_TEXT_CHARACTERS = 500


# The other side.


@dataclass(frozen=True, slots=True, order=True)
class ReplayAddress:
    """A replay that may be asked: of which process (as that one calls itself), and which of its
    replays."""

    pid: int
    number: int
    uid: int

    @property
    def name(self) -> str:
        """Of the socket."""
        return f"areplay-{self.uid}-{self.pid}-{self.number}"

    def __str__(self) -> str:
        return f"{self.pid}.{self.number}"


def running_replays(root: Path = Path("/")) -> list[ReplayAddress]:
    """The replays that run at this moment in this network namespace, of this user; of all, for
    root.

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
    found = set()
    for line in lines:
        words = line.split()
        if len(words) == 8 and words[7].startswith("@") and int(words[3], 16) & _LISTENS:
            match = _NAME.fullmatch(words[7][1:])
            if match:
                uid, pid, number = map(int, match.groups())
                found.add(ReplayAddress(pid, number, uid))
    return sorted(address for address in found if os.geteuid() in (address.uid, 0))


def fetch_report(address: ReplayAddress, timeout_s: float = 5.0) -> dict[str, Any]:
    """What that replay says of itself; see docs/observing.md.

    Raises:
        Closed: it is gone. StatusUnavailable: it may not be asked, does not answer, or not to the
            end, could not tell,
        belongs to somebody else,
            or is of a version that is not understood.
        ResourceUnavailable: this process has no descriptor left to ask with, or no memory.
    """
    what = f"replay {address}"
    said = _said(address, timeout_s)
    try:
        answer = json.loads(said, parse_int=_number, parse_float=_number, parse_constant=_number)
    except (json.JSONDecodeError, UnicodeDecodeError):
        if _is_gone(address):
            raise Closed(what) from None
        reason = (
            f"its answer broke off after {len(said):,} bytes"
            if said
            else "it hung up without an answer"
        )
        raise StatusUnavailable(
            what, reason, "ask again; if it stays so, its log may say why"
        ) from None
    except (ValueError, RecursionError):  # numbers that are none, or lists in lists in lists
        raise _no_description(what) from None
    if (
        not isinstance(answer, dict)
        or answer.get("format") != FORMAT
        or type(answer.get("version")) is not int
    ):
        raise _no_description(what)
    if answer["version"] > VERSION:
        versions = answer.get("versions")
        newer = _harmless(
            f"areplay {versions.get('areplay') if isinstance(versions, dict) else ''}".rstrip()
        )
        raise StatusUnavailable(
            what, f"it is of a newer version, {newer}", f"use the `areplay top` of {newer}"
        )
    if answer.get("closed"):
        raise Closed(what)
    if "failure" in answer:
        failure = _harmless(str(answer["failure"]))
        raise StatusUnavailable(
            what, f"it could not tell how it is ({failure})", "its log has the traceback"
        )
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


def _no_description(what: str) -> StatusUnavailable:
    remedy = (
        "some other program has taken its name: ask for another replay, `areplay top` lists them"
    )
    return StatusUnavailable(what, "what it says is no description of a replay", remedy)


def _harmless(text: str) -> str:
    """The beginning of a text of another process, without what could move a cursor or change a
    colour."""
    return "".join(char if char.isprintable() else "?" for char in text[:_TEXT_CHARACTERS])


def _said(address: ReplayAddress, timeout_s: float) -> bytes:
    """All that it says until it hangs up."""
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


def _silent(what: str, timeout_s: float, listener: int) -> StatusUnavailable:
    """Why nothing was heard in time."""
    reason = f"no answer within {timeout_s:g} s"
    if is_stopped(listener):
        return StatusUnavailable(
            what, f"{reason}, its process is stopped", f"`kill -CONT {listener}` lets it go on"
        )
    return StatusUnavailable(
        what, f"{reason}, its process is stopped or very busy", "look at it with ps, or ask again"
    )


def _refused(what: str, error: OSError) -> StatusUnavailable | ResourceUnavailable:
    """Why it could not even be asked."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
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
    """Whether nobody listens under its name any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        return connection.connect_ex("\0" + address.name) == errno.ECONNREFUSED


def _connect(connection: socket.socket, address: ReplayAddress, deadline: float) -> None:
    """Connect, once there is room among those who wait to be accepted."""
    while True:
        try:
            return connection.connect("\0" + address.name)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(REST_MS / 1_000)
