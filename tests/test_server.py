"""Tests of `_status.server`: who is answered, who is not, and what clients that misbehave can do:
nothing."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from kit import open_descriptors

from areplay._status import client as client_module
from areplay._status import server as watching
from areplay._status.client import ReplayAddress, fetch_report, running_replays
from areplay._status.server import FORMAT, MAX_CLIENTS, Peer, StatusServer
from areplay.errors import Closed, ResourceUnavailable, StatusUnavailable

WATCHDOG_S = 30.0
LARGE = "x" * (4 << 20)  # more than a socket's buffer takes


def answer(**more: Any) -> dict[str, Any]:
    """What a replay says."""
    return {"format": FORMAT, "version": 1, **more}


@contextmanager
def status_server(says: Callable[[], dict[str, Any]] = answer) -> Iterator[StatusServer]:
    """A address that is closed in the end, and leaves no thread."""
    address = StatusServer(says)
    try:
        yield address
    finally:
        address.close()
        assert not address._thread.is_alive()


def post_of(watched: StatusServer) -> ReplayAddress:
    """Its address."""
    uid, pid, number = map(int, watched.name.split("-")[1:])
    return ReplayAddress(pid, number, uid)


def connected(watched: StatusServer) -> socket.socket:
    """A client that has connected, and does nothing."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(WATCHDOG_S)
    client.connect("\0" + watched.name)
    return client


def all_of(client: socket.socket) -> bytes:
    """What it is told, to the end."""
    with client:
        pieces = []
        while piece := client.recv(1 << 20):
            pieces.append(piece)
    return b"".join(pieces)


def is_cut_off(client: socket.socket) -> bool:
    """Whether the other end is closed, even if there is something left to read."""
    poll = select.poll()
    poll.register(client, 0)
    return bool(poll.poll(0))


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + WATCHDOG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_who_connects_is_told() -> None:
    """One document, each time what is the case then; large ones too. The name says whose it is."""
    said = iter(range(100))
    with status_server(lambda: answer(number=next(said), text=LARGE)) as watched:
        assert watched.name == f"areplay-{os.geteuid()}-{os.getpid()}-{post_of(watched).number}"
        assert [fetch_report(post_of(watched))["number"] for _ in range(3)] == [0, 1, 2]
        assert fetch_report(post_of(watched))["text"] == LARGE
        assert repr(watched) == f"<StatusServer {watched.name}>"
    assert repr(watched) == "<StatusServer closed>"


def test_posts_are_found_for_as_long_as_they_are_open() -> None:
    """Several of one process have different numbers."""

    def mine() -> list[ReplayAddress]:
        return [address for address in running_replays() if address.pid == os.getpid()]

    assert mine() == []
    with status_server() as first, status_server() as second:
        assert mine() == [post_of(first), post_of(second)]
        assert post_of(first) < post_of(second)
    assert mine() == []


def test_a_name_that_is_taken_is_followed_by_the_next() -> None:
    """As by a process of the same number in another container of the pod, or by somebody else."""
    with status_server() as watched:
        taken = post_of(watched)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("\0" + taken.name)
        with status_server() as watched:
            assert post_of(watched).number == taken.number + 1


def test_what_the_kernel_lists_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only sockets that listen, only ours; for root all. No list is an error."""
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/unix").write_text(
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 21 @areplay-1000-42-0\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 22 @areplay-1000-7-1\n"
        "0000000000000000: 00000003 00000000 00000000 0001 03 23 @areplay-1000-43-0\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 24 @areplay-1001-44-0\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 25 @areplay-1000-x-0\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 26 /run/areplay-1000-45-0\n"
        "0000000000000000: 00000003 00000000 00000000 0001 03 27\n"
    )
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert [str(address) for address in running_replays(tmp_path)] == ["7.1", "42.0"]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert [str(address) for address in running_replays(tmp_path)] == ["7.1", "42.0", "44.0"]
    with pytest.raises(StatusUnavailable, match="/proc/net/unix cannot be read"):
        running_replays(tmp_path / "elsewhere")


def test_another_user_is_turned_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a word, and without asking the replay; who comes next is answered."""
    caplog.set_level(logging.DEBUG, "areplay._status.server")
    asked: list[None] = []
    rests: list[None] = []
    monkeypatch.setattr(watching, "_rest", lambda listener: rests.append(None))
    with status_server(lambda: answer(asked=asked.append(None))) as watched:
        monkeypatch.setattr(watching, "peer_of", lambda connection: Peer(1, os.geteuid() + 1))
        assert all_of(connected(watched)) == b""
        assert asked == []
        until(lambda: rests == [None])
        assert caplog.messages == [
            f"user {os.geteuid() + 1} asked how this replay is, and was turned away"
        ]
        monkeypatch.setattr(watching, "peer_of", lambda connection: Peer(1, 0))
        assert json.loads(all_of(connected(watched)))["format"] == FORMAT, "root may"
        monkeypatch.undo()
        assert fetch_report(post_of(watched))["format"] == FORMAT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_turned_away_by_what_the_kernel_says() -> None:
    """A real process of user nobody."""
    program = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
client = socket.socket(socket.AF_UNIX)
client.connect(chr(0) + sys.argv[1])
print(client.recv(9))
"""
    with status_server() as watched:
        for user, told in ((65534, "b''"), (0, "b'{\"format\"'")):
            command = [sys.executable, "-c", program, watched.name, str(user)]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=WATCHDOG_S, check=True
            )
            assert done.stdout.strip() == told


def test_another_users_socket_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may take a name of ours."""
    with status_server() as watched:
        address = post_of(watched)
        monkeypatch.setattr(client_module, "peer_of", lambda connection: Peer(1, os.geteuid() + 1))
        with pytest.raises(StatusUnavailable, match="another user's"):
            fetch_report(address)


def test_clients_that_never_read_are_dropped_and_others_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than there is room for: each is cut off after a while, and meanwhile costs no processor
    time."""
    monkeypatch.setattr(watching, "CLIENT_S", 0.5)
    with status_server(lambda: answer(text=LARGE)) as watched:
        stuck = [connected(watched) for _ in range(MAX_CLIENTS)]
        assert all(client.recv(1) for client in stuck), "each has been given its half second"
        monkeypatch.setattr(watching, "CLIENT_S", 1_000.0)
        assert fetch_report(post_of(watched), WATCHDOG_S)["text"] == LARGE
        for client in stuck:
            until(lambda client=client: is_cut_off(client))
            assert 0 < len(all_of(client)) < len(LARGE), "it was told the beginning"


def test_a_client_that_waits_to_be_answered_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread sleeps while clients do not read, also if there are too many of them."""
    monkeypatch.setattr(watching, "CLIENT_S", 1_000.0)
    turns, asked = [], []
    with status_server(lambda: answer(text=LARGE, asked=asked.append(None))) as watched:
        stuck = [connected(watched) for _ in range(MAX_CLIENTS + 3)]
        for client in stuck[:MAX_CLIENTS]:
            assert client.recv(1)
        time.sleep(0.05)  # until they are stuck again
        monkeypatch.setattr(
            watching, "_milliseconds_left", lambda clients: turns.append(clients) or None
        )
        time.sleep(0.2)
        assert len(turns) <= 3 * MAX_CLIENTS
        assert len(asked) == MAX_CLIENTS, "the others wait to be accepted"
        for client in stuck:
            client.close()


def test_closing_does_not_wait_for_clients() -> None:
    """Those who do not read, and those who are not accepted yet, are cut off."""
    descriptors = open_descriptors()
    with status_server(lambda: answer(text=LARGE)) as watched:
        stuck = [connected(watched) for _ in range(MAX_CLIENTS + 3)]
        assert stuck[0].recv(1)
        watched.close()
        watched.close()
        for client in stuck:
            with suppress(ConnectionResetError):
                assert len(all_of(client)) < len(LARGE)
    assert open_descriptors() == descriptors


def test_a_client_that_says_much_is_not_listened_to() -> None:
    """It is answered all the same."""
    with status_server() as watched, connected(watched) as client:
        client.setblocking(False)
        # it may have been answered and cut off before
        with suppress(BlockingIOError, BrokenPipeError):
            client.sendall(b"tell me" * 1_000)
        client.setblocking(True)
        assert json.loads(client.recv(1 << 20))["format"] == FORMAT


def test_a_client_that_goes_away_does_no_harm() -> None:
    """Not even if SIGPIPE would end the program."""
    program = f"""
import signal, socket, sys
from areplay._status.server import StatusServer
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
post = StatusServer(lambda: {{"format": "x" * {len(LARGE)}}})
for _ in range(20):
    client = socket.socket(socket.AF_UNIX)
    client.connect(chr(0) + post.name)
    client.recv(1)
    client.close()
client = socket.socket(socket.AF_UNIX)
client.connect(chr(0) + post.name)
while client.recv(1 << 20):
    pass
post.close()
print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_descriptor_that_a_fork_has_kept_does_not_keep_the_post_open() -> None:
    """Nobody connects to a closed one, and waits."""
    with status_server() as watched:
        address = post_of(watched)
        assert watched._listener is not None
        copy = os.dup(watched._listener.fileno())
    try:
        with pytest.raises(Closed):
            fetch_report(address)
    finally:
        os.close(copy)


def test_a_replay_that_is_closing_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """`Closed` from the replay is no error of anybody's."""

    def closing() -> dict[str, Any]:
        raise Closed("this replay")

    with status_server(closing) as watched, pytest.raises(Closed, match=str(post_of(watched))):
        fetch_report(post_of(watched))
    assert caplog.messages == []


def test_an_answer_that_fails_is_logged_and_the_next_one_is_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A mistake there harms nobody; who asked is told that it was one."""
    answers = iter([answer(bad=object()), answer()])
    with status_server(lambda: next(answers)) as watched:
        with pytest.raises(
            StatusUnavailable,
            match=r"could not tell how it is \(TypeError: .*\); "
            r"its log has",
        ):
            fetch_report(post_of(watched))
        assert fetch_report(post_of(watched))["format"] == FORMAT
    assert caplog.messages == ["a client asked how this replay is, and could not be told"]


def test_who_asks_and_is_not_known_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the kernel does not say who it is. That is no end of the replay, and the next one is
    answered."""
    with status_server() as watched:
        address, real, answering = post_of(watched), watching.peer_of, watched._thread

        def peer_of(connection: socket.socket) -> Peer:
            if threading.current_thread() is answering:
                raise OSError(errno.EOPNOTSUPP, "not here")
            return real(connection)

        monkeypatch.setattr(watching, "peer_of", peer_of)
        with pytest.raises(StatusUnavailable, match="hung up without an answer; ask again"):
            fetch_report(address)
        monkeypatch.undo()
        assert fetch_report(address)["format"] == FORMAT
    assert set(caplog.messages) == {"a client asked how this replay is, and could not be answered"}


@contextmanager
def hanging_up(after: bytes, *, is_last: bool) -> Iterator[ReplayAddress]:
    """What says so much and hangs up; it has closed by then, or listens on."""
    address = ReplayAddress(os.getpid(), 999, os.geteuid())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + address.name)
        listener.listen(8)

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(after)
                if is_last:
                    listener.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield address
        finally:
            thread.join(WATCHDOG_S)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (b"", "hung up without an answer"),
        (b'{"format": "ar', "its answer broke off after 14 bytes"),
    ],
)
def test_an_answer_that_breaks_off_is_the_end_of_a_replay_only_if_nobody_listens_any_more(
    after: bytes, said: str
) -> None:
    """Otherwise it may be asked again."""
    with hanging_up(after, is_last=True) as address, pytest.raises(Closed, match=str(address)):
        fetch_report(address)
    with (
        hanging_up(after, is_last=False) as address,
        pytest.raises(StatusUnavailable, match=f"{said}; ask again"),
    ):
        fetch_report(address)


def test_a_reset_is_an_answer_that_breaks_off() -> None:
    """As the kernel tells of a address that closes before it has accepted the connection."""
    address = ReplayAddress(os.getpid(), 999, os.geteuid())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + address.name)
        listener.listen(1)
        real = socket.socket.recv

        class Resetting(socket.socket):
            def recv(self, *args: Any) -> bytes:
                listener.close()
                return real(self, *args)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Closed, match=str(address)):
            patch.setattr(watching.socket, "socket", Resetting)
            fetch_report(address)


@pytest.mark.parametrize(
    ("number", "call", "kind", "said"),
    [
        (
            errno.EMFILE,
            "__init__",
            ResourceUnavailable,
            "socket failed for asking replay .*; free some",
        ),
        (
            errno.ENOMEM,
            "connect",
            ResourceUnavailable,
            "socket failed for asking replay .*; free some",
        ),
        (
            errno.EPERM,
            "connect",
            StatusUnavailable,
            "connecting is forbidden here .*; the sandbox has to allow",
        ),
        (
            errno.EACCES,
            "__init__",
            StatusUnavailable,
            "connecting is forbidden here .*; the sandbox has to allow",
        ),
        (
            errno.EAFNOSUPPORT,
            "__init__",
            StatusUnavailable,
            "could not be asked .*; `areplay doctor` tries",
        ),
    ],
)
def test_who_cannot_ask_is_told_why(
    number: int, call: str, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit, a sandbox: it says nothing of the replay, which is there."""

    def refuse(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    with status_server() as watched:
        address = post_of(watched)
        monkeypatch.setattr(
            watching.socket, "socket", type("Refusing", (socket.socket,), {call: refuse})
        )
        with pytest.raises(kind, match=said):
            fetch_report(address)
        monkeypatch.undo()
        assert fetch_report(address)["format"] == FORMAT


@pytest.mark.parametrize("call", ["socket", "bind", "listen", "thread"])
def test_without_a_socket_there_is_a_warning_and_nothing_else(
    call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A sandbox may forbid it, or a limit: the replay goes on, and nothing is left open."""
    before = open_descriptors()

    class Refusing(socket.socket):
        def __init__(self, *args: Any) -> None:
            if call == "socket":
                raise OSError(errno.EMFILE, "too many")
            super().__init__(*args)

        def bind(self, *args: Any) -> None:
            if call == "bind":
                raise OSError(errno.EPERM, "forbidden")
            super().bind(*args)

        def listen(self, *args: Any) -> None:
            if call == "listen":
                raise OSError(errno.EPERM, "forbidden")
            super().listen(*args)

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(watching.socket, "socket", Refusing)
    if call == "thread":
        monkeypatch.setattr(threading.Thread, "start", no_thread)
    address = StatusServer(answer)
    monkeypatch.undo()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "cannot be watched by `areplay top`, it runs all the same" in record.getMessage()
    assert address.name == ""
    address.close()
    assert open_descriptors() == before


def test_out_of_descriptors_it_waits_for_better_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks meanwhile is answered when there are some again; until then it looks now and
    then."""
    rest, rests = watching._rest, []
    monkeypatch.setattr(watching, "_rest", lambda listener: rests.append(None) or rest(listener))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with status_server() as watched, socket.socket(socket.AF_UNIX) as client:
        spare: list[int] = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 8, hard))
            with pytest.raises(OSError, match="Too many"):
                while True:
                    spare.append(os.dup(0))
            client.connect("\0" + watched.name)
            until(lambda: rests)
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(1)
            assert 1 <= len(rests) <= 100
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in spare:
                os.close(descriptor)
        client.settimeout(WATCHDOG_S)
        assert json.loads(client.recv(1 << 20))["format"] == FORMAT


@pytest.mark.parametrize(
    ("said", "error", "why"),
    [
        (
            answer(version=2, versions={"areplay": "9.0"}),
            StatusUnavailable,
            "newer version, areplay 9.0; use",
        ),
        ({"format": "another"}, StatusUnavailable, "no description of a replay"),
        ({"no": "format"}, StatusUnavailable, "no description of a replay; some other program"),
        ({"format": FORMAT, "version": "1"}, StatusUnavailable, "no description of a replay"),
        (["format", "version"], StatusUnavailable, "no description of a replay"),
    ],
)
def test_what_is_not_understood_is_an_error(said: Any, error: type[Exception], why: str) -> None:
    """A newer one names its version."""
    with status_server(lambda: said) as watched, pytest.raises(error, match=why):
        fetch_report(post_of(watched))


def test_an_answer_that_never_ends_is_none() -> None:
    """The time is for all of it."""
    address, is_over = ReplayAddress(os.getpid(), 999, os.geteuid()), threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            while not is_over.wait(0.001):
                connection.send(b"x", socket.MSG_NOSIGNAL)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + address.name)
        listener.listen(1)
        thread = threading.Thread(target=trickle, args=(listener,))
        thread.start()
        try:
            with pytest.raises(StatusUnavailable, match=r"no answer within 0\.3 s"):
                fetch_report(address, 0.3)
        finally:
            is_over.set()
            thread.join()


def test_who_asks_waits_until_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where as many as possible wait to be accepted, the next one tries again, for a while."""
    address = ReplayAddress(os.getpid(), 999, os.geteuid())
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind("\0" + address.name)
        listener.listen(0)
        first.connect("\0" + address.name)
        with pytest.raises(StatusUnavailable, match=r"no answer within 0\.1 s"):
            fetch_report(address, 0.1)

        def make_room(seconds: float) -> None:
            listener.accept()[0].close()

        monkeypatch.setattr(time, "sleep", make_room)
        with pytest.raises(StatusUnavailable, match=r"no answer within 0\.2 s"):
            fetch_report(address, 0.2)
        listener.accept()[0].close()  # it had connected


def test_a_stopped_process_is_said_to_be_stopped_and_how_it_goes_on() -> None:
    """A real one, by SIGSTOP: the kernel takes the connection, nobody else does."""
    program = """
import sys
from areplay._status.server import StatusServer
address = StatusServer(lambda: {"format": "areplay replay", "version": 1})
print(address.name, flush=True)
sys.stdin.read()
address.close()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            uid, pid, number = map(int, process.stdout.readline().split("-")[1:])
            address = ReplayAddress(pid, number, uid)
            assert fetch_report(address)["version"] == 1
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            with pytest.raises(
                StatusUnavailable, match=f"its process is stopped; `kill -CONT {pid}` lets it go on"
            ):
                fetch_report(address, 0.1)
            process.send_signal(signal.SIGCONT)
            assert fetch_report(address, WATCHDOG_S)["version"] == 1
        finally:
            process.send_signal(signal.SIGCONT)
            process.communicate(timeout=WATCHDOG_S)


def test_a_replay_that_does_not_answer_is_an_error() -> None:
    """As that of a busy process: the kernel takes the connection, nobody else does. And one that is
    gone."""
    address = ReplayAddress(os.getpid(), 999, os.geteuid())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + address.name)
        listener.listen(1)
        with pytest.raises(
            StatusUnavailable,
            match=r"no answer within 0\.1 s, its process is stopped or very "
            r"busy; look",
        ):
            fetch_report(address, 0.1)
    with pytest.raises(Closed):
        fetch_report(address)
