"""The trial of `areplay doctor`: a replay with a real actor and a real sampler."""

from __future__ import annotations

import asyncio
import time

import areplay
from areplay.cli.finding import FAIL, OK, Result

_TIMEOUT_S = 60.0
_BATCHES = 100


def result() -> Result:
    """Run the trial, from an actor's first row to the learner's last batch."""
    started = time.monotonic()
    try:
        areplay.run(_take_batches())
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Result(FAIL, type(error).__name__, lines[-1])
    value = f"{_BATCHES} batches, {time.monotonic() - started:.1f} s"
    return Result(OK, value, "rows of one process came out of another")


async def _take_batches() -> None:
    spec = areplay.Spec(number=((), "int64"))
    async with (
        asyncio.timeout(_TIMEOUT_S),
        areplay.Replay(spec, 1_000) as replay,
        replay.actors(count_up, add_timeout_s=_TIMEOUT_S, max_restarts=0),
        replay.batches(batch_size=16, timeout_s=_TIMEOUT_S, max_restarts=0) as stream,
    ):
        for _ in range(_BATCHES):
            batch = await anext(stream)
            if (batch["number"] < 0).any():
                raise RuntimeError("a batch holds what was never written")


async def count_up(actor: areplay.Actor) -> None:
    """Add 0, 1, 2, ... until the trial ends: what the trial's actor runs."""
    number = 0
    while not actor.stopping:
        await actor.add(number=number)
        number += 1
