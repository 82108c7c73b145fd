"""What a check of `areplay doctor` returns, and how the report shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

OK = "ok"
WARN = "warn"  # areplay runs, with a restriction
FAIL = "fail"  # areplay cannot run


class Result(NamedTuple):
    """What one check found."""

    status: str
    """`OK`, `WARN` or `FAIL`."""
    value: str
    """What it found, in a few words."""
    meaning: str
    """What that means for the user, in one sentence."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: a `Result`, with the check that it comes from."""

    section: str
    name: str
    status: str
    value: str
    meaning: str
