"""Tests of the modules of `_checkpoint`, as far as they need no other process.

What is on disk is read by an oracle that shares no code with them (`checkpoint_oracle`).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoint_oracle import Columns, block_files, check_files, columns_of, manifest_of, masses_of
from kit import memory_descriptors, open_descriptors, until

import areplay
from areplay import Replay
from areplay._checkpoint import save_files as save_files_module
from areplay._checkpoint import writer as writer_module
from areplay._checkpoint.block_copies import BlockCopies
from areplay._checkpoint.format import CancelToken
from areplay._checkpoint.manifest import manifest_checksum
from areplay._checkpoint.reader import Checkpoint
from areplay._checkpoint.snapshot import Snapshot
from areplay._checkpoint.writer import Save
from areplay._engine import checkpoints as saving
from areplay._shm.range_locks import BlockLocks
from areplay._storage.registry import RowListener
from areplay._storage.stream_writer import StreamWriter

SPEC = areplay.Spec(
    x=((), "float64"), pair=((2, 3), "uint8"), flag=((), "bool"), z=((2,), "complex64")
)
STEPS = areplay.Spec.steps(obs=((2,), "float32"), action=((), "int64"), extra=((), "float64"))


def columns(start: int, stop: int) -> Columns:
    """Rows that differ in each field, with all sorts of floats among them."""
    number = np.arange(start, stop)
    x = number.astype(np.float64)
    x[number % 7 == 3], x[number % 7 == 4], x[number % 7 == 5] = np.nan, -np.inf, 5e-324
    x.view(np.uint64)[number % 11 == 2] = 0x7FF8_0000_0000_0123  # a NaN with something in it
    pair = (number[:, None, None] + np.arange(6).reshape(2, 3)).astype(np.uint8)
    return {
        "x": x,
        "pair": pair,
        "flag": number % 3 == 0,
        "z": (number[:, None] * [1, 1j]).astype(np.complex64),
    }


def same(one: Columns, other: Columns, names: Any) -> None:
    """Bit for bit."""
    for name in names:
        assert one[name].dtype == other[name].dtype
        assert one[name].tobytes() == other[name].tobytes(), name


def stored(replay: Replay) -> Columns:
    """All rows in a ring, oldest block first, with their indices."""
    ring = replay._opened().ring
    serials, rows = ring.occupied()
    order = np.argsort(serials)
    indices = np.concatenate(
        [
            serial * ring.block_rows + np.arange(count)
            for serial, count in zip(serials[order], rows[order], strict=True)
        ]
    )
    return {
        "indices": indices,
        **{name: column[ring.positions(indices)] for name, column in ring.columns.items()},
    }


def chains(replay: Replay) -> dict[int, tuple[int, int, int]]:
    """Stream, previous and following block of each."""
    ring = replay._opened().ring
    return {serial: ring.chain(serial) for serial in sorted(ring.occupied()[0].tolist())}


def files_of(path: Path, kind: str = "") -> list[Path]:
    """Those whose names begin so."""
    return sorted(file for file in path.iterdir() if file.name.startswith(kind))


def size_of(path: Path) -> int:
    """Of all files, in bytes."""
    return sum(file.stat().st_size for file in path.iterdir())


async def play(replay: Replay, episodes: int, length: int, first: int = 0) -> None:
    """Episodes of steps that are numbered through, one number a step."""
    number = first
    for _ in range(episodes):
        for k in range(length):
            obs, after = np.full(2, number, np.float32), np.full(2, number + 1, np.float32)
            is_last = k == length - 1
            await replay.add(
                obs=obs,
                action=number,
                reward=number / 8,
                extra=-number,
                terminated=is_last,
                truncated=False,
                **({"next_obs": after} if is_last else {}),
            )
            number += 1


async def test_rows_come_back_bit_for_bit_and_in_their_places(tmp_path: Path) -> None:
    """Each row has the index that it had; counters, chains and capacity are those of before; so is
    the disk."""
    async with Replay(SPEC, 1_000, block_rows=32, seed=3) as replay:
        for start in range(0, 2_500, 100):
            await replay.extend(columns(start, start + 100))
        saved = await replay.save(tmp_path / "here" / "it is")
        before, chained, statistics = stored(replay), chains(replay), replay.statistics()
        oldest = min(chained)
        chained[oldest] = (0, -1, oldest + 1)  # the block before it is gone
        assert saved.rows == len(replay) == statistics.rows
        assert saved.blocks == saved.blocks_written == len(chained)
    check_files(tmp_path / "here" / "it is")
    on_disk = columns_of(tmp_path / "here" / "it is")
    same(on_disk, before, before)
    same(on_disk, columns(2_500 - saved.rows, 2_500), SPEC)
    async with await Replay.load(tmp_path / "here" / "it is") as loaded:
        assert loaded.spec == SPEC
        same(stored(loaded), before, before)
        assert chains(loaded) == chained
        after = loaded.statistics()
        for name in (
            "rows",
            "capacity_rows",
            "rows_inserted",
            "blocks",
            "block_rows",
            "blocks_started",
        ):
            assert getattr(after, name) == getattr(statistics, name), name
        (index,) = await loaded.extend(columns(2_500, 2_501))
        assert index == statistics.blocks_started * 32, "a new stream begins in the next block"
        assert loaded._opened().ring.chain(int(index) // 32)[1] == -1


async def test_an_empty_replay_can_be_saved(tmp_path: Path) -> None:
    """It has no row afterwards either."""
    async with Replay(SPEC, 100) as replay:
        assert (await replay.save(tmp_path)).rows == 0
    async with await Replay.load(tmp_path) as loaded:
        assert len(loaded) == 0
        await loaded.extend(columns(0, 5))
        assert len(loaded) == 5


@pytest.mark.parametrize(
    ("capacity", "block_rows"),
    [
        (None, 16),
        (None, 64),
        (None, 33),
        (2_000, None),
        (2_000, 32),
        (300, None),
        (320, 32),
        (128, 32),
        (100, 7),
    ],
)
async def test_another_capacity_or_block_size_keeps_the_newest_rows(
    capacity: int | None, block_rows: int | None, tmp_path: Path
) -> None:
    """Bit for bit, in order, as many as fit."""
    async with Replay(SPEC, 960, block_rows=32) as replay:
        for start in range(0, 1_500, 50):
            await replay.extend(columns(start, start + 50))
        await replay.save(tmp_path)
        rows = len(replay)
    async with await Replay.load(tmp_path, capacity=capacity, block_rows=block_rows) as loaded:
        found = stored(loaded)
        kept = len(found["x"])
        assert (
            min(rows, loaded.capacity_rows - 2 * loaded.statistics().block_rows)
            <= kept
            <= loaded.capacity_rows
        )
        assert len(loaded) == kept
        same(found, columns(1_500 - kept, 1_500), SPEC)
        assert loaded.capacity_rows >= (960 if capacity is None else capacity)
        for start in range(1_500, 4_000, 50):
            await loaded.extend(columns(start, start + 50))
        found = stored(loaded)
        same(found, columns(4_000 - len(loaded), 4_000), SPEC)


@pytest.mark.parametrize(
    ("capacity", "block_rows"), [(None, None), (None, 48), (500, None), (3_000, 16), (None, 256)]
)
async def test_episodes_are_whole_after_a_load(
    capacity: int | None, block_rows: int | None, tmp_path: Path
) -> None:
    """Three steps make a transition, wherever blocks and episodes end; what is drawn is what was
    played."""
    async with Replay(STEPS, 1_000, block_rows=16) as replay:
        await play(replay, 60, 23)
        await replay.save(tmp_path)
    async with await Replay.load(
        tmp_path, capacity=capacity, block_rows=block_rows, spec=STEPS
    ) as loaded:
        batch = loaded.sample(2_000, areplay.Transitions(n_step=3, gamma=1.0))
        number = batch["action"]
        n = np.minimum(3, 23 - number % 23)
        assert len(np.unique(number)) > 200
        np.testing.assert_array_equal(batch["obs"][:, 0], number)
        np.testing.assert_array_equal(batch["next_obs"][:, 0], number + n)
        np.testing.assert_allclose(batch["reward"], (n * number + n * (n - 1) / 2) / 8)
        np.testing.assert_array_equal(batch["terminated"], number % 23 + n == 23)
        sequences = loaded.sample(200, areplay.Sequences(16))
        first = sequences["action"][:, 0]
        assert set((first % 23).tolist()) <= set(range(23))
        await play(loaded, 2, 23, first=10_000)
        batch = loaded.sample(500, areplay.Transitions())
        np.testing.assert_array_equal(batch["next_obs"][:, 0], batch["action"] + 1)


async def test_an_episode_that_was_open_is_cut(tmp_path: Path) -> None:
    """Its last step has no next observation, so nothing is made of it; what comes next is another
    stream."""
    async with Replay(STEPS, 1_000) as replay:
        await play(replay, 1, 10)
        for number in (10, 11, 12):
            obs = np.full(2, number, np.float32)
            await replay.add(
                obs=obs, action=number, reward=0.0, extra=0.0, terminated=False, truncated=False
            )
        await replay.save(tmp_path)
    async with await Replay.load(tmp_path) as loaded:
        await play(loaded, 1, 5, first=100)
        drawn = set(loaded.sample(2_000)["action"].tolist())
        assert drawn == {*range(12), *range(100, 105)}


@pytest.mark.parametrize("block_rows", [None, 16, 100])
async def test_priorities_come_back(block_rows: int | None, tmp_path: Path) -> None:
    """Masses of each exponent, and the largest one; final observations have none still; sums are
    right."""
    prioritized = areplay.Prioritized(0.6)
    async with Replay(STEPS, 2_000, seed=1) as replay:
        await play(replay, 40, 12)
        replay.sample(16, selector=prioritized)
        replay.sample(16, selector=areplay.Prioritized(1.0))
        everything = stored(replay)
        steps = everything["indices"][everything["steps.next_offset"] > 0]
        replay.update_priorities(steps, np.random.default_rng(0).exponential(size=len(steps)))
        replay.update_priorities(steps[5:6], [50.0])
        before = (
            replay._opened()
            .priorities[0.6]
            .masses[replay._opened().ring.positions(everything["indices"])]
        )
        await replay.save(tmp_path)
    np.testing.assert_array_equal(masses_of(tmp_path, 0.6), before)
    async with await Replay.load(tmp_path, block_rows=block_rows) as loaded:
        for exponent in (0.6, 1.0):
            found = stored(loaded)
            priorities = loaded._opened().priorities[exponent]
            priorities.check()
            masses = priorities.masses[loaded._opened().ring.positions(found["indices"])]
            by_row = dict(zip(found["extra"].tolist(), masses.tolist(), strict=True))
            on_disk = columns_of(tmp_path)
            expected = zip(
                on_disk["extra"].tolist(), masses_of(tmp_path, exponent).tolist(), strict=True
            )
            assert by_row == dict(expected)
            assert np.count_nonzero(priorities.masses) == len(steps)
            assert priorities.largest == np.float32(50.0**exponent)
        assert loaded.statistics().priorities_updated == len(steps) + 1
        await play(loaded, 1, 3, first=1_000)
        new = stored(loaded)["indices"][-4:]
        np.testing.assert_allclose(
            priorities.masses[loaded._opened().ring.positions(new)], [50.0, 50.0, 50.0, 0.0]
        )
        loaded.update_priorities(
            loaded.sample(8, selector=areplay.Prioritized(0.6)).indices, np.ones(8)
        )


async def test_draws_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """The batches after a load are those that would have come next; with another seed they are
    others."""
    async with Replay(SPEC, 1_000, seed=5) as replay:
        await replay.extend(columns(0, 500))
        replay.sample(64)
        await replay.save(tmp_path)
        expected = replay.sample(64).indices
    async with await Replay.load(tmp_path) as loaded:
        np.testing.assert_array_equal(loaded.sample(64).indices, expected)
    async with await Replay.load(tmp_path, seed=6) as loaded:
        assert not np.array_equal(loaded.sample(64).indices, expected)


async def test_a_second_save_writes_only_what_changed(
    tmp_path: Path, tmp_path_factory: Any
) -> None:
    """Of 30 blocks, those that are new since; also after a load. Files of blocks that are gone are
    deleted."""
    other = tmp_path_factory.mktemp("other")
    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 960))
        assert (await replay.save(tmp_path)).blocks_written == 30
        first = block_files(tmp_path)
        assert (await replay.save(tmp_path)).blocks_written == 0
        assert block_files(tmp_path).keys() == first.keys()
        await replay.extend(columns(960, 960 + 40))
        saved = await replay.save(tmp_path)
        assert saved.blocks_written == 2
        assert len(block_files(tmp_path).keys() - first.keys()) == 2
        assert saved.bytes_written < 0.2 * size_of(tmp_path)
        await replay.extend(columns(1_000, 1_001))  # into a block that was saved with 8 rows
        assert (await replay.save(tmp_path)).blocks_written == 1
        check_files(tmp_path)
        assert (await replay.save(other)).blocks_written == 30
    async with await Replay.load(tmp_path) as loaded:
        assert (await loaded.save(tmp_path)).blocks_written == 0
        await loaded.extend(columns(1_001, 1_002))
        assert (await loaded.save(tmp_path)).blocks_written == 1
        check_files(tmp_path)
        async with await Replay.load(tmp_path) as twin:
            await twin.extend(columns(5_000, 5_001))
            await twin.save(tmp_path)
            await loaded.extend(columns(1_002, 1_003))
            everything = stored(loaded)
            assert (await loaded.save(tmp_path)).blocks_written == 30, (
                "what is there is another replay's"
            )
    same(columns_of(tmp_path), everything, everything)


async def test_blocks_that_were_cut_anew_are_all_written(tmp_path: Path) -> None:
    """Into the directory that they were loaded from, too: there are others of the same number and
    size in it."""
    async with Replay(SPEC, 960, block_rows=32) as replay:
        for start in range(0, 1_500, 500):
            await replay.extend(columns(start, start + 500))
        await replay.save(tmp_path)
    async with await Replay.load(tmp_path, capacity=2_000, block_rows=32) as loaded:
        everything = stored(loaded)
        saved = await loaded.save(tmp_path)
        assert saved.blocks_written == saved.blocks
        check_files(tmp_path)
        same(columns_of(tmp_path), everything, everything)


async def test_streams_with_a_gap_are_two(tmp_path: Path) -> None:
    """A block between that was not saved in time: what follows it is not a part of what was
    before."""
    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 960))
        await replay.save(tmp_path)
    for block_rows in (32, 20):
        checkpoint = Checkpoint(str(tmp_path))
        checkpoint.table = np.delete(checkpoint.table, 9)
        blocks = checkpoint.plan(960 // block_rows, block_rows).blocks
        first = np.flatnonzero(blocks.previous == -1)
        assert len(first) == len(np.unique(blocks.streams)) == 2
        assert np.count_nonzero(blocks.following == -1) == 2
        assert (
            len(np.unique(blocks.streams[: first[1]]))
            == len(np.unique(blocks.streams[first[1] :]))
            == 1
        )


async def test_seeds_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Actors and samplers that are started after a load get the seeds that would have come next."""
    async with Replay(SPEC, 100, seed=5) as replay:
        replay._opened().counters.next_number()
        await replay.save(tmp_path)
        expected = (
            replay._opened().counters.next_number(),
            replay._opened().counters.seeds(1, 2).generate_state(4).tolist(),
        )
    for seed in (None, 6):
        async with await Replay.load(tmp_path, seed=seed) as loaded:
            found = (
                loaded._opened().counters.next_number(),
                loaded._opened().counters.seeds(1, 2).generate_state(4).tolist(),
            )
            assert (found == expected) == (seed is None)


async def test_a_block_file_that_was_deleted_is_written_again(tmp_path: Path) -> None:
    """The next save notices."""
    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 960))
        await replay.save(tmp_path)
        (tmp_path / list(block_files(tmp_path))[7]).unlink()
        assert (await replay.save(tmp_path)).blocks_written == 1
    check_files(tmp_path)


async def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """Leftovers of a killed save are deleted, nothing else is; a manifest of something else is not
    replaced."""
    for name in ("block-3-32-1.npys", "masses-0-1.npy", "manifest.json.new"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    async with Replay(SPEC, 100) as replay:
        await replay.extend(columns(0, 50))
        await replay.save(tmp_path)
        (tmp_path / "notes.txt").unlink()
        check_files(tmp_path)
        other = tmp_path / "other"
        other.mkdir()
        (other / "manifest.json").write_text("{}")
        with pytest.raises(
            areplay.CheckpointFailed,
            match=r"manifest\.json that is none of a "
            r"checkpoint",
        ):
            await replay.save(other)
        assert [file.name for file in other.iterdir()] == ["manifest.json"]


async def test_rows_that_come_meanwhile_are_left_out(tmp_path: Path) -> None:
    """The checkpoint has the rows of the moment at which save was awaited: the same number of each
    stream."""
    async with Replay(SPEC, 10_000, block_rows=64) as replay:
        await replay.extend(columns(0, 1_000))
        coming: list[int] = []

        async def write() -> None:
            for start in range(1_000, 3_000, 10):
                await replay.extend(columns(start, start + 10))
                coming.append(start)
                await asyncio.sleep(0.0005)

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            saving = group.create_task(replay.save(tmp_path, max_bytes_per_s=1e6))
            await saving
            assert coming
        found = columns_of(tmp_path)
        same(found, columns(0, len(found["x"])), SPEC)
        assert 1_000 <= len(found["x"]) < 3_000


async def save_slowly(
    replay: Replay, path: Path, meanwhile: Callable[[], Any]
) -> areplay.SaveResult:
    """Save block by block; between the first and the second one, await what `meanwhile` returns."""
    loop = asyncio.get_running_loop()
    is_first = True

    # in the thread of the save, which waits here
    def on_progress(done_bytes: int, size_bytes: int) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            asyncio.run_coroutine_threadsafe(meanwhile(), loop).result(30)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "_COPIED_AT_ONCE", 1)
        return await replay.save(path, on_progress=on_progress)


@pytest.mark.parametrize("more", [320, 2_000], ids=["half a lap", "three laps"])
async def test_of_what_is_recycled_meanwhile_what_took_its_place_is_saved(
    more: int, tmp_path: Path
) -> None:
    """A checkpoint is as full as the ring: one block a place, each whole, and of each row the
    priority that is its."""
    async with Replay(SPEC, 640, block_rows=32) as replay:
        numbers = np.arange(640 + more)
        await replay.extend(columns(0, 640))
        replay.sample(8, selector=areplay.Prioritized(priority_exponent=1.0))
        replay.update_priorities(numbers[:640], numbers[:640] + 1)

        async def write() -> None:
            for start in range(640, 640 + more, 40):
                await replay.extend(
                    columns(start, start + 40), priorities=numbers[start : start + 40] + 1
                )

        saved = await save_slowly(replay, tmp_path, write)
        found = columns_of(tmp_path)
        assert len(found["x"]) == saved.rows > 640 - 2 * 32
        indices = found["indices"]
        assert saved.blocks_renewed == len(np.unique(indices[indices >= 640] // 32))
        assert (np.diff(indices) > 0).all()
        assert indices[0] == 0 and indices[-1] >= 640, "what was copied already, and newer rows"
        assert len(np.unique(indices % 640)) == len(indices)
        same(
            found, {name: column[indices] for name, column in columns(0, 640 + more).items()}, SPEC
        )
        np.testing.assert_array_equal(masses_of(tmp_path, 1.0), (indices + 1).astype(np.float32))
        check_files(tmp_path)
    for options in ({}, {"block_rows": 16}, {"capacity": 320}):
        async with await Replay.load(tmp_path, **options) as loaded:
            assert len(loaded) == min(saved.rows, loaded.capacity_rows)
            assert (
                sorted(stored(loaded)["z"][:, 0].real.astype(int))
                == indices.tolist()[-len(loaded) :]
            )
            loaded._opened().priorities[1.0].check()
            newest = max(chains(loaded))
            assert (
                min(await loaded.extend(columns(0, 10))) > newest * loaded.statistics().block_rows
            )


async def test_no_item_spans_what_was_not_saved(tmp_path: Path) -> None:
    """Where blocks of one stream are of different laps, each item is of steps that do follow each
    other."""
    async with Replay(STEPS, 640, block_rows=32) as replay:
        await play(replay, 20, 31)
        await save_slowly(replay, tmp_path, lambda: play(replay, 11, 31, first=10_000))
    steps = columns_of(tmp_path)["extra"]
    assert (steps <= -10_000).any() and (steps > -10_000).any()
    for options in ({}, {"block_rows": 16}, {"block_rows": 50}):
        async with await Replay.load(tmp_path, **options) as loaded:
            batch = loaded.sample(4_000, areplay.Transitions(n_step=3, gamma=1.0))
            first, after = -batch["extra"].astype(int), batch["next_obs"][:, 0].astype(int)
            base = np.where(first >= 10_000, 10_000, 0)
            end = np.minimum((first - base) // 31 * 31 + 31, first - base + 3) + base
            np.testing.assert_array_equal(after, end)
            expected = [
                sum(k / 8 for k in range(a, b))
                for a, b in zip(first.tolist(), end.tolist(), strict=True)
            ]
            np.testing.assert_allclose(batch["reward"], expected)
            assert (first >= 10_000).any() and (first < 10_000).any()


async def test_a_fifo_delivers_what_took_the_place_of_what_it_had_delivered(tmp_path: Path) -> None:
    """Each row of the checkpoint that was not delivered by the moment of the save comes once, and
    no other."""
    fifo = {"batch_size": 20, "selector": areplay.Fifo(), "prefetch": 1}
    async with Replay(SPEC, 640, block_rows=32) as replay:
        await replay.extend(columns(0, 640))
        async with replay.batches(**fifo) as batches:
            seen = np.concatenate([(await anext(batches)).indices.copy() for _ in range(20)])

            async def go_on() -> None:
                await replay.extend(columns(640, 960))

            await save_slowly(replay, tmp_path, go_on)
    assert seen.tolist() == list(range(400))
    saved = columns_of(tmp_path)["indices"]
    assert saved[-1] >= 640
    async with await Replay.load(tmp_path) as loaded, loaded.batches(**fifo) as batches:
        left = batches.statistics().items_left
        assert left == np.count_nonzero(saved >= 400)
        came = [anext(batches) for _ in range(left // 20)]
        numbers = [int(number) for batch in came for number in (await batch)["z"][:, 0].real]
        assert numbers == saved[saved >= 400].tolist()[: len(numbers)]


async def test_a_block_that_is_recycled_while_it_is_copied_is_not_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in its place before the copy, it is looked at again after it: what was copied may be
    another's rows."""
    async with Replay(SPEC, 640, block_rows=32) as replay:
        await replay.extend(columns(0, 640))
        loop, looks, look = asyncio.get_running_loop(), 0, Snapshot.still_there

        def look_then_lap(moment: Snapshot, table: Any) -> Any:
            nonlocal looks
            found = look(moment, table)
            looks += 1
            if looks == 3:  # the second block, before its copy
                asyncio.run_coroutine_threadsafe(replay.extend(columns(640, 1_000)), loop).result()
            return found

        monkeypatch.setattr(Snapshot, "still_there", look_then_lap)
        saved = await replay.save(tmp_path)
        assert 0 < saved.blocks_renewed < saved.blocks
        found = columns_of(tmp_path)
        every = columns(0, 1_000)
        same(found, {name: column[found["indices"]] for name, column in every.items()}, SPEC)


async def test_rows_have_their_own_masses_though_the_ring_goes_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the moment of the save and the look at the masses: also those whose file is there
    already."""
    async with Replay(SPEC, 640, block_rows=32) as replay:
        await replay.extend(columns(0, 640))
        replay.sample(4, selector=areplay.Prioritized(1.0))
        await replay.save(tmp_path)
        loop, copy_masses = asyncio.get_running_loop(), BlockCopies.copy_masses

        def lap_first(copies: BlockCopies, table: Any) -> Any:
            coming = replay.extend(columns(640, 960), priorities=np.full(320, 50.0))
            asyncio.run_coroutine_threadsafe(coming, loop).result()
            return copy_masses(copies, table)

        monkeypatch.setattr(BlockCopies, "copy_masses", lap_first)
        saved = await replay.save(tmp_path)
        assert (saved.blocks_renewed, saved.blocks_written) == (10, 10)
        is_new = columns_of(tmp_path)["indices"] >= 640
        assert is_new.any()
        np.testing.assert_array_equal(masses_of(tmp_path, 1.0), np.where(is_new, 50.0, 1.0))


async def test_masses_of_a_chunk_that_has_none_yet_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are published, and its writer is still in their block."""
    async with Replay(SPEC, 640, block_rows=32) as replay:
        await replay.extend(columns(0, 100))
        replay.sample(4, selector=areplay.Prioritized(1.0))
        is_published, goes_on, has_writer = (
            threading.Event(),
            threading.Event(),
            BlockLocks.has_writer,
        )

        class Held(RowListener):
            """Stops the writer before the priorities hear of its rows."""

            def written(self, at: int, count: int, priorities: Any) -> None:
                is_published.set()
                assert goes_on.wait(30)

        def seen(locks: BlockLocks, block: int) -> bool:
            found = has_writer(locks, block)
            if found:
                goes_on.set()
            return found

        monkeypatch.setattr(BlockLocks, "has_writer", seen)
        ring, registry = replay._opened().ring, replay._opened().registry
        registry.listeners = (Held(), *registry.listeners)
        writer = StreamWriter(ring, ring.block_locks(), registry)
        writing = asyncio.create_task(asyncio.to_thread(writer.write, columns(100, 120), 0, 20))
        await until(is_published.is_set)
        saved = await replay.save(tmp_path)
        goes_on.set()
        await writing
        writer.close()
        assert saved.rows == 120
        assert (masses_of(tmp_path, 1.0) == 1).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            areplay.Spec(
                x=((), "float32"), pair=((2, 3), "uint8"), flag=((), "bool"), z=((2,), "complex64")
            ),
            {"x"},
        ),
        (
            areplay.Spec(x=((), "float64"), pair=((3, 2), "uint8"), z=((2,), "complex64")),
            {"pair", "flag"},
        ),
        (areplay.Spec(**SPEC, more=((), "int8")), {"more"}),
        (areplay.Spec(**dict(list(SPEC.items())[::-1])), {"order of the fields"}),
        (
            STEPS,
            {
                "rows",
                "x",
                "pair",
                "flag",
                "z",
                "obs",
                "action",
                "reward",
                "extra",
                "terminated",
                "truncated",
            },
        ),
    ],
)
async def test_another_spec_is_refused_field_by_field(
    given: areplay.Spec, said: set[str], tmp_path: Path
) -> None:
    """The error names each field that differs, with both; the right spec is taken."""
    before = open_descriptors()
    async with Replay(SPEC, 100) as replay:
        await replay.save(tmp_path)
    del replay
    with pytest.raises(areplay.CheckpointMismatch) as caught:
        await Replay.load(tmp_path, spec=given)
    assert caught.value.differences.keys() == said
    assert all(name in str(caught.value) for name in said)
    if "x" in said and "pair" not in said:
        assert "x: expected shape () of float32, got shape () of float64" in str(caught.value)
    await until(lambda: open_descriptors() <= before)
    async with await Replay.load(tmp_path, spec=areplay.Spec(**SPEC)):
        pass


async def saved_steps(path: Path) -> None:
    """A checkpoint with every kind of file."""
    async with Replay(STEPS, 200, block_rows=16) as replay:
        await play(replay, 10, 9)
        replay.sample(4, selector=areplay.Prioritized())
        await replay.save(path)


def bit_flips(content: bytes) -> bytes:
    """One bit in the middle."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def newer(content: bytes) -> bytes:
    """A manifest of the next version."""
    manifest = json.loads(content)
    manifest["version"] += 1
    manifest["crc32"] = manifest_checksum(manifest)
    return json.dumps(manifest).encode()


def without(key: str) -> Callable[[bytes], bytes]:
    """A manifest that lacks something, but is whole otherwise."""

    def change(content: bytes) -> bytes:
        manifest = json.loads(content)
        del manifest[key]
        manifest["crc32"] = manifest_checksum(manifest)
        return json.dumps(manifest).encode()

    return change


@pytest.mark.parametrize("kind", ["manifest", "blocks", "block-", "masses"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (bit_flips, "checksum|cannot be understood"),
        (lambda content: content[: len(content) // 2], "bytes instead of|cannot be understood"),
        (lambda content: content + b"x", "bytes instead of|cannot be understood"),
        (lambda content: b"", "bytes instead of|cannot be understood"),
        (None, "is missing|there is no checkpoint"),
    ],
)
async def test_damage_is_found_and_named(
    kind: str, damage: Callable[[bytes], bytes] | None, said: str, tmp_path: Path
) -> None:
    """Whatever file it is: the error names it and what is wrong; nothing is left allocated, nothing
    half loaded."""
    before, memory_before = open_descriptors(), memory_descriptors()
    await saved_steps(tmp_path)
    file = files_of(tmp_path, kind)[-1]
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    is_gone = kind == "manifest" and damage is None
    with pytest.raises(
        areplay.CheckpointMissing if is_gone else areplay.CheckpointDamaged, match=said
    ) as caught:
        await Replay.load(tmp_path)
    if isinstance(caught.value, areplay.CheckpointDamaged):
        assert caught.value.file == file.name
    del caught
    await until(lambda: open_descriptors() <= before and memory_descriptors() <= memory_before)


async def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    """Also one that leaves it readable: of a number, or of a name."""
    await saved_steps(tmp_path)
    file = tmp_path / "manifest.json"
    whole = file.read_bytes()
    for at in range(0, len(whole), 5):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((areplay.CheckpointDamaged, areplay.CheckpointMismatch)):
            Checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "key", ["spec", "blocks", "counters", "capacity_rows", "streams", "masses", "counts"]
)
async def test_a_manifest_that_lacks_something_is_damaged(key: str, tmp_path: Path) -> None:
    """As written by another program, say."""
    await saved_steps(tmp_path)
    file = tmp_path / "manifest.json"
    file.write_bytes(without(key)(file.read_bytes()))
    with pytest.raises(areplay.CheckpointDamaged, match=r"manifest\.json cannot be understood"):
        await Replay.load(tmp_path)


@pytest.mark.parametrize("key", ["entropy", "generator", "made", "priorities_stale"])
async def test_counts_that_lack_something_are_damaged(key: str, tmp_path: Path) -> None:
    """And nothing is left open."""
    before = open_descriptors()
    await saved_steps(tmp_path)
    file = tmp_path / "manifest.json"
    manifest = json.loads(file.read_bytes())
    del manifest["counts"][key]
    manifest["crc32"] = manifest_checksum(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(areplay.CheckpointDamaged, match=r"manifest\.json cannot be understood"):
        await Replay.load(tmp_path)
    await until(lambda: open_descriptors() <= before)


@pytest.mark.parametrize("kind", ["blocks", "masses"])
async def test_a_manifest_cannot_name_files_elsewhere(kind: str, tmp_path: Path) -> None:
    """A checkpoint from somebody else reads nothing but its own files."""
    await saved_steps(tmp_path / "here")
    file = tmp_path / "here" / "manifest.json"
    manifest = json.loads(file.read_bytes())
    entry = manifest["blocks"] if kind == "blocks" else manifest["masses"][0]
    (tmp_path / "here" / entry["file"]).rename(tmp_path / entry["file"])
    entry["file"] = f"../{entry['file']}"
    manifest["crc32"] = manifest_checksum(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(areplay.CheckpointDamaged, match="which is no file of a checkpoint"):
        await Replay.load(tmp_path / "here")


async def test_a_newer_version_is_refused_and_not_replaced(tmp_path: Path) -> None:
    """By name, and with both versions."""
    await saved_steps(tmp_path)
    file = tmp_path / "manifest.json"
    file.write_bytes(newer(file.read_bytes()))
    with pytest.raises(areplay.CheckpointMismatch, match="version: expected at most 1, got 2"):
        await Replay.load(tmp_path)
    async with Replay(SPEC, 100) as replay:
        with pytest.raises(areplay.CheckpointFailed, match="version"):
            await replay.save(tmp_path)


async def test_a_damaged_checkpoint_is_replaced_by_the_next_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning."""
    await saved_steps(tmp_path)
    file = tmp_path / "manifest.json"
    file.write_bytes(file.read_bytes()[:100])
    async with Replay(SPEC, 100) as replay:
        await replay.extend(columns(0, 10))
        await replay.save(tmp_path)
    assert "it will be replaced" in caplog.text
    check_files(tmp_path)
    same(columns_of(tmp_path), columns(0, 10), SPEC)


async def test_there_is_no_checkpoint(tmp_path: Path) -> None:
    """In an empty directory, in none, in a file."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(areplay.CheckpointMissing):
            await Replay.load(path)


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
async def test_a_disk_that_fails_leaves_the_checkpoint_before(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call it is, at whichever time: the error says so, the checkpoint before is whole,
    nothing is left over. A disk that has room again takes the next save."""
    async with Replay(SPEC, 320, block_rows=32) as replay:
        await replay.extend(columns(0, 200))
        await replay.save(tmp_path)
        before = columns_of(tmp_path)
        await replay.extend(columns(200, 300))
        for nth in range(1, 100):
            failing, real, calls = True, getattr(os, call), 0

            def fails(*args: Any, real: Any = real, nth: int = nth) -> Any:
                nonlocal calls
                is_ours = not isinstance(args[0], str) or str(tmp_path) in args[0]
                calls += is_ours
                if is_ours and calls == nth:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(*args)

            with monkeypatch.context() as patch:
                patch.setattr(f"areplay._checkpoint.save_files.os.{call}", fails)
                try:
                    await replay.save(tmp_path)
                except areplay.CheckpointFailed as error:
                    assert "No space left on device" in str(error)
                else:
                    failing = False
            if not failing:
                break
            if call == "fsync" and manifest_of(tmp_path)["counters"]["rows_inserted"] == 300:
                # It was renamed already, and what it names stays; only the directory could not be
                # synced.
                same(columns_of(tmp_path), columns(0, 300), SPEC)
                break
            check_files(tmp_path)
            same(columns_of(tmp_path), before, before)
        assert nth > 1
        await replay.save(tmp_path)
        check_files(tmp_path)
        same(columns_of(tmp_path), columns(0, 300), SPEC)


class Disk:
    """What may be left of a directory if the machine goes down: what was synced, and by chance more
    than that.

    Stands in for `os`. The content of a file is sure from its fsync on, its name from that of the
    directory. Of what happened to names since, all, nothing or any one step may be there, since a
    file system may keep them in any order.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = {file.name: file.stat().st_ino for file in path.iterdir()}
        self._contents = {file.stat().st_ino: file.read_bytes() for file in path.iterdir()}
        # names since the directory was synced; None: is gone
        self._steps: list[dict[str, int | None]] = []
        self.states: list[dict[str, bytes]] = [self._after([])]

    def patched(self) -> SimpleNamespace:
        """`os`, which tells us."""
        ours = {
            name: getattr(self, f"_{name}")
            for name in ("open", "write", "fsync", "rename", "unlink")
        }
        return SimpleNamespace(**{**vars(os), **ours})

    def _open(self, path: Any, flags: int, *mode: int) -> int:
        descriptor = os.open(path, flags, *mode)
        if flags & os.O_CREAT:
            self._step({os.path.basename(path): os.fstat(descriptor).st_ino})
        return descriptor

    def _write(self, descriptor: int, piece: Any) -> int:
        return os.write(descriptor, piece)

    def _fsync(self, descriptor: int) -> None:
        name, inode = os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_ino
        if name == str(self._path):
            for step in self._steps:
                self._names.update(step)  # type: ignore[arg-type]
            self._names = {key: value for key, value in self._names.items() if value is not None}
            self._steps = []
        else:
            self._contents[inode] = Path(name).read_bytes()
        self._look()

    def _rename(self, old: str, new: str) -> None:
        inode = os.stat(old).st_ino
        os.rename(old, new)
        self._step({os.path.basename(old): None, os.path.basename(new): inode})

    def _unlink(self, path: str) -> None:
        os.unlink(path)
        self._step({os.path.basename(path): None})

    def _step(self, step: dict[str, int | None]) -> None:
        self._steps.append(step)
        self._look()

    def _look(self) -> None:
        for steps in ([], self._steps, *([step] for step in self._steps)):
            if (state := self._after(steps)) not in self.states:
                self.states.append(state)

    def _after(self, steps: list[dict[str, int | None]]) -> dict[str, bytes]:
        names: dict[str, int | None] = dict(self._names)
        for step in steps:
            names |= step
        return {
            name: self._contents.get(inode, b"")
            for name, inode in names.items()
            if inode is not None
        }


async def test_a_machine_that_goes_down_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any moment of a save, with what was synced by then and by chance more: the checkpoint
    before, or the new one; once the save has returned, the new one."""
    path, after = tmp_path / "here", tmp_path / "after"
    after.mkdir()
    async with Replay(SPEC, 320, block_rows=32) as replay:
        await replay.extend(columns(0, 200))
        replay.sample(4, selector=areplay.Prioritized())
        await replay.save(path)
        await replay.extend(columns(200, 290))
        disk = Disk(path)
        with monkeypatch.context() as patch:
            patch.setattr(save_files_module, "os", disk.patched())
            patch.setattr(writer_module, "os", disk.patched())
            patch.setattr(save_files_module, "_FILES_AT_ONCE", 2)
            await replay.save(path)
    disk._look()
    last = {file.name: file.read_bytes() for file in path.iterdir()}
    assert disk.states[-1].items() >= last.items()
    rows = []
    for state in disk.states:
        for name, content in state.items():
            (after / name).write_bytes(content)
        found = columns_of(after)
        rows.append(len(found["x"]))
        same(found, columns(0, rows[-1]), SPEC)
        assert len(masses_of(after, 0.6)) == rows[-1]
        for file in after.iterdir():
            file.unlink()
    assert set(rows) == {200, 290}
    assert rows == sorted(rows)
    assert len(rows) > 20


async def test_a_directory_that_is_made_is_entered_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all those above it that were missing: else a crash could take the first checkpoint away
    as a whole."""
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    patched = SimpleNamespace(**{**vars(os), "fsync": fsync})
    monkeypatch.setattr(save_files_module, "os", patched)
    monkeypatch.setattr(writer_module, "os", patched)
    async with Replay(SPEC, 100) as replay:
        await replay.save(tmp_path / "a" / "b" / "c")
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"} <= set(
        synced
    )


async def test_a_save_stays_in_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a link to it comes to mean another one meanwhile, or the working directory
    changes."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one")
    monkeypatch.chdir(tmp_path / "one")

    def on_progress(done: int, size: int) -> None:
        link.unlink()
        link.symlink_to(tmp_path / "two")
        os.chdir(tmp_path / "two")

    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 900))
        await replay.save(link, on_progress=on_progress)
        check_files(tmp_path / "one")
        assert files_of(tmp_path / "two") == []
        os.chdir(tmp_path / "one")
        async with replay.checkpoints("here", every_s=1_000):
            os.chdir(tmp_path / "two")
        check_files(tmp_path / "one" / "here")
        os.chdir(tmp_path / "one")
        await replay.save("there", on_progress=on_progress)
        check_files(tmp_path / "one" / "there")


async def test_a_save_that_is_cancelled_at_its_end_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new checkpoint is there already: the next save builds on it."""
    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 960))
        loop, tasks = asyncio.get_running_loop(), []

        def collect_garbage(save: Save, table: Any, manifest: Any) -> None:
            loop.call_soon_threadsafe(tasks[0].cancel)
            assert save._stop.wait(30)

        with monkeypatch.context() as patch:
            patch.setattr(Save, "_collect_garbage", collect_garbage)
            tasks.append(asyncio.create_task(replay.save(tmp_path)))
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
        same(columns_of(tmp_path), columns(0, 960), SPEC)
        assert (await replay.save(tmp_path)).blocks_written == 0


async def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    """As is a directory that cannot be made."""
    (tmp_path / "file").write_text("")
    async with Replay(SPEC, 100) as replay:
        for path in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere"):
            with pytest.raises(areplay.CheckpointFailed):
                await replay.save(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda manifest: manifest.update(capacity_rows=-5),
            "capacity_rows: expected a whole number .* got -5",
        ),
        (
            lambda manifest: manifest.update(block_rows=0),
            "block_rows: expected a whole number .* got 0",
        ),
        (
            lambda manifest: manifest["blocks"].update(bytes=10**15),
            "instead of 1,000,000,000,000,000",
        ),
        (lambda manifest: manifest["counters"].update(next_serial=1), "no ring can have had"),
        (lambda manifest: manifest.update(block_rows=16), "no ring can have had"),
        (lambda manifest: manifest.update(capacity_rows=64), "no ring can have had"),
    ],
)
async def test_numbers_that_cannot_be_are_damage(
    change: Callable[[dict[str, Any]], None], said: str, tmp_path: Path
) -> None:
    """Also with the right checksum: nothing is allocated for them."""
    async with Replay(SPEC, 640, block_rows=32) as replay:
        await replay.extend(columns(0, 640))
        await replay.save(tmp_path)
    manifest = manifest_of(tmp_path)
    change(manifest)
    manifest["crc32"] = manifest_checksum(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(areplay.CheckpointDamaged, match=said):
        await Replay.load(tmp_path)


async def test_a_pipe_in_place_of_a_file_is_damage(tmp_path: Path) -> None:
    """And not waited for."""
    async with Replay(SPEC, 640, block_rows=32) as replay:
        await replay.extend(columns(0, 640))
        await replay.save(tmp_path)
    name = next(iter(block_files(tmp_path)))
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    async with asyncio.timeout(20):
        with pytest.raises(areplay.CheckpointDamaged, match="is no file"):
            await Replay.load(tmp_path)


async def test_a_lack_of_descriptors_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes: what is on disk is not to blame."""
    async with Replay(SPEC, 640, block_rows=32) as replay:
        await replay.extend(columns(0, 640))
        await replay.save(tmp_path)
    real = os.open

    def refuse(path: str, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith(".npys"):
            raise OSError(errno.EMFILE, "too many")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(areplay.ResourceUnavailable, match="too many"):
        await Replay.load(tmp_path)


async def test_a_block_file_that_was_cut_short_is_written_again(tmp_path: Path) -> None:
    """A save reuses what is there by its name and size."""
    async with Replay(SPEC, 640, block_rows=32) as replay:
        await replay.extend(columns(0, 640))
        await replay.save(tmp_path)
        os.truncate(tmp_path / next(iter(block_files(tmp_path))), 100)
        assert (await replay.save(tmp_path)).blocks_written == 1
        same(columns_of(tmp_path), columns(0, 640), SPEC)


async def test_a_save_does_not_wait_for_other_peoples_threads(tmp_path: Path) -> None:
    """The loop's pool may be full: a save, a load and the closing of both go on."""
    loop, goes_on = asyncio.get_running_loop(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        loop.set_default_executor(pool)
        busy = loop.run_in_executor(None, goes_on.wait)
        try:
            async with asyncio.timeout(30):
                async with Replay(SPEC, 640) as replay:
                    await replay.extend(columns(0, 10))
                    assert (await replay.save(tmp_path)).rows == 10
                async with await Replay.load(tmp_path) as loaded:
                    assert len(loaded) == 10
        finally:
            goes_on.set()
        await busy


async def test_two_saves_into_one_directory_exclude_each_other(tmp_path: Path) -> None:
    """The second is told so; into another directory it goes at the same time."""
    async with Replay(SPEC, 1_000, block_rows=32) as replay:
        await replay.extend(columns(0, 1_000))
        has_begun, may_go_on = threading.Event(), threading.Event()

        def on_progress(done: int, size: int) -> None:
            has_begun.set()
            assert may_go_on.wait(30)

        first = asyncio.create_task(replay.save(tmp_path / "a", on_progress=on_progress))
        await until(has_begun.is_set)
        with pytest.raises(areplay.CheckpointBusy):
            await replay.save(tmp_path / "a")
        assert (await replay.save(tmp_path / "b")).rows == 1_000
        may_go_on.set()
        assert (await first).rows == 1_000
        check_files(tmp_path / "a")


async def test_a_cancelled_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Soon, and without a file left over; the next save works."""
    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 100))
        await replay.save(tmp_path)
        await replay.extend(columns(100, 900))
        seen: list[tuple[int, int]] = []
        saving = asyncio.create_task(
            replay.save(
                tmp_path, max_bytes_per_s=1_000, on_progress=lambda *bytes_: seen.append(bytes_)
            )
        )
        await until(lambda: bool(seen))
        saving.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await saving
        check_files(tmp_path)
        same(columns_of(tmp_path), columns(0, 100), SPEC)
        await replay.save(tmp_path)
        same(columns_of(tmp_path), columns(0, 900), SPEC)


async def test_closing_the_replay_stops_a_save(tmp_path: Path) -> None:
    """Who waits for it gets Closed; so does who asks later."""
    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 900))
        saving = asyncio.create_task(replay.save(tmp_path, max_bytes_per_s=1_000))
        await until(lambda: tmp_path.exists() and any(tmp_path.iterdir()))
    with pytest.raises(areplay.Closed):
        await saving
    with pytest.raises(areplay.Closed):
        await replay.save(tmp_path)
    assert files_of(tmp_path) == []


async def test_closing_the_replay_waits_for_the_thread_of_a_save(tmp_path: Path) -> None:
    """However long that takes to notice: nothing is closed that it still uses."""
    loop, is_over = asyncio.get_running_loop(), threading.Event()
    closing: list[asyncio.Task[None]] = []
    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 900))

        def on_progress(done: int, size: int) -> None:
            loop.call_soon_threadsafe(lambda: closing.append(loop.create_task(replay.close())))
            while not closing:
                time.sleep(0.001)
            time.sleep(0.1)  # who does not wait is through by then
            is_over.set()

        saving = asyncio.create_task(replay.save(tmp_path, on_progress=on_progress))
        await until(lambda: bool(closing))
        await closing[0]
        assert is_over.is_set()
        with pytest.raises(areplay.Closed):
            await saving


async def test_a_cancelled_load_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whichever block it is, it stops there."""
    before = memory_descriptors()
    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 900))
        await replay.save(tmp_path)
    del replay
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[Replay]] = []
    stops: list[CancelToken] = []

    def made() -> CancelToken:
        stops.append(CancelToken())
        return stops[-1]

    monkeypatch.setattr(saving, "CancelToken", made)
    for at in (1, 5, 28):
        calls: list[int] = []

        def on_progress(done: int, size: int, at: int = at, calls: list[int] = calls) -> None:
            calls.append(done)
            if len(calls) == at:
                loop.call_soon_threadsafe(tasks[0].cancel)
                stops[-1].wait(20)  # whoever is not told to stop goes on after it, and is counted

        tasks.append(asyncio.create_task(Replay.load(tmp_path, on_progress=on_progress)))
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert len(calls) == at
        tasks.clear()
        await until(lambda: memory_descriptors() <= before)


async def test_progress_is_told(tmp_path: Path) -> None:
    """In bytes, upwards to the end, of a save and of a load."""
    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 960))
        seen: list[tuple[int, int]] = []
        await replay.save(tmp_path, on_progress=lambda done, size: seen.append((done, size)))
        assert [done for done, _ in seen] == [k * 32 * SPEC.row_bytes for k in range(1, 31)]
        assert {size for _, size in seen} == {960 * SPEC.row_bytes}
    seen.clear()
    async with await Replay.load(
        tmp_path, on_progress=lambda done, size: seen.append((done, size))
    ):
        assert len(seen) == 30
        assert seen[-1][0] == seen[-1][1]
        assert seen == sorted(seen)


async def test_a_save_is_no_faster_than_it_may(tmp_path: Path) -> None:
    """Bytes over seconds; None is no limit."""
    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 960))
        rate = 960 * SPEC.row_bytes / 0.3
        saved = await replay.save(tmp_path / "slow", max_bytes_per_s=rate)
        assert saved.seconds >= 0.29
        assert (await replay.save(tmp_path / "fast", max_bytes_per_s=None)).rows == 960
        for wrong in (0, -1, True, "fast", float("nan")):
            with pytest.raises(ValueError, match="max_bytes_per_s must be a number above 0"):
                await replay.save(tmp_path, max_bytes_per_s=wrong)


async def test_a_loaded_replay_is_open_and_can_be_entered_once(tmp_path: Path) -> None:
    """Or not at all, and closed by hand."""
    async with Replay(SPEC, 100) as replay:
        await replay.extend(columns(0, 10))
        await replay.save(tmp_path)
    del replay
    before = memory_descriptors()
    loaded = await Replay.load(tmp_path)
    assert len(loaded) == 10
    async with loaded as same_one:
        assert same_one is loaded
        with pytest.raises(areplay.Closed):
            async with loaded:
                pass
    with pytest.raises(areplay.Closed):
        async with loaded:
            pass
    loaded = await Replay.load(tmp_path)
    await loaded.close()
    del loaded, same_one
    await until(lambda: memory_descriptors() <= before)


async def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_anew(tmp_path: Path) -> None:
    """A reader beside a trainer that saves gets the old one or the new one, whole."""
    async with Replay(SPEC, 640, block_rows=32) as replay:
        await replay.extend(columns(0, 640))
        await replay.save(tmp_path)
        await replay.extend(columns(640, 1_280))
        loop, calls = asyncio.get_running_loop(), 0

        def on_progress(done: int, size: int) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                asyncio.run_coroutine_threadsafe(replay.save(tmp_path), loop).result()

        async with await Replay.load(tmp_path, on_progress=on_progress) as loaded:
            same(stored(loaded), columns(640, 1_280), SPEC)


async def test_checkpoints_every_so_often_and_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One save after the other, a failed one is logged and tried again, and one more is made when
    leaving."""
    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 100))
        async with replay.checkpoints(tmp_path / "here", every_s=0.02) as checkpoints:
            await until(lambda: checkpoints.last is not None)
            assert checkpoints.last is not None and checkpoints.last.rows == 100
            await replay.extend(columns(100, 200))
            await until(lambda: checkpoints.last.rows == 200)
            manifest = tmp_path / "here" / "manifest.json"
            whole = manifest.read_bytes()
            await until(lambda: manifest.read_bytes() != whole)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    "areplay._checkpoint.save_files.os.write",
                    lambda *_: exec("raise OSError(28, 'full')"),
                )
                await until(lambda: checkpoints.failure is not None)
            assert isinstance(checkpoints.failure, areplay.CheckpointFailed)
            assert logging.ERROR in [
                record.levelno
                for record in caplog.records
                if record.name == "areplay._engine.periodic"
            ]
            await until(lambda: checkpoints.failure is None)
            await replay.extend(columns(200, 300))
        check_files(tmp_path / "here")
        same(columns_of(tmp_path / "here"), columns(0, 300), SPEC)
        assert not [
            task for task in asyncio.all_tasks() if task.get_name() == "areplay checkpoints"
        ]
        with pytest.raises(areplay.Closed):
            await checkpoints.__aenter__()
        async with replay.checkpoints(tmp_path / "there", every_s=1_000):
            await replay.extend(columns(300, 310))
        same(columns_of(tmp_path / "there"), columns(0, 310), SPEC)
        with pytest.raises(ValueError, match="every_s"):
            replay.checkpoints(tmp_path, every_s=0)


async def test_checkpoints_go_on_whatever_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A lack of memory, or what on_progress raises, costs that one save."""
    calls: list[int] = []

    def on_progress(done: int, size: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            raise RuntimeError("the display is gone")

    async with (
        Replay(SPEC, 960, block_rows=32) as replay,
        replay.checkpoints(tmp_path, every_s=0.02, on_progress=on_progress) as checkpoints,
    ):
        await replay.extend(columns(0, 900))
        await until(lambda: checkpoints.failure is not None)
        assert "RuntimeError('the display is gone')" in caplog.text
        await until(lambda: checkpoints.failure is None and checkpoints.last is not None)
        directory = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)  # the next save would replace what is being read
            same(columns_of(tmp_path), columns(0, 900), SPEC)
        finally:
            os.close(directory)


async def test_checkpoints_of_a_closed_replay_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once."""
    async with (
        Replay(SPEC, 960, block_rows=32) as replay,
        replay.checkpoints(tmp_path, every_s=0.02) as checkpoints,
    ):
        await replay.close()
        await until(
            lambda: checkpoints._schedule._task is not None and checkpoints._schedule._task.done()
        )
        assert isinstance(checkpoints.failure, areplay.Closed)
    said = [
        record.message for record in caplog.records if record.name == "areplay._engine.periodic"
    ]
    assert len(said) == 1 and said[0].endswith(
        "; the checkpoint before is kept, there will be no more of them"
    )


async def test_leaving_checkpoints_can_be_cancelled(tmp_path: Path) -> None:
    """While the last one is being made: it is stopped, the one before is whole, and no task is
    left."""
    is_last, may_go_on = threading.Event(), threading.Event()

    def on_progress(done: int, size: int) -> None:
        is_last.set()
        assert may_go_on.wait(30)

    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 100))
        await replay.save(tmp_path)
        await replay.extend(columns(100, 900))

        async def learn() -> None:
            async with replay.checkpoints(tmp_path, every_s=1_000, on_progress=on_progress):
                pass

        learning = asyncio.create_task(learn())
        await until(is_last.is_set)
        learning.cancel()
        asyncio.get_running_loop().call_later(0.05, may_go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await learning
        assert may_go_on.is_set()
        assert not [
            task for task in asyncio.all_tasks() if task.get_name() == "areplay checkpoints"
        ]
        check_files(tmp_path)
        same(columns_of(tmp_path), columns(0, 100), SPEC)


async def test_the_last_checkpoint_is_made_as_fast_as_it_goes(tmp_path: Path) -> None:
    """Not at a pace that would hold the end of a program up."""
    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 900))
        async with (
            asyncio.timeout(60),
            replay.checkpoints(tmp_path, every_s=1_000, max_bytes_per_s=1) as checkpoints,
        ):
            pass
        assert checkpoints.last is not None and checkpoints.last.rows == 900


async def test_a_last_checkpoint_is_made_when_the_learner_fails(tmp_path: Path) -> None:
    """A checkpoint of what it had learnt from."""
    async with Replay(SPEC, 960, block_rows=32) as replay:
        await replay.extend(columns(0, 100))
        with pytest.raises(RuntimeError, match="learning"):
            async with replay.checkpoints(tmp_path, every_s=1_000):
                raise RuntimeError("learning")
        same(columns_of(tmp_path), columns(0, 100), SPEC)


def test_the_reader_in_the_documentation_works(tmp_path: Path) -> None:
    """The ten lines of docs/checkpoints.md, as they stand there."""

    async def save() -> None:
        async with Replay(SPEC, 960, block_rows=32) as replay:
            await replay.extend(columns(0, 500))
            await replay.save(tmp_path)

    asyncio.run(save())
    text = (Path(__file__).parent.parent / "docs" / "checkpoints.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    assert 5 < len(code.splitlines()) < 15
    scope: dict[str, Any] = {}
    exec(compile(code.replace("checkpoints/run-1", str(tmp_path)), "checkpoints.md", "exec"), scope)
    same(scope["rows"], columns(0, 500), SPEC)


async def test_what_a_checkpoint_says_of_itself(tmp_path: Path) -> None:
    """Version, spec and sums, as documented."""
    await saved_steps(tmp_path)
    manifest = manifest_of(tmp_path)
    assert (manifest["format"], manifest["version"]) == ("areplay checkpoint", 1)
    assert [field[0] for field in manifest["spec"]["fields"]] == list(STEPS)
    assert manifest["columns"] == list(STEPS.rows)
    content = {key: value for key, value in manifest.items() if key != "crc32"}
    assert manifest["crc32"] == zlib.crc32(
        json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    )


async def test_blocks_are_copied_before_the_ring_goes_round(tmp_path: Path) -> None:
    """A few at once, however slowly they are written: of a small ring all rows of the moment are
    saved."""
    async with Replay(SPEC, 640, block_rows=32) as replay:
        await replay.extend(columns(0, 640))
        began = asyncio.Event()
        loop = asyncio.get_running_loop()
        saving = asyncio.create_task(
            replay.save(
                tmp_path,
                max_bytes_per_s=200_000,
                on_progress=lambda *_: loop.call_soon_threadsafe(began.set) and None,
            )
        )
        await began.wait()
        await replay.extend(columns(640, 1_280))
        assert (await saving).rows == 640
        same(columns_of(tmp_path), columns(0, 640), SPEC)
