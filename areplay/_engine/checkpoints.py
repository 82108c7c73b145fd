"""Checkpoints of a replay: what `Replay.save`, `checkpoints` and `load` do, given the engine."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from areplay._base.hooks import Progress, guarded
from areplay._base.validation import optional_rate, seconds
from areplay._checkpoint.format import CancelToken
from areplay._checkpoint.loading import Loading
from areplay._checkpoint.manifest import MANIFEST
from areplay._checkpoint.reader import Checkpoint
from areplay._engine.blueprint import Blueprint
from areplay._engine.config import ReplayConfig
from areplay._engine.counters import Counters
from areplay._engine.engine import Engine
from areplay._engine.periodic import Checkpoints
from areplay._processes.completion import in_thread
from areplay.errors import CheckpointDamaged
from areplay.spec import Spec
from areplay.statistics import SaveResult

T = TypeVar("T")

MAX_BYTES_PER_S = 100e6
"""What a save writes a second by default: about a tenth of a core's work, and less than any disk
takes."""


def saving(
    engine: Engine,
    path: str | os.PathLike[str],
    max_bytes_per_s: float | None,
    on_progress: Progress | None,
) -> Callable[[], Coroutine[Any, Any, SaveResult]]:
    """Check the options of a save; what begins it. It raises `HookRaised`, see `Saver.save`."""
    rate = optional_rate("max_bytes_per_s", max_bytes_per_s)
    return partial(engine.saver.save, directory_of(path), rate, _guarded_progress(on_progress))


def saving_every(
    opened: Callable[[], Engine],
    path: str | os.PathLike[str],
    every_s: float,
    max_bytes_per_s: float | None,
    on_progress: Progress | None,
) -> Checkpoints:
    """A context that saves again and again; see `Replay.checkpoints`.

    Args:
        opened: the engine; raises `Closed` once the replay is closed. The context keeps what this
            is a method of.
    """
    opened()
    directory = directory_of(path)
    every_s = seconds("every_s", every_s)
    options = {
        "max_bytes_per_s": optional_rate("max_bytes_per_s", max_bytes_per_s),
        "on_progress": on_progress,
    }

    def save(
        max_bytes_per_s: float | None, on_progress: Progress | None
    ) -> Coroutine[Any, Any, SaveResult]:
        return saving(opened(), directory, max_bytes_per_s, on_progress)()

    return Checkpoints(every_s, save, options)


async def load(
    path: str | os.PathLike[str],
    spec: Spec | None,
    capacity: int | None,
    block_rows: int | None,
    seed: int | None,
    on_progress: Progress | None,
    open_with: Callable[[Blueprint], Awaitable[T]],
) -> T:
    """Find a checkpoint and open a replay with it; see `Replay.load`.

    Args:
        open_with: opens the replay.
    """
    directory = directory_of(path)
    progress = _guarded_progress(on_progress)
    while True:
        checkpoint = await _found(directory)
        if spec is not None:
            checkpoint.check_spec(spec)
        config = _config(checkpoint, capacity, block_rows)
        counters = _counters(checkpoint, seed)
        try:
            return await open_with(Blueprint(config, counters, Loading(checkpoint, progress)))
        except CheckpointDamaged:
            # A save may have replaced the checkpoint, and deleted what was being read.
            if (await _found(directory)).id == checkpoint.id:
                raise


def _config(checkpoint: Checkpoint, capacity: int | None, block_rows: int | None) -> ReplayConfig:
    """The options of a replay for these rows; those of the checkpoint where they are not given."""
    is_as_before = block_rows is None and capacity in (None, checkpoint.capacity_rows)
    config = ReplayConfig.checked(
        checkpoint.spec,
        checkpoint.capacity_rows if capacity is None else capacity,
        checkpoint.block_rows if is_as_before else block_rows,
    )
    if not is_as_before:
        return config
    return replace(config, has_given_block_rows=checkpoint.has_given_block_rows)


def _counters(checkpoint: Checkpoint, seed: int | None) -> Counters:
    """Counts that go on from where the checkpoint's replay was."""
    counters = Counters(seed)
    try:
        counters.restore(checkpoint.counts, has_new_seed=seed is not None)
    # numpy raises another type for each way in which a state is malformed
    except Exception as error:
        raise CheckpointDamaged(
            checkpoint.path, MANIFEST, f"cannot be understood ({error!r})"
        ) from None
    return counters


async def _found(path: str) -> Checkpoint:
    """The checkpoint that the directory has now."""
    stop = CancelToken()
    return await in_thread("areplay-files", partial(Checkpoint, path, stop), stop.set)


def _guarded_progress(on_progress: Progress | None) -> Progress | None:
    """The hook, with its errors marked as the user's."""
    return None if on_progress is None else guarded("on_progress", on_progress)


def directory_of(path: str | os.PathLike[str]) -> str:
    """One name for each directory. It stays the same if links or the working directory change."""
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"a checkpoint's path must be text, got {path!r}; use os.fsdecode")
    try:
        return os.path.realpath(name)
    except OSError:  # the working directory is gone: the save or load will say so
        return name
