"""Reading while writing: a writer that laps the ring as fast as it can never makes a batch with a
torn row."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import areplay

from . import workers
from .oracle import OWNER, SPEC, rows, spec, torn
from .watching import learn_until, state_of, until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

ENOUGH_ROWS = 1_000_000


class Names:
    """Which row each index names, as extend said: index -> number, for one writer."""

    def __init__(self) -> None:
        self._number = np.full(1 << 20, -1)

    def record(self, indices: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
        """The rows with these numbers were given these indices."""
        while indices[-1] >= len(self._number):
            self._number = np.concatenate([self._number, np.full(len(self._number), -1)])
        assert (self._number[indices] == -1).all(), "never used before"
        self._number[indices] = numbers

    def wrong(self, batch: areplay.Batch) -> int:
        """How many rows of a batch are not the ones that their indices name."""
        return int(np.count_nonzero(self._number[batch.indices] != batch["number"]))


async def lap(replay: areplay.Replay, chunk_rows: int, names: Names) -> None:
    """Write without a pause, from this process, until cancelled."""
    width = replay.spec["payload"].shape[0]
    chunks = [
        rows(OWNER, os.getpid(), k * chunk_rows, (k + 1) * chunk_rows, width) for k in range(23)
    ]
    for chunk in itertools.cycle(chunks):
        # no turn of the loop between the two
        names.record(await replay.extend(chunk), chunk["number"])
        await asyncio.sleep(0)


@asynccontextmanager
async def lapped(replay: areplay.Replay, chunk_rows: int) -> AsyncIterator[Names]:
    """A replay whose ring is written round and round meanwhile."""
    names = Names()
    writer = asyncio.create_task(lap(replay, chunk_rows, names))
    await until(lambda: len(replay) == replay.capacity_rows)
    try:
        yield names
    finally:
        writer.cancel()
        with suppress(asyncio.CancelledError):
            await writer


def laps(replay: areplay.Replay) -> int:
    """How often the ring was written."""
    return replay.statistics().rows_inserted // replay.capacity_rows


@pytest.mark.parametrize(
    ("payload", "capacity", "block_rows", "chunk_rows", "enough"),
    [
        pytest.param(16, 512, 128, 96, ENOUGH_ROWS, id="small-rows"),
        # a block takes long to be written
        pytest.param(512, 512, 128, 128, ENOUGH_ROWS // 4, id="large-rows"),
    ],
)
async def test_no_row_is_torn_while_the_owner_laps_the_ring(
    payload: int, capacity: int, block_rows: int, chunk_rows: int, enough: int
) -> None:
    """Two samplers, a ring of four blocks, a writer without a pause: of a million rows none is torn
    and none is another than its index names, and rows were in fact overwritten while they were
    copied."""
    seen = bad = wrong = 0
    async with (
        areplay.Replay(spec(payload), capacity, block_rows=block_rows) as replay,
        lapped(replay, chunk_rows) as names,
        replay.batches(batch_size=128, samplers=2, prefetch=8) as batches,
    ):
        async for batch in batches:
            bad, wrong, seen = (
                bad + torn(batch),
                wrong + names.wrong(batch),
                seen + len(batch.indices),
            )
            if seen >= enough:
                break
        redrawn, lapped_count = batches.statistics().rows_redrawn, laps(replay)
    print(
        f"owner: {bad} torn, {wrong} wrong of {seen:,} rows; {redrawn:,} redrawn, "
        f"{lapped_count:,} laps"
    )
    assert bad == wrong == 0
    assert redrawn > 0, "the race was run"
    assert lapped_count > 100


async def test_no_row_is_torn_while_an_actor_laps_the_ring() -> None:
    """The same with an actor as the writer. It is the only one, so that numbers follow indices at a
    fixed distance, or one that grows by a block when that is left alone; a later lap's row in an
    earlier one's place would be nearer."""
    seen = bad = 0
    nearest, farthest = [], []
    async with (
        areplay.Replay(SPEC, 2_048, block_rows=64) as replay,
        replay.actors(workers.extend_without_pause, 1, args=(256,)),
        replay.batches(batch_size=256, samplers=2, prefetch=8, min_size_to_sample=2_000) as batches,
    ):
        async for batch in batches:
            bad, seen = bad + torn(batch), seen + len(batch.indices)
            distance = batch.indices - batch["number"]
            nearest.append(int(distance.min()))
            farthest.append(int(distance.max()))
            if seen >= ENOUGH_ROWS:
                break
        redrawn, lapped_count = batches.statistics().rows_redrawn, laps(replay)
    print(f"actor: {bad} torn of {seen:,} rows; {redrawn:,} redrawn, {lapped_count:,} laps")
    assert bad == 0
    assert min(nearest) == 0, "no row came nearer to the start than it was written"
    assert max(farthest) < 2_048, "and few blocks were left alone"
    assert redrawn > 0, "the race was run"
    assert lapped_count > 100


async def test_no_row_is_torn_that_the_learner_copies_itself() -> None:
    """Its only sampler stands still, so the learner fills its batches, against the thread that
    writes an actor's rows; they are whole, and rows were in fact overwritten while they were
    copied."""
    seen = bad = 0
    async with (
        areplay.Replay(SPEC, 2_048, block_rows=64) as replay,
        replay.actors(workers.extend_without_pause, 1, args=(256,)),
        replay.batches(batch_size=256, samplers=1, prefetch=2, min_size_to_sample=2_000) as batches,
    ):
        (await batches.get()).release()
        sampler = batches.statistics().samplers[0].pid
        os.kill(sampler, signal.SIGSTOP)
        try:
            before = batches.statistics()
            async with asyncio.timeout(60):
                async for batch in batches:
                    bad, seen = bad + torn(batch), seen + len(batch.indices)
                    if seen >= ENOUGH_ROWS // 2:
                        break
            after = batches.statistics()
        finally:
            os.kill(sampler, signal.SIGCONT)
        own, redrawn = (
            after.filled_by_learner - before.filled_by_learner,
            after.rows_redrawn - before.rows_redrawn,
        )
    print(f"learner: {bad} torn of {seen:,} rows; {redrawn:,} redrawn")
    assert bad == 0
    assert own >= seen // 256 - 4, "what the sampler had filled before"
    assert redrawn > 0, "the race was run"


async def test_a_sampler_stopped_in_mid_copy_delivers_nothing_stale() -> None:
    """SIGSTOP a sampler between its copying and its check, lap the ring, SIGCONT: what changed is
    drawn anew."""
    async with areplay.Replay(SPEC, 1_000, block_rows=50) as replay:
        await replay.extend(rows(OWNER, 0, 0, 1_000))
        async with replay.batches(
            workers.StopsItself(at_copy=3), batch_size=64, prefetch=4
        ) as batches:
            (member,) = batches._stream.queue.supervisor.workers
            assert member.child is not None
            pid = member.child.pid
            await until(lambda: state_of(pid) == "T", what="it stops itself")
            assert batches.statistics().ready == 2
            for life in range(1, 4):
                await replay.extend(rows(OWNER, life, 0, 1_000))
            os.kill(pid, signal.SIGCONT)
            first, second, third, fourth = [(await batches.get(30.0)).copy() for _ in range(4)]
            assert torn(first) == torn(second) == torn(third) == torn(fourth) == 0
            assert set(first["life"].tolist()) == set(second["life"].tolist()) == {0}
            assert set(third["life"].tolist()) == set(fourth["life"].tolist()) == {3}
            # The batch that it stopped in, and those whose rows were drawn with it: eight at most.
            assert batches.statistics().rows_redrawn in range(64, 8 * 64 + 1, 64)


async def test_a_slow_reader_gets_its_rows_under_the_lock() -> None:
    """Drawing and copying that take longer than the ring lasts: after some rounds the sampler locks
    a block, which the writer leaves alone for a lap, so that batches come all the same, of rows
    that are what their indices name."""
    async with areplay.Replay(SPEC, 512, block_rows=16) as replay, lapped(replay, 64) as names:
        slow = replay.batches(
            workers.SlowRows(0.01),
            batch_size=4,
            prefetch=2,
            selector=workers.SlowUniform(0.0002),
            timeout_s=60.0,
        )
        async with slow as batches:
            at = laps(replay)

            def is_enough() -> bool:
                now = batches.statistics()
                return (
                    now.batches_delivered >= 6
                    and now.rows_redrawn >= 8 * 4
                    and laps(replay) > at + 10
                )

            def look(batch: areplay.Batch) -> None:
                assert torn(batch) == names.wrong(batch) == 0

            await learn_until(batches, is_enough, "rows are redrawn, and the ring goes round", look)


@pytest.mark.parametrize("end", ["goes on", "is killed"])
async def test_nobody_steals_the_lock_of_a_stopped_reader(
    end: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A sampler stopped while it holds a block: writers go around that block and say who holds it,
    lap after lap; when it goes on its batch is whole, when it is killed the lock is free."""
    async with areplay.Replay(SPEC, 512, block_rows=16) as replay:
        enough = tmp_path / "enough"
        async with (
            lapped(replay, 64) as names,
            replay.batches(
                workers.StopsAtOne(0.01, enough), batch_size=2, prefetch=2, timeout_s=30.0
            ) as batches,
        ):
            (member,) = batches._stream.queue.supervisor.workers
            assert member.child is not None
            pid = member.child.pid
            held: list[int] = []
            while not held:
                await learn_until(batches, lambda: state_of(pid) == "T", "it stops itself")
                held = [place for place in range(32) if not _can_lock(replay, place)]
                if not held:
                    os.kill(pid, signal.SIGCONT)
            enough.touch()
            at = laps(replay)
            await until(lambda: laps(replay) > at + 5, what="writers go on")
            assert [place for place in range(32) if not _can_lock(replay, place)] == held
            assert len(held) == 1
            assert len(replay) == _rows_there(replay), "rows that cannot be drawn are not counted"
            assert (
                f"block {held[0]} is held by process {pid}, left for another lap" in caplog.messages
            )
            os.kill(pid, signal.SIGKILL if end == "is killed" else signal.SIGCONT)
            for _ in range(3):
                batch = await anext(batches)
                assert torn(batch) == names.wrong(batch) == 0
            if end == "is killed":  # the batches may have been ready before
                await until(lambda: batches.statistics().restarts == 1, what="a restart")
            assert batches.statistics().restarts == (end == "is killed")
        assert all(_can_lock(replay, place) for place in range(32))
        assert len(replay) == _rows_there(replay)


def _rows_there(replay: areplay.Replay) -> int:
    return int(replay._opened().ring.occupied()[1].sum())


def _can_lock(replay: areplay.Replay, place: int) -> bool:
    locks = replay._opened().ring.block_locks()
    try:
        return locks.try_exclusive(place)
    finally:
        locks.close()
