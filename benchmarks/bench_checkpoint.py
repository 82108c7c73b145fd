"""What a checkpoint costs: the learner's wait while one is written, the bytes of a second one, and
a load.

The first is a whole checkpoint of a full ring, which goes round several times meanwhile: half a
minute each round.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import areplay
from benchmarks.flows import loaded
from benchmarks.harness.clocks import progress
from benchmarks.harness.figures import Figure, Target, medians, ratios
from benchmarks.harness.options import Options
from benchmarks.harness.turns import take_turns
from benchmarks.learners import WaitLog, blocked_learner
from benchmarks.workloads import FRAMES

_CHANGED = 100  # of so many blocks, one
_ROUNDS = 3  # at most, of whole checkpoints beside a learner
_PART = 4  # of the capacity, what is saved and loaded where nobody learns


async def run(options: Options) -> list[Figure]:
    """Four ratios, each from one run."""
    with tempfile.TemporaryDirectory() as folder:
        few = replace(options, rounds=min(options.rounds, _ROUNDS))
        waits, shares = await _waits(few, Path(folder) / "waits")
        again, rates = await _again_and_load(options, Path(folder))
    return [
        Figure(
            "learner of 5 ms: wait p99 while a checkpoint is written, to without",
            ratios(waits["saving"], waits["quiet"]),
            target=Target("<=", 2),
            beside={f"{name}, us": value for name, value in medians(waits).items()},
        ),
        Figure(
            "rows in that checkpoint, to those of the ring",
            tuple(shares),
            target=Target(">=", 0.95),
        ),
        Figure(
            "bytes of a second checkpoint after 1 of 100 blocks changed, to the first",
            again,
            target=Target("<=", 0.025),
        ),
        Figure(
            "load of a checkpoint, to reading its files into fresh shared memory",
            ratios(rates["load"], rates["plain read"]),
            target=Target(">=", 0.5),
            beside={f"{name}, MB/s": value for name, value in medians(rates).items()},
        ),
    ]


async def _waits(options: Options, folder: Path) -> tuple[dict[str, list[float]], list[float]]:
    """The waits' p99 in us, and of each checkpoint the share of the ring that it holds."""
    shares: list[float] = []
    async with loaded(FRAMES, options) as (replay, batches, _):

        async def quiet() -> float:
            await blocked_learner(replay, batches, options, steps=options.prefetch)
            return (await blocked_learner(replay, batches, options)).wait_us(99)

        async def saving() -> float:
            rows, save = len(replay), asyncio.create_task(replay.save(folder))
            log = WaitLog()
            while not save.done():
                log.wait_s += (
                    await blocked_learner(replay, batches, options, steps=options.prefetch)
                ).wait_s
            saved = save.result()
            progress(
                f"saved {saved.rows:,} rows, {saved.bytes_written / 1e6:.0f} MB in "
                f"{saved.seconds:.1f} s"
            )
            shares.append(saved.rows / rows)
            return log.wait_us(99)

        await blocked_learner(replay, batches, options, steps=options.steps // 2)
        return await take_turns({"quiet": quiet, "saving": saving}, options), shares


async def _again_and_load(
    options: Options, folder: Path
) -> tuple[tuple[float, ...], dict[str, list[float]]]:
    path = folder / "again"
    async with areplay.Replay(FRAMES.spec(), max(1_000, options.capacity // _PART)) as replay:
        block_rows = replay.statistics().block_rows
        chunk = FRAMES.columns(block_rows)
        for _ in range(replay.statistics().blocks):
            await replay.extend(chunk)
        first = await replay.save(path, max_bytes_per_s=None)
        shares = []
        for _ in range(options.rounds):
            for _ in range(max(1, first.blocks // _CHANGED)):
                await replay.extend(chunk)
            shares.append(
                (await replay.save(path, max_bytes_per_s=None)).bytes_written / first.bytes_written
            )
    del replay
    sides = {"plain read": partial(_read, path), "load": partial(_load, path)}
    return tuple(shares), await take_turns(sides, options)


async def _read(path: Path) -> float:
    """MB/s into memory of the kind that a replay takes, and that nobody has touched yet."""
    files = _blocks(path)
    start, at = time.perf_counter(), 0
    descriptor = os.memfd_create("benchmark-read", os.MFD_CLOEXEC)
    os.posix_fallocate(descriptor, 0, sum(files.values()))
    with mmap.mmap(descriptor, sum(files.values())) as memory:
        os.close(descriptor)
        with memoryview(memory) as view:
            for file, size in files.items():
                with open(file, "rb", buffering=0) as opened, view[at : at + size] as part:  # noqa: ASYNC230
                    assert opened.readinto(part) == size
                at += size
    return at / 1e6 / (time.perf_counter() - start)


async def _load(path: Path) -> float:
    size = sum(_blocks(path).values())
    start = time.perf_counter()
    loaded = await areplay.Replay.load(path)
    took_s = time.perf_counter() - start
    await loaded.close()
    return size / 1e6 / took_s


def _blocks(path: Path) -> dict[Path, int]:
    """The files of the blocks, and their sizes in bytes."""
    return {file: file.stat().st_size for file in sorted(path.glob("block-*"))}
