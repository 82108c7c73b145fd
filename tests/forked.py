"""Forked children for tests: what a function returned, or raised, in a child that `os.fork`
made."""

from __future__ import annotations

import os
import pickle
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def fork() -> int:
    """`os.fork`, without the warnings of Python and of jax that threads are not forked with it:
    that is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        return os.fork()


def in_child(act: Callable[[], Any]) -> Any:
    """What `act()` returns in a forked child, which ends without a word. Fails if it raises."""
    read, write = os.pipe()
    pid = fork()
    if pid == 0:
        said = b""
        try:
            said = pickle.dumps((True, act()))
        except BaseException:
            said = pickle.dumps((False, traceback.format_exc()))
        finally:
            os.write(write, said)  # short enough for a pipe
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    has_returned, value = pickle.loads(said)
    assert has_returned, value
    return value


def outcome(use: Callable[[], Any]) -> Any:
    """The error that a use raises, or "done"; of a coroutine, also "waits" if it would."""
    coroutine = None
    try:
        coroutine = use()
        if hasattr(coroutine, "send"):
            coroutine.send(None)
            return "waits"
    except StopIteration:
        return "done"
    except BaseException as error:
        return error
    finally:
        with suppress(Exception):
            coroutine.close()  # type: ignore[union-attr]
    return "done"


def end(pid: int) -> None:
    """End a child, and reap it."""
    with suppress(ProcessLookupError):
        os.kill(pid, 9)
    os.waitpid(pid, 0)
