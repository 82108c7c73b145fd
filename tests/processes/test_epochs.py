"""Epochs with real samplers: each item once an epoch, the same whoever fills the batches and
whoever dies."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

import areplay

from . import workers
from .oracle import OWNER, SPEC, rows, torn
from .watching import until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

CAPACITY: dict[str, Any] = {"capacity": 256, "block_rows": 16}


async def gone_through(
    epochs: areplay.Epochs, samplers: int, seed: int = 1, kill: int = -1
) -> list[list[int]]:
    """The numbers in each batch of 64 rows of 150; sampler 0 is killed after batch `kill`."""
    found = []
    async with asyncio.timeout(60), areplay.Replay(SPEC, **CAPACITY, seed=seed) as replay:
        await replay.extend(rows(OWNER, 1, 0, 150))
        async with replay.batches(
            batch_size=64, samplers=samplers, prefetch=samplers, selector=epochs
        ) as batches:
            async for batch in batches:
                assert torn(batch) == 0
                assert (
                    batch.importance_weights.shape == batch.indices.shape == batch["number"].shape
                )
                found.append(batch["number"].tolist())
                if len(found) == kill:
                    supervisor = batches._stream.queue.supervisor
                    assert supervisor.workers[0].child is not None
                    os.kill(supervisor.workers[0].child.pid, signal.SIGKILL)
            assert batches.statistics().items_left == 0
            for _ in range(2):
                with pytest.raises(areplay.EndOfEpochs, match=r"Epochs\(3"):
                    await batches.get()
            await until(lambda: batches.statistics().restarts == (kill > 0))
    return found


async def test_epochs_are_the_same_whoever_fills_the_batches() -> None:
    """One sampler, or three, or one that dies in between: each item once an epoch, in an order that
    the seed says and that no other epoch has; then the loop ends."""
    one = await gone_through(areplay.Epochs(3), 1)
    flat = [number for batch in one for number in batch]
    epochs = [flat[:150], flat[150:300], flat[300:]]
    assert [len(batch) for batch in one] == [64] * 7 + [2]
    assert [sorted(epoch) for epoch in epochs] == [list(range(150))] * 3
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(150))}) == 4
    assert await gone_through(areplay.Epochs(3), 3) == one
    assert await gone_through(areplay.Epochs(3), 2, kill=2) == one
    assert await gone_through(areplay.Epochs(3, drop_last=True), 2) == one[:-1]
    assert await gone_through(areplay.Epochs(3), 1, seed=2) != one


async def test_rows_that_come_meanwhile_wait_and_belong_to_no_epoch() -> None:
    """Actors find the ring full of rows that are still to be delivered; after the last batch they
    go on."""
    async with asyncio.timeout(60), areplay.Replay(SPEC, **CAPACITY) as replay:
        await replay.extend(rows(OWNER, 1, 0, 256))
        async with (
            replay.batches(
                batch_size=64, samplers=2, prefetch=2, selector=areplay.Epochs(2)
            ) as batches,
            replay.actors(workers.hand_in_until_stopped, 1, inbox_rows=16),
        ):
            await until(
                lambda: any("actor" in wait.who for wait in replay.statistics().waits),
                what="it waits",
            )
            numbers = []
            for _ in range(7):
                batch = await anext(batches)
                assert set(batch["actor"].tolist()) == {OWNER}
                numbers += batch["number"].tolist()
            assert replay.statistics().rows_inserted == 256
            numbers += (await anext(batches))["number"].tolist()
            assert sorted(numbers) == sorted([*range(256)] * 2)
            with pytest.raises(StopAsyncIteration):
                await anext(batches)
            await until(lambda: replay.statistics().rows_inserted > 600, what="rows come in again")


async def test_endless_epochs_go_on_until_the_context_is_left() -> None:
    """Nothing is left over, and nobody waits for those that are done."""
    async with asyncio.timeout(60), areplay.Replay(SPEC, **CAPACITY) as replay:
        await replay.extend(rows(OWNER, 1, 0, 30))
        async with replay.batches(
            batch_size=20, samplers=2, prefetch=2, selector=areplay.Epochs(None)
        ) as batches:
            numbers = []
            for _ in range(60):
                numbers += (await anext(batches))["number"].tolist()
            assert batches.statistics().items_left is None
        assert all(sorted(numbers[at : at + 30]) == list(range(30)) for at in range(0, 1_200, 30))
        await replay.extend(rows(OWNER, 1, 30, 286))
        assert len(replay) > 240, "but what a writer gave up of an open block"


async def test_epochs_of_nothing_are_stalled() -> None:
    """When the stream is opened; nothing is kept by it after that."""
    async with asyncio.timeout(60), areplay.Replay(SPEC, **CAPACITY) as replay:
        before = replay._opened().registry.listeners
        with pytest.raises(areplay.Stalled, match=r"Epochs\(1\) of 0 "):
            async with replay.batches(batch_size=20, selector=areplay.Epochs()):
                pass
        assert (replay._opened().registry.pins, replay._opened().registry.listeners) == (
            (),
            before,
        )
        await replay.extend(rows(OWNER, 1, 0, 30))
        async with replay.batches(batch_size=20, selector=areplay.Epochs()) as batches:
            assert [len(batch.indices) async for batch in batches] == [20, 10]


async def test_epochs_that_found_nothing_find_what_came_since() -> None:
    """A second stream with the same selector, when rows were added."""
    epochs = areplay.Epochs(2)
    async with asyncio.timeout(60), areplay.Replay(SPEC, **CAPACITY) as replay:
        with pytest.raises(areplay.Stalled, match="of 0 items"):
            async with replay.batches(batch_size=4, selector=epochs):
                pass
        await replay.extend(rows(OWNER, 1, 0, 6))
        async with replay.batches(batch_size=4, selector=epochs) as batches:
            found = [batch["number"].tolist() async for batch in batches]
    assert sorted(number for batch in found for number in batch) == sorted([*range(6)] * 2)
