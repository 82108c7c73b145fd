"""Tests of `_ingest.feeds`: what is taken, in which order, without an event loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest

from areplay._base.arrays import Array, Columns, Indices
from areplay._ingest.admission import Admission
from areplay._ingest.destination import Destination
from areplay._ingest.feeds import Feed, Feeds
from areplay._ingest.inbox import Inboxes
from areplay._ingest.rate_controller import RateController
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay.limiters import SamplesPerInsert
from areplay.spec import Spec

SPEC = Spec(number=((), "int64"))
INBOX_ROWS = 16


class Scene:
    """A ring, and the feeds of three inboxes. `may_wait` is what limiters let wait."""

    def __init__(self) -> None:
        self.ring = Ring(SPEC, 64, 32)
        self.registry = WriterRegistry()
        self.admission = Admission(self.registry)
        self.told = 0
        self.feeds = Feeds(Destination(self.ring, self.registry, self.admission, self.on_rows))
        self.inboxes = Inboxes(SPEC, 3, INBOX_ROWS)
        self.inbox = [self.inboxes.inbox(k) for k in range(3)]

    def on_rows(self) -> None:
        """Called after rows were written."""
        self.told += 1

    def attach(self, *, is_elastic: bool = False) -> list[Feed]:
        """All three."""
        return [
            self.feeds.attach(inbox, f"actor {k}", is_elastic) for k, inbox in enumerate(self.inbox)
        ]

    def hand_in(self, actor: int, *numbers: int) -> None:
        """As an actor does."""
        for number in numbers:
            self.inbox[actor].put({"number": number})

    def streams(self) -> list[list[int]]:
        """The numbers in each stream, in the order in which the streams began."""
        found: dict[int, list[int]] = {}
        serials, counts = self.ring.occupied()
        for serial, count in sorted(zip(serials.tolist(), counts.tolist(), strict=True)):
            at = self.ring.positions(np.arange(serial * 32, serial * 32 + count))
            stream = found.setdefault(self.ring.chain(serial)[0], [])
            stream += self.ring.columns["number"][at].tolist()
        return [found[stream] for stream in sorted(found)]


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Nothing attached yet."""
    scene = Scene()
    yield scene
    scene.feeds.close_writers()
    scene.admission.close()
    scene.inboxes.close()
    scene.ring.segment.close()


def test_a_chunk_is_a_quarter_of_an_inbox(scene: Scene) -> None:
    """A look takes one of them; all are taken in one piece each, in order."""
    feed, *_ = scene.attach()
    scene.hand_in(0, *range(11))
    assert feed.has_chunk and scene.feeds.take_chunk(feed)
    assert (feed.inbox.used, scene.told) == (7, 1)
    scene.feeds.take_all(feed)
    assert (feed.inbox.used, scene.told, scene.streams()) == (0, 3, [list(range(11))])
    assert scene.feeds.take_chunk(feed), "no rows: nothing to wait for"
    assert scene.told == 3


def test_a_stream_ends_where_its_actor_died(scene: Scene) -> None:
    """Also where it put no row, and where its successor's rows follow in the same chunk."""
    feed, *_ = scene.attach()
    scene.hand_in(0, 0, 1)
    feed.mark_stream_end()
    feed.mark_stream_end()
    scene.hand_in(0, 2)
    feed.mark_stream_end()
    scene.hand_in(0, 3)
    scene.feeds.take_all(feed)
    assert scene.streams() == [[0, 1], [2], [3]]


def test_feeds_get_their_turn_in_the_order_in_which_they_joined_the_line(scene: Scene) -> None:
    """A chunk each; one that is not in line takes no rows meanwhile, unless it is asked to."""
    first, second, third = scene.attach()
    for actor in range(3):
        scene.hand_in(actor, actor)
    scene.feeds.join_line(second)
    scene.feeds.join_line(first)
    assert [scene.feeds.has_turn(feed) for feed in (first, second, third)] == [False, True, False]
    assert not scene.feeds.take_in_turn(third)
    assert [name for _, name, _ in scene.feeds.held()] == ["actor 0", "actor 1"]
    assert scene.feeds.leave_line(second)
    assert scene.feeds.has_turn(first)
    scene.feeds.take_all_out_of_line()
    assert [inbox.used for inbox in scene.inbox] == [1, 0, 0]
    assert not scene.feeds.leave_line(first)
    assert scene.feeds.take_in_turn(first) and scene.feeds.held() == []


def test_steps_that_found_no_block_do_not_count_as_inserted(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their limiter has room for them still; what was written stays counted."""
    feed, *_ = scene.attach()
    limiter = RateController(SamplesPerInsert(1.0, 1, 8.0), 2, 0, nullcontext())
    scene.admission.add(limiter)
    scene.hand_in(0, 0, 1, 2, 3)
    write = feed.writer.write

    def write_one(columns: Columns, start: int, stop: int, priorities: Array | None) -> Indices:
        return write(columns, start, start + 1, priorities)

    monkeypatch.setattr(feed.writer, "write", write_one)
    assert scene.feeds.take_chunk(feed)
    assert (limiter.statistics().inserts, feed.inbox.used, scene.streams()) == (1, 3, [[0]])


def test_rows_are_never_out_of_sight_while_their_actor_goes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learner that looks at any moment sees them, once: else it could be told that no row can
    come any more."""
    feed, *_ = scene.attach()
    scene.hand_in(0, 5)
    scene.feeds.join_line(feed)
    seen: list[tuple[bool, int]] = []

    def look(capacity_rows: int) -> None:
        seen.append((scene.feeds.has_rows, len(scene.feeds.held())))

    class Watched(dict[int, Feed]):
        """Looks before and after a feed leaves."""

        def __delitem__(self, key: int) -> None:
            look(0)
            super().__delitem__(key)
            look(0)

        def pop(self, key: int, *default: object) -> Feed:  # type: ignore[override]
            found = super().pop(key)
            look(0)
            return found

    monkeypatch.setattr(scene.feeds, "_attached", Watched(scene.feeds._attached))
    monkeypatch.setattr(scene.admission, "rows_that_may_wait", look)
    scene.feeds.orphan(feed)
    assert seen == [(True, 1)] * 3
    scene.feeds.leave_line(feed)
    scene.feeds.take_all(feed)
    scene.feeds.end(feed)
    assert not scene.feeds.has_rows and scene.streams() == [[5]]


def test_elastic_inboxes_share_what_may_wait(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least four rows each; as many as fit where nothing limits them; others are left alone."""
    may_wait: int | None = 18
    monkeypatch.setattr(scene.admission, "rows_that_may_wait", lambda capacity_rows: may_wait)
    feeds = scene.attach(is_elastic=True)
    assert [inbox.may_wait for inbox in scene.inbox] == [6, 6, 6]
    scene.feeds.orphan(feeds[2])
    assert [inbox.may_wait for inbox in scene.inbox[:2]] == [9, 9]
    may_wait = 2
    scene.feeds.bound_waiting()
    assert [inbox.may_wait for inbox in scene.inbox[:2]] == [4, 4]
    may_wait = None
    scene.feeds.bound_waiting()
    assert [inbox.may_wait for inbox in scene.inbox[:2]] == [INBOX_ROWS] * 2
    scene.feeds.end(feeds[2])
    may_wait = 2
    fixed = scene.feeds.attach(scene.inbox[2], "actor 2", is_elastic=False)
    scene.inbox[2].limit_waiting(INBOX_ROWS)
    scene.feeds.bound_waiting()
    assert fixed.inbox.may_wait == INBOX_ROWS
