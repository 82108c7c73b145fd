"""Kill points: named places where a test lets this very process die, to prove that nothing is lost
there.

`AREPLAY_KILL=point:n` makes the process send itself SIGKILL at its n-th pass of that point. Unset,
`failpoint` is an empty function. A child that was restarted disarms its points, so that one death
is followed by a recovery.
"""

from __future__ import annotations

import os
import signal

_point, _, _count = os.environ.get("AREPLAY_KILL", "").partition(":")
_left = int(_count) if _point else 0


def _armed(point: str) -> None:
    global _left
    if point == _point:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _disarmed(point: str) -> None:
    pass


failpoint = _armed if _point else _disarmed


def disarm() -> None:
    """Let this process pass every point from now on."""
    global _point
    _point = ""
