"""Deaths at each named place of an actor's and a sampler's code, and what is there after them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import areplay
from areplay._base.arrays import Indices

from . import workers
from .oracle import OWNER, SPEC, check_ledgers, ledgers, rows, torn
from .watching import until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


@pytest.mark.parametrize(
    ("point", "stored_of_last", "chunk", "inbox_rows"),
    [
        ("add.before", 0, 1, 16),
        ("add.written", 0, 1, 16),
        ("add.published", 1, 1, 16),
        ("add.written", 0, 5, 64),
    ],
)
async def test_an_actor_killed_within_add_leaves_whole_rows(
    point: str,
    stored_of_last: int,
    chunk: int,
    inbox_rows: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call in which it dies counts if and only if its rows were published; its successor is a
    new stream; nobody else notices."""
    calls, bystanders = 57, 40
    monkeypatch.setenv("AREPLAY_KILL", f"{point}:{calls}")
    async with areplay.Replay(SPEC, 10_000) as replay:
        async with replay.actors(
            workers.ledgered_calls,
            2,
            args=(str(tmp_path), [70, bystanders], chunk),
            inbox_rows=inbox_rows,
        ) as actors:
            await actors.wait()
            assert [record.restarts for record in actors.statistics()] == [1, 0]
        stored = check_ledgers(replay, tmp_path)
        by_actor = sorted((actor, count) for (actor, _), count in stored.items())
        dead = (calls - 1 + stored_of_last) * chunk
        assert by_actor == [(0, dead), (0, 70 * chunk), (1, bystanders * chunk)]
        (of_dead,) = [ledgers(tmp_path)[life] for life, count in stored.items() if count == dead]
        assert of_dead == ((calls - 1) * chunk, calls * chunk)


@pytest.mark.parametrize("point", ["sampler.draw", "sampler.gather", "sampler.publish"])
async def test_a_sampler_killed_within_a_batch_loses_nothing(
    point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that were ready are delivered, the one it was filling is not, and the queue is full
    again."""
    async with areplay.Replay(SPEC, 4_000, seed=1) as replay:
        await replay.extend(rows(OWNER, os.getpid(), 0, 4_000))
        undisturbed = await _first_batches(replay, 3)
    async with areplay.Replay(SPEC, 4_000, seed=1) as replay:
        await replay.extend(rows(OWNER, os.getpid(), 0, 4_000))
        monkeypatch.setenv("AREPLAY_KILL", f"{point}:3")
        async with replay.batches(
            batch_size=64, samplers=1, inline_sampling=False, prefetch=6
        ) as batches:
            slots = batches._stream.queue.slots
            await until(
                lambda: (
                    batches.statistics().restarts == 1 and batches.statistics().ready == slots.slots
                )
            )
            slots.check()
            delivered = []
            async for batch in batches:
                assert torn(batch) == 0
                assert np.array_equal(batch["number"], batch.indices)
                delivered.append(batch.indices.copy())
                if len(delivered) == 40:
                    break
            await until(
                lambda: batches.statistics().ready + batches.statistics().lent == slots.slots
            )
            assert batches.statistics().restarts == 1
        for ready, same in zip(delivered, undisturbed[:2], strict=False):
            np.testing.assert_array_equal(ready, same)
        assert not any(np.array_equal(batch, undisturbed[2]) for batch in delivered)


async def _first_batches(replay: areplay.Replay, count: int) -> list[Indices]:
    """The indices of what a sampler delivers first if nobody disturbs it."""
    async with replay.batches(
        batch_size=64, samplers=1, inline_sampling=False, prefetch=count
    ) as batches:
        return [(await batches.get(10.0)).indices.copy() for _ in range(count)]
