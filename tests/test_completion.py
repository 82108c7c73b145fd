"""Tests of `_processes.completion`: work ends before its cancelled caller goes on."""

from __future__ import annotations

import asyncio
import threading

import pytest
from kit import ticks, until

from areplay._processes.completion import in_thread, run_to_completion
from areplay.errors import ResourceUnavailable

LONG_S = 1_000.0


class Work:
    """Something that must not stop half way."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.go_on = asyncio.Event()
        self.steps: list[str] = []
        self._error = error

    async def run(self) -> str:
        """Two steps, with a wait between them."""
        self.steps.append("begun")
        await self.go_on.wait()
        self.steps.append("done")
        if self._error is not None:
            raise self._error
        return "result"


async def begun(work: Work) -> asyncio.Task[str]:
    """The work, under protection, in its wait."""
    task = asyncio.create_task(run_to_completion(work.run()))
    await until(lambda: work.steps == ["begun"])
    return task


async def test_work_that_nobody_disturbs_returns_its_result() -> None:
    """Or raises its error, as it is."""
    work = Work()
    task = await begun(work)
    work.go_on.set()
    assert await task == "result"
    failing = Work(OSError("disk"))
    task = await begun(failing)
    failing.go_on.set()
    with pytest.raises(OSError, match="disk"):
        await task


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_work_is_finished_before_the_cancellation_is_delivered(times: int) -> None:
    """However often it is cancelled meanwhile: the work is done, and the canceller gets what it
    asked for."""
    work = Work()
    task = await begun(work)
    for _ in range(times):
        task.cancel()
        await ticks(3)
        assert not task.done()
    work.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.steps == ["begun", "done"]
    assert task.cancelled()


async def test_a_failure_of_cancelled_work_is_not_swallowed() -> None:
    """It is raised, with the cancellation as its cause."""
    work = Work(OSError("disk"))
    task = await begun(work)
    task.cancel()
    await ticks(2)
    work.go_on.set()
    with pytest.raises(OSError, match="disk") as caught:
        await task
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_work_that_is_itself_cancelled_raises_the_cancellation() -> None:
    """Whether or not we were cancelled as well."""
    for with_us in (False, True):
        inner = asyncio.create_task(asyncio.sleep(LONG_S))
        outer = asyncio.create_task(run_to_completion(inner))
        await ticks(3)
        if with_us:
            outer.cancel()
            await ticks(2)
        inner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer


async def test_a_future_can_be_waited_for_in_the_same_way() -> None:
    """It is not cancelled with us."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(run_to_completion(future))
    await ticks(2)
    task.cancel()
    await ticks(2)
    assert not future.done()
    future.set_result(5)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_timeout_around_protected_work_is_delivered_after_it() -> None:
    """`asyncio.timeout` sees its own cancellation come back."""
    work = Work()
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01) as limit:
            when = limit.when()
            assert when is not None
            loop.call_at(when + 0.04, work.go_on.set)
            await run_to_completion(work.run())
    assert work.steps == ["begun", "done"]


@pytest.mark.parametrize(
    "kind", [RuntimeError, OSError, KeyboardInterrupt, SystemExit, GeneratorExit, BaseException]
)
async def test_whatever_work_in_a_thread_raises_is_raised(kind: type[BaseException]) -> None:
    """The very object, in the caller's task, when the thread has ended.

    Python makes a `RuntimeError` of a `StopIteration` that leaves a coroutine.
    """
    for error in (kind("x"), StopIteration("x")):

        def work(error: BaseException = error) -> None:
            raise error

        before = threading.active_count()
        with pytest.raises(BaseException) as caught:
            await in_thread("areplay-test", work)
        assert threading.active_count() == before
        assert caught.value is error or caught.value.__cause__ is error
    assert (
        await in_thread("areplay-test", lambda: threading.current_thread().name) == "areplay-test"
    )


async def test_work_in_a_thread_ends_before_its_cancelled_caller_goes_on() -> None:
    """It is told so, if it wants to be; the cancellation is delivered after its end, however often
    it came."""
    for on_cancel in (True, False):
        told, may_end, has_ended = threading.Event(), threading.Event(), threading.Event()

        def work(
            may_end: threading.Event = may_end, has_ended: threading.Event = has_ended
        ) -> None:
            may_end.wait(20)
            has_ended.set()

        task = asyncio.create_task(in_thread("areplay-test", work, told.set if on_cancel else None))
        await ticks(3)
        for _ in range(2):
            task.cancel()
            await ticks(3)
        assert not task.done() and told.is_set() == on_cancel
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert has_ended.is_set()


async def test_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is not done."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    with pytest.raises(ResourceUnavailable, match="can't start new thread"):
        await in_thread("areplay-test", lambda: done.append(1))
    assert not done
