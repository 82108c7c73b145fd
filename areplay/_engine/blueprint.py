"""What an engine is made from: the options of a replay, its counts, and what is loaded into it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from areplay._checkpoint.format import CancelToken
from areplay._checkpoint.loading import Loading
from areplay._engine.config import ReplayConfig
from areplay._engine.counters import Counters
from areplay._engine.engine import Engine
from areplay._engine.report import description_of
from areplay._processes.completion import in_thread
from areplay._sampling.stream_records import StreamState


class Blueprint:
    """Makes one engine.

    Args:
        loading: the checkpoint that the engine begins with; None: it begins empty.
    """

    def __init__(
        self, config: ReplayConfig, counters: Counters, loading: Loading | None = None
    ) -> None:
        self.config = config
        self.counters = counters
        self._loading = loading

    async def build(self, keep: Callable[[Engine], None]) -> None:
        """Make the engine, in a thread.

        Cancelled: loading stops soon. The engine may have been handed over all the same, so look
        whether there is one to close.

        Args:
            keep: takes the engine, in that thread.

        Raises:
            BaseException: see `Engine`.
        """
        stop = CancelToken() if self._loading is None else self._loading.stop
        await in_thread("areplay-files", partial(self._build, keep), stop.set)

    def _build(self, keep: Callable[[Engine], None]) -> None:
        loading = self._loading
        fill = None if loading is None else loading.fill
        engine = Engine(self.config, self.counters, fill, description_of)
        if loading is not None:
            _resume(engine, loading)
            self._loading = None
        keep(engine)


def _resume(engine: Engine, loading: Loading) -> None:
    """Let an engine that was filled with a checkpoint go on where the checkpoint's replay was."""
    for record, is_over in loading.streams:
        kept = record["what"], record["batches_delivered"], record["limiter"]
        engine.resumable.append(StreamState(*kept, is_over))
    if loading.is_in_place:
        engine.saver.knows(loading.checkpoint.path, loading.checkpoint.id)
