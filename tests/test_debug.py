"""Tests of `_base.debug`: whole programs with and without AREPLAY_DEBUG, which is looked at on
import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio
import numpy as np
import areplay
from areplay._base import debug
from areplay.items.item import BatchFields
from areplay._sampling.slots import Slots

SPEC = areplay.Spec(x=((4,), "int64"), y=((), "float32"))


def columns(start, stop):
    x = np.repeat(np.arange(start, stop)[:, None], 4, axis=1)
    return {"x": x, "y": np.ones(stop - start, np.float32)}


async def hand_in(actor):
    for k in range(0, 100, 5):
        await actor.extend(columns(k, k + 5))


async def main():
BODY


if __name__ == "__main__":
    asyncio.run(main())
"""


def said_by(body: str, tmp_path: Path, *, is_on: bool = True) -> str:
    """What a program with that body of its main coroutine prints."""
    script = tmp_path / "program.py"
    script.write_text(
        PROGRAM.replace("BODY", "\n".join("    " + line for line in body.splitlines()))
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "AREPLAY_DEBUG": str(int(is_on)),
    }
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


KEEPS_A_VIEW = """
async with areplay.Replay(SPEC, 200) as replay, replay.actors(hand_in, 1) as actors:
    await actors.wait()
    async with replay.batches(batch_size=8, prefetch=1) as batches:
        batch = await anext(batches)
        slots = batches._stream.queue.slots
        kept, copy = batch["x"], batch["x"].copy()
        assert (kept == copy).all()
        slots.board._gate[0] = 0  # so that no sampler fills it again
        batch.release()
        print((kept.view(np.uint8) == debug.POISON).all(), (copy.view(np.uint8) == debug.POISON).any())
"""


def test_a_view_that_is_kept_past_its_turn_shows_poison(tmp_path: Path) -> None:
    """Every byte of it, at once; a copy is untouched. Without debug mode it shows what was there
    until it is filled."""
    assert said_by(KEEPS_A_VIEW, tmp_path) == "True False"
    assert said_by(KEEPS_A_VIEW, tmp_path, is_on=False) == "False False"


CHANGES_A_ROW = """
async with areplay.Replay(SPEC, 200) as replay:
    indices = await replay.extend(columns(0, 100))
    async with replay.batches(batch_size=64, prefetch=1) as batches:
        for _ in range(10):
            assert (await anext(batches))["y"].all()
    replay._opened().ring.columns["x"][ring_position := int(indices[7]), 2] += 1
    async with replay.batches(batch_size=2_000, prefetch=1) as batches:
        try:
            await anext(batches)
        except AssertionError as error:
            print(error)
"""


def test_a_row_that_changed_in_the_ring_is_found_when_the_learner_gets_it(tmp_path: Path) -> None:
    """By its checksum; named by its index. Rows that are as they were written pass."""
    said = said_by(CHANGES_A_ROW, tmp_path)
    assert said.startswith("rows [7,")
    assert said.endswith("are not what was written")
    assert said_by(CHANGES_A_ROW, tmp_path, is_on=False) == ""


LOADS = """
async with areplay.Replay(SPEC, 200, block_rows=16) as replay:
    await replay.extend(columns(0, 100))
    await replay.save(FOLDER)
for block_rows in (16, 30):
    async with await areplay.Replay.load(FOLDER, block_rows=block_rows) as replay:
        async with replay.batches(batch_size=64, prefetch=1) as batches:
            assert (await anext(batches))["y"].all()
        replay._opened().ring.columns["x"][7, 2] += 1
        async with replay.batches(batch_size=2_000, prefetch=1) as batches:
            try:
                await anext(batches)
            except AssertionError as error:
                print(error)
"""


def test_rows_of_a_checkpoint_are_verified_too(tmp_path: Path) -> None:
    """As they were read."""
    said = said_by(LOADS.replace("FOLDER", repr(str(tmp_path / "checkpoint"))), tmp_path)
    assert len(said.splitlines()) == 2
    assert all(line.startswith("rows [7,") for line in said.splitlines())


BREAKS_INVARIANTS = """
async with areplay.Replay(SPEC, 200) as replay:
    await replay.extend(columns(0, 50))
    replay._opened().ring.rows_now[0] += 1
    try:
        await replay.extend(columns(50, 60))
    except AssertionError as error:
        print("ring", error)
    replay._opened().ring.rows_now[0] -= 1
    slots = Slots(BatchFields(dict(SPEC)), 4, 3, 1)
    slots.board.open_gate()
    slots.publish(slots.lease(0))
    lent = slots.lend()
    slots.lease(0), slots.lease(0)  # one sampler never fills two
    try:
        slots.give_back(lent)
    except AssertionError as error:
        print("slots", error)
    slots.close()
"""


def test_a_broken_invariant_is_found_at_the_next_step(tmp_path: Path) -> None:
    """Of the ring's counts and of the slots' states."""
    said = said_by(BREAKS_INVARIANTS, tmp_path)
    assert "ring <Ring 61 of " in said
    assert "slots sampler 0 fills [1, 2] at once" in said


LOOKS = """
print(debug.IS_ON, debug.check_step is debug.poison is debug.record_checksums is debug.verify is debug._nothing, debug.tables(5))
async with areplay.Replay(SPEC, 200) as replay:
    print(replay._opened().ring.checksums is None)
"""


def test_unset_there_is_nothing_of_it(tmp_path: Path) -> None:
    """Empty functions and no checksums."""
    assert said_by(LOOKS, tmp_path, is_on=False).split("\n") == ["False True {}", "True"]
    assert said_by(LOOKS, tmp_path).split("\n")[0].startswith("True False {'checksums'")
