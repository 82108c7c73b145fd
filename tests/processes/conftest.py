"""What every test with real children shares: a clean slate before, nothing left after, and a watchdog around."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from multiprocessing import resource_tracker
from types import FrameType

import pytest
import uvloop

from .watching import children, descriptors, is_running, threads, until_now

HUNG_AFTER_S = 100.0
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
    """Children do not import pytest again as their main module, which would double the time they take to start."""
    main = sys.modules["__main__"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "__spec__", None)
        patch.delattr(main, "__file__", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def once_a_process() -> None:
    """What a process opens once and keeps: multiprocessing's resource tracker, and libuv's pipe for signals."""
    resource_tracker.ensure_running()
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def hung_test_fails() -> Iterator[None]:
    """A test that hangs fails rather than taking the others along."""

    def give_up(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"hung for {HUNG_AFTER_S:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, HUNG_AFTER_S, 20.0)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def nothing_left(
    hung_test_fails: None, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
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
    assert threads() <= threads_before
    leaked = {fd: name for fd, name in descriptors().items() if descriptors_before.get(fd) != name}
    assert not leaked, "descriptors left over"
