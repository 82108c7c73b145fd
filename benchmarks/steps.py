"""Single frames as the steps of episodes, and an actor with a vector of made-up environments."""

from __future__ import annotations

import asyncio

import numpy as np

import areplay
from benchmarks.workloads import Pace

STEPS = areplay.Spec.steps(obs=((84, 84), "uint8"), action=((), "int64"))


async def push_vector_steps(actor: areplay.Actor, environments: int, steps_per_s: float) -> None:
    """Hand in the steps of a vector of made-up environments at a steady rate; one in a thousand
    ends an episode."""
    frames = (
        np.random.default_rng(actor.seed)
        .integers(0, 256, (16, environments, 84, 84))
        .astype(np.uint8)
    )
    action, reward = np.zeros(environments, np.int64), np.zeros(environments)
    never, resets = np.zeros(environments, np.bool_), np.zeros(environments, np.bool_)
    pace = Pace(steps_per_s / environments)
    while not actor.stopping:
        await asyncio.sleep(pace.early_s())
        for _ in range(pace.due()):
            obs, next_obs = frames[pace.sent % 16], frames[(pace.sent + 1) % 16]
            ended = ~resets & (actor.rng.random(environments) < 0.001)
            await actor.add(
                obs=obs,
                action=action,
                reward=reward,
                terminated=ended,
                truncated=never,
                next_obs=next_obs,
            )
            resets = ended
            pace.sent += 1
