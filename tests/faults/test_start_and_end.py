"""Rows 3 to 5: a sampler that dies with a lock, and parents that die while they start children."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import areplay
from tests.processes import workers
from tests.processes.oracle import OWNER, rows, spec, torn
from tests.processes.test_signals import GONE_WITHIN_S, running
from tests.processes.watching import learn_until, until, until_now

NARROW = spec(4)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_sampler_killed_with_a_lock_leaves_the_lock_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It dies while it holds a block's shared lock, which it takes when the writer is always
    faster: the block can be locked again, its slot is reclaimed, and its successor fills the
    queue."""
    monkeypatch.setenv("AREPLAY_KILL", "sampler.lock:1")
    async with areplay.Replay(NARROW, 512, block_rows=16) as replay:

        async def lap() -> None:
            for number in itertools.count():
                await replay.extend(rows(OWNER, 1, 64 * number, 64 * number + 64, 4))
                await asyncio.sleep(0)

        writer = asyncio.create_task(lap())
        await until(lambda: len(replay) >= 500)
        slow = replay.batches(
            workers.SlowRows(0.01),
            batch_size=4,
            prefetch=2,
            selector=workers.SlowUniform(0.0002),
            timeout_s=60.0,
        )
        async with slow as batches:
            await learn_until(
                batches, lambda: batches.statistics().restarts == 1, "it dies with a lock"
            )
            for _ in range(3):
                assert torn(await anext(batches)) == 0
            writer.cancel()
            with suppress(asyncio.CancelledError):
                await writer
            batches._stream.queue.slots.check()
            slots = batches._stream.queue.slots.slots
            await until(
                lambda: batches.statistics().ready + batches.statistics().lent == slots,
                what="a full queue",
            )
        ring = replay._opened().ring
        assert ring is not None
        locks = ring.block_locks()
        assert all(locks.try_exclusive(place) for place in range(ring.blocks))
        locks.close()


@pytest.mark.alone
def test_nothing_of_ours_is_left_in_any_folder() -> None:
    """A program killed under load leaves no file in /dev/shm or /tmp, which it never had."""
    with running() as program:
        before = {folder: set(os.listdir(folder)) for folder in ("/dev/shm", "/tmp")}
        program.wait_for("learning")
        for pid in program.everyone():
            opened = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
            assert not [name for name in opened if name.startswith(("/dev/shm", "/tmp"))]
        program.signal_group(signal.SIGKILL)
        until_now(lambda: not program.everyone(), GONE_WITHIN_S)
        for folder, names in before.items():
            new = set(os.listdir(folder)) - names
            assert not [
                name for name in new if "areplay" in name or name.startswith(("pymp-", "psm_"))
            ]


@pytest.mark.parametrize("whom", ["parent", "group"])
def test_no_child_outlives_a_death_in_the_first_200_ms_of_its_start(whom: str) -> None:
    """SIGKILL of the parent, or of everybody, at random moments of the first 200 ms: all are gone
    soon."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance, slowest_s = random.Random(seed), 0.0
    for _ in range(3):
        with running() as program:
            program.wait_for("starting")
            time.sleep(chance.uniform(0.0, 0.2))
            if whom == "group":
                program.signal_group(signal.SIGKILL)
            else:
                program.process.kill()
            slowest_s = max(slowest_s, until_now(lambda p=program: not p.everyone(), GONE_WITHIN_S))
    print(f"gone after {slowest_s:.2f} s at most")


ABANDONED = """
import asyncio, time, areplay
from tests.processes import workers
from tests.processes.oracle import SPEC
from tests.processes.watching import children

async def main():
    replay = await areplay.Replay(SPEC, 1_000).__aenter__()
    actors = await replay.actors(workers.hand_in_until_stopped, 1, args=(0.01,)).__aenter__()
    print(actors.alive)

def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # reaped since it was listed
        return False

if __name__ == "__main__":
    before = children()
    asyncio.run(main())
    deadline = time.monotonic() + 20
    while any(map(runs, children() - before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    print(sum(map(runs, children() - before)))
"""


def test_children_of_contexts_that_were_never_left_end_with_their_loop(tmp_path: Path) -> None:
    """The program goes on, say in a notebook: its children do not."""
    script = tmp_path / "program.py"
    script.write_text(ABANDONED)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.stdout.split() == ["1", "0"], done.stderr


def test_memory_of_a_killed_program_is_mapped_by_nobody() -> None:
    """A memory file has no name, so the kernel frees it with its last mapping."""
    with running({"rows": 20_000, "row_bytes": 4_096}) as program:
        program.wait_for("learning")
        mapped = [
            line
            for line in Path(f"/proc/{program.process.pid}/maps").read_text().splitlines()
            if "memfd" in line
        ]
        assert mapped
        inodes = {line.split()[4] for line in mapped}
        program.process.kill()
        until_now(lambda: not program.everyone(), GONE_WITHIN_S)
        assert not [
            pid for pid in os.listdir("/proc") if pid.isdigit() and _maps(int(pid)) & inodes
        ]


def _maps(pid: int) -> set[str]:
    """The inodes of the memory files that a process maps."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line.split()[4] for line in lines if "memfd:areplay" in line}
