"""Tests of `_sampling.completion_log`: when an item is in the log, and which blocks are kept for
it.

What any history leaves is in `models/test_completion_log_machine.py`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from kit import descriptors_pass_by_pickle, open_descriptors

from areplay._ingest.episodes import Episodes
from areplay._sampling.completion_log import CompletionLog
from areplay._storage.registry import RowListener, WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay._storage.window_search import WindowFinder
from areplay._storage.windows import Window
from areplay.spec import Spec

PLAIN = Spec(number=((), "int64"))
STEPS = Spec.steps(obs=((), "int64"), action=((), "int8"))


class Stream:
    """A writer that counts: rows of a plain spec, or steps of one environment or of several side by
    side."""

    def __init__(self, scene: Scene, mode: str = "", width: int = 1) -> None:
        self._scene, self._mode, self._width, self._next = scene, mode, width, 0
        self.writer = StreamWriter(scene.ring, scene.ring.block_locks(), scene.registry)
        self._episodes = Episodes(STEPS)
        if mode:
            self._episodes.autoreset_mode = mode

    def rows(self, count: int) -> int:
        """Append so many rows of a plain spec; how many there was room for."""
        numbers = np.arange(self._next, self._next + count)
        written = len(self.writer.write({"number": numbers}, 0, count))
        self._next += written
        return written

    def steps(self, count: int, ends: tuple[int, ...] = ()) -> None:
        """So many steps; in the last one the episodes of these environments end."""
        for k in range(count):
            over = ends if k == count - 1 else ()
            obs = np.arange(self._width) * 1_000 + self._next
            ended = np.isin(np.arange(self._width), over)
            with self._episodes.step(self._episodes.ticket()):
                if not self._mode:
                    step = {
                        "obs": obs[0],
                        "action": 0,
                        "reward": 0.0,
                        "terminated": bool(ended[0]),
                        "truncated": False,
                    }
                    rows: Any = self._episodes.rows(
                        step | ({"next_obs": obs[0] + 1} if over else {})
                    )
                    self.writer.write_rows(*rows)
                else:
                    zeros = np.zeros(self._width, np.int8)
                    step = {
                        "obs": obs,
                        "action": zeros,
                        "reward": zeros,
                        "terminated": ended,
                        "truncated": zeros > 0,
                    }
                    rows = self._episodes.rows(step | ({"next_obs": obs + 1} if over else {}))
                    self.writer.write(rows, 0, len(rows["reward"]))
            self._next += 1 + (bool(over) and not self._mode)

    def break_off(self, *environments: int) -> None:
        """Their next steps begin other episodes."""
        self._episodes.break_off(environments)

    def lose_a_step(self) -> None:
        """One step that nobody ever hands in."""
        self._episodes.cut()
        self._next += 1


class Scene:
    """A small ring, its streams, and a log of its items."""

    def __init__(self, spec: Spec = STEPS, blocks: int = 4, block_rows: int = 4) -> None:
        self.ring, self.registry = Ring(spec, blocks, block_rows), WriterRegistry()
        self._field = "obs" if spec is STEPS else "number"
        self._streams: list[Stream] = []
        self._logs: list[CompletionLog] = []

    def stream(self, mode: str = "", width: int = 1) -> Stream:
        """A new one."""
        self._streams.append(Stream(self, mode, width))
        return self._streams[-1]

    def log(self, *, goes_on: bool = True, **window: Any) -> CompletionLog:
        """One that has begun, and keeps what it needs."""
        log = CompletionLog(self.ring, Window(**window), "Fifo()")
        self._logs.append(log)
        self.registry.add_pins(log)
        log.begin(self.registry, goes_on=goes_on)
        return log

    def items(self, log: CompletionLog) -> list[int]:
        """What stands in the rows of all items that are due."""
        log.check()
        due = log.entries(log.released, log.appended)
        found: list[int] = self.ring.columns[self._field][self.ring.positions(due)].tolist()
        return found

    def close(self) -> None:
        """Give everything back."""
        for stream in self._streams:
            stream.writer.close()
        for log in self._logs:
            log.close()
        self.ring.segment.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Steps, in 4 blocks of 4 rows."""
    scene = Scene()
    yield scene
    scene.close()


@pytest.fixture
def plain() -> Iterator[Scene]:
    """Rows, in 4 blocks of 4."""
    scene = Scene(PLAIN)
    yield scene
    scene.close()


def kept(log: CompletionLog) -> str:
    """One digit a place."""
    return "".join(str(int(one)) for one in log.pinned())


# What is in the log.


def test_a_row_is_an_item_when_it_is_written(plain: Scene) -> None:
    """Of several streams in the order of their writing, by chunks of any size."""
    log, first, second = plain.log(), plain.stream(), plain.stream()
    assert (log.appended, kept(log)) == (0, "0000")
    first.rows(3)
    assert plain.items(log) == [0, 1, 2]
    second.rows(1)
    first.rows(3)
    assert plain.items(log) == [0, 1, 2, 0, 3, 4, 5]
    assert repr(log) == "<CompletionLog 7 items, 0 of them released, 0 pending>"
    assert log.entries_at(np.array([4, 0, 3])).tolist() == [3, 0, 4]


def test_a_step_is_an_item_when_the_rows_after_it_are_there(scene: Scene) -> None:
    """Each as soon as its window is complete; at the end of an episode all that are left, its final
    row is none."""
    log, stream = scene.log(forward=3), scene.stream()
    stream.steps(3)
    assert scene.items(log) == []
    stream.steps(1)
    assert scene.items(log) == [0]
    stream.steps(1, ends=(0,))
    assert scene.items(log) == [0, 1, 2, 3, 4]
    stream.steps(3)
    assert scene.items(log) == [0, 1, 2, 3, 4]


def test_what_was_there_before_comes_first_and_once(plain: Scene) -> None:
    """Rows of several blocks and streams, oldest first; what was overwritten is no item; then what
    comes."""
    first, second = plain.stream(), plain.stream()
    first.rows(8)
    second.rows(2)
    first.rows(7)
    log = plain.log()
    assert plain.items(log) == [4, 5, 6, 7, 0, 1, 8, 9, 10, 11, 12, 13, 14]
    second.rows(1)
    assert plain.items(log)[-2:] == [14, 2]


def test_steps_that_waited_before_it_began_are_completed_by_those_after(scene: Scene) -> None:
    """The log takes in pending rows, too."""
    stream = scene.stream()
    stream.steps(3)
    log = scene.log(forward=2)
    assert scene.items(log) == [0]
    stream.steps(2)
    assert scene.items(log) == [0, 1, 2]


def test_rows_written_while_it_begins_are_taken_in_once(
    plain: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, at any moment of it: after or before they are told, each is in the log
    once, in order."""
    stream = plain.stream()
    stream.rows(1)
    log = CompletionLog(plain.ring, Window(), "Fifo()")
    plain.registry.add_pins(log)
    watch, told = plain.registry.add_listener, []
    late: Any = RowListener()
    # as if the thread that wrote was stopped before it told
    late.written = lambda *what: told.append(what)

    def watch_and_write(watcher: RowListener) -> None:
        assert stream.rows(1) == 1
        plain.registry.listeners = (late,)
        assert stream.rows(1) == 1
        plain.registry.listeners = ()
        watch(watcher)

    monkeypatch.setattr(plain.registry, "add_listener", watch_and_write)
    log.begin(plain.registry, goes_on=True)
    for what in told:
        log.written(*what)
    stream.rows(3)
    assert plain.items(log) == [0, 1, 2, 3, 4, 5]
    log.close()


def test_a_log_that_does_not_go_on_is_told_of_nothing(scene: Scene) -> None:
    """Later rows do not belong to it, what was pending is dropped, and only its items are kept."""
    stream = scene.stream()
    stream.steps(6)
    log = scene.log(goes_on=False, forward=3)
    assert scene.items(log) == [0, 1, 2]
    stream.steps(2)
    assert scene.items(log) == [0, 1, 2]
    assert kept(log) == "1100", "2 + 3 is in the second block"


@pytest.mark.parametrize("ends_before", [False, True])
def test_items_of_a_dead_actor_that_lack_a_row_are_left_out(
    scene: Scene, ends_before: bool
) -> None:
    """Whether it died before the log began or after; its blocks are free once what could be made is
    released."""
    stream, other = scene.stream(), scene.stream()
    log = None if ends_before else scene.log(back=1, forward=2)
    stream.steps(6)
    other.steps(1)
    stream.writer.begin_stream()
    other.steps(1)
    if log is None:
        log = scene.log(back=1, forward=2)
    assert scene.items(log) == [0, 1, 2, 3]
    assert kept(log) == "1110"
    log.released = log.appended
    assert kept(log) == "0010", "the other one's steps still wait for their successors"


def test_items_over_a_gap_are_left_out_and_dropped(scene: Scene) -> None:
    """A step that got lost: the steps before it never become items, and do not keep their blocks
    once the step after it shows that."""
    log, stream = scene.log(forward=1), scene.stream()
    stream.steps(2)
    stream.lose_a_step()
    assert repr(log).endswith("1 pending>"), "it may still come, for all that the log knows"
    stream.steps(1)
    assert repr(log).endswith("1 pending>"), "of the step after the gap"
    stream.steps(5)
    assert scene.items(log) == [0, 3, 4, 5, 6, 7]
    log.released = log.appended
    assert kept(log) == "0100"


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_items_of_a_broken_off_episode_keep_no_block(mode: str) -> None:
    """Long items of a vector of which one environment is broken off: its steps are dropped with the
    first one of the next episode, while the others' go on."""
    scene = Scene(blocks=32)
    log, stream = scene.log(forward=20), scene.stream(mode, 4)
    stream.steps(3)
    assert repr(log).endswith("12 pending>")
    stream.break_off(2)
    assert repr(log).endswith("12 pending>"), "the log sees rows only"
    stream.steps(1)
    assert repr(log).endswith("13 pending>"), "three of each, four of the others, one of a new one"
    stream.break_off(0, 1, 2, 3)
    stream.steps(1)
    assert repr(log).endswith("4 pending>")
    assert kept(log) == "00001" + 27 * "0"
    scene.close()


def test_items_of_an_environment_are_in_its_order_where_strides_change() -> None:
    """After a step in which many episodes end the next row of an environment is further away: it is
    still the first."""
    scene = Scene(blocks=64, block_rows=16)
    log, stream = scene.log(forward=10), scene.stream("Disabled", 4)
    stream.steps(1, ends=(1, 2, 3))
    stream.steps(18)
    mine = [obs for obs in scene.items(log) if obs < 1_000]
    assert mine == sorted(mine) and len(mine) >= 8
    scene.close()


def test_only_items_that_are_wanted_are_in_the_log(scene: Scene) -> None:
    """Those from which enough steps can be made, and every period-th."""
    few, third = scene.log(forward=2, min_steps=3), scene.log(forward=1, period=3)
    stream = scene.stream()
    stream.steps(5, ends=(0,))
    stream.steps(4)
    assert scene.items(few) == [0, 1, 2, 6, 7]
    assert scene.items(third) == [0, 3, 6]


def test_numbers_go_on_after_more_items_than_fit(plain: Scene) -> None:
    """The order is a ring itself: what is due stands in it, however many items there were."""
    log, stream = plain.log(), plain.stream()
    for lap in range(30):
        assert stream.rows(5) == 5
        assert plain.items(log) == list(range(5 * lap, 5 * lap + 5))
        log.released = log.appended
    assert log.appended == 150


# What is kept.


def test_blocks_of_items_that_are_due_are_kept(plain: Scene) -> None:
    """Until the last item in them is released; then they are free again, one after the other."""
    log, stream = plain.log(), plain.stream()
    assert stream.rows(20) == 16
    assert kept(log) == "1111"
    for released, expected in (
        (3, "1111"),
        (4, "0111"),
        (7, "0111"),
        (11, "0011"),
        (12, "0001"),
        (15, "0001"),
        (16, "0000"),
    ):
        log.released = released
        assert kept(log) == expected
    assert stream.rows(20) == 16


def test_rows_that_an_item_needs_before_and_after_it_are_kept(scene: Scene) -> None:
    """Also if only they are in that block."""
    log, stream = scene.log(back=2, forward=2), scene.stream()
    stream.steps(12)
    assert scene.items(log) == list(range(10))
    log.released = 5  # 5 needs 3 to 7, of the first block its last row
    assert kept(log) == "1110"
    log.released = 6
    assert kept(log) == "0110"
    log.released = 9  # 9 needs 7 to 11, and so do those that are pending
    assert kept(log) == "0110"


def test_rows_that_are_pending_are_kept_with_what_is_before_them(scene: Scene) -> None:
    """Though no item that is due needs them: they may become part of one."""
    log, stream = scene.log(back=1, forward=3), scene.stream()
    stream.steps(7)
    log.released = log.appended
    assert scene.items(log) == []
    assert kept(log) == "1100", "4, 5 and 6 wait for their successors, and 4 needs 3"
    stream.steps(2)
    log.released = log.appended
    assert kept(log) == "0110"


def test_a_stream_that_goes_on_lets_its_old_blocks_go() -> None:
    """Any number of rows go through a small ring, in vectors and with gaps, if the learner takes
    what there is."""
    scene = Scene(blocks=12, block_rows=4)
    log, stream = scene.log(back=1, forward=1), scene.stream("SameStep", 3)
    for number in range(100):
        before = scene.ring.rows_inserted[0]
        stream.steps(1)
        assert scene.ring.rows_inserted[0] == before + 3
        if number % 17 == 3:
            stream.lose_a_step()
        log.check()
        log.released = log.appended
    scene.close()


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("ends", [(), (0,)])
def test_blocks_between_the_rows_of_an_item_are_kept_too(
    ends: tuple[int, ...], is_late: bool
) -> None:
    """A step, its episode's final observation, the next episode's step, each in a block of its own:
    the way from one to the other leads through the one in between, of which no item is made. Also
    if all that was there before."""
    scene = Scene(blocks=6, block_rows=1)
    window: dict[str, Any] = {"forward": 1, "across_episodes": True}
    log = None if is_late else scene.log(**window)
    stream, other = scene.stream(), Stream(scene)
    stream.steps(1, ends=ends)
    stream.steps(2)
    stream.writer.begin_stream()
    if log is None:
        log = scene.log(**window)
    due = log.entries(0, log.appended)
    assert len(due) == 2
    while other.writer.reserve(1):
        other.writer.unreserve()
        other.steps(1)
        assert WindowFinder(scene.ring, Window(**window)).find(due).indices.tolist() == due.tolist()
    other.writer.close()
    scene.close()


@pytest.mark.parametrize("is_late", [False, True])
def test_blocks_between_the_rows_of_an_environment_are_kept_too(is_late: bool) -> None:
    """Where a step of all environments takes more than a block, and no item is made of the
    others'."""
    scene = Scene(blocks=28, block_rows=1)
    window: dict[str, Any] = {"forward": 3, "min_steps": 3}
    log = None if is_late else scene.log(**window)
    stream, other = scene.stream("Disabled", 3), Stream(scene)
    for _ in range(5):
        stream.steps(1, ends=(1, 2))  # 5 rows
    stream.writer.begin_stream()
    if log is None:
        log = scene.log(**window)
    due = log.entries(0, log.appended)
    assert due.tolist() == [0, 5]
    while other.writer.reserve(1) and scene.ring.next_serial[0] < 200:
        other.writer.unreserve()
        other.steps(1)
        assert WindowFinder(scene.ring, Window(**window)).find(due).indices.tolist() == due.tolist()
    other.writer.close()
    scene.close()


# What samplers see.


def test_a_sampler_sees_the_same_log() -> None:
    """A pickled one has the same memory; its descriptor is given back with the first one's."""
    scene = Scene(PLAIN)
    log, stream = scene.log(), scene.stream()
    with descriptors_pass_by_pickle():
        twin: CompletionLog = pickle.loads(pickle.dumps(log))
    stream.rows(3)
    assert twin.appended == 3
    assert twin.entries(0, 3).tolist() == twin.entries_at(np.arange(3)).tolist() == [0, 1, 2]
    twin.close()
    twin._ring.segment.close()
    before = open_descriptors()
    log.close()
    log.close()
    assert open_descriptors() == before - 1
    scene.close()
