"""The saver: the saves of one replay, each in a thread, stopped when the replay closes.

The work is that of `areplay._checkpoint.writer`; here are its beginning and its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial

from areplay._base import forks
from areplay._base.hooks import HookRaised, Progress
from areplay._checkpoint.format import CancelToken
from areplay._checkpoint.snapshot import Snapshot
from areplay._checkpoint.writer import Save
from areplay._processes.completion import in_thread
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay.errors import AreplayError, Closed, WouldBlock
from areplay.statistics import SaveResult, SavesStatistics

logger = logging.getLogger(__name__)


class Saver:
    """The saves of one replay.

    Args:
        snapshot: the replay at this moment.
    """

    def __init__(
        self, ring: Ring, registry: WriterRegistry, snapshot: Callable[[], Snapshot]
    ) -> None:
        self._ring = ring
        self._registry = registry
        self._snapshot = snapshot
        # by directory: the id of the checkpoint whose blocks are ours
        self._known: dict[str, str] = {}
        self._running: dict[CancelToken, asyncio.Event] = {}
        self._at_work: set[CancelToken] = set()  # of saves that have a thread
        self._is_closed = False
        self._saves = 0
        self._failures = 0
        self._last: tuple[SaveResult | None, str, float] = None, "", 0.0
        self._last_failure: tuple[str, float] = "", 0.0
        self._origin = forks.current

    def knows(self, path: str, checkpoint_id: str) -> None:
        """The rows of that checkpoint, which is in that directory, are those of the replay."""
        self._known[path] = checkpoint_id

    async def save(
        self, path: str, max_bytes_per_s: float | None, progress: Progress | None
    ) -> SaveResult:
        """Save the replay as it is when this begins to run; see `Replay.save`.

        Args:
            path: the directory's own name, see `areplay._engine.checkpoints.directory_of`.

        Raises:
            HookRaised: `progress` raised.
        """
        forks.check(self._origin, "this replay")
        if self._is_closed:
            raise Closed("this replay")
        snapshot = self._snapshot()
        stop = CancelToken()
        with contextlib.ExitStack() as held:
            locks = held.enter_context(contextlib.closing(self._ring.block_locks()))
            self._registry.hold(self._ring, at_once=True)
            held.callback(self._registry.let_go)
            snapshot.take_blocks(self._registry)
            known = self._known.get(path, "")
            work = Save(
                path, snapshot, self._registry, locks, known, max_bytes_per_s, progress, stop
            )
            saved = await self._run(work, path, stop)
        logger.debug(
            "saved %d rows into %s, %d bytes in %.1f s",
            saved.rows,
            path,
            saved.bytes_written,
            saved.seconds,
        )
        return saved

    async def _run(self, work: Save, path: str, stop: CancelToken) -> SaveResult:
        ended = asyncio.Event()
        self._running[stop] = ended
        run = partial(_run, work, stop, self._at_work)
        try:
            saved = await in_thread("areplay-files", run, stop.set)
        except WouldBlock:
            raise Closed("this replay") from None
        except (AreplayError, HookRaised) as error:
            self._failures += 1
            self._last_failure = str(error), time.time()
            raise
        finally:
            if work.id:  # it may have been cancelled, or failed, when it was there already
                self._known[path] = work.id
            del self._running[stop]
            ended.set()
        self._saves += 1
        self._last = saved, path, time.time()
        return saved

    def statistics(self) -> SavesStatistics:
        """Counts of saves, and how the last ones ended. From any thread."""
        last, last_path, last_saved_at_s = self._last
        last_failure, last_failed_at_s = self._last_failure
        return SavesStatistics(
            saves=self._saves,
            failures=self._failures,
            saving=len(self._running),
            last=last,
            last_path=last_path,
            last_saved_at_s=last_saved_at_s,
            last_failure=last_failure,
            last_failed_at_s=last_failed_at_s,
        )

    async def close(self) -> None:
        """Stop the saves that run: their callers get `Closed`, and the checkpoint before is
        whole."""
        if self._origin is not forks.current:  # a forked child, where the threads that save are not
            return
        self._is_closed = True
        for stop, ended in list(self._running.items()):
            stop.set()
            await ended.wait()

    def letting_go(self) -> Callable[[], bool]:
        """A step of `Holdings`: stops the saves that run, and is done when their threads are."""
        at_work = self._at_work

        def let_go() -> bool:
            for stop in list(at_work):
                stop.set()
            return not at_work

        return let_go


def _run(work: Save, stop: CancelToken, at_work: set[CancelToken]) -> SaveResult:
    """Save in this thread. Refers to no saver, which the thread would keep."""
    at_work.add(stop)
    try:
        return work.run()
    finally:
        at_work.discard(stop)
