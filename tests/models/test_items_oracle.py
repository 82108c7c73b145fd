"""Any history of episodes, and every item of it, against episodes kept as plain Python lists.

Several streams of one environment or of vectors of them, in all autoreset modes, hand in episodes
of any length to small rings with blocks of any size. Steps get lost, actors die, readers hold
blocks, laps go round. Then whatever is drawn is what the oracle says, field for field; nothing is
drawn that is not valid, and nothing valid is left out.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import bound
from models.episode_oracle import Item, Oracle, Stack
from models.episode_world import FRAMES, MODES, PLAIN, Kind, Player, World, check_draws
from models.parts import PARTS, in_parts

import areplay
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.reader import Reader
from areplay._storage import ring as ring_module
from areplay._storage import stream_writer as writer_module
from areplay._storage import window_search as search_module
from areplay._storage.window_search import WindowFinder
from areplay._storage.windows import Windows
from areplay.selectors.uniform import Uniform

THOROUGH = settings(
    max_examples=60 // PARTS,
    print_blob=True,
    suppress_health_check=[HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Held blocks are passed by thousands of times."""
    logger = logging.getLogger("areplay._storage.ring")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


ENDS = st.tuples(
    st.one_of(st.integers(1, 9), st.just(40)), st.sampled_from(["terminated", "truncated", "both"])
)


@dataclass(frozen=True)
class History:
    """What happens, in plain values."""

    kind: Kind
    blocks: int
    block_rows: int
    modes: list[str]
    lengths: list[list[list[tuple[int, str]]]]
    turns: list[tuple[int, str, int, bool]]

    @property
    def has_gaps(self) -> bool:
        """Whether steps get lost. Where a beginning got lost nobody knows how many steps there were
        since then: there is no multiple of a period."""
        return any(what in ("lose", "jump") for _, what, _, _ in self.turns)


@st.composite
def histories(draw: st.DrawFn, kinds: tuple[Kind, ...] = (PLAIN, FRAMES)) -> History:
    """Any history."""
    modes = draw(st.lists(st.sampled_from(MODES), min_size=1, max_size=3))
    happening = st.sampled_from(
        ["play"] * 6
        + ["extend"] * 2
        + ["die", "lose", "jump", "break", "break one", "seal", "seal", "hold", "release"]
    )
    return History(
        draw(st.sampled_from(kinds)),
        draw(st.integers(4, 12)),
        draw(st.sampled_from([1, 2, 3, 4, 6, 9, 14])),
        modes,
        [
            draw(st.lists(st.lists(ENDS, min_size=1, max_size=3), min_size=1, max_size=5))
            for _ in modes
        ],
        draw(
            st.lists(
                st.tuples(st.integers(0, 2), happening, st.integers(1, 12), st.booleans()),
                min_size=4,
                max_size=30,
            )
        ),
    )


async def happen(world: World, history: History) -> None:
    """Let it happen."""
    for number, (mode, lengths) in enumerate(zip(history.modes, history.lengths, strict=True)):
        world.player(mode, lengths, owner=number == 0)
    for which, what, amount, flag in history.turns:
        number = which % len(world.players)
        player, mode = world.players[number], history.modes[number]
        if what == "hold":
            world.hold(amount % history.blocks)
        elif what == "release":
            world.release()
        elif what == "lose":
            await player.lose()
        elif what == "seal":
            player.close_block()
        elif what == "jump":
            await player.jump()
        elif what.startswith("break"):
            player.break_off(None if what == "break" else amount)
        elif what == "die" and number > 0:
            player.die()
        elif what == "extend" and mode == "one":
            # at most a ring of rows
            await player.play_some(min(amount, history.blocks * history.block_rows // 2))
        else:
            for _ in range(amount):
                await player.play(flag)


def compare(world: World, item: Any, items: Callable[[Oracle], dict[int, Item]]) -> None:
    """Draw enough of these items that each one turns up; all of them are right."""
    expected, required = world.valid(items)
    count = min(max(4_096, world.replay.capacity_rows), 200 + 40 * len(expected))
    try:
        batch = world.replay.sample(count, item)
    except areplay.Stalled:
        assert not required
    else:
        check_draws(batch, expected, required)


async def lived(history: History, checks: Callable[[World], None]) -> None:
    """Let a history happen, and check what came of it."""
    capacity = history.blocks * history.block_rows
    async with areplay.Replay(
        history.kind.spec, capacity, block_rows=history.block_rows, seed=1
    ) as replay:
        world = World(replay, history.kind)
        try:
            await happen(world, history)
            checks(world)
        finally:
            world.close()


@st.composite
def stacks(draw: st.DrawFn, kind: Kind) -> tuple[Any, Stack]:
    """The option `frame_stack`, and what it means."""
    pad = draw(st.sampled_from(["first", "zero"]))
    depth = draw(st.sampled_from([None, 1, 2, 3, 5]))
    if depth is None:
        return None, Stack({}, pad)
    names = draw(st.sets(st.sampled_from(kind.spec.observations), min_size=1))
    if names == set(kind.spec.observations) and draw(st.booleans()):
        return depth, Stack(dict.fromkeys(names, depth), pad)
    depths = {name: draw(st.integers(1, 4)) for name in sorted(names)}
    return depths, Stack(depths, pad)


@in_parts
@THOROUGH
@given(st.data())
def test_every_transition_is_the_oracles(part: int, data: st.DataObject) -> None:
    """Any n up to 10, gamma, stack and padding: the valid ones and no other, each field as computed
    by hand."""
    history = data.draw(histories())
    options = [
        (
            data.draw(st.integers(1, 10)),
            data.draw(st.sampled_from([0.0, 0.5, 0.97, 1.0])),
            *data.draw(stacks(kind)),
        )
        for kind in [history.kind] * 3
    ]

    def checks(world: World) -> None:
        for n_step, gamma, frame_stack, stack in options:
            item = areplay.Transitions(
                n_step=n_step, gamma=gamma, frame_stack=frame_stack, pad=stack.pad
            )
            compare(
                world, item, partial(Oracle.transitions, n_step=n_step, gamma=gamma, stack=stack)
            )

    asyncio.run(lived(history, checks))


@in_parts
@THOROUGH
@given(st.data())
def test_every_sequence_is_the_oracles(part: int, data: st.DataObject) -> None:
    """Any length, burn-in, period, stack and padding, within episodes or across them."""
    history = data.draw(histories())
    options = []
    for _ in range(3):
        length = data.draw(st.integers(1, 9))
        options.append(
            (
                length,
                data.draw(st.integers(0, length - 1)),
                1 if history.has_gaps else data.draw(st.integers(1, 4)),
                data.draw(st.booleans()),
                data.draw(st.sampled_from([(), ("version",)])),
                *data.draw(stacks(history.kind)),
            )
        )

    def checks(world: World) -> None:
        for length, burn_in, period, across, first_step_only, frame_stack, stack in options:
            item = areplay.Sequences(
                length,
                burn_in,
                period,
                frame_stack=frame_stack,
                across_episodes=across,
                pad=stack.pad,
                first_step_only=first_step_only,
            )
            compare(
                world,
                item,
                partial(
                    Oracle.sequences_across if across else Oracle.sequences,
                    length=length,
                    burn_in=burn_in,
                    period=period,
                    stack=stack,
                    first_step_only=first_step_only,
                ),
            )

    asyncio.run(lived(history, checks))


@in_parts
@THOROUGH
@given(histories())
def test_every_row_is_the_step_that_was_handed_in(part: int, history: History) -> None:
    """`Rows`: each step that is there, in each of its fields, and no row of a final observation."""
    asyncio.run(lived(history, lambda world: compare(world, areplay.Rows(), Oracle.rows)))


DENSE: list[tuple[Any, Callable[[Oracle], dict[int, Item]]]] = [
    (
        areplay.Transitions(n_step, 0.5, frame_stack=depth, pad=pad),
        partial(
            Oracle.transitions,
            n_step=n_step,
            gamma=0.5,
            stack=Stack({"obs": depth} if depth else {}, pad),
        ),
    )
    for n_step, depth, pad in [
        (1, None, "first"),
        (1, 2, "first"),
        (1, 4, "zero"),
        (3, 3, "zero"),
        (4, 2, "first"),
    ]
] + [
    (
        areplay.Sequences(length, burn_in, period, depth, across, pad),
        partial(
            Oracle.sequences_across if across else Oracle.sequences,
            length=length,
            burn_in=burn_in,
            period=period,
            stack=Stack({"obs": depth} if depth else {}, pad),
        ),
    )
    for length, burn_in, period, depth, across, pad in [
        (5, 1, 2, 3, False, "zero"),
        (4, 0, 1, None, False, "first"),
        (5, 2, 3, 3, True, "first"),
    ]
]


@pytest.mark.parametrize(("item", "items"), DENSE, ids=[repr(item) for item, _ in DENSE])
@pytest.mark.parametrize("mode", MODES)
def test_items_of_long_blocks_are_the_oracles(
    mode: str, item: Any, items: Callable[[Oracle], dict[int, Item]]
) -> None:
    """Blocks that hold many windows whole, episodes of all lengths, laps: as everybody uses it."""
    lengths = [
        [(3, "terminated"), (1, "truncated"), (9, "both")],
        [(6, "truncated"), (2, "terminated"), (5, "truncated"), (1, "terminated")],
        [(17, "terminated"), (4, "truncated")],
    ]

    async def main() -> None:
        async with areplay.Replay(PLAIN.spec, 240, block_rows=60, seed=1) as replay:
            world = World(replay, PLAIN)
            player = world.player(mode, lengths, owner=True)
            for turn in range(430 if mode == "one" else 130):
                await player.play(gives_next=turn % 3 == 0)
            assert replay.statistics().blocks_started > 6
            compare(world, item, items)
            world.close()

    asyncio.run(main())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [1, 13, 26])
def test_what_an_earlier_actor_left_behind_the_last_row_is_no_part_of_a_window(
    mode: str, steps: int
) -> None:
    """An actor dies when it has filled the ring; its successor, with the same episode, writes its
    first rows over the first of those. Behind them lie rows that look like what is to come next,
    step for step."""

    async def main() -> None:
        async with areplay.Replay(PLAIN.spec, 96, block_rows=24, seed=1) as replay:
            world = World(replay, PLAIN)
            player = world.player(mode, [[(1_000, "terminated")]] * 2)
            for _ in range(96 if mode == "one" else 48):
                await player.play(gives_next=False)
            player.die()
            for _ in range(steps):
                await player.play(gives_next=False)
            for item, items in DENSE:
                compare(world, item, items)
            world.close()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(6))
def test_actors_in_step_with_each_other_are_not_mixed_up(seed: int) -> None:
    """Actors whose episodes are alike, row for row, and go on by whole blocks, so that the same
    numbers of steps lie in blocks side by side and in blocks that others have left; some blocks end
    early."""
    rng = np.random.default_rng(seed)
    mode, block_rows = MODES[seed % 2], (2, 4)[seed // 3]

    async def main() -> None:
        async with areplay.Replay(
            PLAIN.spec, 18 * block_rows, block_rows=block_rows, seed=1
        ) as replay:
            world = World(replay, PLAIN)
            players = [world.player(mode, [[(1_000, "terminated")]] * 2) for _ in range(3)]
            a_block = block_rows if mode == "one" else block_rows // 2
            for turn in range(90):
                at_random = turn < seed % 3 * 40  # then two of them take turns, block by block
                player = players[rng.integers(3) if at_random else turn % 2]
                for _ in range(a_block * rng.integers(1, 3) if at_random else a_block):
                    await player.play(gives_next=False)
                if at_random and turn % 10 == 9:
                    player.close_block()
                if at_random and turn % 20 == 19:
                    player.die()
            for item, items in DENSE:
                compare(world, item, items)
            for back, forward in [(0, 3), (2, 5), (5, 1), (9, 9)]:
                reach = areplay.Window(back, forward)
                compare(
                    world, Neighbours(reach), partial(Oracle.windows, back=back, forward=forward)
                )
            world.close()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(4))
def test_steps_handed_in_singly_and_many_at_once_make_the_same_episodes(seed: int) -> None:
    """`add` and `extend` by turns, over blocks so short that windows span many of them."""
    rng = np.random.default_rng(seed)

    async def main() -> None:
        async with areplay.Replay(PLAIN.spec, 60, block_rows=1 + seed, seed=1) as replay:
            world = World(replay, PLAIN)
            player = world.player(
                "one", [[(40, "terminated"), (2, "both"), (11, "truncated")]], owner=True
            )
            for _ in range(25):
                await player.play_some(int(rng.integers(1, 8)))
                for _ in range(rng.integers(3)):
                    await player.play(gives_next=True)
            for item, items in DENSE:
                compare(world, item, items)
            compare(
                world, Neighbours(areplay.Window(9, 9)), partial(Oracle.windows, back=9, forward=9)
            )
            await player.jump(some=True)
            compare(world, *DENSE[0])
            world.close()

    asyncio.run(main())


@pytest.mark.parametrize("mode", MODES)
def test_a_step_that_got_lost_between_two_episodes_parts_them(mode: str) -> None:
    """Nobody knows whether the first row after the gap begins an episode: it is not padded, not
    `is_first`, and no sequence goes on with it."""

    async def main() -> None:
        async with areplay.Replay(PLAIN.spec, 96, block_rows=24, seed=1) as replay:
            world = World(replay, PLAIN)
            player = world.player(mode, [[(3, "terminated")]] * 2, owner=True)
            for _ in range(4 if mode == "NextStep" else 3):
                await player.play(gives_next=False)
            await player.lose()
            for _ in range(8):
                await player.play(gives_next=True)
            for item, items in DENSE:
                if getattr(item, "period", 1) == 1:
                    compare(world, item, items)
            across = partial(
                Oracle.sequences_across, length=4, burn_in=0, period=1, stack=Stack({"obs": 2})
            )
            compare(world, areplay.Sequences(4, across_episodes=True, frame_stack=2), across)
            world.close()

    asyncio.run(main())


class Neighbours:
    """A user's own item: all observations of a window, and what the windows say of themselves."""

    def __init__(self, window: areplay.Window) -> None:
        self.window = window

    def fields(self, spec: areplay.Spec) -> dict[str, Any]:
        """See `areplay.Item`."""
        counts = dict.fromkeys(("behind", "ahead", "steps"), ((), "int64"))
        return counts | {
            n: ((self.window.rows, *spec[n].shape), spec[n].dtype) for n in spec.observations
        }

    def assemble(self, windows: Windows, out: Any) -> None:
        """See `areplay.Item`."""
        for name in windows.spec.observations:
            windows.take(name, slice(-self.window.back, self.window.forward + 1), out=out[name])
        out["behind"][:], out["ahead"][:], out["steps"][:] = (
            windows.behind,
            windows.ahead,
            windows.steps,
        )
        assert windows.positions.shape == (len(windows), self.window.rows)


@in_parts
@THOROUGH
@given(st.data())
def test_every_window_of_a_users_own_item_is_the_oracles(part: int, data: st.DataObject) -> None:
    """Any reach back and forward, period and least number of steps, within episodes or across
    them."""
    history = data.draw(histories())
    windows = []
    for _ in range(3):
        forward = data.draw(st.integers(0, 8))
        windows.append(
            areplay.Window(
                back=data.draw(st.integers(0, 5)),
                forward=forward,
                period=1 if history.has_gaps else data.draw(st.integers(1, 4)),
                min_steps=data.draw(st.integers(1, forward + 1)),
                across_episodes=data.draw(st.booleans()),
            )
        )

    def checks(world: World) -> None:
        for window in windows:
            reach = (
                window.back,
                window.forward,
                window.period,
                window.min_steps,
                window.across_episodes,
            )
            compare(world, Neighbours(window), lambda oracle, reach=reach: oracle.windows(*reach))

    asyncio.run(lived(history, checks))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", MODES)
def test_windows_are_unchanged_as_long_as_all_their_rows_are(mode: str, seed: int) -> None:
    """Windows that were found, all of them or the first few or several finds as one, and a writer
    that goes on, with some blocks held so that any of them may be overwritten first: a window is
    whole while each of its rows is."""
    rng = np.random.default_rng(seed)
    window = areplay.Window(back=2, forward=4, across_episodes=seed % 2 == 1)

    async def main() -> None:
        async with areplay.Replay(PLAIN.spec, 96, block_rows=16, seed=1) as replay:
            world = World(replay, PLAIN)
            player = world.player(
                mode, [[(30, "terminated"), (3, "both")], [(1, "truncated"), (40, "terminated")]]
            )
            for _ in range(130 if mode == "one" else 65):
                await player.play(gives_next=False)
            finder = WindowFinder(world.ring, window)
            rows_of = world.oracle().windows(
                window.back, window.forward, across=window.across_episodes
            )
            drawn = rng.choice(np.arange(*world.ring.index_range()), 150)
            some = finder.find(drawn[world.ring.committed(drawn)])
            assert set(some.indices.tolist()) <= rows_of.keys()
            parts = [
                some.part(0, 70),
                finder.find(np.array(sorted(rows_of))),
                some.part(0, 3),
                finder.find(drawn[:0]),
            ]
            kept = [some, *parts, Windows.joined(parts)]
            lost: set[int] = set()
            while len(lost) < len(rows_of):
                world.hold(int(rng.integers(world.ring.blocks)))
                for _ in range(rng.integers(1, 12)):
                    await player.play(gives_next=False)
                if rng.random() < 0.2:
                    world.release()
                present = world.oracle().present
                lost = {index for index, item in rows_of.items() if not item["names"] <= present}
                for windows in kept:
                    assert windows.unchanged().tolist() == [
                        index not in lost for index in windows.indices.tolist()
                    ]
            world.close()

    asyncio.run(main())


class Disturbance:
    """A writer that is at work at each fence of a reader, and in the middle of its copying."""

    def __init__(self, world: World, player: Player, often: float, seed: int) -> None:
        self._world, self._player = world, player
        self._often, self._rng = often, np.random.default_rng(seed)
        self._is_writing = False

    def __call__(self) -> None:
        if self._is_writing or self._rng.random() > self._often:
            return
        self._is_writing = True
        self._world.release()
        for place in self._rng.integers(self._world.ring.blocks, size=self._rng.integers(3)):
            self._world.hold(int(place))  # so that not always the oldest rows are overwritten first
        for _ in range(self._rng.integers(1, 8)):
            playing = self._player.play(gives_next=False)
            with pytest.raises(StopIteration):  # it never waits
                playing.send(None)
        self._is_writing = False


class Disturbed:
    """An item that is disturbed before, while and after it is copied."""

    def __init__(self, item: Any, disturbance: Disturbance) -> None:
        self._item, self._disturbance = item, disturbance
        self.window, self.fields = item.window, item.fields

    def assemble(self, windows: Windows, out: Any) -> None:
        """As the item itself."""
        take = windows.take

        def disturbed_take(*args: Any, **options: Any) -> Any:
            self._disturbance()
            return take(*args, **options)

        windows.take = disturbed_take  # type: ignore[method-assign]
        self._item.assemble(windows, out)
        self._disturbance()


@pytest.mark.parametrize("often", [0.01, 0.05])
@pytest.mark.parametrize("mode", MODES)
def test_items_are_whole_whatever_a_writer_does_meanwhile(
    mode: str, often: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that goes round while windows are looked for, copied and checked: each item is still
    one of those that the environments made, in each of its fields, and none is older than the ring
    was when it was asked for."""
    items = [
        (
            areplay.Transitions(4, 0.5, frame_stack=3),
            lambda oracle: oracle.transitions(4, 0.5, Stack({"obs": 3})),
        ),
        (
            areplay.Sequences(6, frame_stack=2, first_step_only=("version",)),
            lambda oracle: oracle.sequences(6, 0, 1, Stack({"obs": 2}), ("version",)),
        ),
        (
            areplay.Sequences(6, across_episodes=True, first_step_only=("version",)),
            lambda oracle: oracle.sequences_across(6, 0, 1, Stack(), ("version",)),
        ),
    ]

    async def main() -> None:
        async with areplay.Replay(PLAIN.spec, 80, block_rows=16, seed=1) as replay:
            world = World(replay, PLAIN)
            player = world.player(
                mode, [[(3, "terminated"), (7, "truncated")], [(12, "both")], [(5, "terminated")]]
            )
            for _ in range(64):
                await player.play(gives_next=False)
            drawn, redrawn = [], 0
            for seed, (item, _) in enumerate(items):
                disturbance, locks = (
                    Disturbance(world, player, often, seed),
                    world.ring.block_locks(),
                )
                disturbed = Disturbed(item, disturbance)
                reader = Reader(
                    world.ring, locks, disturbed, bound(Uniform()), np.random.default_rng(seed)
                )
                monkeypatch.setattr(ring_module, "order", disturbance)
                monkeypatch.setattr(writer_module, "order", disturbance)
                monkeypatch.setattr(search_module, "order", disturbance)
                batches = []
                for count in [1, 2, 20] * 16:
                    out, oldest = (
                        BatchArrays.empty(count, reader.fields),
                        world.ring.index_range()[0],
                    )
                    if reader.fill(out):
                        assert out.indices.min() >= oldest
                        batches.append(out)
                assert batches
                monkeypatch.undo()
                locks.close()
                drawn.append(batches)
                redrawn += reader.rows_redrawn
            assert redrawn > 0
            world.close()
        for episode in itertools.chain.from_iterable(world.lanes):  # as if all was there
            episode.names = [observation["number"] for observation in episode.observations]
        oracle = Oracle(
            world.lanes,
            {name for lane in world.lanes for episode in lane for name in episode.names},
        )
        for (_, valid), batches in zip(items, drawn, strict=True):
            ever = {item["version"]: item for item in valid(oracle).values()}
            for batch in batches:
                for at, version in enumerate(batch.fields["version"].tolist()):
                    for name, array in batch.fields.items():
                        assert array[at].tolist() == ever[version][name], name

    asyncio.run(main())
