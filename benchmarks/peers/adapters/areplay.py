"""areplay: actors, the coordinator, one sampler, a queue of batches; the learner with
`async for`."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import uvloop

import areplay
from benchmarks.peers.protocol import Meter, Side, serve
from benchmarks.peers.switch import END, Switch, Turn
from benchmarks.peers.works import Work

FILL_ROWS = 256
WAIT_S = 60.0


async def push(actor: areplay.Actor, switch: Switch, work: Work) -> None:
    """A producer: chunks as the switch says."""
    chunk, turn = work.columns(work.chunk_rows, actor.index), Turn(switch)
    while not actor.stopping and not turn.is_over():
        if pause_s := turn.pause_s():
            await asyncio.sleep(pause_s)
        else:
            await actor.extend(chunk)


class Areplay(Side):
    """Its event loop stands still between two turns; actors, coordinator and sampler have loops of
    their own."""

    packages = ("areplay", "numpy", "uvloop")
    choices = (
        "areplay: one sampler process; a learner that finds no batch ready fills one itself, as it "
        "does by default.",
        "areplay: batches as numpy views; whoever computes with torch or jax calls `batch.torch()` "
        "or `batch.jax()`.",
    )

    def __init__(self) -> None:
        super().__init__()
        self._loop = uvloop.new_event_loop()
        self._work: Work | None = None
        self._replay: Any = None
        self._batches: Any = None
        self._errors = np.empty(0)
        self._all, self._actors = AsyncExitStack(), AsyncExitStack()

    def prepare(self, work: Work, producers: int) -> None:
        """Open and fill a replay, if it is another work; then start actors."""
        self._loop.run_until_complete(self._prepare(work, producers))

    async def _prepare(self, work: Work, producers: int) -> None:
        self.switch.turn(END)
        await self._actors.aclose()
        self.switch = Switch()
        if work != self._work:
            await self._all.aclose()
            await self._open(work)
            self._work = work
        if producers:
            await self._actors.enter_async_context(
                self._replay.actors(push, producers, args=(self.switch, work))
            )

    async def _open(self, work: Work) -> None:
        self._errors = np.random.default_rng(0).random(work.batch_size)
        spec, chunk = areplay.Spec(**work.fields), work.columns(FILL_ROWS)
        self._replay = await self._all.enter_async_context(
            areplay.Replay(spec, capacity=work.capacity, seed=0)
        )
        for _ in range(-(-self._replay.capacity_rows // FILL_ROWS)):
            await self._replay.extend(chunk)
        selector = areplay.Prioritized(0.6, 0.4) if work.is_prioritized else areplay.Uniform()
        stream = self._replay.batches(
            areplay.Rows(), work.batch_size, prefetch=work.prefetch, selector=selector
        )
        self._batches = await self._all.enter_async_context(stream)
        (await self._batches.get(timeout_s=WAIT_S)).release()

    def learn(self, work: Work, meter: Meter) -> None:
        """The learner's loop, the same as for the others."""
        self._loop.run_until_complete(self._learn(work, meter))

    async def _learn(self, work: Work, meter: Meter) -> None:
        meter.ask()
        async for batch in self._batches:
            meter.got(batch["obs"])
            if meter.step():
                return
            meter.ask()
            if work.is_prioritized:
                self._replay.update_priorities(batch.indices, self._errors)

    def idle(self, seconds: float) -> None:
        """Let producers work while nobody samples."""
        self._loop.run_until_complete(asyncio.sleep(seconds))

    def rows_in(self) -> int:
        """Rows that have reached the blocks."""
        return int(self._replay.statistics().rows_inserted)

    def close(self) -> None:
        """Close everything in order."""
        self.switch.turn(END)
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _close(self) -> None:
        await self._actors.aclose()
        await self._all.aclose()


if __name__ == "__main__":
    serve(Areplay())
