"""Tests of `_processes.event_loops`."""

from __future__ import annotations

import asyncio
import logging
import os
import select
from collections.abc import Callable

import pytest
import uvloop

from areplay._processes.event_loops import abandon, leave_to_parent, replace_epoll
from tests.forked import in_child


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_child_closes_its_loop_without_taking_anything_from_its_parents(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """It runs the tasks that are left to their end, with a thread that hands it something, and
    closes: the parent's loop still wakes for its descriptors and threads."""
    loop = new_loop()
    read, write = os.pipe()
    heard = []

    async def rest() -> None:
        await asyncio.sleep(1_000)

    async def wait_in_thread() -> str:
        return await asyncio.to_thread(lambda: "from a thread")

    async def begin() -> asyncio.Task[None]:
        leave_to_parent(loop)
        loop.add_reader(read, lambda: heard.append(os.read(read, 1)))
        return asyncio.create_task(rest(), name="areplay rests")

    task = loop.run_until_complete(begin())

    def leave() -> tuple[str, bool]:
        said = loop.run_until_complete(wait_in_thread())
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.remove_reader(read)
        loop.close()
        return said, task.cancelled()

    assert in_child(leave) == ("from a thread", True)

    async def hear() -> None:
        os.write(write, b"x")
        async with asyncio.timeout(30.0):
            while not heard:  # noqa: ASYNC110  the reader of a descriptor sets no event
                await asyncio.sleep(0.001)
        assert await wait_in_thread() == "from a thread"

    loop.run_until_complete(hear())
    assert not task.done()
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.remove_reader(read)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    for descriptor in (read, write):
        os.close(descriptor)


def test_only_an_epoll_is_replaced() -> None:
    """Whatever else has that number by now stays."""
    read, write = os.pipe()
    replace_epoll(read)
    os.write(write, b"x")
    assert os.read(read, 1) == b"x"
    with select.epoll() as epoll:
        epoll.register(read, select.EPOLLIN)
        replace_epoll(epoll.fileno())
        assert not os.get_inheritable(epoll.fileno())
        os.write(write, b"x")
        assert epoll.poll(0.0) == []
    os.close(read)
    os.close(write)


def test_a_child_changes_its_loop_by_an_io_uring_of_its_own() -> None:
    """libuv submits to a ring in shared memory: a child's loop hears of a descriptor, by a ring of
    its own."""

    def rings() -> set[int]:
        links = {int(name): f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")}
        return {
            os.fstat(fd).st_ino
            for fd, link in links.items()
            if os.path.lexists(link) and os.readlink(link) == "anon_inode:[io_uring]"
        }

    loop = uvloop.new_event_loop()
    read, write = os.pipe()

    async def begin() -> None:
        leave_to_parent(loop)

    async def hear() -> bytes:
        heard = loop.create_future()
        loop.add_reader(read, lambda: heard.done() or heard.set_result(os.read(read, 1)))
        os.write(write, b"x")
        try:
            async with asyncio.timeout(30.0):
                return bytes(await heard)
        finally:
            loop.remove_reader(read)

    loop.run_until_complete(begin())
    shared = rings()  # empty where the kernel or a sandbox has none
    assert in_child(lambda: (rings() & shared, loop.run_until_complete(hear()), loop.close())) == (
        set(),
        b"x",
        None,
    )
    assert loop.run_until_complete(hear()) == b"x"
    loop.close()
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_is_cut_short_in_a_child_is_not_complained_of(
    new_loop: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    """Tasks of areplay's that fail or are dropped there say nothing; those of the user's do, by the
    user's handler."""
    loop, told = new_loop(), []
    loop.set_exception_handler(lambda loop, context: told.append(context["message"]))

    async def fail() -> None:
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            raise ZeroDivisionError from None

    async def begin(name: str) -> asyncio.Task[None]:
        leave_to_parent(loop)
        task = asyncio.create_task(fail(), name=name)
        await asyncio.sleep(0)
        return task

    tasks = [
        loop.run_until_complete(begin(name))
        for name in ("areplay fails", "areplay is dropped", "the user's")
    ]

    def end() -> tuple[list[str], int]:
        tasks[2].cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        dropped = loop.create_task(fail(), name="areplay is new")
        abandon(loop)
        del dropped
        tasks.clear()
        return told, len([record for record in caplog.records if record.levelno >= logging.ERROR])

    assert in_child(end) == (["Task exception was never retrieved"], 0)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()
