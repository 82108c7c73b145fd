"""Every valid item is drawn with the same probability: also over block borders, over the ring's
seam, out of few.

What is valid says the oracle of `tests/models`; here it is drawn often enough to weigh it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kit import bound
from models.episode_oracle import Item, Oracle, Stack
from models.episode_world import PLAIN, World, critical_chi_square

import areplay
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.reader import Reader
from areplay.selectors.uniform import Uniform

DRAWS = 24_000
SEED = 20_240_607
BLOCKS, BLOCK_ROWS = 9, 16

Lengths = list[list[tuple[int, str]]]


def lengths(environments: int, longest: int, seed: int) -> Lengths:
    """Episodes of 1 to `longest` steps for each environment."""
    rng = np.random.default_rng(seed)
    ends = ("terminated", "truncated")
    return [
        [(int(rng.integers(1, longest + 1)), ends[rng.integers(2)]) for _ in range(11)]
        for _ in range(environments)
    ]


async def one_environment_after_wrapping(world: World) -> None:
    """Episodes of any length, up to some that are longer than a block; the newest block is
    part-filled."""
    player = world.player("one", lengths(1, 30, 0), owner=True)
    for _ in range(5 * BLOCKS * BLOCK_ROWS // 2 + 3):
        await player.play(gives_next=False)


async def a_vector_that_resets_in_the_next_step(world: World) -> None:
    """Five environments, whose strides never fit the blocks."""
    player = world.player("NextStep", lengths(5, 9, 1), owner=True)
    for _ in range(BLOCKS * BLOCK_ROWS // 2):
        await player.play(gives_next=False)


async def a_vector_that_resets_in_the_same_step(world: World) -> None:
    """Three environments; the rows of final observations make the strides uneven."""
    player = world.player("SameStep", lengths(3, 12, 2), owner=True)
    for _ in range(BLOCKS * BLOCK_ROWS * 3 // 4):
        await player.play(gives_next=False)


async def several_actors_that_die(world: World) -> None:
    """Streams of all kinds, whose open blocks are recycled by the others, and which end in
    mid-episode."""
    players = [
        world.player("one", lengths(1, 9, 3)),
        world.player("Disabled", lengths(2, 14, 4)),
        world.player("NextStep", lengths(3, 8, 5)),
    ]
    rng = np.random.default_rng(6)
    for turn in range(60):
        player = players[rng.integers(3)]
        for _ in range(rng.integers(1, 9)):
            await player.play(gives_next=False)
        if turn % 7 == 6:
            player.die()


async def hardly_any_item(world: World) -> None:
    """Many actors that died soon, one that got a little further: most rows are the steps of no
    item."""
    player = world.player("one", [[(50, "terminated")]])
    for count in [3, 2, 4, 3, 2, 14, 3, 4]:
        for _ in range(count):
            await player.play(gives_next=False)
        player.die()


Happen = Callable[[World], Any]
SITUATIONS: list[Happen] = [
    one_environment_after_wrapping,
    a_vector_that_resets_in_the_next_step,
    a_vector_that_resets_in_the_same_step,
    several_actors_that_die,
    hardly_any_item,
]
NO_STACK, STACK = Stack(), Stack({"obs": 4})
ITEMS: list[tuple[Any, Callable[[Oracle], dict[int, Item]]]] = [
    (areplay.Transitions(n_step=1, gamma=0.5), lambda oracle: oracle.transitions(1, 0.5, NO_STACK)),
    (
        areplay.Transitions(n_step=5, gamma=0.5, frame_stack=4),
        lambda oracle: oracle.transitions(5, 0.5, STACK),
    ),
    (areplay.Sequences(8, burn_in=2, period=3), lambda oracle: oracle.sequences(8, 2, 3, NO_STACK)),
    (
        areplay.Sequences(8, across_episodes=True),
        lambda oracle: oracle.sequences_across(8, 0, 1, NO_STACK),
    ),
]


def weighed(happen: Happen, check: Callable[[World, Oracle], None]) -> None:
    """Let it happen, and check what came of it."""

    async def main() -> None:
        capacity = BLOCKS * BLOCK_ROWS
        async with areplay.Replay(PLAIN.spec, capacity, block_rows=BLOCK_ROWS, seed=SEED) as replay:
            world = World(replay, PLAIN)
            try:
                await happen(world)
                check(world, world.oracle())
            finally:
                world.close()

    asyncio.run(main())


def drawn(world: World, item: Any, count: int, batches: int) -> list[list[int]]:
    """The indices of so many batches, drawn by one reader as in a sampler."""
    locks = world.ring.block_locks()
    reader = Reader(world.ring, locks, item, bound(Uniform()), np.random.default_rng(SEED))
    out = BatchArrays.empty(count, reader.fields)
    found = []
    for _ in range(batches):
        assert reader.fill(out)
        found.append(out.indices.tolist())
    locks.close()
    return found


@pytest.mark.parametrize(("item", "valid"), ITEMS, ids=[repr(item) for item, _ in ITEMS])
@pytest.mark.parametrize("happen", SITUATIONS)
def test_every_valid_item_has_the_same_probability(
    happen: Happen, item: Any, valid: Callable[[Oracle], dict[int, Item]]
) -> None:
    """Chi-square over all valid items at a significance of 1e-6, for batches small and large; no
    other is drawn."""

    def check(world: World, oracle: Oracle) -> None:
        expected = valid(oracle).keys()
        assert len(expected) > 2
        for count, draws in ((50, DRAWS // 3), (4_000, DRAWS)):
            counts = Counter(
                index for batch in drawn(world, item, count, draws // count) for index in batch
            )
            assert counts.keys() == expected
            mean = counts.total() / len(expected)
            distance = sum((counts[index] - mean) ** 2 / mean for index in expected)
            assert distance < critical_chi_square(len(expected) - 1)

    weighed(happen, check)


@pytest.mark.parametrize("happen", [one_environment_after_wrapping, several_actors_that_die])
def test_draws_are_independent_of_each_other(happen: Happen) -> None:
    """How an item is followed by the next in its batch is as good as chance: over pairs of halves
    of the items."""
    item, valid = ITEMS[1]

    def check(world: World, oracle: Oracle) -> None:
        expected = sorted(valid(oracle))
        half = set(expected[: len(expected) // 2])
        share = len(half) / len(expected)
        pairs: Counter[int] = Counter()
        for batch in drawn(world, item, 100, DRAWS // 200):
            is_in_half = [index in half for index in batch]
            pairs.update(2 * a + b for a, b in zip(is_in_half[::2], is_in_half[1::2], strict=True))
        odds = [(1 - share) ** 2, (1 - share) * share, share * (1 - share), share**2]
        total = pairs.total()
        distance = sum((pairs[k] - total * odds[k]) ** 2 / (total * odds[k]) for k in range(4))
        assert distance < critical_chi_square(3)

    weighed(happen, check)


@pytest.mark.parametrize("happen", SITUATIONS[:4])
def test_the_situations_are_the_hard_ones(happen: Happen) -> None:
    """Windows in one block, over the border of two, and over the seam of the ring are all among
    what is weighed."""

    def check(world: World, oracle: Oracle) -> None:
        valid, n_step = ITEMS[1][1](oracle), 5
        assert world.ring.next_serial[0] > 2 * BLOCKS
        places = [
            (names[0], names[-1])
            for lane in world.lanes
            for episode in lane
            for at in range(len(episode.steps))
            if len(
                names := [name for name in episode.names[at : at + n_step + 1] if name is not None]
            )
            > 1
            and names[0] in valid
        ]
        capacity = world.replay.capacity_rows
        borders = sum(first // BLOCK_ROWS != last // BLOCK_ROWS for first, last in places)
        seams = sum(first % capacity > last % capacity for first, last in places)
        assert 5 < borders < len(places) - 5
        assert seams > 0

    weighed(happen, check)
