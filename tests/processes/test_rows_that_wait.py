"""How many rows wait in the inboxes of actors that a limiter or a selector holds: few, and nobody
hangs for it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

import areplay
from areplay._ingest import feed_tasks

from . import workers
from .oracle import SPEC, lives
from .watching import learn_until, until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

BATCH_SIZE, RATIO = 8, 2.0


def limiter(buffer: float = 32.0, min_size: int = 1) -> areplay.SamplesPerInsert:
    """One whose buffer spans `buffer` steps."""
    return areplay.SamplesPerInsert(RATIO, min_size, buffer)


def waiting(actors: areplay.Actors) -> list[int]:
    """Rows in each inbox."""
    return [record.waiting_rows for record in actors.statistics()]


async def all_wait(actors: areplay.Actors) -> None:
    """Until no actor can hand in more."""
    await until(lambda: all(record.waited_s > 0.05 for record in actors.statistics()))


async def test_actors_that_a_limiter_holds_share_what_may_wait() -> None:
    """As many steps as its buffer spans, and a few of each actor at least; the wait says so."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter()) as batches,
        replay.actors(workers.hand_in_until_stopped, 2) as actors,
    ):
        await all_wait(actors)
        assert waiting(actors) == [16, 16]
        for _ in range(5):
            (await batches.get(30.0)).release()
            await all_wait(actors)
            assert max(waiting(actors)) <= 16
        await until(lambda: len(replay) == 17 + 5 * BATCH_SIZE / RATIO)


async def test_rows_are_as_old_as_the_limiter_has_to_make_them() -> None:
    """Each row has the version of the weights by which it was made. The newest that is stored was
    made a little before it was let in: behind the rows that may wait, and the steps that the buffer
    lets actors be ahead."""
    weights = areplay.Weights({"w": np.zeros(1, "float32")})
    spec = areplay.Spec(version=((), "int64"))
    async with (
        areplay.Replay(spec, 10_000, seed=0) as replay,
        # which run ahead before there is a limiter
        replay.actors(workers.hand_in_versions, 2, weights=weights),
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter(min_size=100)) as batches,
    ):
        for _ in range(400):
            (await batches.get(30.0)).release()
            weights.publish({"w": np.zeros(1, "float32")})
            await asyncio.sleep(0)
        newest, now = int(replay.sample(4_096)["version"].max()), weights.version
    rows_a_batch = BATCH_SIZE / RATIO
    # Four times what may wait: an actor may read its version, and be put to sleep before it makes
    # its row.
    assert now - newest <= 4 * (32 + 32) / rows_a_batch, f"{newest} of {now}"


async def test_the_users_own_bound_stays() -> None:
    """inbox_rows given: as many wait, limiter or not."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter()),
        replay.actors(workers.hand_in_until_stopped, 2, inbox_rows=300) as actors,
    ):
        await all_wait(actors)
        assert waiting(actors) == [300, 300]


async def test_what_may_wait_follows_limiters_that_come_change_and_go() -> None:
    """While actors run: with each stream that is opened and closed, and when a buffer is
    changed."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.hand_in_until_stopped, 2) as actors,
        AsyncExitStack() as stack,
    ):
        await until(lambda: len(replay) > 1_000)
        one = await stack.enter_async_context(
            replay.batches(batch_size=BATCH_SIZE, limiter=limiter())
        )
        await learn_until(
            one, lambda: all(record.waited_s > 0.05 for record in actors.statistics())
        )
        await all_wait(actors)
        assert max(waiting(actors)) <= 16
        one.limiter = limiter(200.0)
        await until(lambda: waiting(actors) == [100, 100])
        other = await stack.enter_async_context(
            replay.batches(batch_size=BATCH_SIZE, limiter=limiter(64.0))
        )
        await one.close()
        before = replay.statistics().rows_inserted
        await learn_until(other, lambda: replay.statistics().rows_inserted > before + 500)
        await all_wait(actors)
        assert max(waiting(actors)) <= 32
        await other.close()
        before = replay.statistics().rows_inserted
        await until(lambda: replay.statistics().rows_inserted > before + 20_000)


async def test_what_waits_when_a_limiter_comes_is_let_in_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would wait for the limiter, and all that is made later behind it. Here it would stay
    in its inbox."""
    monkeypatch.setattr(feed_tasks, "BATCHING_DELAY_S", 1_000.0)
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(
            workers.hang, 1, args=("wait", str(tmp_path)), quiet_s=None, grace_s=0.2
        ) as actors,
    ):
        await until(lambda: waiting(actors) == [10])
        async with replay.batches(batch_size=BATCH_SIZE, limiter=limiter()):
            assert len(replay) == 10


async def test_more_rows_at_once_than_may_wait_are_handed_in_together() -> None:
    """All or none of them, as without a limiter, into an empty inbox; and those of a vector."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter(), timeout_s=30.0) as batches,
        replay.actors(workers.hand_in, 2, args=(600, 200)) as actors,
    ):
        seen: set[int] = set()

        def look(batch: areplay.Batch) -> None:
            seen.update(record.rows for record in actors.statistics())

        # of a learner that asks once more when all rows are in and the actors are done
        with suppress(areplay.Stalled):
            await learn_until(
                batches, lambda: replay.statistics().rows_inserted == 1_200, look=look
            )
        assert replay.statistics().rows_inserted == 1_200
        assert seen <= {0, 200, 400, 600}
        assert sorted(lives(replay).values()) == [600, 600]


async def test_actors_that_fifo_holds_wait_with_few_rows() -> None:
    """A sixteenth of the ring, shared; all come in, in order, once the learner goes on."""
    async with (
        areplay.Replay(SPEC, 1_600, block_rows=50) as replay,
        replay.batches(batch_size=10, selector=areplay.Fifo(), timeout_s=30.0) as batches,
        replay.actors(workers.hand_in_until_stopped, 2) as actors,
    ):
        await all_wait(actors)
        assert waiting(actors) == [50, 50]
        taken = replay.statistics().rows_inserted
        await learn_until(batches, lambda: replay.statistics().rows_inserted > 3 * taken)


async def test_before_the_first_batch_as_many_may_wait_as_are_let_in() -> None:
    """A limiter that has room for many rows does not slow the filling down: inboxes are as large as
    without it."""
    async with (
        areplay.Replay(SPEC, 100_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter(min_size=50_000)),
        replay.actors(workers.extend_without_pause, 1, args=(1_000,)) as actors,
    ):
        (feed,) = replay._opened().coordinator._feeds.attached
        assert feed.inbox.may_wait == feed.inbox.inbox_rows
        await until(lambda: replay.statistics().rows_inserted == 50_016)
        await all_wait(actors)
        assert feed.inbox.may_wait == 32
