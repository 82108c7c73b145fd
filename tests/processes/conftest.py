"""What every test with real children shares: a clean slate before, and nothing left after."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from multiprocessing import resource_tracker

import pytest
import uvloop

from .watching import children, descriptors, is_running, threads, until_now

_passed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember which tests passed."""
    report = yield
    if report.when == "call":
        item.stash[_passed] = report.passed
    return report


@pytest.fixture(scope="session", autouse=True)
def plain_main_module() -> Iterator[None]:
    """Children do not import pytest again as their main module, which would double the time they
    take to start."""
    main = sys.modules["__main__"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "__spec__", None)
        patch.delattr(main, "__file__", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def once_a_process() -> None:
    """What a process opens once and keeps: multiprocessing's resource tracker, and libuv's pipe for
    signals."""
    resource_tracker.ensure_running()
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def nothing_left(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """After a test there is no child, no thread and no descriptor that was not there before."""
    gc.collect()
    children_before, threads_before, descriptors_before = children(), threads(), descriptors()
    yield
    caplog.get_records("call").clear()  # they may hold errors, which hold frames, which hold memory
    gc.collect()
    left = children() - children_before
    for pid in left:  # so that the next test has a clean slate all the same
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if left:
        until_now(lambda: not any(is_running(pid) for pid in left))
    if not request.node.stash.get(_passed, False):
        return  # its traceback holds frames, and they hold what they hold
    assert not left, f"children left over: {left}"
    until_now(lambda: threads() <= threads_before, what="threads left over")
    leaked = {fd: name for fd, name in descriptors().items() if descriptors_before.get(fd) != name}
    assert not leaked, "descriptors left over"
