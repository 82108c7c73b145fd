"""Tests of `cli.description`, and of `areplay top` with answers that are none: no traceback, one
line."""

from __future__ import annotations

import copy
import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

pytest.importorskip("rich")

from hypothesis import given, settings
from hypothesis import strategies as st
from test_top import answer, shown

from areplay._status.client import ReplayAddress
from areplay._status.server import MAX_ANSWER_BYTES
from areplay.cli import main
from areplay.cli.description import checked
from areplay.errors import StatusUnavailable

WATCHDOG_S = 30.0
EVIL = "\x1b[2J\r\x00\ud800[red]" * 3
VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2**62,
    -0.5,
    1e18,
    "",
    EVIL,
    [],
    [[]],
    {},
    {"rows": 1},
    [{}],
    [None],
    "9" * 5_000,
]


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in it."""
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(document, dict):
        inner = document.items()
    elif isinstance(document, list):
        inner = enumerate(document)
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


PLACES = list(places(answer()))


def test_what_a_replay_says_has_that_shape() -> None:
    """Also if it says more than is known here, or lacks what came later."""
    said = answer()
    assert checked(said, "replay 1.0") is said
    said["statistics"]["batches"][0]["of tomorrow"] = {"x": [1]}
    del (
        said["statistics"]["batches"][0]["filled_by_learner"],
        said["statistics"]["actors"][0]["quiet_s"],
    )
    shown(checked(said, "replay 1.0"))


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("statistics",), [], "statistics should be an object, got 'list'"),
        (
            ("statistics", "actors", 0, "rows"),
            "x",
            "statistics.actors[0].rows should be a whole number, got 'x'",
        ),
        (("statistics", "actors", 0, "is_alive"), 1, "is_alive should be true or false, got 1"),
        (
            ("statistics", "capacity_rows"),
            0,
            "statistics.capacity_rows should be at least 1, got 0",
        ),
        (
            ("statistics", "batches", 0, "samplers"),
            {},
            "statistics.batches[0].samplers should be a list",
        ),
        (("argv", 1), 5, "argv[1] should be a text, got 5"),
        (("uptime_s",), True, "uptime_s should be a number, got True"),
    ],
)
def test_another_shape_is_named(path: tuple[Any, ...], value: Any, fault: str) -> None:
    """By where it is, what was expected, and what came."""
    with pytest.raises(
        StatusUnavailable, match="no description of a replay that can be shown"
    ) as refused:
        checked(changed(path, value), "replay 1.0")
    assert fault in str(refused.value)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(VALUES)), min_size=1, max_size=3)
)
def test_any_value_anywhere_is_refused_or_shown(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """Nothing else is raised, and nothing reaches the terminal that could move its cursor."""
    said = answer()
    for path, value in changes:
        said = changed(path, value, said)
    try:
        checked(said, "replay 1.0")
    except StatusUnavailable as refused:
        text = str(refused)
    else:
        text = shown(said)
    assert all(char.isprintable() or char == "\n" for char in text)


def changed(
    path: tuple[Any, ...], value: Any, said: dict[str, Any] | None = None
) -> dict[str, Any]:
    """An answer with another value there, if there is such a place in it."""
    said = copy.deepcopy(said or answer())
    place: Any = said
    with suppress(KeyError, IndexError, TypeError):
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    return said


HEAD = b'{"format": "areplay replay", "version": 1, '
WHOLE_TEXT = json.dumps(answer()).encode()
HOSTILE = {
    "no JSON": b"HTTP/1.1 400 Bad Request\r\n\r\n\x1b[2J",
    "no UTF-8": b"\xff\xfe\xff" * 100,
    "nothing": b"",
    "a number": b"5",
    "lists in lists": b"[" * 1_000_000,
    "lists in lists, whole": b"[" * 100_000 + b"]" * 100_000,
    "objects in objects": HEAD + b'"statistics": ' + b'{"x":' * 100_000,
    "no version": b'{"format": "areplay replay"}',
    "a version that is true": b'{"format": "areplay replay", "version": true}',
    "a version of many digits": b'{"format": "areplay replay", "version": ' + b"9" * 100_000 + b"}",
    "a newer version of nothing": b'{"format": "areplay replay", "version": 2, "versions": []}',
    "a newer version with a voice": b'{"format": "areplay replay", "version": 2, "versions": '
    b'{"areplay": "\\r\\b"}}',
    "nothing but the head": HEAD[:-2] + b"}",
    "a failure with a voice": HEAD + b'"failure": "\\u001b[2J\\r"}',
    "a failure of another kind": HEAD + b'"failure": {"x": []}}',
    "not a number": WHOLE_TEXT.replace(b'"uptime_s": 90.0', b'"uptime_s": NaN'),
    "infinite": WHOLE_TEXT.replace(b'"uptime_s": 90.0', b'"uptime_s": 1e999'),
    "huge": WHOLE_TEXT.replace(b'"rows": 90', b'"rows": 1' + b"0" * 5_000),
    "larger than any count": WHOLE_TEXT.replace(b'"rows": 90', b'"rows": 99999999999999999999'),
    "cut short": WHOLE_TEXT[:-20],
}


@contextmanager
def saying(text: bytes, *, again: bool = False) -> Iterator[ReplayAddress]:
    """A program that listens under the name of a replay, and says so, or says it again and
    again."""
    address = ReplayAddress(os.getpid(), 998, os.geteuid())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + address.name)
        listener.listen(8)

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    connection.sendall(text)
                    while again:
                        connection.sendall(text)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield address
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(WATCHDOG_S)
            assert not thread.is_alive()


@pytest.mark.parametrize("options", [["--json"], []])
@pytest.mark.parametrize("case", HOSTILE)
def test_an_answer_of_another_program_is_one_line(
    case: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, nothing on standard output, and nothing that could move the cursor."""
    with saying(HOSTILE[case]) as address:
        assert main(["top", str(address), "--once", "--interval", "0.01", *options]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"areplay top: replay {address} cannot be watched: ")
    assert err.count("\n") == 1 and err[:-1].isprintable()


def test_an_answer_without_an_end_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    """After a few megabytes, long before the time is over."""
    assert MAX_ANSWER_BYTES <= 16 << 20
    with saying(HEAD + b" " * (1 << 20), again=True) as address:
        assert main(["top", str(address), "--once"]) == 1
    assert "no description of a replay" in capsys.readouterr().err


def test_several_are_listed_with_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is none does no harm to the list."""
    with saying(HOSTILE["nothing but the head"]) as address:
        monkeypatch.setattr(
            "areplay.cli.top.running_replays",
            lambda: [address, ReplayAddress(address.pid, 997, address.uid)],
        )
        assert main(["top", str(address.pid)]) == 2
    assert (
        f"{address}  what it says is no description of a replay that can be shown: pid is missing"
        in (capsys.readouterr().err)
    )
