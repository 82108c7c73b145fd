"""What a replay does, beside the loss in TensorBoard: a few numbers of its statistics, again and
again.

    python examples/tensorboard_curves.py [DIRECTORY [SECONDS]] && tensorboard --logdir runs

tensorboardX writes the files without TensorBoard; torch.utils.tensorboard has the same
SummaryWriter.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import areplay

SPEC = areplay.Spec(obs=((4,), "float32"), reward=((), "float32"))


async def explore(actor: areplay.Actor) -> None:
    """About a thousand rows a second."""
    while not actor.stopping:
        obs = actor.rng.normal(size=4).astype("float32")
        await actor.add(obs=obs, reward=obs.sum())
        await asyncio.sleep(0.001)


def write(writer: Any, now: areplay.Statistics, before: areplay.Statistics, seconds: float) -> None:
    """Write states as they are, and rates as differences to the look before."""
    (queue,), (queue_before,), step = now.batches, before.batches, now.batches[0].batches_delivered
    waited_s = queue.learner_waited_s - queue_before.learner_waited_s
    writer.add_scalar("replay/rows", now.rows, step)
    writer.add_scalar(
        "replay/rows_per_s", (now.rows_inserted - before.rows_inserted) / seconds, step
    )
    writer.add_scalar("queue/fill", queue.fill, step)
    writer.add_scalar(
        "queue/batches_per_s", (step - queue_before.batches_delivered) / seconds, step
    )
    writer.add_scalar("queue/learner_waiting_share", waited_s / seconds, step)


async def main(directory: str = "runs/areplay", seconds: float | str = 5.0) -> None:
    """Take batches for a while."""
    from tensorboardX import SummaryWriter  # here, for it imports torch, which actors need not do

    with SummaryWriter(directory) as writer:
        async with (
            areplay.Replay(SPEC, 100_000) as replay,
            replay.actors(explore, 2),
            replay.batches() as batches,
        ):
            started = looked = time.monotonic()
            before = replay.statistics()
            while time.monotonic() < started + float(seconds):
                batch = await anext(batches)
                loss = float((batch["obs"].sum(axis=1) - batch["reward"]).std())  # learn here
                await asyncio.sleep(0.01)
                if (elapsed := time.monotonic() - looked) >= 0.5:
                    now = replay.statistics()
                    write(writer, now, before, elapsed)
                    writer.add_scalar("learner/loss", loss, now.batches[0].batches_delivered)
                    before, looked = now, looked + elapsed
    print(f"written into {directory}")


if __name__ == "__main__":
    areplay.run(main(*sys.argv[1:]))
