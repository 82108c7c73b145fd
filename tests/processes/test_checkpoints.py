"""Checkpoints of a replay in full work, and of one that is killed while it saves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_oracle import check_files, columns_of

import areplay
from areplay._sampling.batch_plan import BatchPlan
from areplay._storage.stream_writer import StreamWriter

from . import workers
from .oracle import OWNER, SPEC, lives, row, rows, streams, torn
from .watching import until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

PROGRAM = textwrap.dedent(
    """
    import asyncio, sys
    import areplay
    from areplay._base import failpoints
    from tests.processes.oracle import OWNER, SPEC, rows

    async def main(path):
        async with areplay.Replay(SPEC, 2_000, block_rows=50) as replay:
            await replay.extend(rows(OWNER, 7, 0, 1_000))
            left, failpoints._left = failpoints._left, 1 << 40  # the first save passes all points
            replay.sample(4, selector=areplay.Prioritized())
            await replay.save(path)
            print("first", flush=True)
            await replay.extend(rows(OWNER, 7, 1_000, 2_500))
            failpoints._left = left
            await replay.save(path)
            print("second", flush=True)

    asyncio.run(main(sys.argv[1]))
    """
)


@pytest.mark.parametrize(
    ("point", "count", "rows_after"),
    [
        ("save.block", 1, 1_000),
        ("save.block", 20, 1_000),
        ("save.blocks_synced", 1, 1_000),
        ("save.manifest", 1, 1_000),
        ("save.renamed", 1, 2_000),
        ("save.cleaned", 1, 2_000),
        ("", 0, 2_000),
    ],
)
async def test_a_save_that_is_killed_leaves_one_checkpoint_whole(
    point: str, count: int, rows_after: int, tmp_path: Path
) -> None:
    """The one before, until the new manifest has its name; then the new one. The next save clears
    up."""
    path = tmp_path / "here"
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", PROGRAM, str(path)],
        env={**os.environ, "AREPLAY_KILL": f"{point}:{count}" if point else ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == (-signal.SIGKILL if point else 0), done.stderr
    assert done.stdout.split() == (["first"] if point else ["first", "second"])
    on_disk = columns_of(path)
    assert torn(on_disk) == 0
    assert (
        on_disk["number"].tolist() == list(range(1_000))
        if rows_after == 1_000
        else list(range(500, 2_500))
    )
    async with await areplay.Replay.load(path, spec=SPEC) as replay:
        (stream,) = streams(replay)
        first = 0 if rows_after == 1_000 else 500
        assert stream.columns["number"].tolist() == list(range(first, first + rows_after))
        assert torn(stream.columns) == 0
        replay._opened().priorities[0.6].check()
        await replay.extend(rows(OWNER, 8, 0, 10))
        await replay.save(path)
    check_files(path)


async def test_saves_in_full_work_are_whole(tmp_path: Path) -> None:
    """Actors write round and round a small ring and a sampler reads, while it is saved again and
    again: of each stream the checkpoint has a run of rows without a gap, whole; and the batches are
    whole, too."""
    path = tmp_path / "here"
    async with (
        areplay.Replay(SPEC, 20_000, block_rows=64) as replay,
        replay.actors(workers.hand_in_chunks_until_stopped, 2),
        replay.batches(
            batch_size=64, prefetch=4, selector=areplay.Prioritized(), min_size_to_sample=10_000
        ) as batches,
    ):
        for turn in range(6):
            for _ in range(20):
                assert torn(await batches.__anext__()) == 0
            saved = await replay.save(path, max_bytes_per_s=None if turn % 2 else 50e6)
            check_files(path)
            assert torn(columns_of(path)) == 0
            options = {} if turn % 3 else {"capacity": 5_000}
            async with await areplay.Replay.load(path, **options) as loaded:
                assert len(loaded) <= saved.rows if options else len(loaded) == saved.rows
                for stream in streams(loaded):
                    number = stream.columns["number"]
                    np.testing.assert_array_equal(number, number[0] + np.arange(len(number)))
                    assert torn(stream.columns) == 0
                priorities = loaded._opened().priorities[0.6]
                priorities.check()
                assert np.count_nonzero(priorities.masses) == len(loaded)
        assert replay.statistics().blocks_started > 3 * replay.statistics().blocks


async def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Actors and samplers begin on what was loaded, as if it had been there from the start."""
    async with areplay.Replay(SPEC, 50_000) as replay:
        async with (
            replay.checkpoints(tmp_path, every_s=0.05) as checkpoints,
            replay.actors(workers.hand_in_mixed, 2, args=(3_000,)) as actors,
        ):
            await actors.wait()
            await until(lambda: checkpoints.last is not None)
        first = lives(replay)
    async with await areplay.Replay.load(tmp_path, spec=SPEC) as replay:
        assert lives(replay) == first
        async with (
            replay.actors(workers.hand_in_mixed, 2, args=(2_000,)) as actors,
            replay.batches() as batches,
        ):
            assert torn(await batches.get(20.0)) == 0
            await actors.wait()
        assert sorted(lives(replay).values()) == [2_000, 2_000, 3_000, 3_000]
        assert replay.statistics().rows_inserted == 10_000


async def test_a_fifo_goes_on_with_what_it_has_not_delivered(tmp_path: Path) -> None:
    """Across a save and a load, each row comes exactly once; also where the block size changes."""
    for block_rows in (None, 30):
        path = tmp_path / str(block_rows)
        async with areplay.Replay(SPEC, 4_000) as replay:
            await replay.extend(rows(OWNER, 1, 0, 3_000))
            async with replay.batches(
                batch_size=50, selector=areplay.Fifo(), prefetch=4
            ) as batches:
                seen = [number for _, number in await _names(batches, 11)]
                await replay.save(path)
        assert seen == list(range(550))
        async with await areplay.Replay.load(path, block_rows=block_rows) as replay:
            await replay.extend(rows(OWNER, 2, 3_000, 3_500))
            async with replay.batches(
                batch_size=50, selector=areplay.Fifo(), prefetch=4
            ) as batches:
                seen = [number for _, number in await _names(batches, 59)]
                assert batches.statistics().items_left == 0
        assert seen == list(range(550, 3_500))


async def test_a_fifo_that_is_being_opened_is_saved_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save between a load and the moment at which its successor has looked at the rows: nothing
    comes twice."""
    begin = BatchPlan.begin
    is_opening, goes_on = threading.Event(), threading.Event()

    def held(plan: BatchPlan, *args: Any) -> None:
        is_opening.set()
        assert goes_on.wait(30)
        begin(plan, *args)

    async with areplay.Replay(SPEC, 4_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 1_000))
        async with replay.batches(batch_size=50, selector=areplay.Fifo(), prefetch=4) as batches:
            seen = [number for _, number in await _names(batches, 11)]
            await replay.save(tmp_path)
    async with await areplay.Replay.load(tmp_path) as replay:
        stream = replay.batches(batch_size=50, selector=areplay.Fifo(), prefetch=4)
        with monkeypatch.context() as patch:
            patch.setattr(BatchPlan, "begin", held)
            opening = asyncio.create_task(stream.__aenter__())
            await until(is_opening.is_set)
            await replay.save(tmp_path)
            goes_on.set()
            await opening
    async with (
        await areplay.Replay.load(tmp_path) as replay,
        replay.batches(batch_size=50, selector=areplay.Fifo(), prefetch=4) as batches,
    ):
        seen += [number for _, number in await _names(batches, 9)]
    assert seen == list(range(1_000))


async def test_a_fifo_loses_nothing_that_it_kept_for_more_than_a_lap(tmp_path: Path) -> None:
    """A block that was left because an item in it is due is in the checkpoint: each row comes
    exactly once, of a slow stream whose block the ring has gone round, and of a fast one."""
    async with areplay.Replay(SPEC, 800, block_rows=50) as replay:
        engine = replay._opened()
        fast = StreamWriter(engine.ring, engine.ring.block_locks(), engine.registry)
        async with replay.batches(batch_size=100, selector=areplay.Fifo(), prefetch=1) as batches:
            seen: list[tuple[int, int]] = []
            for turn in range(40):
                await replay.add(**row(OWNER, 2, turn))
                fast.write(rows(OWNER, 1, 50 * turn, 50 * turn + 50), 0, 50)
                if replay._opened().registry.skipped:
                    break
                if turn % 2 and turn > 4:
                    seen += await _names(batches, 1)
            saved = await replay.save(tmp_path)
            assert saved.rows > len(replay)
        fast.close()
    async with await areplay.Replay.load(tmp_path) as replay:
        assert len(replay) == saved.rows
        async with replay.batches(batch_size=10, selector=areplay.Fifo(), prefetch=1) as batches:
            assert batches.statistics().items_left == saved.rows, "another batch size begins anew"
    async with (
        await areplay.Replay.load(tmp_path) as replay,
        replay.batches(batch_size=100, selector=areplay.Fifo(), prefetch=1) as batches,
    ):
        left = batches.statistics().items_left
        assert left == 51 * (turn + 1) - len(seen)
        seen += await _names(batches, left // 100)
        await replay.extend(rows(OWNER, 3, 0, 100))
        seen += await _names(batches, 1)
    assert len(set(seen)) == len(seen) == (51 * (turn + 1)) // 100 * 100 + 100
    assert {(2, number) for number in range(turn + 1)} <= set(seen)


async def _names(batches: areplay.Batches, count: int) -> list[tuple[int, int]]:
    """Life and number of the rows of so many batches."""
    seen: list[tuple[int, int]] = []
    for _ in range(count):
        batch = await batches.get(20.0)
        seen += zip(batch["life"].tolist(), batch["number"].tolist(), strict=True)
        batch.release()
    return seen


async def test_a_limiter_goes_on_with_its_counts(tmp_path: Path) -> None:
    """Learner and writers are as far ahead of each other as they were; another ratio begins
    anew."""
    async with areplay.Replay(SPEC, 4_000) as replay:
        limiter = areplay.SamplesPerInsert(2.0, 100, error_buffer=200)
        async with replay.batches(batch_size=50, limiter=limiter) as batches:
            await replay.extend(rows(OWNER, 1, 0, 150))
            for _ in range(3):
                (await batches.get(20.0)).release()
            before = batches.statistics().limiter
            assert before is not None
        await replay.save(tmp_path)
    for ratio in (2.0, 3.0):
        async with await areplay.Replay.load(tmp_path) as replay:
            limiter = areplay.SamplesPerInsert(ratio, 100, error_buffer=200)
            async with replay.batches(batch_size=50, limiter=limiter) as batches:
                after = batches.statistics().limiter
                assert after is not None
                if ratio == 2.0:
                    assert (after.inserts, after.samples, after.error) == (150, 150, before.error)
                else:
                    assert (after.inserts, after.samples) == (100, 0)
