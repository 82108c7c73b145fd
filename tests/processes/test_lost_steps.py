"""Steps that were never handed in, whatever became of their calls: no item spans them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import areplay
from areplay._ingest import local_writer

SPEC = areplay.Spec.steps(obs=((), "int64"), action=((), "int64"))


def step(number: int) -> dict[str, Any]:
    """A step of an episode that goes on."""
    return {"obs": number, "action": number, "reward": 0.0, "terminated": False, "truncated": False}


async def skipping(actor: areplay.Actor) -> None:
    """Every third step is given up before or while it is handed in."""
    for number in range(300):
        if number % 3 == 2:
            with suppress(TimeoutError):
                await asyncio.wait_for(actor.add(**step(number)), 0 if number % 2 else 1e-5)
        else:
            await actor.add(**step(number))


async def four_steps(actor: areplay.Actor) -> None:
    """An episode too short for what is to be sampled."""
    for number in range(4):
        await actor.add(**step(number) | {"terminated": number == 3, "next_obs": number + 1})


async def test_no_transition_spans_a_step_that_was_given_up() -> None:
    """Handed in by an actor whose calls time out, some of them before they begin."""
    async with asyncio.timeout(60), areplay.Replay(SPEC, 1_024, seed=0) as replay:
        async with replay.actors(skipping, 1) as actors:
            await actors.wait()
        batch = replay.sample(4_096)
        assert (batch["next_obs"] == batch["obs"] + 1).all()
        assert len(set(batch["obs"].tolist())) >= 90


async def test_no_transition_spans_a_step_that_waited_for_another_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the owner's process: cancelled while it waits its turn, and before it has begun."""
    monkeypatch.setattr(local_writer, "_INLINE_BYTES", 0)  # the long call leaves the loop
    async with areplay.Replay(SPEC, 200_000, seed=0) as replay:
        many = np.arange(150_000)
        flags = np.zeros(len(many), np.bool_)
        steps = {
            "obs": many,
            "action": many,
            "reward": flags.astype(np.float32),
            "terminated": flags,
        }
        long = asyncio.create_task(replay.extend(steps | {"truncated": flags}))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(replay.add(**step(150_000)))
        await asyncio.sleep(0)
        assert not long.done()
        waiting.cancel()
        await long
        await replay.add(**step(150_001))
        await replay.add(**step(150_002))
        with suppress(TimeoutError):
            await asyncio.wait_for(replay.add(**step(150_003)), 0)
        await replay.add(**step(150_004))
        await replay.add(**step(150_005))
        for _ in range(3):
            batch = replay.sample(200_000)
            assert (batch["next_obs"] == batch["obs"] + 1).all()


async def test_a_learner_that_waits_for_items_that_can_never_be_made_is_told() -> None:
    """All actors have returned, and no sampler finds an item in what they left."""
    async with (
        asyncio.timeout(60),
        areplay.Replay(SPEC, 1_024, seed=0) as replay,
        replay.actors(four_steps, 1) as actors,
        replay.batches(areplay.Sequences(10, burn_in=5), 4, samplers=2) as batches,
    ):
        await actors.wait()
        with pytest.raises(
            areplay.Stalled,
            match=r"no Sequences\(10, burn_in=5\) can be made of "
            r"the 5 rows",
        ):
            await anext(batches)
