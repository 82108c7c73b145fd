"""The tasks that serve feeds, one an inbox, on the coordinator's event loop.

A task waits for rows, then for admission. What it does in between is decided in
`areplay._ingest.feeds` without waiting, so it may be cancelled in each wait: rows that it has not
taken stay in their inbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from areplay._ingest.admission import Admission
from areplay._ingest.feeds import Feed, Feeds
from areplay._ingest.inbox import Inbox
from areplay._processes.waiter import Waiter

BATCHING_DELAY_S = 0.005
"""How long a first row may wait for others, so that a slow actor costs one wake-up in a while and
not one a row."""


class FeedTasks:
    """Serves all feeds. Made on the coordinator's loop, and used there alone."""

    def __init__(self, feeds: Feeds, admission: Admission, group: asyncio.TaskGroup) -> None:
        self._feeds = feeds
        self._group = group
        self._admitted = Waiter(admission.coordinator_bell)
        self._tasks: dict[Feed, asyncio.Task[None]] = {}

    async def attach(self, inbox: Inbox, name: str, is_elastic: bool) -> None:
        """Begin to read an inbox, as a new stream."""
        feed = self._feeds.attach(inbox, name, is_elastic)
        self._start(feed, self._serve(feed), f"areplay coordinator of {name}")

    async def mark_stream_end(self, inbox: Inbox) -> None:
        """End the stream behind the rows that are there, and take what may be written of them."""
        feed = self._feeds.find(inbox)
        if feed is not None:
            feed.mark_stream_end()
            self._feeds.take_all(feed)

    async def detach(self, inbox: Inbox) -> None:
        """Take what may be written, and read the rest in its turn. Does nothing if the inbox is not
        attached."""
        feed = self._feeds.find(inbox)
        if feed is None:
            return
        self._feeds.orphan(feed)
        serving = self._tasks.pop(feed)
        serving.cancel()
        await asyncio.wait({serving})
        self._feeds.take_all(feed)
        if inbox.used == 0:
            self._feeds.end(feed)
        else:
            name = f"areplay coordinator of what {feed.name} left"
            self._start(feed, self._write_rest(feed), name)

    async def detach_all(self) -> None:
        """Detach every inbox."""
        for feed in self._feeds.attached:
            await self.detach(feed.inbox)

    async def take_waiting(self) -> None:
        """Take what waits in inboxes and may be written now; feeds in line get their turn."""
        self._feeds.take_all_out_of_line()

    def close(self) -> None:
        """Stop watching the doorbell. All tasks have ended."""
        self._admitted.close()

    def _start(self, feed: Feed, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks[feed] = self._group.create_task(work, name=name)

    async def _serve(self, feed: Feed) -> None:
        """Move rows whenever there are some, until cancelled."""
        inbox = feed.inbox
        rows = Waiter(inbox.rows_bell)
        try:
            while True:
                inbox.set_wake(1)
                await rows.wait(lambda: inbox.used > 0, None)
                inbox.set_wake(feed.wake_rows)
                await rows.wait_briefly(lambda: feed.has_chunk, BATCHING_DELAY_S)
                await self._move_chunk(feed)
                while feed.has_chunk:
                    await asyncio.sleep(0)
                    await self._move_chunk(feed)
        finally:
            rows.close()

    async def _write_rest(self, feed: Feed) -> None:
        """Write the rows in an inbox that has no actor any more."""
        while feed.inbox.used > 0:
            await self._move_chunk(feed)
        self._feeds.end(feed)
        del self._tasks[feed]

    async def _move_chunk(self, feed: Feed) -> None:
        """Move a chunk, or as much of it as may be written; wait until that is a row. Cancelled:
        no row was moved."""
        if not self._feeds.take_in_turn(feed):
            await self._wait_turn(feed)
            self._feeds.take_chunk(feed)

    async def _wait_turn(self, feed: Feed) -> None:
        """Wait until it is this feed's turn, and a row of it may be written."""
        feeds = self._feeds
        feeds.join_line(feed)
        try:
            await self._admitted.wait(lambda: feeds.has_turn(feed), lambda: feeds.why_held(feed))
        finally:
            if feeds.leave_line(feed):
                self._admitted.wake()  # the next in line looks whether it is its turn
