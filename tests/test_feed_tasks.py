"""Tests of `_ingest.feed_tasks`, on the loop of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from areplay._ingest.admission import Admission
from areplay._ingest.destination import Destination
from areplay._ingest.feed_tasks import FeedTasks
from areplay._ingest.feeds import Feeds
from areplay._ingest.inbox import Inboxes
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay.spec import Spec

SPEC = Spec(number=((), "int64"))


class Scene:
    """A ring, and one inbox."""

    def __init__(self) -> None:
        self.ring = Ring(SPEC, 64, 32)
        registry = WriterRegistry()
        self.admission = Admission(registry)
        self.feeds = Feeds(Destination(self.ring, registry, self.admission, lambda: None))
        self.inboxes = Inboxes(SPEC, 1, 16)
        self.inbox = self.inboxes.inbox(0)

    @property
    def inserted(self) -> int:
        """Rows in the ring."""
        return int(self.ring.rows_inserted[0])


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """Nothing attached yet."""
    scene = Scene()
    yield scene
    scene.feeds.close_writers()
    scene.admission.close()
    scene.inboxes.close()
    scene.ring.segment.close()


async def test_what_may_be_written_is_when_detaching_returns(scene: Scene) -> None:
    """The call itself takes it: the loop need not turn again. The feed is gone then."""
    async with asyncio.TaskGroup() as group:
        tasks = FeedTasks(scene.feeds, scene.admission, group)
        await tasks.attach(scene.inbox, "actor 0", False)
        for number in range(11):
            scene.inbox.put({"number": number})
        await tasks.detach(scene.inbox)
        assert scene.inserted == 11
        assert scene.feeds.attached == [] and not scene.feeds.has_rows
        await tasks.detach(scene.inbox)
        tasks.close()


async def test_the_end_of_a_stream_takes_what_may_be_written(scene: Scene) -> None:
    """At once, in the call; of an inbox that is not attached, no row."""
    async with asyncio.TaskGroup() as group:
        tasks = FeedTasks(scene.feeds, scene.admission, group)
        await tasks.mark_stream_end(scene.inbox)
        await tasks.attach(scene.inbox, "actor 0", False)
        scene.inbox.put({"number": 0})
        await tasks.mark_stream_end(scene.inbox)
        assert scene.inserted == 1
        await tasks.detach_all()
        tasks.close()
