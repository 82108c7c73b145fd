"""Any history of an completion log, against episodes kept as plain Python lists.

Streams of one environment, or of vectors of them in all autoreset modes, go through queues (as
inboxes) into a small ring of which blocks are kept. Steps get lost, actors die, blocks are sealed
early, a reader holds one for a while, the learner releases items now and then. The log has each
item that can be made once, in order; what it needs is there, and what nobody needs any more is not
kept.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from models.episode_oracle import Lane, Oracle
from models.episode_world import MODES, PLAIN, Player
from models.parts import machine_in_parts

from areplay._base.arrays import Columns
from areplay._ingest.episodes import Episodes
from areplay._sampling.completion_log import CompletionLog
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay._storage.window_search import WindowFinder
from areplay._storage.windows import Window


def done(work: Coroutine[Any, Any, Any]) -> None:
    """Run what never waits."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


class Queue:
    """Takes the steps of a player, and writes their rows in order, as far as there is a place for
    them.

    Attributes:
        written: the numbers of the observations of the present stream's rows that were written, in
            order.
    """

    autoreset_mode = ""

    def __init__(self, ring: Ring, registry: WriterRegistry) -> None:
        self._ring, self.writer = ring, StreamWriter(ring, ring.block_locks(), registry)
        self._waiting: list[Columns | None] = []  # None: there the stream ends
        self.streams: list[list[int]] = [[]]
        self._begin()

    def _begin(self) -> None:
        mode = self.autoreset_mode
        self._episodes = Episodes(self._ring.spec)
        if mode:
            self._episodes.autoreset_mode = mode

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "autoreset_mode" and value:
            self._episodes.autoreset_mode = value

    @property
    def written(self) -> list[int]:
        return self.streams[-1]

    async def add(self, **step: Any) -> None:
        """As of an actor: the rows wait for their turn, their indices are not told."""
        with self._episodes.step(self._episodes.ticket()):
            rows = self._episodes.rows(step)
            if isinstance(rows, tuple):
                spec = self._ring.spec.rows
                rows = {
                    name: np.array([field.convert(row[name]) for row in rows])
                    for name, field in spec.items()
                }
            self._waiting.append(rows)

    def end_episode(self, environments: Any = None) -> None:
        """As of an actor."""
        self._episodes.break_off(environments)

    async def extend(self, steps: Any) -> Any:
        """As of an actor."""
        with self._episodes.step(self._episodes.ticket()):
            rows, which = self._episodes.columns(steps)
            self._waiting.append(rows)
            return np.full(len(which), -1)

    def die(self) -> None:
        """What it put is written in its turn, then the stream ends."""
        self._waiting.append(None)
        self._begin()

    def drain(self) -> None:
        """Write what may be written."""
        while self._waiting:
            rows = self._waiting[0]
            if rows is None:
                self.writer.begin_stream()
                self.streams.append([])
            else:
                length = len(rows["reward"])
                written = len(self.writer.write(rows, 0, length))
                self.written.extend(rows["obs"][:written, 0].tolist())
                if written < length:
                    self._waiting[0] = {name: column[written:] for name, column in rows.items()}
                    return
            self._waiting.pop(0)

    def end(self) -> None:
        """What waits is given up, and the stream ends."""
        self._waiting.clear()
        self.writer.close()
        self.streams.append([])


ENDS = st.tuples(
    st.one_of(st.integers(1, 6), st.just(30)), st.sampled_from(["terminated", "truncated"])
)


@st.composite
def item_windows(draw: st.DrawFn) -> Window:
    """Any window that is not too long."""
    forward = draw(st.integers(0, 5))
    return Window(
        back=draw(st.integers(0, 3)),
        forward=forward,
        period=draw(st.sampled_from([1, 1, 1, 2, 3])),
        min_steps=draw(st.integers(1, forward + 1)),
        across_episodes=draw(st.booleans()),
    )


class CompletionLogMachine(RuleBasedStateMachine):
    """The log and its oracle, side by side."""

    @initialize(
        window=item_windows(),
        modes=st.lists(st.sampled_from(MODES), min_size=1, max_size=2),
        lengths=st.lists(
            st.lists(st.lists(ENDS, min_size=1, max_size=3), min_size=1, max_size=3), min_size=2
        ),
        block_rows=st.sampled_from([1, 2, 3, 5, 8]),
        spare=st.integers(2, 8),
        before=st.lists(
            st.tuples(st.integers(0, 1), st.integers(1, 30), st.booleans()), max_size=3
        ),
    )
    def build(
        self,
        window: Window,
        modes: list[str],
        lengths: list[list[list[tuple[int, str]]]],
        block_rows: int,
        spare: int,
        before: list[tuple[int, int, bool]],
    ) -> None:
        self.window, self.modes = window, modes
        width = max(len(each) for each in lengths)
        # So many rows a stream needs beside what the learner was not yet given: then it can go on.
        self.reach = 2 * (window.forward + 1 + window.back) * 2 * width
        blocks = max(4, len(modes) * (-(-self.reach // block_rows) + 1) + spare)
        self.ring, self.registry = Ring(PLAIN.spec, blocks, block_rows), WriterRegistry()
        self.reader = self.ring.block_locks()
        self.held: int | None = None
        self.finder = WindowFinder(self.ring, window)
        self.lanes: list[Lane] = []
        self.queues = [Queue(self.ring, self.registry) for _ in modes]
        numbers = itertools.count(1)
        self.players = [
            Player(PLAIN, queue, mode, lengths[k], numbers, self.lanes)
            for k, (queue, mode) in enumerate(zip(self.queues, modes, strict=True))
        ]
        self.log: CompletionLog | None = None
        self.gone: set[int] = set()  # numbers of rows that were overwritten before the log began
        self.logged: list[int] = []  # numbers of the items of the log, in its order
        self.is_over = False
        for which, steps, dies in before:
            which %= len(modes)
            for _ in range(steps):
                done(self.players[which].play(False))
            if dies:
                self.players[which].die()
            self.queues[which].drain()
        ever = {number for queue in self.queues for stream in queue.streams for number in stream}
        self.gone = ever - self.there()
        self.log = CompletionLog(self.ring, window, "Fifo()")
        self.registry.add_pins(self.log)
        self.log.begin(self.registry, goes_on=True)
        self.read()

    def in_block(self, place: int) -> set[int]:
        """The numbers of the rows in that block."""
        start = place * self.ring.block_rows
        return set(self.ring.columns["obs"][start : start + self.ring.block(place)[1], 0].tolist())

    def there(self) -> set[int]:
        """The numbers of all rows that are there."""
        return set().union(*(self.in_block(place) for place in range(self.ring.blocks)))

    def read(self) -> None:
        """Take down what is new in the log."""
        assert self.log is not None
        new = self.log.entries(len(self.logged), self.log.appended)
        assert self.ring.committed(new).all()
        self.logged += self.ring.columns["obs"][self.ring.positions(new), 0].tolist()

    # What happens.

    @rule(which=st.integers(0, 1), steps=st.integers(1, 12), gives_next=st.booleans())
    def play(self, which: int, steps: int, gives_next: bool) -> None:
        which %= len(self.players)
        for _ in range(steps):
            done(self.players[which].play(gives_next))
        self.drain()

    @rule(which=st.integers(0, 1), steps=st.integers(1, 20))
    def play_some(self, which: int, steps: int) -> None:
        which %= len(self.players)
        if self.modes[which] == "one":
            done(self.players[which].play_some(steps))
            self.drain()

    @rule(which=st.integers(0, 1))
    def die(self, which: int) -> None:
        self.players[which % len(self.players)].die()
        self.drain()

    # else nobody knows which step is a multiple of it
    @precondition(lambda self: self.window.period == 1)
    @rule(which=st.integers(0, 1), jumps=st.booleans())
    def lose_a_step(self, which: int, jumps: bool) -> None:
        player = self.players[which % len(self.players)]
        done(player.jump() if jumps else player.lose())
        self.drain()

    @rule(which=st.integers(0, 1), environment=st.none() | st.integers(0, 4))
    def break_off(self, which: int, environment: int | None) -> None:
        self.players[which % len(self.players)].break_off(environment)

    @rule(which=st.integers(0, 1))
    def close_block(self, which: int) -> None:
        self.queues[which % len(self.queues)].writer.close_block()

    @rule(share=st.floats(0, 1))
    def the_learner_takes_some(self, share: float) -> None:
        assert self.log is not None
        self.log.released += int(share * (self.log.appended - self.log.released))
        self.drain()

    @rule()
    def the_learner_takes_all(self) -> None:
        assert self.log is not None
        self.log.released = self.log.appended
        self.drain()

    @rule(place=st.integers(0, 99))
    def a_reader_takes_a_block(self, place: int) -> None:
        self.a_reader_gives_it_back()
        self.held = place % self.ring.blocks
        assert self.reader.try_shared(self.held)

    @rule()
    def a_reader_gives_it_back(self) -> None:
        if self.held is not None:
            self.reader.release(self.held)
            self.held = None

    def drain(self) -> None:
        """Each queue in turn; nobody waits for a reader that holds the last block there is."""
        for queue in self.queues:
            kept = self.registry.pinned()
            if kept is not None and np.count_nonzero(~kept) < 20:
                self.a_reader_gives_it_back()
            queue.drain()
        self.read()

    # What must hold.

    def expected(self) -> tuple[dict[int, set[int]], dict[int, tuple[int, int, int]]]:
        """The items that can be made of what was written: number -> numbers of the rows that it
        needs; and for every number, which lane, episode and time it belongs to."""
        at: dict[int, tuple[int, int, int]] = {}
        for number, lane in enumerate(self.lanes):
            for which, episode in enumerate(lane):
                episode.names = [observation["number"] for observation in episode.observations]
                at |= {
                    name: (number, which, time)
                    for time, name in enumerate(episode.names)
                    if name is not None
                }
        written = {number for queue in self.queues for stream in queue.streams for number in stream}
        w = self.window
        found = Oracle(self.lanes, written - self.gone).windows(
            w.back, w.forward, w.period, w.min_steps, w.across_episodes
        )
        return {number: item["names"] for number, item in found.items()}, at

    @invariant()
    def items_are_there_once_and_in_order(self) -> None:
        """All items that can be made as soon as they can, none twice, those of each environment in
        its order."""
        expected, at = self.expected()
        assert len(set(self.logged)) == len(self.logged)
        lanes: dict[int, list[tuple[int, ...]]] = {}
        for number in self.logged:
            lanes.setdefault(at[number][0], []).append(at[number])
        for places in lanes.values():
            assert places == sorted(places)
        assert set(self.logged) == expected.keys()

    @invariant()
    def what_is_needed_is_there(self) -> None:
        """Of items that are due every row, and a sampler finds them."""
        assert self.log is not None
        self.log.check()
        due = self.log.entries(self.log.released, self.log.appended)
        assert self.finder.find(due).indices.tolist() == due.tolist()
        there, (expected, _) = self.there(), self.expected()
        for number in self.logged[self.log.released :]:
            assert expected[number] <= there

    @invariant()
    def what_is_not_needed_is_not_kept(self) -> None:
        """A block that is kept has a row of an item that is due, or one between such, or the last
        ones of a stream."""
        assert self.log is not None
        expected, _ = self.expected()
        places = {
            n: (stream, at)
            for q in self.queues
            for stream in q.streams
            for at, n in enumerate(stream)
        }
        needed = set()
        for number in self.logged[self.log.released :]:
            stream = places[number][0]
            its = [places[name][1] for name in expected[number]]
            needed |= set(stream[min(its) : max(its) + 1])
        if not self.is_over:
            needed |= {number for queue in self.queues for number in queue.written[-self.reach :]}
        for place in np.flatnonzero(self.log.pinned()).tolist():
            assert needed & self.in_block(place)

    def teardown(self) -> None:
        if not hasattr(self, "log") or self.log is None:
            return
        self.a_reader_gives_it_back()
        self.drain()
        for queue in self.queues:
            queue.end()
        self.is_over = True
        self.read()
        try:
            self.items_are_there_once_and_in_order()
            self.what_is_needed_is_there()
            self.what_is_not_needed_is_not_kept()
            self.log.released = self.log.appended
            assert not self.log.pinned().any()
        finally:
            self.reader.close()
            self.log.close()
            self.ring.segment.close()


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Held blocks are passed by thousands of times."""
    logger = logging.getLogger("areplay._storage.ring")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


TestItemLog = machine_in_parts(
    CompletionLogMachine,
    max_examples=40,
    stateful_step_count=25,
    print_blob=True,
    suppress_health_check=[HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
