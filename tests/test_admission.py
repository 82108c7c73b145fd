"""Tests of `_ingest.admission`: how many rows may be written, and who is woken to look again."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import memory_descriptors, open_descriptors, until
from models.episode_oracle import Lane, Oracle
from models.episode_world import MODES, Player
from models.episode_world import PLAIN as WORLD

import areplay
from areplay._base.episode_links import NEXT_OFFSET
from areplay._ingest.admission import Admission, steps_among, steps_in
from areplay._ingest.coordinator import Coordinator
from areplay._ingest.destination import Destination
from areplay._ingest.inbox import Inboxes
from areplay._ingest.rate_controller import RateController
from areplay._processes import waiter as waiter_module
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay.limiters import SamplesPerInsert
from areplay.spec import Spec


def limiter(
    buffer: float, ratio: float = 1.0, batch_size: int = 1, min_size: int = 1
) -> RateController:
    """One whose stream was opened when `min_size` rows were there: its room is `buffer / ratio`
    steps."""
    option = SamplesPerInsert(ratio, min_size, buffer)
    return RateController(option, batch_size, min_size, nullcontext())


def inserted(limiter: RateController) -> int:
    """Steps since the stream was opened."""
    return limiter.statistics().inserts - limiter.limiter.min_size_to_sample


def columns(rows: str) -> dict[str, np.ndarray[Any, Any]]:
    """Rows as letters: `s` for a step, `f` for a final observation."""
    return {NEXT_OFFSET: np.array([1 if row == "s" else -1 for row in rows], np.int16)}


@pytest.fixture
def admission() -> Iterator[Admission]:
    """Of nobody yet."""
    admission = Admission(WriterRegistry())
    yield admission
    admission.close()


def test_without_a_limiter_everybody_may_write(admission: Admission) -> None:
    """Any number of rows, at once."""
    assert not admission.limits and admission.has_room
    assert admission.admit(10**9) == admission.admit_all(10**9) == (10**9, ())
    assert admission.admit_rows(columns("sfs" * 100), 7, 290)[0] == 283
    admission.give_back(admission.admit(9), 3)


def test_steps_are_admitted_while_there_is_room_and_count_at_once(admission: Admission) -> None:
    """As many of them as there is room for, each counted, and then none."""
    one = limiter(10.0)
    admission.add(one)
    assert admission.limits and admission.has_room
    assert [admission.admit(4).steps for _ in range(4)] == [4, 4, 2, 0]
    assert inserted(one) == 10 and not admission.has_room
    one.sample()
    assert admission.has_room and admission.admit(4).steps == 1
    assert admission.admit(0).steps == 0


def test_the_slowest_of_several_limiters_counts(admission: Admission) -> None:
    """What it lets pass counts for all of them; without it the next one does."""
    limiters = [limiter(30.0), limiter(12.0, ratio=2.0), limiter(9.0)]
    for each in limiters:
        admission.add(each)
    assert admission.admit(100).steps == 6
    assert [inserted(each) for each in limiters] == [6, 6, 6]
    assert not admission.has_room
    admission.remove(limiters[1])
    assert admission.has_room and admission.admit(100).steps == 3
    assert [inserted(each) for each in limiters] == [9, 6, 9]
    admission.remove(limiters[2])
    assert admission.admit(100).steps == 21
    admission.remove(limiters[2])
    admission.remove(limiters[0])
    assert admission.admit(100).steps == 100 and not admission.limits


def test_what_was_not_written_is_given_back_to_all(admission: Admission) -> None:
    """There is room for it again."""
    limiters = [limiter(5.0), limiter(8.0)]
    for each in limiters:
        admission.add(each)
    admitted = admission.admit(5)
    assert admitted.steps == 5
    later = limiter(3.0)
    admission.add(later)
    admission.give_back(admitted, 2)
    assert inserted(later) == 0, "it has not counted them"
    admission.remove(later)
    assert [inserted(each) for each in limiters] == [3, 3]
    assert admission.admit(9).steps == 2


def test_all_or_none_admits_all_or_none(admission: Admission) -> None:
    """None is counted where not all have room; there is room once the learner has taken enough."""
    slow, fast = limiter(8.0, batch_size=2), limiter(100.0, batch_size=2)
    admission.add(fast)
    admission.add(slow)
    assert admission.admit_all(5) == (5, admission.limiters)
    assert admission.admit_all(4) is None
    assert inserted(slow) == inserted(fast) == 5
    slow.sample()
    assert admission.admit_all(5) == (5, admission.limiters)
    assert inserted(slow) == inserted(fast) == 10


def test_a_limiter_that_goes_before_it_was_asked_holds_no_step_back(admission: Admission) -> None:
    """It goes between the first look and the lock: all steps are admitted, none is counted."""

    class Late:
        """A lock that is had only when the limiter is gone."""

        def __enter__(self) -> None:
            admission.lock = lock
            admission.remove(one)

        def __exit__(self, *what: object) -> None: ...

    lock, one = admission.lock, limiter(4.0)
    for admit in (admission.admit, admission.admit_all):
        admission.add(one)
        admission.lock = Late()  # type: ignore[assignment]
        assert admit(100) == (100, ())
        assert not admission.limits and inserted(one) == 0


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_more_at_once_than_the_buffer_can_ever_hold_is_an_error(
    admission: Admission, ratio: float
) -> None:
    """That names the number and the limiter, and changes nothing; one less waits for its turn.
    While they do fit, as before the first batch, any number may come at once."""
    narrow = limiter(8.0, ratio=ratio, batch_size=2, min_size=100)
    admission.add(limiter(1_000.0))
    admission.add(narrow)
    most = int((16 - 2) / ratio)
    assert admission.admit_all(int(8 / ratio)) == (int(8 / ratio), admission.limiters)
    before = narrow.statistics()
    assert admission.admit_all(most) is None
    name = repr(narrow).replace("(", r"\(").replace(")", r"\)")
    said = rf"{most + 1} steps at once .*{name}.*smaller parts, or raise error_buffer"
    with pytest.raises(ValueError, match=said):
        admission.admit_all(most + 1)
    assert narrow.statistics() == before
    assert admission.admit(most + 1).steps == 0, "a part of them would do"


@settings(max_examples=200)
@given(st.text("sf", max_size=30), st.integers(0, 12), st.integers(0, 5), st.integers(0, 5))
def test_rows_are_admitted_up_to_the_step_that_has_no_room(
    rows: str, room: int, before: int, after: int
) -> None:
    """Final observations need no room: those behind the last admitted step come in with it."""
    admission = Admission(WriterRegistry())
    one = limiter(30.0)
    one.insert(30 - room)
    admission.add(one)
    stored = columns("s" * before + rows + "s" * after)
    expected, left = 0, room
    for row in rows:
        if row == "s" and left == 0:
            break
        left -= row == "s"
        expected += 1
    assert admission.admit_rows(stored, before, before + len(rows))[0] == expected
    assert inserted(one) == 30 - left
    assert steps_among(stored, before, before + len(rows)) == rows.count("s")
    admission.close()


def test_rows_of_a_plain_spec_are_steps(admission: Admission) -> None:
    """All of them."""
    admission.add(limiter(5.0))
    plain = {"number": np.arange(20)}
    assert steps_among(plain, 3, 11) == 8
    assert admission.admit_rows(plain, 3, 6)[0] == 3
    assert admission.admit_rows(plain, 6, 20)[0] == 2


@pytest.mark.parametrize("mode", MODES)
async def test_steps_in_a_ring_are_counted_without_final_observations(mode: str) -> None:
    """In each autoreset mode, of episodes as short as a step, of blocks that were recycled, and no
    further than asked. The oracle keeps episodes as lists."""
    lanes: list[Lane] = []
    async with areplay.Replay(WORLD.spec, 64, block_rows=16) as replay:
        ring = replay._opened().ring
        assert ring is not None
        player = Player(
            WORLD,
            replay,
            mode,
            [[(1, "terminated")], [(3, "truncated")]],
            itertools.count(1),
            lanes,
        )
        for _ in range(60):
            await player.play(gives_next=False)
            indices = np.arange(ring.next_serial[0] * ring.block_rows)
            steps = Oracle(lanes, set(indices[ring.committed(indices)].tolist())).rows()
            assert steps_in(ring, 10**6) == len(steps)
            assert steps_in(ring, 5) == min(5, len(steps))
        assert len(replay) < replay.statistics().rows_inserted


def test_when_lifted_nobody_is_held_back(admission: Admission) -> None:
    """Rows need no room any more, and no number of them is too large."""
    one = limiter(5.0)
    admission.add(one)
    assert admission.admit(9).steps == 5 and not admission.is_lifted
    admission.lift()
    assert admission.is_lifted and admission.has_room
    assert admission.admit(9) == admission.admit_all(9) == (9, ())
    assert admission.admit_rows(columns("sfsfs"), 1, 5)[0] == 4


def rung(admission: Admission) -> list[bool]:
    """Whether the coordinator and the owner were woken since the last look; they sleep on."""
    found = []
    for bell in (admission.coordinator_bell, admission.owner_bell):
        try:
            os.eventfd_read(bell.event.descriptor)
            found.append(True)
        except BlockingIOError:
            found.append(False)
        bell.arm()
    return found


@pytest.mark.parametrize(
    "change",
    [
        Admission.notify,
        Admission.lift,
        lambda admission: admission.remove(limiter(5.0)),
    ],
    ids=["ring", "lift", "remove"],
)
def test_whoever_waits_is_woken_by_what_could_let_him_go_on(
    admission: Admission, change: Callable[[Admission], object]
) -> None:
    """Both threads, whichever sleeps; nothing else rings."""
    admission.add(limiter(5.0))
    rung(admission)
    assert rung(admission) == [False, False]
    change(admission)
    assert rung(admission) == [True, True]
    assert rung(admission) == [False, False]
    admission.coordinator_bell.disarm()
    change(admission)
    assert rung(admission) == [False, True], "who is awake needs no call"


def test_the_reason_names_the_limiter_that_has_no_room(admission: Admission) -> None:
    """With its numbers, and what has to happen."""
    admission.add(limiter(500.0))
    narrow = limiter(4.0, ratio=0.5, batch_size=3, min_size=2)
    admission.add(narrow)
    assert admission.reason() == "", "nothing holds anybody"
    narrow.sample()
    narrow.insert(14)
    assert admission.reason() == (
        "SamplesPerInsert(0.5, min_size_to_sample=2, error_buffer=4): 16 steps inserted, 3 items "
        "handed to the learner, error 4; the learner has to take a batch"
    )


def test_the_reason_is_that_of_as_many_steps_as_wait(admission: Admission) -> None:
    """A limiter with room for some of them holds the others; blocks are named only if there is a
    keeper."""
    one = limiter(10.0)
    admission.add(one)
    one.insert(6)
    assert admission.reason() == admission.reason(4) == admission.reason(4, lacks_blocks=True) == ""
    assert "7 steps inserted" in admission.reason(5)
    keeper = Keeper()
    admission._registry.add_pins(keeper)
    assert admission.reason(4, lacks_blocks=False) == admission.reason(4) == ""
    assert "still needed by Fifo(); the learner" in admission.reason(4, lacks_blocks=True)
    keeper.keeps = True
    assert "still needed by Fifo(); the learner" in admission.reason(4)
    assert admission.reason(5).startswith("SamplesPerInsert"), "which comes first"


class Keeper:
    """Needs all of two blocks, or none of them."""

    keeps, name = False, "Fifo()"

    def pinned(self) -> Any:
        """Which are needed."""
        return np.full(2, self.keeps)

    def __repr__(self) -> str:
        return "<no word for users>"


def test_closing_gives_the_descriptors_back() -> None:
    """All of them, and ringing does no harm after it."""
    before = open_descriptors()
    admission = Admission(WriterRegistry())
    assert open_descriptors() == before + 2
    admission.coordinator_bell.arm()
    admission.close()
    admission.notify()
    assert open_descriptors() == before


# Rows that may not be written yet, in the coordinator's hands.


class Scene:
    """A ring, two inboxes and their coordinator, and a limiter with room for four steps; a batch
    makes room for one."""

    def __init__(self) -> None:
        self.ring, self.admission, self.limiter = (
            Ring(SPEC, 32, 4),
            Admission(WriterRegistry()),
            limiter(4.0),
        )
        self.admission.add(self.limiter)
        self.inboxes = Inboxes(SPEC, 2, 16)
        self.inbox = [self.inboxes.inbox(k) for k in range(2)]
        destination = Destination(self.ring, WriterRegistry(), self.admission, lambda: None)
        self.coordinator = Coordinator(destination, lambda: None)
        self.put = [0, 0]

    async def hand_in(self, actor: int, rows: int) -> None:
        """As an actor does, and see what may be written written."""
        for _ in range(rows):
            self.inbox[actor].put({"actor": actor, "number": self.put[actor]})
            self.put[actor] += 1
        self.inbox[actor].request_flush()
        await until(lambda: self.inbox[actor].used == 0 or f"actor {actor}" in self.held)

    @property
    def held(self) -> dict[str, float]:
        """Whose rows may not be written, and since when."""
        return {name: waited_s for _, name, waited_s in self.coordinator.held()}

    async def take_batches(self, count: int = 1) -> None:
        """As the learner does; a row comes in for each."""
        for _ in range(count):
            rows = self.ring.rows_inserted[0]
            self.limiter.sample()
            self.admission.notify()
            await until(lambda rows=rows: self.ring.rows_inserted[0] == rows + 1)  # type: ignore[misc]

    def streams(self) -> list[list[tuple[int, int]]]:
        """`(actor, number)` of the rows of each stream, in order."""
        found: dict[int, list[tuple[int, int]]] = {}
        serials, counts = self.ring.occupied()
        for serial, count in sorted(zip(serials.tolist(), counts.tolist(), strict=True)):
            at = self.ring.positions(np.arange(serial * 4, serial * 4 + count))
            pairs = zip(
                *(self.ring.columns[name][at].tolist() for name in ("actor", "number")), strict=True
            )
            found.setdefault(self.ring.chain(serial)[0], []).extend(pairs)
        return list(found.values())

    async def close(self) -> None:
        """Everything is given back."""
        await self.coordinator.stop()
        self.admission.close()
        self.inboxes.close()
        self.ring.segment.close()


SPEC = Spec(actor=((), "int64"), number=((), "int64"))


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """Both inboxes are read; who waits never looks again by itself."""
    monkeypatch.setattr(waiter_module, "_LOOK_AGAIN_S", 1_000.0)
    scene = Scene()
    for k in range(2):
        await scene.coordinator.attach(scene.inbox[k], f"actor {k}")
    yield scene
    await scene.close()


async def test_a_stream_ends_at_the_tail_that_a_dead_actor_left(scene: Scene) -> None:
    """Though its rows, and those of its successors, come in later and in one piece; those that left
    none leave none."""
    await scene.hand_in(0, 6)
    for rows in (3, 0, 0, 2):
        await scene.coordinator.mark_stream_end(scene.inbox[0])
        await scene.hand_in(0, rows)
    assert scene.inbox[0].used == 7 and scene.ring.rows_inserted[0] == 4
    scene.limiter.replace(SamplesPerInsert(1.0, 1, 100.0))
    scene.admission.notify()
    await until(lambda: scene.inbox[0].used == 0)
    assert scene.streams() == [[(0, n) for n in range(a, b)] for a, b in ((0, 6), (6, 9), (9, 11))]


async def test_what_may_be_written_is_when_an_inbox_is_detached_and_the_rest_in_its_turn(
    scene: Scene,
) -> None:
    """Until then there are rows, and somebody waits; then the writer's locks are given back."""
    descriptors = memory_descriptors()
    await scene.hand_in(0, 6)
    async with asyncio.timeout(20):
        await scene.coordinator.detach(scene.inbox[0])
    assert (scene.inbox[0].used, scene.ring.rows_inserted[0]) == (2, 4)
    await until(lambda: list(scene.held) == ["actor 0"])
    assert scene.coordinator.has_rows and memory_descriptors() == descriptors
    await scene.take_batches(2)
    await until(lambda: not scene.coordinator.has_rows and scene.coordinator.held() == [])
    await until(lambda: memory_descriptors() == descriptors - 1)
    assert scene.streams() == [[(0, n) for n in range(6)]]


async def test_rows_take_turns_in_the_order_in_which_they_began_to_wait(scene: Scene) -> None:
    """One inbox after the other, though each has more."""
    await scene.hand_in(0, 10)
    await scene.hand_in(1, 6)
    await scene.take_batches(6)
    first, second = scene.streams()
    assert (first, second) == ([(0, n) for n in range(7)], [(1, n) for n in range(3)])


async def test_what_may_wait_is_shared_and_never_nothing(scene: Scene) -> None:
    """By the elastic inboxes, which share the narrowest limiter's buffer; a fixed one is as it was.
    When the limiters are gone, or nobody is held back any more, all that fits may wait."""
    await scene.coordinator.detach(scene.inbox[0])
    await scene.coordinator.attach(scene.inbox[0], "actor 0", is_elastic=True)
    scene.admission.remove(scene.limiter)

    def may_wait() -> list[int]:
        return [inbox.may_wait for inbox in scene.inbox]

    assert may_wait() == [16, 16]
    one, other = limiter(4.5), limiter(3.0)
    scene.admission.add(one)
    assert may_wait() == [9, 16]
    scene.admission.add(other)
    assert may_wait() == [6, 16]
    await scene.coordinator.detach(scene.inbox[1])
    await scene.coordinator.attach(scene.inbox[1], "actor 1", is_elastic=True)
    assert may_wait() == [4, 4], "at least so many"
    scene.admission.remove(other)
    assert may_wait() == [5, 5]
    await scene.coordinator.detach(scene.inbox[1])
    assert may_wait()[0] == 9
    scene.admission.announce(6)
    assert may_wait()[0] == 6
    scene.admission.withdraw(6)
    assert may_wait()[0] == 9
    scene.admission.lift()
    assert may_wait()[0] == 16


async def test_more_may_wait_while_there_is_much_room(scene: Scene) -> None:
    """Before the first batch; it halves as the room does, to what the buffer spans."""
    await scene.coordinator.detach(scene.inbox[0])
    await scene.coordinator.attach(scene.inbox[0], "actor 0", is_elastic=True)
    scene.admission.remove(scene.limiter)
    wide = RateController(SamplesPerInsert(1.0, 20, 2.5), 1, 0, nullcontext())
    scene.admission.add(wide)
    seen = [scene.inbox[0].may_wait]
    for _ in range(22):
        await scene.hand_in(0, 1)
        seen.append(scene.inbox[0].may_wait)
    assert [rows for rows, _ in itertools.groupby(seen)] == [16, 10, 5]
    assert scene.ring.rows_inserted[0] == 22


async def test_final_observations_do_not_wait_behind_steps() -> None:
    """A limiter does not count them, and they may complete the item that the learner waits for."""
    spec = Spec.steps(obs=((), "int64"), action=((), "int8"))
    ring, admission, registry = Ring(spec, 32, 4), Admission(WriterRegistry()), WriterRegistry()
    admission.add(limiter(4.0))
    inboxes = Inboxes(spec, 2, 8)  # of which two rows are taken at a time
    first, second = (inboxes.inbox(k) for k in range(2))
    coordinator = Coordinator(Destination(ring, registry, admission, lambda: None), lambda: None)
    for number, inbox in enumerate((first, second)):
        await coordinator.attach(inbox, f"actor {number}")
    step = {"obs": 0, "action": 0, "reward": 0.0, "terminated": False, "truncated": False}
    links = {"steps.step_id": 0, "steps.prev_offset": 0}
    first.put(*[step | links | {"steps.next_offset": 1}] * 4)
    await until(lambda: ring.rows_inserted[0] == 4)
    first.put(step | links | {"steps.next_offset": 1})
    await until(lambda: len(coordinator.held()) == 1)
    assert not coordinator.has_free_rows
    second.put(step | links | {"steps.next_offset": -1})
    await until(lambda: ring.rows_inserted[0] == 5)
    second.put(step | links | {"steps.next_offset": -1}, step | links | {"steps.next_offset": 1})
    await until(lambda: ring.rows_inserted[0] == 6 and len(coordinator.held()) == 2)
    assert (first.used, second.used) == (1, 1)
    await coordinator.stop()
    assert ring.rows_inserted[0] == 8
    inboxes.close()
    admission.close()
    ring.segment.close()


async def test_stopping_writes_all_that_was_held(scene: Scene) -> None:
    """Of inboxes with and without an actor."""
    await scene.hand_in(0, 10)
    await scene.hand_in(1, 6)
    await scene.coordinator.detach(scene.inbox[0])
    async with asyncio.timeout(20):
        await scene.coordinator.stop()
    assert scene.streams() == [[(0, n) for n in range(10)], [(1, n) for n in range(6)]]
    assert not scene.coordinator.has_rows
