"""Items out of the steps that real actors handed in, drawn by real samplers: those of the oracle,
deaths included."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.episode_oracle import Episode, Item, Lane, Oracle, Stack
from models.episode_world import Player, World, check_draws, stored

import areplay

from . import steppers

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

MODES = ["NextStep", "SameStep", "Disabled", "one"]
STACK = Stack({"obs": 3})
ITEMS: list[tuple[Any, Callable[[Oracle], dict[int, Item]]]] = [
    (
        areplay.Transitions(n_step=3, gamma=0.5, frame_stack=3),
        lambda oracle: oracle.transitions(3, 0.5, STACK),
    ),
    (
        areplay.Sequences(6, burn_in=1, first_step_only=("version",)),
        lambda oracle: oracle.sequences(6, 1, 1, Stack(), ("version",)),
    ),
    (
        areplay.Sequences(6, across_episodes=True),
        lambda oracle: oracle.sequences_across(6, 0, 1, Stack()),
    ),
]


class Joined(dict[str, Any]):
    """Several batches as one."""

    def __init__(self, parts: list[areplay.Batch]) -> None:
        super().__init__(
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        )
        self.indices = np.concatenate([part.indices for part in parts])


class Nobody:
    """Takes the steps of a player that plays again what an actor has played."""

    autoreset_mode = ""

    def end_episode(self, environments: Any) -> None:
        """Nothing either."""

    async def add(self, **step: Any) -> None:
        """Nothing is returned, as from an actor."""


async def replayed(lanes: list[Lane], actor: int, mode: str, life: int, steps: int) -> list[int]:
    """What that actor did in that life, added to the lanes; the numbers of its observations."""
    before = len(lanes)
    player = Player(
        steppers.KIND, Nobody(), mode, steppers.LENGTHS, steppers.numbers(actor, life), lanes
    )
    for _ in range(steps):
        await player.play(gives_next=False)
    episodes: list[Episode] = [episode for lane in lanes[before:] for episode in lane]
    return [observation["number"] for episode in episodes for observation in episode.observations]


async def test_items_of_actors_that_died_are_the_oracles(tmp_path: Path) -> None:
    """Four actors, each with environments of another kind, each killed once, their streams side by
    side in the ring: what a sampler draws is valid and right, and nothing valid is missing. A final
    observation is there whenever the step before it is."""
    # environment 1 of the first actor ends in the last step, that of the last one, too
    steps = [29, 40]
    async with areplay.Replay(steppers.KIND.spec, 4_000, block_rows=32, seed=2) as replay:
        async with replay.actors(
            steppers.step_and_die, 4, args=(str(tmp_path), MODES, steps)
        ) as actors:
            await actors.wait()
            assert [record.restarts for record in actors.statistics()] == [1] * 4
        world = World(replay, steppers.KIND)
        try:
            handed_in: list[int] = []
            for actor, mode in enumerate(MODES):
                for life, count in enumerate(steps):
                    handed_in += await replayed(world.lanes, actor, mode, life, count)
            assert sorted(handed_in) == sorted(stored(world.ring, steppers.KIND))
            for item, valid in (ITEMS[0], ITEMS[2]):
                async with replay.batches(
                    item, batch_size=4_000, prefetch=2, timeout_s=60.0
                ) as batches:
                    parts = [(await anext(batches)).copy() for _ in range(8)]
                check_draws(Joined(parts), *world.valid(valid))
        finally:
            world.close()


async def test_items_of_actors_whose_episodes_break_off_are_the_oracles() -> None:
    """In each mode, with and without next_obs: nothing that is drawn spans a break, and all that is
    whole is drawn."""
    steps = 40
    async with areplay.Replay(steppers.KIND.spec, 4_000, block_rows=32, seed=2) as replay:
        async with replay.actors(steppers.step_and_break_off, 4, args=(MODES, steps)) as actors:
            await actors.wait()
        world = World(replay, steppers.KIND)
        try:
            handed_in: list[int] = []
            for actor, mode in enumerate(MODES):
                lanes: list[Lane] = []
                player = Player(
                    steppers.KIND,
                    Nobody(),
                    mode,
                    steppers.LENGTHS,
                    steppers.numbers(actor, 0),
                    lanes,
                )
                await steppers.play_and_break_off(player, steps, gives_next=False)
                world.lanes += lanes
                episodes = [episode for lane in lanes for episode in lane]
                handed_in += [
                    seen["number"] for episode in episodes for seen in episode.observations
                ]
                assert sum(bool(episode.steps) and not episode.ended for episode in episodes) > 3, (
                    "which broke off"
                )
            assert sorted(handed_in) == sorted(stored(world.ring, steppers.KIND)), "no row more"
            for item, valid in ITEMS:
                check_draws(replay.sample(4_096, item), *world.valid(valid))
        finally:
            world.close()


async def test_items_drawn_while_actors_write_and_die_are_right(tmp_path: Path) -> None:
    """A small ring that goes round all the time: each item drawn meanwhile is one that was valid at
    some moment."""
    async with areplay.Replay(steppers.KIND.spec, 1_024, block_rows=32, seed=2) as replay:
        chosen = ITEMS[:2]
        seen: list[list[areplay.Batch]] = [[] for _ in chosen]
        lives: list[set[int]] = [set() for _ in chosen]
        async with (
            replay.batches(chosen[0][0], batch_size=128, prefetch=2, timeout_s=60.0) as transitions,
            replay.batches(chosen[1][0], batch_size=128, prefetch=2, timeout_s=60.0) as sequences,
            replay.actors(
                steppers.step_until_killed, 2, args=(str(tmp_path), MODES), max_restarts=100
            ) as actors,
        ):
            restarts = [0]
            while min(restarts) < 2 or min(map(len, lives)) < 4 or len(seen[0]) < 100:
                restarts = [record.restarts for record in actors.statistics()]
                assert max(restarts) < steppers.LIVES_THAT_END, "no more lives will come"
                for batches, parts, names in zip(
                    (transitions, sequences), seen, lives, strict=True
                ):
                    parts.append((await anext(batches)).copy())
                    names.update((-parts[-1]["version"] // steppers.NUMBERS_A_LIFE).tolist())
                # a learner that has something to do, so that some of each life are seen
                await asyncio.sleep(0.005)
            assert replay.statistics().blocks_started > 3 * replay.statistics().blocks
        for (_, valid), parts in zip(chosen, seen, strict=True):
            await check_ever_valid(valid, Joined(parts))


async def check_ever_valid(valid: Callable[[Oracle], dict[int, Item]], drawn: Joined) -> None:
    """Each is an item of what the actors did, right in each field; none mixes two of them."""
    lanes: list[Lane] = []
    lives, of_item = np.unique(-drawn["version"] // steppers.NUMBERS_A_LIFE, return_inverse=True)
    assert len(lives) > 3, "items of several lives"
    for number, life in enumerate(lives.tolist()):
        latest = int((-drawn["version"][of_item == number]).max()) - life * steppers.NUMBERS_A_LIFE
        await replayed(lanes, life // 10, MODES[life // 10], life % 10, latest // 2 + 20)
    # as if all was there, by an observation's own number
    for episode in itertools.chain.from_iterable(lanes):
        episode.names = [observation["number"] for observation in episode.observations]
    everything = {name for lane in lanes for episode in lane for name in episode.names}
    ever = {item["version"]: item for item in valid(Oracle(lanes, everything)).values()}
    _, first, which = np.unique(drawn["version"], return_index=True, return_inverse=True)
    for at in first.tolist():
        expected = ever[int(drawn["version"][at])]
        for name, array in drawn.items():
            assert array[at].tolist() == expected[name], name
    for array in drawn.values():
        np.testing.assert_array_equal(array, array[first[which]])
