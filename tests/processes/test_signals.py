"""Signals to a running program: Ctrl-C, SIGTERM, and the death of the parent at any moment. Never
an orphan."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import areplay

from .watching import marked, shared_memory_bytes, state_of, until_now

PROGRAM = Path(__file__).with_name("program.py")
GONE_WITHIN_S = 15.0  # the promise is 2 s on a machine that is not busy


class Program:
    """A program in a session of its own, and every process that descends from it."""

    def __init__(self, options: dict[str, Any], environment: dict[str, str]) -> None:
        self.mark = f"AREPLAY_TEST_MARK={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                **environment,
                name: value,
            },
        )
        self.output: list[str] = []

    def wait_for(self, word: str) -> float:
        """Read what it says up to that word; when it said so, in seconds of the machine's clock."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if line.startswith(word):
                return float(line.split()[2])
        raise AssertionError(f"{word!r} did not come: {self.output} {self.process.stderr.read()}")  # type: ignore[union-attr]

    def everyone(self) -> set[int]:
        """The program and all its descendants that are alive."""
        return marked(self.mark)

    def signal_group(self, number: signal.Signals) -> None:
        """What a terminal does: the signal goes to each process of the session."""
        os.killpg(self.process.pid, number)

    def ends(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, all of its standard output, and standard error."""
        out, err = self.process.communicate(timeout=60.0)
        return self.process.returncode, "".join(self.output) + out, err


@contextmanager
def running(options: dict[str, Any] | None = None, **environment: str) -> Iterator[Program]:
    """A program that is gone at the end, whatever happens."""
    program = Program(options or {}, environment)
    try:
        yield program
    finally:
        for pid in program.everyone() | (
            {program.process.pid} if program.process.poll() is None else set()
        ):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        program.process.wait(timeout=60.0)
        for pipe in (program.process.stdout, program.process.stderr):
            assert pipe is not None
            pipe.close()


def test_ctrl_c_once_ends_in_order() -> None:
    """SIGINT to the whole group: contexts are left in order, no child complains, nobody is left."""
    with running() as program:
        program.wait_for("learning")
        assert len(program.everyone()) == 1 + 2 + 1 + 1, (
            "program, actors, sampler, resource tracker"
        )
        program.signal_group(signal.SIGINT)
        code, out, err = program.ends()
        assert "closed" in out
        assert code == -signal.SIGINT, "it ends as Ctrl-C ends a program"
        assert err.endswith("KeyboardInterrupt\n")
        assert "Process areplay" not in err, "no child has anything to say"
        assert "has not ended" not in err, "nor does any need a second request"
        assert program.everyone() == set()


def test_ctrl_c_while_children_start_ends_in_order() -> None:
    """SIGINT to the group in the middle of the start, when children are interpreters that have just
    begun."""
    for wait_s in (0.0, 0.03, 0.07):
        with running() as program:
            program.wait_for("starting")
            time.sleep(wait_s)
            program.signal_group(signal.SIGINT)
            code, out, err = program.ends()
            assert "closed" in out
            assert code == -signal.SIGINT
            assert program.everyone() == set()
            assert err.count("Traceback") <= 2, f"no child has anything to say: {err}"


@pytest.mark.parametrize(
    "meanwhile", ["it computes", "it begins to close", "it waits for its actors"]
)
def test_ctrl_c_twice_ends_at_once(meanwhile: str) -> None:
    """The second SIGINT does not wait for actors that do not listen: it is over long before their
    grace is, without an orphan. Wherever it hits: within the user's coroutine it begins as an
    exception like any other."""
    with running(
        {"stubborn": True, "grace_s": 300.0, "busy": meanwhile == "it computes"}
    ) as program:
        program.wait_for("learning")
        program.signal_group(signal.SIGINT)
        program.wait_for("busy" if meanwhile == "it computes" else "leaving")
        if meanwhile == "it waits for its actors":
            until_now(lambda: all(state_of(program.process.pid) == "S" for _ in range(50)))
        assert program.process.poll() is None
        program.signal_group(signal.SIGINT)
        started = time.monotonic()
        code, _, _ = program.ends()
        print(f"over {time.monotonic() - started:.2f} s after the second")
        assert code != 0
        until_now(lambda: not program.everyone(), GONE_WITHIN_S)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_what_handled_ctrl_c_before_does_so_again(handler: Any) -> None:
    """And a handler of the user's all the time, as under `asyncio.run`."""

    async def is_kept() -> bool:
        return signal.getsignal(signal.SIGINT) is handler

    before = signal.signal(signal.SIGINT, handler)
    try:
        assert areplay.run(is_kept()) == (handler is signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_raised_by_a_handler_that_outlives_its_run() -> None:
    """A handler of the user's may pass it on to the one that it found, whose loop is closed."""
    found: list[Any] = []

    async def main() -> None:
        found.append(signal.getsignal(signal.SIGINT))

    areplay.run(main())
    with pytest.raises(KeyboardInterrupt) as raised:
        found[0](signal.SIGINT, None)
    assert raised.value.__context__ is None


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, lambda number, frame: None])
def test_what_handled_sigterm_before_does_so_again(handler: Any) -> None:
    """A program can be ended after `run` as before it; a handler that the coroutine itself sets
    stays."""

    def others(number: int, frame: Any) -> None: ...

    async def sets_another() -> None:
        signal.signal(signal.SIGTERM, others)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        for _ in range(2):
            areplay.run(asyncio.sleep(0))
            assert signal.getsignal(signal.SIGTERM) == handler
        areplay.run(sets_another())
        assert signal.getsignal(signal.SIGTERM) is others
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_ends_what_is_left_of_a_main_that_was_left() -> None:
    """Somebody else has ended the loop, and `main` takes long to close: one is enough."""
    code = (
        "import areplay, asyncio, sys\n"
        "async def main():\n"
        "    asyncio.get_running_loop().call_soon(sys.exit, 3)\n"
        "    try:\n"
        "        await asyncio.sleep(100)\n"
        "    finally:\n"
        "        print('closing', flush=True)\n"
        "        await asyncio.sleep(100)\n"
        "areplay.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"closing\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60.0) == -signal.SIGINT


def test_sigterm_ends_in_order() -> None:
    """SIGTERM to the program alone: contexts are left in order; the exit code is that of a
    terminated program."""
    with running({"cleanup_s": 0.3}) as program:
        program.wait_for("learning")
        program.process.send_signal(signal.SIGTERM)
        code, out, err = program.ends()
        assert "closed" in out
        assert code == 128 + signal.SIGTERM
        assert "Traceback" not in err, err
        assert program.everyone() == set()


def test_sigterm_to_everybody_ends_in_order() -> None:
    """What a supervisor or a container does: SIGTERM to all processes."""
    with running() as program:
        program.wait_for("learning")
        program.signal_group(signal.SIGTERM)
        code, out, _ = program.ends()
        assert "closed" in out
        assert code == 128 + signal.SIGTERM
        assert program.everyone() == set()


@pytest.mark.alone
def test_no_process_and_no_memory_outlives_a_killed_parent() -> None:
    """SIGKILL of the parent under load: every child and helper is gone soon, and the machine has
    its memory back."""
    size = 400 << 20
    with running(
        {"rows": 1_000, "row_bytes": size // 1_000, "actors": 2, "samplers": 2}
    ) as program:
        program.wait_for("learning")
        assert len(program.everyone()) == 1 + 2 + 2 + 1
        in_use = shared_memory_bytes()
        program.process.kill()
        gone_s = until_now(lambda: not program.everyone(), GONE_WITHIN_S)
        back_s = until_now(lambda: shared_memory_bytes() < in_use - size * 3 // 4, 20.0)
        print(f"all processes gone after {gone_s:.2f} s, memory back after {gone_s + back_s:.2f} s")


def test_no_process_outlives_its_killed_group() -> None:
    """SIGKILL of the program's whole group at once."""
    with running() as program:
        program.wait_for("learning")
        program.signal_group(signal.SIGKILL)
        print(f"all gone after {until_now(lambda: not program.everyone(), GONE_WITHIN_S):.2f} s")


@pytest.mark.parametrize("import_s", [0.0, 30.0])
def test_no_child_outlives_a_parent_killed_while_it_starts_them(import_s: float) -> None:
    """SIGKILL of the parent at several moments of the start; also if the main module takes long to
    import, which each child does before it runs anything of ours."""
    slowest_s = 0.0
    for wait_s in (0.005, 0.03, 0.08, 0.15, 0.3) if import_s == 0.0 else (0.05, 0.4):
        with running({"import_s": import_s}) as program:
            program.wait_for("starting")
            time.sleep(wait_s)
            program.process.kill()
            slowest_s = max(slowest_s, until_now(lambda p=program: not p.everyone(), GONE_WITHIN_S))
    print(f"import of {import_s:g} s: gone after {slowest_s:.2f} s at most")


@pytest.mark.parametrize("point", ["ring.write:30", "ring.recycle:2"])
def test_no_child_outlives_a_parent_that_dies_within_a_write(point: str) -> None:
    """The coordinator's process dies at a failpoint of its own, holding a block's lock."""
    with running({"rows": 64}, AREPLAY_KILL=point) as program:
        assert program.process.wait(timeout=60.0) == -signal.SIGKILL
        print(f"all gone after {until_now(lambda: not program.everyone(), GONE_WITHIN_S):.2f} s")


def test_no_child_outlives_a_parent_that_leaves_without_a_word() -> None:
    """An exit that runs no handler and leaves no context is as good as a SIGKILL: nothing is
    left."""
    with running({"stubborn": True}) as program:
        program.wait_for("learning")
        children = program.everyone() - {program.process.pid}
        assert len(children) == 4
        os.kill(program.process.pid, signal.SIGABRT)
        print(f"all gone after {until_now(lambda: not program.everyone(), GONE_WITHIN_S):.2f} s")


def test_ctrl_c_ends_a_start_that_is_stuck() -> None:
    """Children do not get as far as to read what they were given, which is more than a pipe
    holds."""
    with running({"import_s": 1_000.0, "padding": "x" * 100_000, "grace_s": 0.2}) as program:
        program.wait_for("importing")
        program.signal_group(signal.SIGINT)
        code, out, _ = program.ends()
        assert "closed" in out
        assert code == -signal.SIGINT
        assert program.everyone() == set()


@pytest.mark.parametrize("death_signal", ["cleared", "refused"])
def test_children_without_a_death_signal_do_not_outlive_a_killed_parent(death_signal: str) -> None:
    """A change of credentials clears PR_SET_PDEATHSIG, a sandbox refuses it: then their pipe ties
    them to their parent, and the kernel sees to it, for they cannot do anything themselves while
    they are stopped."""
    with running({"death_signal": death_signal, "stubborn": True, "samplers": 2}) as program:
        program.wait_for("learning")
        children = [
            pid
            for pid in program.everyone()
            if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        assert len(children) == 4
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
        program.process.kill()
        print(f"all gone after {until_now(lambda: not program.everyone(), GONE_WITHIN_S):.2f} s")


def test_a_fork_of_a_killed_parent_does_not_keep_children_alive() -> None:
    """It has no copy of what ties them to their parent."""
    with running({"death_signal": "cleared", "forks": True}) as program:
        program.wait_for("learning")
        children = [
            pid
            for pid in program.everyone()
            if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        assert len(children) == 3
        program.process.kill()
        until_now(lambda: not program.everyone() & set(children), GONE_WITHIN_S)
        assert len(program.everyone()) >= 1, "the fork lives on"


def test_a_start_without_a_death_signal_does_not_outlive_a_killed_parent() -> None:
    """The same while children import the user's main module."""
    with running({"death_signal": "refused", "import_s": 1_000.0}) as program:
        program.wait_for("importing")
        program.process.kill()
        print(f"all gone after {until_now(lambda: not program.everyone(), GONE_WITHIN_S):.2f} s")


WITHOUT_STREAMS = """
import os, areplay
from tests.processes import oracle, workers

async def main():
    async with areplay.Replay(oracle.SPEC, 1_000) as replay:
        if {closes_later}:
            os.close(1)
        async with replay.actors(workers.print_and_return, 1, args=("",), max_restarts=0) as actors:
            assert os.readlink("/proc/self/fd/1").startswith("/memfd:areplay" if {closes_later} else "/dev/null")
            before = os.pread(1, 64, 0)
            await actors.wait()
            assert os.pread(1, 64, 0) == before
        assert list(oracle.lives(replay).values()) == [10]

areplay.run(main())
"""


@pytest.mark.parametrize("closes_later", [False, True])
def test_a_program_without_standard_streams_keeps_its_memory_to_itself(closes_later: bool) -> None:
    """Its memory may get the number of standard output, but not in a child, where `print` would
    write into it."""
    code = WITHOUT_STREAMS.format(closes_later=closes_later)
    start = 'exec "$@"' if closes_later else 'exec "$@" <&- >&- 2>&-'
    command = ["sh", "-c", start, "sh", sys.executable, "-c", code]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    assert subprocess.run(command, env=environment, timeout=60.0).returncode == 0


def test_a_thread_ends_a_child_where_the_kernel_does_not() -> None:
    """When the pipe to its parent closes, whatever other threads do."""
    reader, writer = os.pipe()
    command = [
        sys.executable,
        "-c",
        "from areplay._processes.launcher import end_with; print(1, flush=True); "
        f"end_with({reader})",
    ]
    with subprocess.Popen(command, pass_fds=[reader], stdout=subprocess.PIPE) as child:
        os.close(reader)
        assert child.stdout is not None
        assert child.stdout.read(1) == b"1"
        assert child.poll() is None
        os.close(writer)
        assert child.wait(timeout=30.0) == -signal.SIGKILL
