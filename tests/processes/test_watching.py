"""Running programs with real actors and samplers, looked at from outside by the command
`areplay`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import areplay
from areplay._status.client import fetch_report, running_replays
from areplay.errors import Closed

from . import workers
from .oracle import SPEC
from .watching import WATCHDOG_S, children, parent_of, until, until_now

PROGRAM = Path(__file__).with_name("watched.py")


@contextmanager
def running(**options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program that learns, and is gone at the end."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() in ("learning\n", "waiting\n"), process.communicate()
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=WATCHDOG_S)


@pytest.fixture(scope="module")
def program() -> Iterator[subprocess.Popen[str]]:
    """One for all tests that leave it as it is: its learner blocks its loop all the time."""
    with running(blocks=True) as process:
        yield process


def areplay_command(*arguments: str, program: str = "") -> subprocess.CompletedProcess[str]:
    """Run `areplay`, with its end. `program` is run before it."""
    code = f"{program}\nimport sys; from areplay.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code] if program else [sys.executable, "-m", "areplay"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60.0)


def test_top_tells_scripts_what_a_program_does_whose_learner_blocks(
    program: subprocess.Popen[str],
) -> None:
    """One document: each process by its number, rows that come in, and the learner that takes
    nothing."""
    done = areplay_command("top", str(program.pid), "--once", "--json", "--interval", "0.3")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert (document["format"], document["version"], document["pid"]) == (
        "areplay replay",
        1,
        program.pid,
    )
    assert str(PROGRAM) in document["argv"]
    assert document["versions"]["areplay"] == areplay.__version__
    assert [field["name"] for field in document["spec"]["fields"]] == ["obs", "step"]
    statistics, rates = document["statistics"], document["rates"]
    assert [actor["index"] for actor in statistics["actors"]] == [0, 1]
    (stream,) = statistics["batches"]
    processes = [*statistics["actors"], *stream["samplers"]]
    assert len({child["pid"] for child in processes}) == 3
    for child in processes:
        assert child["is_alive"] and not child["has_failed"] and child["last_failure"] is None
        assert parent_of(child["pid"]) == program.pid
    assert (
        stream["batch_size"],
        stream["prefetch"],
        stream["batches_delivered"],
        stream["lent"],
    ) == (8, 4, 1, 1)
    assert stream["limiter"]["samples_per_insert"] == 4.0
    rows = statistics["capacity_rows"] + sum(actor["inbox_rows"] for actor in statistics["actors"])
    least_bytes = rows * statistics["row_bytes"] + stream["slots_bytes"]
    assert least_bytes < statistics["memory_bytes"] < 1.5 * least_bytes
    assert statistics["opened_at_s"] < statistics["last_row_at_s"] < document["time_s"]
    assert rates["seconds"] >= 0.3
    assert rates["batches"][0]["batches_per_s"] == 0.0, "nothing turns on its loop"
    assert len(rates["actors"]) == 2 and len(rates["batches"][0]["samplers"]) == 1


def test_top_shows_people_the_same(program: subprocess.Popen[str]) -> None:
    """A picture with bars, in lines of at most 100 columns, without colours where there is no
    terminal."""
    done = areplay_command("top", "--once", "--interval", "0.05", str(program.pid))
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    for word in (
        "ring",
        "queue",
        "limiter",
        "actor 0",
        "actor 1",
        "sampler 0",
        "alive",
        str(program.pid),
    ):
        assert word in done.stdout, word
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_top_without_rich_tells_scripts_and_says_what_is_missing(
    program: subprocess.Popen[str],
) -> None:
    """JSON needs nothing; the picture names the extra."""
    without = "import sys; sys.modules['rich'] = None"
    options = ("top", str(program.pid), "--once", "--interval", "0.05")
    assert (
        json.loads(areplay_command(*options, "--json", program=without).stdout)["pid"]
        == program.pid
    )
    done = areplay_command(*options, program=without)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        "pip install '.[cli]'` in a clone of areplay" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_ctrl_c_ends_top_quietly(program: subprocess.Popen[str]) -> None:
    """With the exit status that shells give it. What it wrote are whole documents, one a line."""
    command = [
        sys.executable,
        "-m",
        "areplay",
        "top",
        str(program.pid),
        "--json",
        "--interval",
        "0.02",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as top:
        assert top.stdout is not None and top.stderr is not None
        assert (
            json.loads(top.stdout.readline())["pid"]
            == json.loads(top.stdout.readline())["pid"]
            == program.pid
        )
        top.send_signal(signal.SIGINT)
        # by the reader that may have read ahead
        assert all(json.loads(line) for line in top.stdout)
        assert (top.wait(WATCHDOG_S), top.stderr.read()) == (130, "")


def test_top_ends_with_the_replay() -> None:
    """Several replays are listed, to choose from; one that is closed is said to be, and the status
    is 0."""
    with running(replays=2, actors=0) as process:
        done = areplay_command("top", str(process.pid), "--once")
        assert (done.returncode, done.stdout) == (2, "")
        assert (
            f"{process.pid}.0" in done.stderr
            and f"{process.pid}.1" in done.stderr
            and "say which" in done.stderr
        )
        command = [
            sys.executable,
            "-m",
            "areplay",
            "top",
            f"{process.pid}.1",
            "--json",
            "--interval",
            "0.02",
        ]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as top:
            assert top.stdout is not None
            assert json.loads(top.stdout.readline())["statistics"]["actors"] == []
            process.communicate(timeout=WATCHDOG_S)
            _, err = top.communicate(timeout=WATCHDOG_S)
            assert (top.returncode, err) == (
                0,
                f"areplay top: replay {process.pid}.1 is closed, or its process has ended\n",
            )
        done = areplay_command("top", str(process.pid), "--once")
        assert done.returncode == 1
        assert f"no replay {process.pid} of this user is running here" in done.stderr


def test_nothing_is_left_of_a_program_that_was_killed() -> None:
    """Its name is gone with its process."""
    with running(actors=0) as process:
        assert [address for address in running_replays() if address.pid == process.pid]
        process.kill()
        until_now(
            lambda: not [address for address in running_replays() if address.pid == process.pid]
        )


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_statistics_may_be_taken_from_any_thread() -> None:
    """While groups and streams come and go, children die, and rows and batches flow: never an
    error, never nonsense."""
    errors: list[BaseException] = []
    looks, is_over = 0, False

    def look(replay: areplay.Replay) -> None:
        nonlocal looks
        while not is_over:
            try:
                now = replay.statistics()
                assert 0 <= now.rows <= now.capacity_rows
                assert all(0 <= actor.waiting_rows <= actor.inbox_rows for actor in now.actors)
                assert all(
                    0 <= stream.ready <= stream.slots or not stream.slots for stream in now.batches
                )
                looks += 1
                time.sleep(0.0005)
            except Closed:
                return
            except BaseException as error:
                errors.append(error)
                return

    async with areplay.Replay(SPEC, 500) as replay:
        threads = [threading.Thread(target=look, args=(replay,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for selector, limiter in (
            (areplay.Prioritized(), areplay.SamplesPerInsert(4.0, min_size_to_sample=10)),
            (areplay.Fifo(), areplay.MinSize(10)),
        ):
            async with (
                replay.actors(workers.hand_in_until_stopped, 1, args=(0.001,)) as actors,
                replay.batches(
                    batch_size=8, prefetch=4, selector=selector, limiter=limiter
                ) as batches,
            ):
                for k in range(20):
                    await anext(batches)
                    if k == 10 and isinstance(selector, areplay.Prioritized):
                        os.kill(replay.statistics().actors[0].pid, signal.SIGKILL)
                assert actors.alive == 1
    is_over = True
    for thread in threads:
        thread.join(WATCHDOG_S)
    assert errors == []
    assert looks > 20


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_the_end_of_a_child_is_kept_until_the_next() -> None:
    """Which process, how, and why; the actor is alive again. What a sampler has filled is counted
    over its lives."""
    async with (
        areplay.Replay(SPEC, 500) as replay,
        replay.actors(workers.hand_in_until_stopped, 2, args=(0.001,)),
        replay.batches(batch_size=8, prefetch=4, samplers=2) as batches,
    ):
        for _ in range(20):
            await anext(batches)
        before = replay.statistics()
        victims = before.actors[1], before.batches[0].samplers[0]
        assert [victim.last_failure for victim in victims] == [None, None]
        for victim in victims:
            assert victim.pid in children()
            os.kill(victim.pid, signal.SIGKILL)

        def are_back() -> bool:
            now = replay.statistics()
            return all(
                child.is_alive and child.restarts == 1
                for child in (now.actors[1], now.batches[0].samplers[0])
            )

        await until(are_back)
        now = replay.statistics()
        assert now.actors[0].last_failure is None and now.actors[0].restarts == 0
        (address,) = [address for address in running_replays() if address.pid == os.getpid()]
        said = (await asyncio.to_thread(fetch_report, address))["statistics"]
        for victim, child, plain in zip(
            victims,
            (now.actors[1], now.batches[0].samplers[0]),
            (said["actors"][1], said["batches"][0]["samplers"][0]),
            strict=True,
        ):
            failure = child.last_failure
            assert failure is not None
            assert (failure.pid, failure.exit_code) == (victim.pid, -signal.SIGKILL)
            assert "signal 9" in failure.details
            assert before.opened_at_s < failure.exited_at_s
            assert plain["last_failure"] == {
                "pid": failure.pid,
                "exit_code": -9,
                "details": failure.details,
                "exited_at_s": failure.exited_at_s,
            }
        sampler = now.batches[0].samplers[0]
        assert sampler.batches_filled >= before.batches[0].samplers[0].batches_filled
        delivered = now.batches[0].batches_delivered - now.batches[0].filled_by_learner
        samplers = now.batches[0].samplers
        assert sum(each.batches_filled - each.ready for each in samplers) == delivered
