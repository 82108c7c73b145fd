"""Saving: checkpoints of a replay that goes on meanwhile, one at a time or every so many seconds.

The work is that of `areplay._checkpoint.writer`, in a thread; what is here takes care that it ends
when its caller, or the replay, does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np

from areplay._base import forks
from areplay._base.hooks import HookRaised, guarded
from areplay._base.validation import optional_rate, seconds
from areplay._checkpoint.format import CancelToken, Progress
from areplay._checkpoint.manifest import MANIFEST
from areplay._checkpoint.reader import Checkpoint
from areplay._checkpoint.snapshot import Snapshot
from areplay._checkpoint.writer import Save
from areplay._processes.completion import in_thread, run_to_completion
from areplay._processes.dropped import Holdings, cancel_if_open
from areplay._processes.event_loops import drop_quietly
from areplay._processes.opening import deliver, delivered
from areplay._sampling.stream import Stream
from areplay._sampling.stream_records import StreamState
from areplay._storage.priorities import Priorities
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay.errors import AreplayError, CheckpointDamaged, Closed, WouldBlock, WrongProcess
from areplay.spec import Spec
from areplay.statistics import SaveResult, SavesStatistics

logger = logging.getLogger(__name__)

MAX_BYTES_PER_S = 100e6
"""What a save writes a second, by default: about a tenth of a core's work, and less than any disk
takes."""


class Saver:
    """The saves of one replay.

    Args:
        snapshot: the replay at this moment.
    """

    def __init__(
        self, ring: Ring, registry: WriterRegistry, snapshot: Callable[[], Snapshot]
    ) -> None:
        self._ring, self._registry, self._snapshot = ring, registry, snapshot
        # by directory: the id of the checkpoint whose blocks are ours
        self._known: dict[str, str] = {}
        self._running: dict[CancelToken, asyncio.Event] = {}
        self._at_work: set[CancelToken] = set()  # of saves that have a thread
        self._is_closed = False
        self._saves = self._failures = 0
        self._last: tuple[SaveResult | None, str, float] = None, "", 0.0
        self._last_failure: tuple[str, float] = "", 0.0
        self._origin = forks.current

    def knows(self, path: str, checkpoint_id: str) -> None:
        """The rows of that checkpoint, which is in that directory, are those of the replay."""
        self._known[path] = checkpoint_id

    async def save(
        self, path: str, max_bytes_per_s: float | None, progress: Progress | None
    ) -> SaveResult:
        """See `Replay.save`; `path` is the directory's own, see `_directory`.

        Raises:
            HookRaised: `progress` raised.
        """
        forks.check(self._origin, "this replay")
        if self._is_closed:
            raise Closed("this replay")
        snapshot = self._snapshot()
        locks, stop, ended = self._ring.block_locks(), CancelToken(), asyncio.Event()
        self._registry.hold(self._ring, at_once=True)
        try:
            snapshot.take_blocks(self._registry)
            work = Save(
                path,
                snapshot,
                self._registry,
                locks,
                self._known.get(path, ""),
                max_bytes_per_s,
                progress,
                stop,
            )
        except BaseException:
            self._registry.let_go()
            raise
        self._running[stop] = ended
        at_work = self._at_work

        def run() -> SaveResult:
            at_work.add(stop)
            try:
                return work.run()
            finally:
                at_work.discard(stop)

        try:
            saved = await in_thread("areplay-files", run, stop.set)
        except WouldBlock:
            raise Closed("this replay") from None
        except (AreplayError, HookRaised) as error:
            self._failures, self._last_failure = self._failures + 1, (str(error), time.time())
            raise
        finally:
            if work.id:  # it may have been cancelled, or failed, when it was there already
                self._known[path] = work.id
            del self._running[stop]
            ended.set()
            self._registry.let_go()
            locks.close()
        self._saves, self._last = self._saves + 1, (saved, path, time.time())
        logger.debug(
            "saved %d rows into %s, %d bytes in %.1f s",
            saved.rows,
            path,
            saved.bytes_written,
            saved.seconds,
        )
        return saved

    def statistics(self) -> SavesStatistics:
        """What became of all saves. From any thread."""
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
        """Stop what is running; whoever waits for it gets `Closed`, and the checkpoint before is
        whole."""
        if self._origin is not forks.current:  # a forked child, where the threads that save are not
            return
        self._is_closed = True
        for stop, ended in list(self._running.items()):
            stop.set()
            await ended.wait()

    def letting_go(self) -> Callable[[], bool]:
        """A step of `Holdings`: stops what is running, and is done when no thread is at it any
        more."""
        at_work = self._at_work

        def let_go() -> bool:
            for stop in list(at_work):
                stop.set()
            return not at_work

        return let_go


class Checkpoints:
    """Saves of a replay every so many seconds: an async context manager, made by
    `Replay.checkpoints`."""

    def __init__(
        self,
        every_s: float,
        save: Callable[..., Coroutine[Any, Any, SaveResult]],
        options: dict[str, Any],
    ) -> None:
        self._save = save  # it holds the replay, for as long as the user holds this context
        self._schedule = _Schedule(every_s, weakref.ref(save), options)
        self._holdings = Holdings(f"a context of checkpoints every {every_s:g} s")
        self._is_entered = False
        self._origin = forks.current

    @property
    def last(self) -> SaveResult | None:
        """What the last save did that succeeded; None before that."""
        return self._schedule.last

    @property
    def failure(self) -> BaseException | None:
        """Of the last save, if it failed: its error, or what its `on_progress` raised."""
        return self._schedule.failure

    async def __aenter__(self) -> Checkpoints:
        """Begin; the first checkpoint is made after `every_s`."""
        forks.check(self._origin, "this context of checkpoints")
        if self._is_entered:
            raise Closed("this context of checkpoints, which was entered before,")
        self._is_entered = True
        self._holdings.begin(self)
        self._schedule.begin()
        self._holdings.watched(self._schedule)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the save that runs, and make one more, as fast as it goes.

        Cancelled meanwhile: what runs is stopped, the checkpoint before is whole. In a process
        forked from the one that entered it, this returns at once and does nothing.
        """
        if self._origin is forks.current:
            await self._holdings.leave(kind, self._end)

    async def _end(self) -> None:
        if await self._holdings.are_lost():
            return
        try:
            await self._schedule.end()
        finally:
            self._holdings.release()


class _Schedule:
    """What runs for a context of checkpoints, and does not keep it.

    Attributes:
        last, failure: as of `Checkpoints`.
    """

    def __init__(
        self,
        every_s: float,
        save: weakref.ref[Callable[..., Coroutine[Any, Any, SaveResult]]],
        options: dict[str, Any],
    ) -> None:
        self.last: SaveResult | None = None
        self.failure: BaseException | None = None
        self._every_s, self._save, self._options = every_s, save, options
        self._task: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()
        self._origin = forks.current

    def begin(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._save_again_and_again(), name="areplay checkpoints")
        drop_quietly(self._task)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The task's."""
        return None if self._task is None else self._task.get_loop()

    def unwatch(self) -> None:
        """Save nothing more. On the task's loop, or anywhere once that is closed."""
        if self._task is not None:
            cancel_if_open(self._task)

    async def end(self) -> None:
        """See `Checkpoints.__aexit__`."""
        assert self._task is not None
        self._leaving.set()
        try:
            await asyncio.wait({self._task})
        except asyncio.CancelledError:
            self._task.cancel()
            await run_to_completion(asyncio.wait({self._task}))
            raise
        self._task.result()

    async def _save_again_and_again(self) -> None:
        due = time.monotonic()
        try:
            while not self._leaving.is_set():
                due = max(due + self._every_s, time.monotonic())
                try:
                    async with asyncio.timeout(due - time.monotonic()):
                        await self._leaving.wait()
                except TimeoutError:
                    await self._save_once(self._options)
            await self._save_once({**self._options, "max_bytes_per_s": None})
        except Closed as error:
            self.failure = error
            logger.error("%s; the checkpoint before is kept, there will be no more of them", error)

    async def _save_once(self, options: dict[str, Any]) -> None:
        try:
            save = self._save()
            if save is None:  # the context was dropped: the reaper has this task cancelled
                return
            work = save(**options)
            del save  # it would hold the replay
            self.last = await work
            self.failure = None
        # of the replay: those that on_progress raises are a `HookRaised`
        except (Closed, WrongProcess):
            raise
        except HookRaised as raised:
            if isinstance(raised.error, (KeyboardInterrupt, SystemExit)):
                deliver(raised)  # it ends the program, as it does from every task
            self._note(raised.error, str(raised))
        except AreplayError as error:
            self._note(error, str(error))
        except Exception as error:  # a lack of memory may pass
            self._note(error, repr(error))

    def _note(self, error: BaseException, text: str) -> None:
        # a forked child's copy of the loop does not run
        forks.check(self._origin, "this context of checkpoints")
        self.failure = error
        logger.error("%s; the checkpoint before is kept, the next save tries again", text)


class Loading:
    """A checkpoint on its way into a replay that is being opened.

    Attributes:
        checkpoint: what is loaded.
        streams: what it has kept of streams of batches. Known after `fill`.
        stop: makes `fill` give up.
    """

    def __init__(self, checkpoint: Checkpoint, progress: Progress | None) -> None:
        self.checkpoint, self._progress = checkpoint, progress
        self.streams: list[StreamState] = []
        self.stop = CancelToken()
        self.is_in_place = False

    def fill(self, ring: Ring) -> dict[float, Priorities]:
        """Read everything; the priorities of the rows. In a thread.

        Raises:
            CheckpointDamaged: what was allocated here is given back.
        """
        checkpoint = self.checkpoint
        plan = checkpoint.plan(ring.blocks, ring.block_rows)
        self.is_in_place = plan.is_in_place
        for k, stream in enumerate(checkpoint.streams):
            rows = checkpoint.delivered(plan, k, ring)
            is_over = None if rows is None else partial(np.isin, test_elements=rows)
            self.streams.append(
                StreamState(stream["what"], stream["batches_delivered"], stream["limiter"], is_over)
            )
        all_priorities: dict[float, Priorities] = {}
        try:
            for exponent, largest, parts in checkpoint.masses(plan):
                all_priorities[exponent] = priorities = Priorities(ring, exponent)
                priorities.restore(largest, parts)
            if (
                2 * int(plan.blocks.rows.sum()) > ring.capacity_rows
            ):  # page by page, at first use, takes ten times as long
                ring.segment.prefault(lambda done_bytes, size_bytes: self.stop.check())
            checkpoint.fill(ring, plan, self.stop, self._progress)
        except BaseException:
            for priorities in all_priorities.values():
                priorities.close()
            raise
        return all_priorities


class Checkpointed(ABC):
    """What a replay does to save itself, and to be loaded."""

    _saver: Saver | None  # while it is open

    def __init__(self) -> None:
        super().__init__()
        self._loading: Loading | None = None
        self._resumable: list[StreamState] = []  # what a checkpoint kept of streams of batches
        self._is_loaded = False  # open, and not entered yet

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes_per_s: float | None = MAX_BYTES_PER_S,
        on_progress: Progress | None = None,
    ) -> Coroutine[Any, Any, SaveResult]:
        """Write a checkpoint into that directory, off the loop, while everybody goes on; what was
        written.

        It holds the rows that are there when this is awaited, their episodes and priorities, and
        what limiters, selectors and random generators have counted; see docs/checkpoints.md. Of
        rows that are overwritten before their turn comes, it holds those that took their place: it
        is as full as the ring, however long it takes. Only those blocks are written that were not
        in the directory's checkpoint before, if that one is of this replay. What is there before is
        replaced in one step at the end: killed at any moment, the directory has one checkpoint,
        whole.

        Cancelled, or the replay is closed: it stops at the next block, and the checkpoint before
        stays; only if it was at its end already, the new one is there.

        Args:
            path: of the directory; made if it is not there. It should hold nothing else.
            max_bytes_per_s: not faster than that, so that the learner does not feel it; None: as
                fast as it goes.
            on_progress: called as `on_progress(done_bytes, size_bytes)` meanwhile, from another
                thread.

        Raises:
            CheckpointFailed: the disk is full, the directory read-only, or the like. The checkpoint
                before stays.
            CheckpointBusy: another save into this directory is going on, of any process.
            ResourceUnavailable: no descriptor, thread or memory is left. The checkpoint before
                stays.
            Closed: the replay was closed meanwhile. The checkpoint before stays.
            BaseException: what `on_progress` raised; a `RuntimeError` from it, if it is a
                `StopIteration`, `StopAsyncIteration`, `GeneratorExit` or `CancelledError`. The
                checkpoint before stays.
        """
        return delivered(self._save(path, max_bytes_per_s, on_progress))

    def _save(
        self,
        path: str | os.PathLike[str],
        max_bytes_per_s: float | None,
        on_progress: Progress | None,
    ) -> Callable[[], Coroutine[Any, Any, SaveResult]]:
        """One save, with options that were looked at; it raises `HookRaised`, see `Saver.save`."""
        self._opened()
        assert self._saver is not None
        rate = optional_rate("max_bytes_per_s", max_bytes_per_s)
        return partial(self._saver.save, _directory(path), rate, _guarded_progress(on_progress))

    def checkpoints(
        self,
        path: str | os.PathLike[str],
        every_s: float,
        *,
        max_bytes_per_s: float | None = MAX_BYTES_PER_S,
        on_progress: Progress | None = None,
    ) -> Checkpoints:
        """Save into that directory every `every_s` seconds, and once more when the context is left:
        see `save`.

        One after the other, never two at once. A save that fails, say because the disk is full, is
        logged as an error; the next one tries again. So it is if `on_progress` raises; only
        `SystemExit` and `KeyboardInterrupt` end the program, as they do from every task. An async
        context manager; leaving it waits for the last save.
        """
        self._opened()
        path, every_s = _directory(path), seconds("every_s", every_s)
        options = {
            "max_bytes_per_s": optional_rate("max_bytes_per_s", max_bytes_per_s),
            "on_progress": on_progress,
        }

        def save(
            max_bytes_per_s: float | None, on_progress: Progress | None
        ) -> Coroutine[Any, Any, SaveResult]:
            return self._save(path, max_bytes_per_s, on_progress)()

        return Checkpoints(every_s, save, options)

    @classmethod
    async def load(
        cls,
        path: str | os.PathLike[str],
        *,
        spec: Spec | None = None,
        capacity: int | None = None,
        block_rows: int | None = None,
        seed: int | None = None,
        on_progress: Progress | None = None,
    ) -> Self:
        """A replay with what a checkpoint holds, already open:
        `async with await Replay.load(path) as replay`.

        Every row has the index that it had, if capacity and block_rows are those of the checkpoint
        (and no `Fifo` had kept blocks over a whole lap). All streams are ended: who writes rows
        begins new ones. Streams of batches that are opened as before go on with the counts of their
        limiters, and a `Fifo` leaves out what it has delivered.

        Cancelled: nothing is left allocated.

        Args:
            spec: which the rows must be of; None: whatever they are.
            capacity: rows to keep, the newest ones; None: as many as before.
            block_rows: as for `Replay`; None: as before, if the capacity is the same.
            seed: for other random numbers than those that would have come next.
            on_progress: called as `on_progress(done_bytes, size_bytes)` meanwhile, from another
                thread.

        Raises:
            CheckpointMissing: there is none.
            CheckpointMismatch: it is of another spec, named field by field, or of a newer version.
            CheckpointDamaged: something in it is not as it was written; says what. Nothing is left
                allocated.
            MemoryLimitExceeded, ResourceUnavailable, ValueError: as for `Replay`.
            BaseException: what `on_progress` raised, as `save` raises it. Nothing is left
                allocated.
        """
        directory = _directory(path)
        while True:
            checkpoint = await _found(directory)
            if spec is not None:
                checkpoint.check_spec(spec)
            replay = cls._for(checkpoint, capacity, block_rows, seed)
            replay._loading = loading = Loading(checkpoint, _guarded_progress(on_progress))
            try:
                replay._count_on(checkpoint.counts, seed is not None)
            # numpy has a type of its own for each way in which a state is none
            except Exception as error:
                raise CheckpointDamaged(
                    directory, MANIFEST, f"cannot be understood ({error!r})"
                ) from None
            try:
                await replay.__aenter__()
            except CheckpointDamaged:
                if (await _found(directory)).id == checkpoint.id:
                    raise
                continue  # a save has replaced it meanwhile, and deleted what we were reading
            assert replay._saver is not None
            if loading.is_in_place:
                replay._saver.knows(directory, checkpoint.id)
            replay._loading, replay._resumable, replay._is_loaded = None, loading.streams, True
            return replay

    def _resume(self, stream: Stream) -> None:
        """Let a stream that is not open yet go on where the checkpoint's first of the same was."""
        for kept in self._resumable:
            if kept.what == stream.what:
                try:
                    stream.resume(kept)
                except HookRaised as raised:
                    deliver(raised)
                self._resumable.remove(kept)
                return

    # What a replay has to know for that.

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Open it, with what `_loading` brings, if that is there."""

    @abstractmethod
    def _opened(self) -> Ring:
        """The ring; raises `Closed` if there is none."""

    @classmethod
    @abstractmethod
    def _for(
        cls, checkpoint: Checkpoint, capacity: int | None, block_rows: int | None, seed: int | None
    ) -> Self:
        """A replay that is not open yet, for the rows of a checkpoint."""

    @abstractmethod
    def _count_on(self, counts: dict[str, Any], has_new_seed: bool) -> None:
        """Count on from where the checkpoint's replay was."""

    @abstractmethod
    def _snapshot(self) -> Snapshot:
        """This moment, but for the blocks."""


async def _found(path: str) -> Checkpoint:
    """The checkpoint that is there now."""
    stop = CancelToken()
    return await in_thread("areplay-files", partial(Checkpoint, path, stop), stop.set)


def _guarded_progress(on_progress: Progress | None) -> Progress | None:
    return None if on_progress is None else guarded("on_progress", on_progress)


def _directory(path: str | os.PathLike[str]) -> str:
    """One name for one directory, whatever it is called; it stays the same if links or the working
    directory change."""
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"a checkpoint's path must be text, got {path!r}; use os.fsdecode")
    try:
        return os.path.realpath(name)
    except OSError:  # the working directory is gone: the save or load will say so
        return name
