"""What sampler processes draw: every stored row with the same probability, and the same draws under
the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import areplay

from . import workers
from .oracle import OWNER, SPEC, rows
from .watching import until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

Drawn = np.ndarray[tuple[int, int], np.dtype[np.int64]]  # the indices of some batches


async def _delivered(replay: areplay.Replay, batches: int, samplers: int = 1) -> Drawn:
    """The indices of so many batches of 256."""
    stream = replay.batches(
        batch_size=256, samplers=samplers, inline_sampling=False, timeout_s=60.0
    )
    async with stream:
        found = np.empty((batches, 256), np.int64)
        for k in range(batches):
            batch = await anext(stream)
            found[k] = batch.indices
            assert batch.probabilities[0] == 1 / len(replay)
            assert (batch.importance_weights == 1.0).all()
    return found


async def _quiet(shape: str, replay: areplay.Replay) -> None:
    """Bring a replay into one of several states: what counts is where its rows lie, not how
    many."""
    if shape == "nearly empty":
        await replay.extend(rows(OWNER, 1, 0, 37))
    elif shape == "blocks half full":  # short streams, each in blocks of its own
        async with replay.actors(workers.uneven, 3, args=([3, 65, 30],)) as actors:
            await actors.wait()
    elif shape == "lapped":
        async with replay.actors(workers.hand_in, 1, args=(3_333, 7)) as actors:
            await actors.wait()
        await replay.extend(rows(OWNER, 1, 0, 77))


@pytest.mark.parametrize("shape", ["nearly empty", "blocks half full", "lapped"])
async def test_every_stored_row_is_drawn_with_the_same_probability(shape: str) -> None:
    """Chi-square over what was delivered by a sampler: as uniform as chance is, and no row left
    out."""
    async with areplay.Replay(SPEC, 1_024, block_rows=64, seed=3) as replay:
        await _quiet(shape, replay)
        serials, counts = replay._opened().ring.occupied()
        stored = np.concatenate(
            [s * 64 + np.arange(n) for s, n in zip(serials, counts, strict=True)]
        )
        assert len(stored) == len(replay)
        names, hits = np.unique(await _delivered(replay, 600, samplers=2), return_counts=True)
        np.testing.assert_array_equal(names, np.sort(stored))
        found = stats.chisquare(hits)
        print(
            f"{shape}: {len(stored)} rows, chi-square {found.statistic:.0f}, p {found.pvalue:.4f}"
        )
        assert 1e-9 < found.pvalue < 1 - 1e-9


async def test_draws_repeat_under_the_same_seed_and_differ_under_another() -> None:
    """A sampler's draws from the same content depend on the seed, the stream and the sampler, and
    nothing else."""

    async def draws(seed: int | None, streams: int) -> list[Drawn]:
        async with areplay.Replay(SPEC, 1_024, seed=seed) as replay:
            await replay.extend(rows(OWNER, 1, 0, 1_000))
            return [await _delivered(replay, 5) for _ in range(streams)]

    first, second = await draws(7, 2)
    (again,) = await draws(7, 1)
    np.testing.assert_array_equal(first, again)
    for different in (second, *await draws(8, 1), *await draws(None, 1)):
        assert not np.array_equal(first, different)


async def test_two_samplers_draw_different_rows() -> None:
    """No two batches are the same: each sampler has a stream of random numbers of its own."""
    async with areplay.Replay(SPEC, 1_024, seed=7) as replay:
        await replay.extend(rows(OWNER, 1, 0, 1_000))
        delivered = await _delivered(replay, 30, samplers=2)
        assert len(np.unique(delivered, axis=0)) == 30


async def test_no_index_is_used_twice() -> None:
    """A row's index is never that of another row, laps and restarts of actors included."""
    seen: dict[int, tuple[int, int]] = {}
    async with (
        areplay.Replay(SPEC, 300, block_rows=16) as replay,
        replay.actors(workers.hand_in_until_stopped, 2, args=(0.0005,)) as actors,
        replay.batches(batch_size=64, timeout_s=60.0) as batches,
    ):
        async for batch in batches:
            for index, life, number in zip(
                batch.indices.tolist(),
                batch["life"].tolist(),
                batch["number"].tolist(),
                strict=True,
            ):
                assert seen.setdefault(index, (life, number)) == (life, number)
            if len(seen) > 3_000:
                break
        await until(lambda: actors.alive == 2)
