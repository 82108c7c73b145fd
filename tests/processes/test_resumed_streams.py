"""Row 35: after a load everything goes on where it was, as docs/checkpoints.md says.

Each test compares with a run that was not interrupted, or with what the numbers of the rows say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import areplay
from areplay import Replay
from areplay._base.arrays import Array
from areplay._storage.windows import Windows
from areplay.spec import Spec

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

STEPS = areplay.Spec.steps(obs=((), "int64"), action=((), "int64"))


class Pairs:
    """An item of the user's, as the documentation has one: without a `__repr__`, and with a
    state."""

    window = areplay.Window(forward=1)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.names = scale, {"obs", "reward", "action"}

    def fields(self, spec: Spec) -> Mapping[str, Any]:
        """See `areplay.Item`."""
        return {"obs": spec["obs"], "scaled": ((), "float64")}

    def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
        """See `areplay.Item`."""
        windows.take("obs", out=out["obs"])
        out["scaled"][:] = windows.take("obs") * self.scale


async def play(replay: Replay, start: int, stop: int) -> None:
    """One long episode of steps that are numbered through."""
    count = stop - start
    await replay.extend(
        {
            "obs": np.arange(start, stop),
            "action": np.zeros(count, np.int64),
            "reward": np.ones(count, np.float32),
            "terminated": np.arange(start, stop) == stop - 1,
            "truncated": np.zeros(count, np.bool_),
            "next_obs": np.arange(start, stop) + 1,
        }
    )


async def taken(batches: areplay.Batches, count: int) -> list[int]:
    """The steps of so many batches."""
    found: list[int] = []
    for _ in range(count):
        batch = await batches.get(30.0)
        found += batch["obs"].tolist()
        batch.release()
    return found


def limiter() -> areplay.SamplesPerInsert:
    """One as a program makes it again when it is started again."""
    return areplay.SamplesPerInsert(2, min_size_to_sample=10, error_buffer=40)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("is_closed_before", [False, True])
async def test_a_fifo_of_an_item_of_ones_own_goes_on(
    times: int, is_closed_before: bool, tmp_path: Path
) -> None:
    """Another object of the class: what was delivered does not come again, the rest in order. Other
    states begin anew.

    Also if its context was left before the save, as that of the last checkpoint of a program is.
    """
    async with Replay(STEPS, 1_000) as replay:
        await play(replay, 0, 100)
        async with replay.batches(
            Pairs(2.0), 10, selector=areplay.Fifo(times), prefetch=2
        ) as batches:
            assert await taken(batches, 3 * times) == [
                k for t in range(3) for k in [*range(10 * t, 10 * t + 10)] * times
            ]
            if not is_closed_before:
                await replay.save(tmp_path)
        if is_closed_before:
            await replay.save(tmp_path)
    async with await Replay.load(tmp_path, spec=STEPS) as replay:
        async with replay.batches(
            Pairs(3.0), 10, selector=areplay.Fifo(times), prefetch=2
        ) as batches:
            assert await taken(batches, 1) == [*range(10)]
        await replay.save(tmp_path)  # what nobody has opened yet is kept
    async with await Replay.load(tmp_path) as replay:
        stream = replay.batches(Pairs(2.0), 10, selector=areplay.Fifo(times), prefetch=2)
        await replay.save(tmp_path)  # nor is what is opened in a moment lost
        async with stream as batches:
            assert await taken(batches, times) == [*range(30, 40)] * times
            await play(replay, 100, 120)
            rest = await taken(batches, 8 * times)
            assert rest == [k for t in range(4, 12) for k in [*range(10 * t, 10 * t + 10)] * times]
    async with (
        await Replay.load(tmp_path) as replay,
        replay.batches(Pairs(2.0), 10, selector=areplay.Fifo(times), prefetch=2) as batches,
    ):
        assert await taken(batches, 1) == [*range(30, 40)]


async def test_a_limiter_of_an_item_of_ones_own_goes_on(tmp_path: Path) -> None:
    """With its counts, also in the run after one that made its stream, never opened it, and
    saved."""
    async with Replay(STEPS, 1_000) as replay:
        await play(replay, 0, 50)
        async with replay.batches(Pairs(), 10, limiter=limiter(), prefetch=1) as batches:
            await taken(batches, 4)
            before = batches.statistics().limiter
            assert before is not None and before.samples == 40
            await replay.save(tmp_path)
    async with await Replay.load(tmp_path) as replay:
        stream = replay.batches(Pairs(), 10, limiter=limiter())
        await replay.save(tmp_path)
        del stream  # until then: a stream that is dropped is none
    async with (
        await Replay.load(tmp_path) as replay,
        replay.batches(Pairs(), 10, limiter=limiter(), prefetch=1) as batches,
    ):
        after = batches.statistics().limiter
        assert after is not None
        assert (after.inserts, after.samples, after.error) == (
            before.inserts,
            before.samples,
            before.error,
        )
        left = int(after.error + after.error_buffer) // 10
        await taken(batches, left)
        with pytest.raises(areplay.WaitTimeout):
            await batches.get(0.01)


def annealed(batches: int) -> float:
    """A schedule, that says after how many batches it was asked."""
    return min(1.0, 0.1 + batches / 20)


async def test_a_schedule_goes_on_at_its_count(tmp_path: Path) -> None:
    """The very first batches, which are drawn before one is taken, have the weights of that
    count."""
    async with Replay(STEPS, 1_000) as replay:
        await play(replay, 0, 100)
        prioritized = areplay.Prioritized(1.0, annealed)
        async with replay.batches(
            batch_size=20, selector=prioritized, inline_sampling=False
        ) as batches:
            replay.update_priorities(np.arange(100), 1.0 + np.arange(100))
            await taken(batches, 10)
            assert batches.importance_sampling_exponent == annealed(10)
            await replay.save(tmp_path)
    async with await Replay.load(tmp_path) as replay:
        prioritized = areplay.Prioritized(1.0, annealed)
        async with replay.batches(
            batch_size=20, selector=prioritized, inline_sampling=False
        ) as batches:
            for number in range(10, 14):
                assert batches.importance_sampling_exponent == annealed(number)
                batch = await anext(batches)
                priorities = 1.0 + batch["obs"]
                np.testing.assert_allclose(
                    batch.probabilities, priorities / priorities_sum(), rtol=1e-5
                )
                logarithms = np.log(priorities.min() / priorities)
                exponents = (
                    np.log(batch.importance_weights)[logarithms < 0] / logarithms[logarithms < 0]
                )
                assert (
                    annealed(10) - 1e-4
                    <= exponents.min()
                    <= exponents.max()
                    <= annealed(number) + 1e-4
                )


def priorities_sum() -> float:
    """Of all steps."""
    return float((1.0 + np.arange(100)).sum())


def raises(batches: int) -> float:
    """A schedule that cannot go on."""
    if batches:
        raise StopIteration
    return 0.5


async def test_a_schedule_that_raises_when_it_goes_on(tmp_path: Path) -> None:
    """The caller of `batches` gets it, and what was kept is kept for another try."""
    async with Replay(STEPS, 1_000) as replay:
        await play(replay, 0, 100)
        async with replay.batches(
            batch_size=20, selector=areplay.Prioritized(1.0, annealed)
        ) as batches:
            await taken(batches, 10)
            await replay.save(tmp_path)
    async with await Replay.load(tmp_path) as replay:
        with pytest.raises(RuntimeError, match="schedule of the selector raised StopIteration"):
            replay.batches(batch_size=20, selector=areplay.Prioritized(1.0, raises))
        batches = replay.batches(batch_size=20, selector=areplay.Prioritized(1.0, annealed))
        assert batches.importance_sampling_exponent == annealed(10)


async def test_a_run_that_was_interrupted_is_as_one_that_was_not(tmp_path: Path) -> None:
    """Draws by priorities and without, counts of updates, names of rows and seeds of what is made
    next."""
    numbers = np.arange(100)

    async def first(replay: Replay) -> None:
        await play(replay, 0, 100)
        replay.sample(8, selector=areplay.Prioritized())
        replay.update_priorities(numbers, (numbers % 7) + 0.5)
        replay.sample(16)

    async def second(replay: Replay) -> list[Any]:
        found: list[Any] = [replay.sample(16)["obs"].tolist()]
        update = replay.update_priorities(np.arange(60, 1_000, 90), np.ones(11))
        batch = replay.sample(64, selector=areplay.Prioritized())
        found += [batch["obs"].tolist(), batch.probabilities.tolist(), batch.indices.tolist()]
        statistics = replay.statistics()
        found += [
            update,
            statistics.rows_inserted,
            statistics.priorities_updated,
            statistics.priorities_stale,
        ]
        async with replay.batches(batch_size=8, selector=areplay.Epochs(2), prefetch=4) as batches:
            found.append(await taken(batches, 20))
        await play(replay, 100, 150)
        found.append(replay.statistics().rows_inserted)
        return found

    async with Replay(STEPS, 1_000, seed=4) as replay:
        await first(replay)
        expected = await second(replay)
    async with Replay(STEPS, 1_000, seed=4) as replay:
        await first(replay)
        await replay.save(tmp_path)
    async with await Replay.load(tmp_path) as replay:
        assert await second(replay) == expected


async def test_sample_with_a_fifo_takes_another_object_of_the_item() -> None:
    """It is the same item, though its repr is another; one of another state is none."""
    async with Replay(STEPS, 1_000) as replay:
        await play(replay, 0, 30)
        selector = areplay.Fifo()
        assert replay.sample(4, Pairs(), selector)["obs"].tolist() == [0, 1, 2, 3]
        assert replay.sample(4, Pairs(), selector)["obs"].tolist() == [4, 5, 6, 7]
        with pytest.raises(ValueError, match="goes on with batches of 4 Pairs, got 4 Pairs"):
            replay.sample(4, Pairs(2.0), selector)
        assert replay.sample(4, Pairs(), selector)["obs"].tolist() == [8, 9, 10, 11]
