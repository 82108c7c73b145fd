"""A program to be looked at from outside: `python watched.py '{options}'`. What it is told on
standard input it does.

Prints a line when it takes batches. Then its learner may block, until there is a line on its
standard input; the end of that lets it end. Without actors it is just open.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack

import numpy as np

import areplay

SPEC = areplay.Spec(obs=((3,), "float32"), step=((), "int64"))
OPTIONS = {"replays": 1, "actors": 2, "samplers": 1, "blocks": False, **json.loads(sys.argv[1])}


async def act(actor: areplay.Actor) -> None:
    """Hand in rows for as long as it may."""
    step = 0
    while not actor.stopping:
        await actor.add(obs=np.zeros(3, np.float32), step=step)
        step += 1
        await asyncio.sleep(0.001)


async def main() -> None:
    """Take batches until standard input ends."""
    async with AsyncExitStack() as stack:
        replays = [
            await stack.enter_async_context(areplay.Replay(SPEC, 5_000))
            for _ in range(OPTIONS["replays"])
        ]
        if not OPTIONS["actors"]:
            print("waiting", flush=True)
            await asyncio.to_thread(sys.stdin.read)
            return
        await stack.enter_async_context(replays[0].actors(act, OPTIONS["actors"]))
        limiter = areplay.SamplesPerInsert(4.0, min_size_to_sample=10)
        batches = await stack.enter_async_context(
            replays[0].batches(
                batch_size=8, samplers=OPTIONS["samplers"], prefetch=4, limiter=limiter
            )
        )
        await anext(batches)
        print("learning", flush=True)
        if OPTIONS["blocks"]:
            sys.stdin.readline()  # so that nothing turns on this loop
        ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        while not ended.done():
            await anext(batches)
            await asyncio.sleep(0.002)


if __name__ == "__main__":
    areplay.run(main())
