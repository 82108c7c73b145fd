"""Row 30: every hook of the user's raises every kind of exception.

The caller gets it, at once; nothing hangs, the next call works, nothing is left on disk.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from kit import memory_descriptors, until

import areplay
from areplay import Replay
from areplay._base.arrays import Array
from areplay._storage.windows import Windows

SPEC = areplay.Spec(x=((64,), "float32"))
X = np.arange(64 * 400, dtype=np.float32).reshape(400, 64)

ERRORS: dict[str, Callable[[], BaseException]] = {
    "RuntimeError": lambda: RuntimeError("the display is gone"),
    "OSError": lambda: BrokenPipeError(32, "nobody reads"),
    "MemoryError": MemoryError,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration(5),
    "StopAsyncIteration": StopAsyncIteration,
    "CancelledError": asyncio.CancelledError,
    "BaseException": lambda: BaseException("of no kind"),
    "WouldBlock": lambda: areplay.WouldBlock("a hook's own"),
    "Closed": lambda: areplay.Closed("a hook's own"),
    "EndOfEpochs": lambda: areplay.EndOfEpochs("a hook's own"),
    "CheckpointDamaged": lambda: areplay.CheckpointDamaged("a hook's own", "file", "what"),
}
WRAPPED = (StopIteration, StopAsyncIteration, GeneratorExit, asyncio.CancelledError)
every_kind = pytest.mark.parametrize("kind", ERRORS)


def raising(error: BaseException) -> Callable[..., NoReturn]:
    """A hook."""

    def hook(*_: object) -> NoReturn:
        raise error

    return hook


def is_delivered(caught: BaseException, error: BaseException) -> bool:
    """The error itself, as it was raised; or, where that would mean something else, what names it
    as its cause."""
    if isinstance(error, WRAPPED):
        return (
            type(caught) is RuntimeError
            and caught.__cause__ is error
            and type(error).__name__ in str(caught)
        )
    return caught is error and caught.__cause__ is None and caught.__context__ is None


@every_kind
async def test_what_on_progress_raises_reaches_the_caller(kind: str, tmp_path: Path) -> None:
    """Of a save, which leaves no file, and of a load, which leaves no memory; the next ones
    work."""
    async with asyncio.timeout(30), Replay(SPEC, 400, block_rows=100) as replay:
        await replay.extend({"x": X})
        error = ERRORS[kind]()
        with pytest.raises(BaseException) as caught:
            await replay.save(tmp_path, on_progress=raising(error))
        assert is_delivered(caught.value, error)
        assert os.listdir(tmp_path) == []
        assert replay.statistics().saves.failures == 1
        await replay.save(tmp_path)
        memory = memory_descriptors()
        error = ERRORS[kind]()
        with pytest.raises(BaseException) as caught:
            await Replay.load(tmp_path, on_progress=raising(error))
        assert is_delivered(caught.value, error)
        del caught, error  # whose frames hold the memory
        await until(lambda: memory_descriptors() == memory)
        async with await Replay.load(tmp_path) as loaded:
            assert len(loaded) == 400


@every_kind
async def test_what_on_prefault_raises_reaches_the_caller(kind: str) -> None:
    """The memory is given back, and the replay cannot be used."""
    memory, error = memory_descriptors(), ERRORS[kind]()
    async with asyncio.timeout(30):
        with pytest.raises(BaseException) as caught:
            async with Replay(SPEC, 400, prefault=True, on_prefault=raising(error)):
                pass
    assert is_delivered(caught.value, error)
    del caught, error  # whose frames hold the memory
    await until(lambda: memory_descriptors() == memory)


@pytest.mark.parametrize(
    "kind", [kind for kind in ERRORS if kind not in ("KeyboardInterrupt", "SystemExit")]
)
async def test_checkpoints_go_on_whatever_on_progress_raises(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs that one save: also what looks like the end of the replay, or of the task."""
    error, calls = ERRORS[kind](), 0

    def on_progress(done: int, size: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error

    async with asyncio.timeout(30), Replay(SPEC, 400, block_rows=100) as replay:
        await replay.extend({"x": X})
        async with replay.checkpoints(
            tmp_path, every_s=0.01, on_progress=on_progress
        ) as checkpoints:
            await until(lambda: checkpoints.last is not None)
            assert checkpoints.failure is None
    (record,) = [record for record in caplog.records if record.name == "areplay._engine.periodic"]
    assert record.levelno == logging.ERROR and type(error).__name__ in record.message
    assert "the next save tries again" in record.message


EXITS = """
import asyncio, sys, numpy as np, areplay
def on_progress(done, size):
    raise SystemExit(3)
async def main():
    async with areplay.Replay(areplay.Spec(x=((), "int64")), 400) as replay:
        await replay.extend({"x": np.arange(400)})
        async with replay.checkpoints(sys.argv[1], every_s=0.01, on_progress=on_progress):
            await asyncio.sleep(60)
areplay.run(main())
"""


async def test_sys_exit_in_on_progress_of_checkpoints_ends_the_program(tmp_path: Path) -> None:
    """With that status, in order: as it does in any task."""
    (tmp_path / "program.py").write_text(EXITS)
    program = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "here")]
    done = await asyncio.to_thread(subprocess.run, program, capture_output=True, timeout=60)
    assert done.returncode == 3, done
    assert os.listdir(tmp_path / "here") == []


class Schedule:
    """An exponent by the batches delivered, that raises once."""

    def __init__(self, error: BaseException) -> None:
        self.error: BaseException | None = error

    def __call__(self, batches: int) -> float:
        """See `areplay.Prioritized`."""
        error = self.error
        if batches and error is not None:
            self.error = None
            raise error
        return 0.5


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_what_a_schedule_raises_reaches_the_learner() -> None:
    """By the loop's step and by `get`: no step ends the loop as if there were no batch, and the
    next one works."""
    async with asyncio.timeout(60), Replay(SPEC, 400) as replay:
        await replay.extend({"x": X})
        schedule = Schedule(RuntimeError("not yet"))
        selector = areplay.Prioritized(importance_sampling_exponent=schedule)
        async with replay.batches(batch_size=4, selector=selector) as batches:
            for kind in ERRORS:
                for take in (batches.__anext__, batches.get):
                    error = ERRORS[kind]()
                    schedule.error = error
                    delivered = batches.statistics().batches_delivered
                    with pytest.raises(BaseException) as caught:
                        await take()
                    assert is_delivered(caught.value, error), kind
                    assert batches.statistics().batches_delivered == delivered
                    batch = await take()
                    assert len(batch["x"]) == 4
                    batch.release()


class Unspeakable(areplay.Rows):
    """Rows whose repr raises."""

    error: BaseException = RuntimeError("no words")

    def __repr__(self) -> str:
        raise self.error


class Fails(areplay.Rows):
    """Rows that cannot be put together as long as there is an error to raise."""

    error: BaseException | None = None
    state: object = None

    def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
        """See `Item.assemble`."""
        if self.error is not None:
            raise self.error
        super().assemble(windows, out)


@every_kind
async def test_what_an_item_raises_in_sample_reaches_the_caller(kind: str) -> None:
    """Of a `Fifo` nothing is skipped: the next call gives what that one would have given."""
    async with Replay(SPEC, 400) as replay:
        await replay.extend({"x": X})
        item, selector = Fails(), areplay.Fifo()
        item.error = ERRORS[kind]()
        for given in (None, selector):
            with pytest.raises(type(item.error)) as caught:
                replay.sample(3, item, given)
            assert caught.value is item.error
        item.error = None
        np.testing.assert_array_equal(replay.sample(3, item, selector)["x"], X[:3])


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind != "KeyboardInterrupt"])
async def test_a_repr_that_raises_spoils_no_message(kind: str) -> None:
    """The error is the one that it should be; statistics are told."""
    item = Unspeakable()
    item.error = ERRORS[kind]()
    async with Replay(SPEC, 400) as replay:
        with pytest.raises(areplay.Stalled, match="a replay without rows"):
            replay.sample(3, item)
        with pytest.raises(
            TypeError, match=f"Unspeakable, whose __repr__ raised {type(item.error).__name__}"
        ):
            replay.sample(3, selector=item)  # type: ignore[arg-type]
        assert "Unspeakable" in replay.batches(item, 4).statistics().what


def transform(
    batch: Mapping[str, Array], out: Mapping[str, Array], rng: np.random.Generator, kind: str
) -> None:
    """Raise that kind, in a sampler."""
    raise ERRORS[kind]()


class Transforms:
    """`transform` of one kind; a class, since a partial function has no name to be called by."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(
        self, batch: Mapping[str, Array], out: Mapping[str, Array], rng: np.random.Generator
    ) -> None:
        """See `areplay.Transform`."""
        transform(batch, out, rng, self.kind)


async def act(actor: areplay.Actor, kinds: list[str]) -> None:
    """Hand a row in, and raise one kind, in an actor."""
    await actor.add(x=X[actor.index])
    raise ERRORS[kinds[actor.index]]()


class Unpicklable:
    """What cannot reach another process."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> NoReturn:
        raise ERRORS[self.kind]()


@every_kind
async def test_what_pickling_raises_is_told(kind: str) -> None:
    """Of an actor's arguments: it cannot be started, and no process is left. An item's are looked
    at before."""
    async with asyncio.timeout(30), Replay(SPEC, 400) as replay:
        name = "nobody reads" if kind == "OSError" else type(ERRORS[kind]()).__name__
        with pytest.raises(areplay.ActorFailed, match=rf"could not be started.*{name}"):
            await replay.actors(act, args=(Unpicklable(kind),)).__aenter__()
        item = Fails()
        item.state = Unpicklable(kind)
        with pytest.raises((ValueError, type(ERRORS[kind]()))):
            replay.batches(item)


IN_CHILDREN = ["GeneratorExit", "StopIteration", "CancelledError", "SystemExit", "Closed"]


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_what_is_raised_in_a_sampler_is_told_to_the_learner() -> None:
    """Each kind ends the sampler, and is named with its traceback."""
    async with asyncio.timeout(120), Replay(SPEC, 400) as replay, AsyncExitStack() as stack:
        await replay.extend({"x": X})
        streams = [
            replay.batches(
                batch_size=4,
                transform=areplay.Transform(Transforms(kind), y=((), "float32")),
                max_restarts=0,
            )
            for kind in IN_CHILDREN
        ]
        await asyncio.gather(*(stack.enter_async_context(stream) for stream in streams))
        for kind, stream in zip(IN_CHILDREN, streams, strict=True):
            with pytest.raises(areplay.SamplerFailed, match=rf"(?s)Traceback.*{kind}"):
                await anext(stream)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_what_an_actor_raises_is_told() -> None:
    """Each kind is a failure of that actor, with its traceback; what it had handed in is there."""
    async with asyncio.timeout(120), Replay(SPEC, 400) as replay:
        options: dict[str, Any] = {"args": (IN_CHILDREN,), "max_restarts": 0}
        async with replay.actors(act, len(IN_CHILDREN), **options) as actors:
            await until(lambda: len(actors.failures) == len(IN_CHILDREN), within=60)
            failures = {failure.child: failure.details for failure in actors.failures}
        for index, kind in enumerate(IN_CHILDREN):
            assert kind in failures[f"actor {index}"]
        assert len(replay) == len(IN_CHILDREN)
