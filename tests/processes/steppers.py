"""What runs in the children of `test_items`: actors that step the counting environments of
`tests/models`, and die."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from models.episode_world import PLAIN, Player

import areplay

LENGTHS = [
    [(3, "terminated"), (1, "truncated"), (8, "truncated")],
    [(5, "truncated")],
    [(2, "terminated"), (2, "both"), (11, "terminated")],
]
NUMBERS_A_LIFE = 1_000_000
LIVES_THAT_END = 9  # of each actor of `step_until_killed`; `numbers` knows ten
# As the plain kind, with floats in which numbers that large are exact.
KIND = dataclasses.replace(
    PLAIN,
    spec=areplay.Spec.steps(
        obs=((2,), "int64"),
        action=((), "int64"),
        reward=((), "float64"),
        version=((), "int64"),
        note=((2,), "float64"),
    ),
)


def numbers(actor: int, life: int) -> Iterator[int]:
    """The numbers of an actor's life, no other has them."""
    return itertools.count(1 + NUMBERS_A_LIFE * (10 * actor + life))


def begun(folder: str, actor: int) -> int:
    """Which life of that actor this is, from 0."""
    life = len(list(Path(folder).glob(f"{actor}-*")))
    (Path(folder) / f"{actor}-{life}").touch()
    return life


async def step_and_die(
    actor: areplay.Actor, folder: str, modes: list[str], steps: list[int]
) -> None:
    """So many steps of a vector in each life, and SIGKILL when they are handed in; but in the last
    life it returns."""
    life = begun(folder, actor.index)
    player = Player(KIND, actor, modes[actor.index], LENGTHS, numbers(actor.index, life), [])
    for _ in range(steps[life]):
        await player.play(gives_next=bool(actor.rng.random() < 0.5))
    if life + 1 < len(steps):
        os.kill(os.getpid(), signal.SIGKILL)


BREAKS = {5: 2, 9: None, 10: 0, 23: 1, 31: 0}  # after how many steps; whose, None: of all


async def play_and_break_off(player: Player, steps: int, gives_next: bool) -> None:
    """So many steps, with episodes that break off."""
    for step in range(steps):
        if step in BREAKS:
            player.break_off(BREAKS[step])
        await player.play(gives_next)


async def step_and_break_off(actor: areplay.Actor, modes: list[str], steps: int) -> None:
    """A real actor whose environments break off."""
    player = Player(KIND, actor, modes[actor.index], LENGTHS, numbers(actor.index, 0), [])
    await play_and_break_off(player, steps, gives_next=actor.index % 2 == 0)


async def step_until_killed(actor: areplay.Actor, folder: str, modes: list[str]) -> None:
    """Steps for as long as it may, or until a random moment."""
    life = begun(folder, actor.index)
    player = Player(KIND, actor, modes[actor.index], LENGTHS, numbers(actor.index, life), [])
    last = int(np.random.default_rng(life).integers(200, 600)) if life < LIVES_THAT_END else None
    for step in itertools.count():
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)
        if actor.stopping:
            break
        await player.play(gives_next=False)
        await asyncio.sleep(0.0005)


TWO = areplay.Spec.steps(obs=((), "int64"), action=((), "int64"))


async def three_steps_and_wait(actor: areplay.Actor, mode: str) -> None:
    """Three steps of two environments, of which the first one ends with its first step; then it
    waits for weights."""
    actor.autoreset_mode = mode
    obs = np.array([0, 1_000])
    for number in range(3):
        ended = np.array([number == 0, False])
        step = {
            "obs": obs,
            "action": obs,
            "reward": np.zeros(2),
            "terminated": ended,
            "truncated": np.zeros(2, bool),
        }
        if mode == "Disabled":
            step["next_obs"] = obs + 1
        elif number == 0:
            step["final_obs"] = np.array([1, None], dtype=object)
        await actor.add(**step)
        await actor.flush()  # as a slow environment would: step by step
        obs = np.where(ended, obs + 100, obs + 1)
    while actor.weights.version < 1 and not actor.stopping:  # noqa: ASYNC110  it is about shared memory
        await asyncio.sleep(0.005)
