"""The clock that all processes of a host share, and lines about what is going on."""

from __future__ import annotations

import sys
import time


def clock() -> float:
    """Seconds on the clock that all processes of a host share."""
    return time.monotonic()


def progress(line: str) -> None:
    """A line about what is going on, beside the table and not in it."""
    print(f"  {line}", file=sys.stderr, flush=True)
