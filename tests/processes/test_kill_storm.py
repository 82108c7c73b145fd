"""Deaths at random moments under full load: the oracle stays exact, and nothing of the dead is
left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import areplay
from areplay._processes import worker as worker_module

from . import workers
from .oracle import OWNER, SPEC, check_ledgers, rows, torn
from .watching import children, descriptors, is_running, until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


async def test_a_storm_of_kills_loses_no_row_and_tears_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random SIGKILLs of actors and samplers, starting ones included, while the learner takes
    batches: acked <= stored <= pending for every life, every batch whole, everybody back in the
    end, descriptors flat."""
    seed, kills = random.randrange(1 << 32), 12
    print(f"seed {seed}")
    chance, seen = random.Random(seed), 0
    monkeypatch.setattr(worker_module, "_LONGEST_BACK_OFF_S", 0.05)
    async with areplay.Replay(SPEC, 2_000_000) as replay:
        await replay.extend(rows(OWNER, os.getpid(), 0, 100))
        before = children()
        async with (
            replay.actors(workers.ledgered, 2, args=(str(tmp_path),), max_restarts=1_000) as actors,
            replay.batches(
                batch_size=64, samplers=2, prefetch=6, max_restarts=1_000, timeout_s=60.0
            ) as batches,
        ):
            flat = len(descriptors())

            async def learn() -> None:
                nonlocal seen
                async for batch in batches:
                    assert torn(batch) == 0
                    seen += 1
                    await asyncio.sleep(0.001)

            learner = asyncio.create_task(learn())
            for _ in range(kills):
                await asyncio.sleep(chance.uniform(0.0, 0.6))
                if born := sorted(children() - before):
                    with suppress(ProcessLookupError):
                        os.kill(chance.choice(born), signal.SIGKILL)
            await until(
                lambda: all(record.is_alive for record in actors.statistics()),
                what="both actors back",
            )
            await until(lambda: batches.statistics().samplers_alive == 2, what="both samplers back")
            at = seen
            await until(lambda: seen > at + 20 or learner.done(), what="batches go on")
            restarts = (
                sum(record.restarts for record in actors.statistics())
                + batches.statistics().restarts
            )
            assert 0 < restarts <= kills
            await until(lambda: len(descriptors()) == flat, what="as many descriptors as before")
            learner.cancel()
            (outcome,) = await asyncio.gather(learner, return_exceptions=True)
            assert isinstance(outcome, asyncio.CancelledError), outcome
        (tmp_path / f"{OWNER}-{os.getpid()}").write_bytes(b"pa" * 100)
        stored = check_ledgers(replay, tmp_path)
    print(
        f"{restarts} restarts, {seen} batches, {sum(stored.values()):,} rows of {len(stored)} lives"
    )


async def test_a_batch_that_is_held_survives_the_death_of_its_sampler() -> None:
    """A batch lent to the learner stays as it is while its sampler dies, is replaced, and fills
    everything else."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 1_000))
        before = children()
        async with replay.batches(batch_size=64, prefetch=3) as batches:
            (pid,) = children() - before
            held = await batches.get(30.0)
            copy = held.copy()
            os.kill(pid, signal.SIGKILL)
            await until(lambda: batches.statistics().restarts == 1)
            for _ in range(20):
                (await batches.get(30.0)).release()
            np.testing.assert_array_equal(held.indices, copy.indices)
            np.testing.assert_array_equal(held["payload"], copy["payload"])
            held.release()


async def test_stopped_processes_can_be_closed() -> None:
    """Children that a SIGSTOP holds listen to nothing: the last rung of the ladder ends them all
    the same."""
    before = children()
    async with areplay.Replay(SPEC, 10_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 1_000))
        async with (
            replay.actors(workers.hand_in_until_stopped, 1, grace_s=0.2) as actors,
            replay.batches(batch_size=8, grace_s=0.2),
        ):
            await until(lambda: actors.statistics()[0].rows > 0)
            for pid in children() - before:
                os.kill(pid, signal.SIGSTOP)
            count = actors.statistics()[0].rows
        assert count <= actors.statistics()[0].rows
        assert actors.failures == []
    assert children() == before


async def test_an_actor_may_have_a_replay_of_its_own() -> None:
    """Nested use: an actor starts actors; when it is killed, so are they, and its successor starts
    others."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.have_actors, 1, max_restarts=5) as actors,
    ):
        reports: list[areplay.Report] = []
        await until(lambda: reports.extend(actors.reports()) or reports)
        inner = int(reports[0].values["inner"])
        assert is_running(inner)
        os.kill(actors.statistics()[0].pid, signal.SIGKILL)
        killed = time.monotonic()
        await until(lambda: not is_running(inner), within=5.0)
        print(f"grandchild gone after {time.monotonic() - killed:.2f} s")
        await until(lambda: reports.extend(actors.reports()) or len(reports) == 2)


async def test_an_actor_that_reports_without_end_holds_nobody_up() -> None:
    """Reports that nobody takes are dropped, not waited for; the learner keeps the newest, and a
    traceback that comes behind them arrives."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        async with replay.actors(
            workers.report_and_raise, 1, args=(30_000,), max_restarts=0
        ) as actors:
            await asyncio.sleep(0)
            time.sleep(1.0)  # noqa: ASYNC251  the learner is busy meanwhile
            with pytest.raises(areplay.ActorFailed, match="after the reports"):
                await actors.wait()
            reports = actors.reports()
            assert 0 < len(reports) <= 10_000
            numbers = [report.values["number"] for report in reports]
            assert numbers == sorted(numbers), "in order"
        assert len(replay) == 1
