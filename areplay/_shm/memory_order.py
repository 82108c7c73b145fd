"""Memory order between processes, in one place.

x86-64 keeps stores in the order of the program, and loads too; only a store followed by a load of
another word may swap, and the non-temporal stores inside a large memcpy are ordered by its own
final `sfence` but not against the plain store before them. Elsewhere (ARM) anything may swap.
Python itself promises nothing, but a call into C is never moved by the interpreter. So:

- `fence()` orders everything against everything. On x86-64 it takes a free lock, whose locked
  instruction is a full barrier (80 ns); elsewhere it calls `atomic_thread_fence` of libatomic (300
  ns).
- `order()` keeps stores among stores and loads among loads: nothing at all on x86-64, `fence()`
  elsewhere.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Callable

from areplay._base import forks

_SEQ_CST = 5
_X86 = platform.machine() in ("x86_64", "AMD64")


def _locked_instruction() -> Callable[[], None]:
    # Re-entrant, or a signal handler that needs a fence would deadlock when it interrupts the
    # holder.
    lock = forks.register_lock(threading.RLock())
    acquire, release = lock.acquire, lock.release

    def fence() -> None:
        acquire()
        release()

    return fence


def _libatomic() -> Callable[[], None]:
    try:
        thread_fence = ctypes.CDLL("libatomic.so.1").atomic_thread_fence
    except OSError as error:
        raise ImportError(
            f"areplay needs libatomic.so.1 on {platform.machine()}: install libatomic1"
        ) from error

    def fence() -> None:
        thread_fence(_SEQ_CST)

    return fence


def _nothing() -> None:
    pass


fence: Callable[[], None] = _locked_instruction() if _X86 else _libatomic()
order: Callable[[], None] = _nothing if _X86 else fence
