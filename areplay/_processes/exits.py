"""Exits: how a child ended, as far as the kernel and the child itself tell."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Exit:
    """How a child ended: `finished` if its body returned, with `details` if not.

    `code` is negative for a signal. It is None where the kernel did not tell: SIGCHLD is ignored,
    or other code in this process collected it.
    """

    pid: int
    code: int | None
    finished: bool
    details: str


def reaped(pid: int, pidfd: int) -> tuple[bool, int | None]:
    """Reap a process without waiting: whether it is gone, and its exit code.

    The code is None until the process is gone.

    Raises:
        ChildProcessError: other code has reaped it.
    """
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        raise
    except OSError:  # Linux 5.3, or a sandbox
        reaped, status = os.waitpid(pid, os.WNOHANG)
        return bool(reaped), os.waitstatus_to_exitcode(status) if reaped else None
    if result is None:
        return False, None
    is_signal = result.si_code != os.CLD_EXITED
    return True, -result.si_status if is_signal else result.si_status


def guess(code: int | None, is_ready: bool, has_finished: bool) -> str:
    """Explain the end of a child that did not say why it ended.

    Args:
        code: its exit code; None if that is unknown.
        is_ready: whether it has said READY.
        has_finished: whether its body returned, and the tasks that the body left ended.
    """
    if has_finished:
        return ""
    if code is not None and code < 0:
        return f"signal {-code} ended it; kernel log or supervisor may say who sent it"
    if not is_ready:
        return (
            "it ended before it said READY, see its output above; a script that starts actors "
            "needs the line `if __name__ == '__main__':` around its `areplay.run(...)`"
        )
    if code is None:
        return (
            "it ended without a word; SIGCHLD is ignored, or other code in this process "
            "collected its exit code"
        )
    return "it ended without a word, by os._exit or in native code"
