"""Tests of `replay`, as far as they need no other process: the owner's rows, draws, counts and
closing."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvloop
from kit import FailsAt, cancel_at_every_tick, memory_descriptors, open_descriptors, ticks, until

import areplay
from areplay._ingest import local_writer as local_writer
from areplay._shm import segment as segment_module

SPEC = areplay.Spec(number=((), "int64"), pair=((2,), "float32"))


def row(number: int) -> dict[str, Any]:
    """A row that says its number in every field."""
    return {"number": number, "pair": np.full(2, number, np.float32)}


def columns(first: int, rows: int) -> dict[str, Any]:
    """Several of them."""
    numbers = np.arange(first, first + rows)
    return {"number": numbers, "pair": np.repeat(numbers[:, None], 2, 1).astype(np.float32)}


def stored(replay: areplay.Replay) -> Counter[int]:
    """The numbers of all rows that are there, each as often as it is there; every row is whole."""
    ring = replay._opened().ring
    serials, rows = ring.occupied()
    names = [
        s * ring.block_rows + k
        for s, n in zip(serials.tolist(), rows.tolist(), strict=True)
        for k in range(n)
    ]
    at = ring.positions(np.array(names, np.int64))
    numbers = ring.columns["number"][at]
    assert (ring.columns["pair"][at] == numbers[:, None]).all()
    return Counter(numbers.tolist())


async def explore(actor: areplay.Actor) -> None:
    """An actor's function that is never run here."""


async def nothing_more_than(before: int) -> None:
    """Return once this process has no more descriptors of memory files than that; helper threads
    may take a moment."""
    await until(lambda: memory_descriptors() <= before, within=5.0)


# Options.


@pytest.mark.parametrize("capacity", [0, -1, True, 2.5, 1e9, "100", None, 1 << 41])
def test_a_wrong_capacity_is_refused(capacity: Any) -> None:
    """A ValueError that says what is allowed."""
    with pytest.raises(
        ValueError,
        match=r"capacity must be a whole number of at least 1 and at "
        r"most",
    ):
        areplay.Replay(SPEC, capacity)


@pytest.mark.parametrize(
    "options",
    [
        {"block_rows": 0},
        {"block_rows": 2.5},
        {"block_rows": True},
        {"seed": -1},
        {"seed": 1.5},
        {"seed": "x"},
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any]) -> None:
    """The message names it."""
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be a whole number"):
        areplay.Replay(SPEC, 100, **options)


@pytest.mark.parametrize("spec", [None, {"x": ((), "int64")}, SPEC["pair"]])
def test_what_is_no_spec_is_refused(spec: Any) -> None:
    """A TypeError, before anything is allocated."""
    with pytest.raises(TypeError, match=r"areplay\.Spec"):
        areplay.Replay(spec, 100)


@pytest.mark.parametrize(
    ("capacity", "block_rows", "rounded"),
    [
        (1, None, 64),
        (64, None, 64),
        (65, None, 80),
        (1_000, None, 1_008),
        (100, 10, 100),
        (101, 10, 110),
        (3, 1, 4),
    ],
)
def test_the_capacity_is_rounded_up_to_whole_blocks(
    capacity: int, block_rows: int | None, rounded: int, caplog: pytest.LogCaptureFixture
) -> None:
    """At least 4 of them; it is told by `capacity_rows`, and said when it differs."""
    with caplog.at_level(logging.INFO, "areplay._engine.config"):
        replay = areplay.Replay(SPEC, capacity, block_rows=block_rows)
    assert replay.capacity_rows == rounded
    said = [record.getMessage() for record in caplog.records]
    assert said == (
        []
        if rounded == capacity
        else [f"capacity {capacity} rounded up to {rounded} rows, whole blocks"]
    )


def test_more_memory_than_there_is_is_refused_at_construction() -> None:
    """Both numbers, bytes a field and the knob; nothing was allocated."""
    before = open_descriptors()
    with pytest.raises(areplay.MemoryLimitExceeded) as caught:
        areplay.Replay(areplay.Spec(obs=((4, 84, 84), "uint8"), reward=((), "float32")), 1 << 36)
    error = caught.value
    assert error.needed_bytes == (1 << 36) * 28_228 > error.available_bytes
    assert error.parts == {"obs": 28_224 << 36, "reward": 4 << 36}
    assert "lower capacity" in str(error)
    assert open_descriptors() == before


def test_a_row_that_is_too_large_for_any_memory_is_refused_likewise() -> None:
    """Sizes do not wrap around."""
    with pytest.raises(areplay.MemoryLimitExceeded):
        areplay.Replay(areplay.Spec(x=((1 << 32, 1 << 32), "float64")), 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(
            ({"batch_size": size}, "batch_size must be a whole number")
            for size in (0, -1, True, 2.5, 1e9, 10**9, 4_097)
        ),
        *(
            ({"prefetch": size}, "prefetch must be a whole number")
            for size in (0, -1, True, 2.5, 10**6)
        ),
        *(
            ({"samplers": size}, "samplers must be a whole number")
            for size in (0, -1, True, 2.5, 10**6)
        ),
        ({"inline_sampling": 1}, "inline_sampling must be True or False, got 1"),
        ({"samplers": 3, "prefetch": 2}, "prefetch must be a whole number of at least 3"),
        *(
            ({"min_size_to_sample": size}, "min_size_to_sample must be")
            for size in (0, -1, True, 2.5, 1_025)
        ),
        *(
            ({"timeout_s": value}, "timeout_s must be a number of seconds")
            for value in (0, -1, True, "1")
        ),
        ({"start_timeout_s": 0}, "start_timeout_s"),
        ({"grace_s": -1}, "grace_s"),
        ({"grace_s": None}, "grace_s"),
        ({"max_restarts": -1}, "max_restarts"),
    ],
)
async def test_a_wrong_option_of_batches_is_refused(options: dict[str, Any], said: str) -> None:
    """A ValueError that says what is allowed, at the call and not in a child; a min_size that can
    never be reached and more samplers than slots are wrong options too."""
    async with areplay.Replay(SPEC, 1_024) as replay:
        with pytest.raises(ValueError, match=said):
            replay.batches(**options)
        assert replay.statistics().batches == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(
            ({"count": count}, "count must be a whole number")
            for count in (0, -1, True, 2.5, 10**6)
        ),
        *(
            ({"inbox_rows": rows}, "inbox_rows must be a whole number")
            for rows in (0, -1, True, 2.5)
        ),
        ({"add_timeout_s": 0}, "add_timeout_s"),
        ({"start_timeout_s": float("inf")}, "start_timeout_s"),
        ({"grace_s": "2"}, "grace_s"),
        ({"max_restarts": 1.5}, "max_restarts"),
    ],
)
async def test_a_wrong_option_of_actors_is_refused(options: dict[str, Any], said: str) -> None:
    """Likewise, before any process is started."""
    async with areplay.Replay(SPEC, 128) as replay:
        with pytest.raises(ValueError, match=said):
            replay.actors(explore, **options)
        assert replay.statistics().actors == ()


async def test_what_cannot_run_in_an_actor_is_refused_at_once() -> None:
    """No coroutine function, one that no other process can import, or weights that are none."""

    async def local(actor: areplay.Actor) -> None:
        pass

    async with areplay.Replay(SPEC, 128) as replay:
        for wrong in (print, lambda actor: None, 5, explore(None)):  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="coroutine function"):
                replay.actors(wrong)  # type: ignore[arg-type]
            if asyncio.iscoroutine(wrong):
                wrong.close()
        with pytest.raises(ValueError, match="module level"):
            replay.actors(local)
        with pytest.raises(TypeError, match=r"areplay\.Weights"):
            replay.actors(explore, weights={"w": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "block_rows", "remedy"), [(2, None, ""), (3, None, "raise capacity to 120")]
)
@pytest.mark.parametrize(("capacity"), [64])
async def test_more_actors_than_blocks_allow_are_warned_of(
    capacity: int, count: int, block_rows: int | None, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each leaves some of a block unused. The knob is named: capacity, the block size, or what is
    opened first."""
    async with areplay.Replay(SPEC, capacity, block_rows=block_rows) as replay:
        with caplog.at_level(logging.WARNING, "areplay._storage.registry"):
            replay.actors(explore, count)
        assert bool(caplog.records) == bool(remedy) and remedy in caplog.text


async def test_a_partial_of_a_coroutine_function_may_be_an_actor() -> None:
    """As long as it can be pickled."""
    async with areplay.Replay(SPEC, 128) as replay:
        replay.actors(functools.partial(explore))


# Rows from this process.


async def test_added_rows_can_be_sampled_at_once() -> None:
    """Each add returns the row's index, for ever its name; counts follow."""
    async with areplay.Replay(SPEC, 128) as replay:
        assert len(replay) == 0 and replay
        names = [await replay.add(**row(number)) for number in range(20)]
        assert names == list(range(20))
        assert len(replay) == 20
        batch = replay.sample(100)
        assert batch["number"].tolist() == batch.indices.tolist()
        assert batch["pair"].tolist() == [[n, n] for n in batch.indices.tolist()]
        assert set(batch.indices.tolist()) <= set(names)
        assert batch.importance_weights.tolist() == [1.0] * 100
        assert batch.probabilities.tolist() == [1 / 20] * 100


async def test_extended_rows_have_an_index_each() -> None:
    """(n,) int64, in order; adds and extends share one stream."""
    async with areplay.Replay(SPEC, 128) as replay:
        assert await replay.add(**row(0)) == 0
        indices = await replay.extend(columns(1, 40))
        assert indices.dtype == np.int64 and indices.tolist() == list(range(1, 41))
        assert await replay.add(**row(41)) == 41
        assert stored(replay) == Counter(range(42))


async def test_the_newest_rows_are_kept() -> None:
    """Beyond the capacity whole blocks are forgotten, oldest first; what is there is drawn, what is
    gone is not."""
    async with areplay.Replay(SPEC, 64) as replay:
        for first in range(0, 1_000, 8):
            await replay.extend(columns(first, 8))
        kept = sorted(stored(replay))
        assert kept == list(range(kept[0], 1_000))
        assert 64 - 16 < len(kept) <= 64
        assert len(replay) == len(kept)
        drawn = {int(n) for _ in range(30) for n in replay.sample(64)["number"]}
        assert drawn == set(kept)


@pytest.mark.parametrize("size", [1, 64])
async def test_as_many_rows_as_fit_can_be_extended_at_once(size: int) -> None:
    """Up to capacity_rows; one more is refused, and nothing is written."""
    async with areplay.Replay(SPEC, 64) as replay:
        await replay.extend(columns(0, size))
        assert stored(replay) == Counter(range(size))
        with pytest.raises(ValueError, match=r"at most capacity_rows = 64 rows, got 65"):
            await replay.extend(columns(100, 65))
        assert stored(replay) == Counter(range(size))


BAD_ROWS: list[dict[str, Any]] = [
    {},
    {"number": 1},
    {**row(1), "more": 0},
    {"numbre": 1, "pair": [1.0, 1.0]},
    {"number": 1.5, "pair": [1.0, 1.0]},
    {"number": [1], "pair": [1.0, 1.0]},
    {"number": 1, "pair": [1.0]},
    {"number": 1, "pair": np.zeros(2)},
    {"number": 1, "pair": np.zeros(2, ">f4")},
    {"number": None, "pair": [1.0, 1.0]},
]


@pytest.mark.parametrize("bad", BAD_ROWS)
@pytest.mark.parametrize("rows_before", [3, 16, 64])
async def test_a_row_that_does_not_fit_changes_nothing(
    bad: dict[str, Any], rows_before: int
) -> None:
    """SpecMismatch; not a row comes or goes, and the next good one is taken."""
    async with areplay.Replay(SPEC, 64) as replay:
        await replay.extend(columns(0, rows_before))
        before = stored(replay), replay.statistics()
        with pytest.raises(areplay.SpecMismatch):
            await replay.add(**bad)
        assert (stored(replay), replay.statistics()) == before
        await replay.add(**row(rows_before))
        assert max(stored(replay)) == rows_before


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("pair"),
        lambda c: c.update(more=c["number"]),
        lambda c: c.update(pair=c["pair"][:-1]),
        lambda c: c.update(pair=c["pair"].astype(np.float64)),
        lambda c: c.update(pair=c["pair"][:, :1]),
        lambda c: c.update(pair=[*c["pair"].tolist()[:-1], [1.0]]),
        lambda c: c.update(number=5),
        lambda c: c.update(number=c["number"][:0], pair=c["pair"][:0]),
        lambda c: c.update(number=c["number"].astype(object)),
    ],
)
async def test_columns_that_do_not_fit_change_nothing(
    change: Callable[[dict[str, Any]], object],
) -> None:
    """Not even the good rows of the call are written."""
    async with areplay.Replay(SPEC, 64) as replay:
        await replay.extend(columns(0, 50))
        before = stored(replay), replay.statistics()
        bad = columns(100, 30)
        change(bad)
        with pytest.raises(areplay.SpecMismatch):
            await replay.extend(bad)
        assert (stored(replay), replay.statistics()) == before


@pytest.mark.parametrize("given", [None, 5, [1, 2], "rows"])
async def test_what_is_no_mapping_of_columns_is_refused(given: Any) -> None:
    """A TypeError or ValueError at the door, not an accident inside."""
    async with areplay.Replay(SPEC, 64) as replay:
        with pytest.raises((TypeError, ValueError, areplay.SpecMismatch)):
            await replay.extend(given)


async def test_values_are_stored_bit_for_bit() -> None:
    """NaNs with payloads, infinities, denormals and minus zero come back as they went in, by add
    and by extend."""
    bits = np.array(
        [0x7FC12345, 0xFF800000, 0x00000001, 0x80000000, 0x7F7FFFFF, 0xFFFFFFFF], np.uint32
    )
    spec = areplay.Spec(x=((6,), "float32"), at=((), "int8"))
    async with areplay.Replay(spec, 64) as replay:
        await replay.add(x=bits.view(np.float32), at=0)
        strided = np.zeros((2, 12), np.uint32)
        strided[:, ::2] = bits
        await replay.extend(
            {"x": strided.view(np.float32)[:, ::2], "at": np.array([1, 2], np.int8)}
        )
        batch = replay.sample(64)
        assert set(batch["at"].tolist()) == {0, 1, 2}
        assert (batch["x"].view(np.uint32) == bits).all()


async def test_a_field_may_have_the_name_of_a_methods_first_argument() -> None:
    """A row's values are named as its spec says."""
    async with areplay.Replay(areplay.Spec(self=((), "int64")), 16) as replay:
        assert await replay.add(self=7) == 0
        assert replay.sample(1)["self"].tolist() == [7]


async def test_adds_of_several_tasks_are_each_stored_once() -> None:
    """Concurrent adds and extends in one process: every row once, rows of one call in order and in
    one piece."""
    async with areplay.Replay(SPEC, 4_096) as replay:

        async def write(k: int) -> list[list[int]]:
            names = []
            for turn in range(10):
                first = 1_000 * k + 20 * turn
                if turn % 2:
                    names.append((await replay.extend(columns(first, 20))).tolist())
                else:
                    names.append([await replay.add(**row(first + n)) for n in range(20)])
                await asyncio.sleep(0)
            return names

        found = await asyncio.gather(*(write(k) for k in range(5)))
        assert stored(replay) == Counter(1_000 * k + n for k in range(5) for n in range(200))
        ring = replay._opened().ring
        for k, names in enumerate(found):
            for turn, mine in enumerate(names):
                numbers = ring.columns["number"][ring.positions(np.array(mine))].tolist()
                assert numbers == list(range(1_000 * k + 20 * turn, 1_000 * k + 20 * turn + 20))
                if turn % 2:
                    assert mine == list(range(mine[0], mine[0] + 20))
        everything = [name for names in found for mine in names for name in mine]
        assert len(set(everything)) == len(everything)


# Large extends, which are copied off the loop.


@pytest.fixture
def always_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every extend is a large one."""
    monkeypatch.setattr(local_writer, "_INLINE_BYTES", 0)


@pytest.mark.usefixtures("always_off_the_loop")
async def test_a_large_extend_lets_the_loop_turn() -> None:
    """Other tasks run while it is copied, and the rows are all there afterwards."""
    async with areplay.Replay(SPEC, 1_024) as replay:
        task = asyncio.create_task(replay.extend(columns(0, 500)))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 1
        assert (await task).tolist() == list(range(500))
        assert stored(replay) == Counter(range(500))


@pytest.mark.usefixtures("always_off_the_loop")
async def test_an_extend_cancelled_at_any_tick_is_all_or_nothing() -> None:
    """None of its rows or all of them; the next call works, and writes no row between them."""
    async with areplay.Replay(SPEC, 1_024) as replay:
        turn = 0

        def build() -> int:
            nonlocal turn
            turn += 1
            return turn * 1_000

        def check(first: int) -> None:
            mine = sorted(number for number in stored(replay) if first <= number < first + 1_000)
            assert mine in ([], list(range(first, first + 30)))
            assert len(replay) == sum(stored(replay).values())

        cancelled = await cancel_at_every_tick(
            build, lambda first: replay.extend(columns(first, 30)), check, most=30
        )
        assert cancelled > 0
        await replay.extend(columns(99_000, 30))
        assert set(range(99_000, 99_030)) <= set(stored(replay))


@pytest.mark.usefixtures("always_off_the_loop")
async def test_a_cancelled_extend_that_was_written_is_announced() -> None:
    """Its rows may be those that a stream of batches waits for."""

    class Stream:
        told, config = 0, SimpleNamespace(is_planned=False)

        def on_rows(self) -> None:
            self.told += 1

        def look_again(self) -> None:
            pass

        async def close(self) -> None:
            pass

    async with areplay.Replay(SPEC, 1_024) as replay:
        stream = Stream()
        replay._opened().streams.append(stream)  # type: ignore[arg-type]
        await replay.add(**row(0))
        assert stream.told == 1
        task = asyncio.create_task(replay.extend(columns(1, 30)))
        while len(replay) == 1:
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(replay) == 31
        assert stream.told == 2


@pytest.mark.usefixtures("always_off_the_loop")
async def test_concurrent_large_extends_do_not_mix() -> None:
    """One at a time: the rows of each call are next to each other, in order."""
    async with areplay.Replay(SPEC, 1_024) as replay:
        names = await asyncio.gather(
            *(replay.extend(columns(1_000 * k, 60)) for k in range(8)), replay.add(**row(9_999))
        )
        for k in range(8):
            mine = names[k].tolist()
            assert mine == list(range(mine[0], mine[0] + 60))
        assert stored(replay) == Counter(
            [*(1_000 * k + n for k in range(8) for n in range(60)), 9_999]
        )


# Draws.


async def test_draws_are_the_same_under_the_same_seed() -> None:
    """Batch after batch, for replays with the same rows; another seed, or none, draws
    differently."""

    async def draws(seed: int | None) -> list[list[int]]:
        async with areplay.Replay(SPEC, 256, seed=seed) as replay:
            await replay.extend(columns(0, 200))
            return [replay.sample(32).indices.tolist() for _ in range(5)]

    first = await draws(7)
    assert await draws(7) == first
    assert first[0] != first[1]
    assert await draws(8) != first
    assert await draws(None) != await draws(None)


async def test_a_sampled_batch_is_a_copy() -> None:
    """It stays what it was whatever is written later, also after closing."""
    async with areplay.Replay(SPEC, 64) as replay:
        await replay.extend(columns(0, 64))
        batch = replay.sample(20)
        numbers = batch["number"].tolist()
        await replay.extend(columns(1_000, 64))
        assert batch["number"].tolist() == numbers == batch.indices.tolist()
    assert batch["number"].tolist() == numbers
    batch.release()
    assert batch.is_released


@pytest.mark.parametrize("size", [0, -1, True, 2.5, 1e9, 10**9, 4_097, None])
async def test_a_wrong_batch_size_is_refused(size: Any) -> None:
    """A ValueError that says what is allowed."""
    async with areplay.Replay(SPEC, 64) as replay:
        await replay.add(**row(0))
        with pytest.raises(
            ValueError,
            match=r"batch_size must be a whole number of at least 1 and "
            r"at most 4,096",
        ):
            replay.sample(size)
        assert len(replay.sample(100).indices) == 100


async def test_a_batch_may_be_larger_than_a_small_replay() -> None:
    """With replacement, up to some thousand items: the default batch size works with a toy replay,
    too."""
    async with areplay.Replay(SPEC, 16) as replay:
        await replay.extend(columns(0, 3))
        assert set(replay.sample(4_096)["number"].tolist()) == {0, 1, 2}
        assert replay.batches() is not None


async def test_sampling_from_nothing_is_stalled() -> None:
    """There is nothing to wait for; the message says what to do."""
    async with areplay.Replay(SPEC, 64) as replay:
        with pytest.raises(areplay.Stalled, match="without rows"):
            replay.sample(1)


async def test_an_item_and_a_selector_can_be_given() -> None:
    """Both are asked: what is drawn, and what is put together."""

    class Oldest:
        def draw(self, ring: Any, count: int, rng: Any) -> tuple[Any, float]:
            return np.full(count, ring.index_range()[0]), 0.5

    class Negated(areplay.Rows):
        def assemble(self, windows: Any, out: Any) -> None:
            super().assemble(windows, out)
            out["number"] *= -1

    async with areplay.Replay(SPEC, 64) as replay:
        await replay.extend(columns(5, 10))
        batch = replay.sample(3, Negated(), Oldest())
        assert batch["number"].tolist() == [-5] * 3
        assert batch.indices.tolist() == [0] * 3
        assert batch.probabilities.tolist() == [0.5] * 3


# Counts.


async def test_statistics_tell_the_state() -> None:
    """Rows, capacity, inserted since the start, geometry; frozen at the moment of the call."""
    async with areplay.Replay(SPEC, 64) as replay:
        fresh = replay.statistics()
        no_saves = areplay.SavesStatistics(0, 0, 0, None, "", 0.0, "", 0.0)
        counts = (0, 64, 0, 16, 4, 16, 0, 0, 0)
        assert fresh == areplay.Statistics(
            *counts, (), (), (), fresh.opened_at_s, fresh.memory_bytes, 0.0, no_saves
        )
        assert 64 * 16 < fresh.memory_bytes < 64 * 16 + 16_384
        assert time.time() - 60 < fresh.opened_at_s <= time.time()
        await replay.extend(columns(0, 40))
        await replay.extend(columns(40, 30))
        assert fresh.rows == 0
        now = replay.statistics()
        assert (now.rows, now.rows_inserted, now.blocks_started) == (len(replay), 70, 5)
        assert now.rows == 70 - 16


async def test_streams_that_were_never_entered_are_counted_and_closed_with_the_rest() -> None:
    """They have no processes, and closing the replay closes them."""
    async with areplay.Replay(SPEC, 64) as replay:
        batches = replay.batches(batch_size=8, prefetch=4)
        actors = replay.actors(explore, 2)
        (record,) = replay.statistics().batches
        assert (record.batch_size, record.prefetch, record.ready, record.samplers_alive) == (
            8,
            4,
            0,
            0,
        )
        assert replay.statistics().actors == ()
        with pytest.raises(areplay.Closed):
            await batches.get()
    for thing in (batches, actors):
        with pytest.raises(areplay.Closed):
            await thing.__aenter__()


# Opening and closing.


async def test_outside_of_its_block_a_replay_is_closed() -> None:
    """Before and after: Closed from everything that needs it, and how to use it."""
    replay = areplay.Replay(SPEC, 64)
    for state in ("not open", "closed"):
        uses: list[Callable[[], Any]] = [
            lambda: replay.sample(1),
            lambda: replay.statistics(),
            lambda: len(replay),
            lambda: replay.batches(),
            lambda: replay.actors(explore),
        ]
        for use in uses:
            with pytest.raises(areplay.Closed, match="async with"):
                use()
        with pytest.raises(areplay.Closed):
            await replay.add(**row(0))
        with pytest.raises(areplay.Closed):
            await replay.extend(columns(0, 3))
        assert repr(replay) == f"<Replay {state}>"
        assert replay.capacity_rows == 64
        if state == "not open":
            async with replay:
                assert repr(replay) == f"<Replay {replay._opened()!r}>"


async def test_a_replay_is_opened_once() -> None:
    """Neither twice at a time nor again after closing."""
    async with areplay.Replay(SPEC, 64) as replay:
        with pytest.raises(areplay.Closed, match="opened before"):
            await replay.__aenter__()
        await replay.add(**row(0))
    with pytest.raises(areplay.Closed, match="opened before"):
        await replay.__aenter__()


async def test_closing_may_be_repeated_and_come_from_several_tasks() -> None:
    """One closing, however many ask for it; also of a replay that was never opened."""
    before = memory_descriptors()
    replay = areplay.Replay(SPEC, 64)
    async with replay:
        await asyncio.gather(*(replay.close() for _ in range(3)))
        await replay.close()
    unopened = areplay.Replay(SPEC, 64)
    await unopened.close()
    with pytest.raises(areplay.Closed):
        await unopened.__aenter__()
    del replay, unopened
    await nothing_more_than(before)


async def test_an_exception_in_the_block_closes_and_travels_on() -> None:
    """Nothing is swallowed, nothing is left."""
    before = memory_descriptors()
    with pytest.raises(ZeroDivisionError):
        async with areplay.Replay(SPEC, 64) as replay:
            await replay.add(**row(0))
            _ = 1 / 0
    assert repr(replay) == "<Replay closed>"
    del replay
    await nothing_more_than(before)


@pytest.mark.usefixtures("always_off_the_loop")
async def test_a_write_under_way_is_finished_before_closing_and_a_later_one_is_refused() -> None:
    """The rows of the first are written whole; who waits for its turn gets Closed."""
    async with areplay.Replay(SPEC, 1_024) as replay:
        first = asyncio.create_task(replay.extend(columns(0, 500)))
        await ticks(2)
        second = asyncio.create_task(replay.extend(columns(1_000, 10)))
        third = asyncio.create_task(replay.add(**row(1)))
        await ticks(1)
        closing = asyncio.create_task(replay.close())
        results = await asyncio.gather(first, second, third, return_exceptions=True)
        await closing
    assert isinstance(results[0], np.ndarray) and results[0].tolist() == list(range(500))
    assert all(
        isinstance(result, areplay.Closed) or isinstance(results[0], np.ndarray)
        for result in results[1:]
    )


async def test_a_cancelled_close_closes_all_the_same() -> None:
    """The cancellation comes after it."""
    before = memory_descriptors()
    replay = await areplay.Replay(SPEC, 64).__aenter__()
    task = asyncio.create_task(replay.close())
    await ticks(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert repr(replay) == "<Replay closed>"
    del replay, task
    await nothing_more_than(before)


async def test_opening_cancelled_at_any_tick_leaves_nothing() -> None:
    """Whoever was not let in has nothing to close: memory, locks and descriptors are given back."""
    before = memory_descriptors()
    for count in range(40):
        replay = areplay.Replay(SPEC, 64)
        task = asyncio.create_task(replay.__aenter__())
        await ticks(count)
        finished = task.done()
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            await replay.close()
        with pytest.raises(areplay.Closed):
            len(replay)
        del replay, task
        await nothing_more_than(before)
        if finished:
            break


@pytest.mark.parametrize(
    "call", ["memfd_create", "ftruncate", "posix_fallocate", "open", "eventfd"]
)
async def test_a_replay_that_cannot_be_opened_leaves_nothing(call: str) -> None:
    """Each system call fails once, at its 1st, 2nd, 3rd ... time: a typed error, and descriptors as
    before."""
    for nth in range(1, 20):
        before = memory_descriptors()
        with pytest.MonkeyPatch.context() as patch:
            failing = FailsAt(getattr(os, call), nth)
            patch.setattr(os, call, failing)
            replay = areplay.Replay(SPEC, 64)
            try:
                async with replay:
                    await replay.add(**row(0))
            except areplay.ResourceUnavailable:
                assert failing.has_failed
            else:
                assert not failing.has_failed
                break
        with pytest.raises(areplay.Closed):
            len(replay)
        del replay
        await nothing_more_than(before)
    else:
        pytest.fail("the fault was met again and again")


async def test_prefaulting_reports_its_progress_and_keeps_the_loop_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From another thread, up to the whole; rows are as writable as ever."""
    monkeypatch.setattr(segment_module, "_STEP_BYTES", 1 << 16)
    seen: list[tuple[int, int]] = []
    spec = areplay.Spec(x=((1_000,), "float32"))
    turns = 0
    opening = asyncio.create_task(
        areplay.Replay(
            spec, 1_000, prefault=True, on_prefault=lambda *at: seen.append(at)
        ).__aenter__()
    )
    while not opening.done():
        await asyncio.sleep(0)
        turns += 1
    replay = await opening
    assert turns > 1
    assert len(seen) > 10
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] > 4_000_000
    await replay.add(x=np.ones(1_000, np.float32))
    assert replay.sample(1)["x"].sum() == 1_000
    await replay.close()


async def test_an_error_of_the_users_progress_function_stops_the_opening() -> None:
    """It is raised where the replay is opened, and nothing is left."""
    before = memory_descriptors()

    def stop(done: int, size: int) -> None:
        raise ZeroDivisionError

    replay = areplay.Replay(SPEC, 64, prefault=True, on_prefault=stop)
    with pytest.raises(ZeroDivisionError):
        await replay.__aenter__()
    del replay
    await nothing_more_than(before)


async def test_several_replays_live_side_by_side() -> None:
    """Rows, draws and closing of one are no other's."""
    async with areplay.Replay(SPEC, 64, seed=1) as first:
        async with areplay.Replay(areplay.Spec(y=((), "bool")), 128) as second:
            await first.extend(columns(0, 10))
            await second.add(y=True)
            assert (len(first), len(second)) == (10, 1)
            assert second.sample(2)["y"].tolist() == [True, True]
        await first.add(**row(10))
        assert stored(first) == Counter(range(11))


def test_replays_on_one_loop_after_the_other() -> None:
    """Nothing is bound to a loop that is gone."""

    async def main(k: int) -> int:
        async with areplay.Replay(SPEC, 64) as replay:
            await replay.extend(columns(0, k))
            return len(replay)

    assert [areplay.run(main(k)) for k in (3, 4)] == [3, 4]
    assert asyncio.run(main(5)) == 5


# run


def test_run_uses_uvloop_and_returns_the_result() -> None:
    """As asyncio.run does; errors come out as they are."""

    async def main() -> str:
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
        return "done"

    async def fail() -> None:
        raise KeyError("x")

    async def cancel() -> None:
        raise asyncio.CancelledError

    assert areplay.run(main()) == "done"
    with pytest.raises(KeyError):
        areplay.run(fail())
    with pytest.raises(asyncio.CancelledError):
        areplay.run(cancel())


PROGRAM = """
import asyncio, os, sys
import areplay

async def main():
    async with areplay.Replay(areplay.Spec(x=((), "int64")), 64) as replay:
        await replay.add(x=1)
        print("READY", flush=True)
        try:
            await asyncio.sleep(1_000)
        finally:
            print("closing", len(replay), flush=True)
    print("never")

areplay.run(main())
"""


@pytest.mark.parametrize(("signal_name", "code"), [("TERM", 143), ("INT", None)])
def test_a_signal_ends_a_program_in_order(
    signal_name: str, code: int | None, tmp_path: Path
) -> None:
    """SIGTERM and Ctrl-C cancel the main coroutine, so that it closes; then the process ends as one
    that was asked."""
    import signal

    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == "READY\n"
        child.send_signal(getattr(signal, f"SIG{signal_name}"))
        out, err = child.communicate(timeout=60)
    assert out == "closing 1\n"
    if code is None:
        assert child.returncode in (130, -signal.SIGINT) and "KeyboardInterrupt" in err
    else:
        assert (child.returncode, err) == (code, "")


async def test_rows_are_announced_when_they_can_be_drawn() -> None:
    """Streams of batches hear of every add and extend, after the rows are there."""
    seen: list[int] = []

    class Stream:
        config = SimpleNamespace(is_planned=False)

        def on_rows(self) -> None:
            seen.append(len(replay))

        async def close(self) -> None:
            pass

    async with areplay.Replay(SPEC, 64) as replay:
        stream = Stream()
        replay._opened().streams.append(stream)  # type: ignore[arg-type]
        await replay.add(**row(0))
        await replay.extend(columns(1, 5))
        assert seen == [1, 6]


async def test_nothing_of_a_closed_replay_is_left_running() -> None:
    """No task and no thread of its own, once closing has returned."""
    import threading

    tasks, threads = asyncio.all_tasks(), threading.active_count()
    async with areplay.Replay(SPEC, 64) as replay:
        await replay.add(**row(0))
    await until(lambda: asyncio.all_tasks() == tasks)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("areplay")]
    assert threads <= threading.active_count() <= threads + 2, "the loop's own helpers at most"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"item": 256}, "item"),
        ({"item": areplay.Rows}, "item"),
        ({"selector": areplay.Uniform}, "selector"),
    ],
)
async def test_what_is_no_item_or_selector_is_refused_at_the_door(
    options: dict[str, Any], said: str
) -> None:
    """A class instead of an object, or a batch size in its place: a TypeError that names the option
    and an example."""
    async with areplay.Replay(SPEC, 64) as replay:
        await replay.add(**row(0))
        with pytest.raises(TypeError, match=f"{said} must be an object with"):
            replay.batches(**options)
        with pytest.raises(TypeError, match=f"{said} must be an object with"):
            replay.sample(4, **options)


async def test_a_string_of_arguments_is_not_taken_apart() -> None:
    """`args="CartPole-v1"` lacks a comma; letter by letter it would reach the actor."""
    async with areplay.Replay(SPEC, 64) as replay:
        with pytest.raises(TypeError, match="args must be a tuple"):
            replay.actors(explore_nothing, args="CartPole-v1")  # type: ignore[arg-type]


async def explore_nothing(actor: areplay.Actor, *args: str) -> None:
    """For options that are refused before anything starts."""
