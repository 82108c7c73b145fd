"""The report of a replay: `Replay.statistics` for its own program, a description for programs
outside.

Both only look, from any thread, at counts that the parts of the engine keep anyway.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import time
from collections.abc import Iterator
from typing import Any

from areplay._engine.engine import Engine
from areplay._status.server import FORMAT, VERSION
from areplay.spec import Spec
from areplay.statistics import Statistics, Wait


def statistics_of(engine: Engine) -> Statistics:
    """Counts and states at this moment. From any thread."""
    ring = engine.ring
    groups = list(engine.groups)
    batches = tuple(stream.statistics() for stream in list(engine.streams))
    return Statistics(
        rows=ring.rows_now[0],
        capacity_rows=ring.capacity_rows,
        rows_inserted=ring.rows_inserted[0],
        row_bytes=ring.spec.row_bytes,
        blocks=ring.blocks,
        block_rows=ring.block_rows,
        blocks_started=ring.next_serial[0],
        priorities_updated=engine.counters.priorities_updated,
        priorities_stale=engine.counters.priorities_stale,
        actors=tuple(record for group in groups for record in group.statistics()),
        batches=batches,
        waits=tuple(_waits(engine)),
        opened_at_s=engine.opened_at[0],
        memory_bytes=ring.segment.size_bytes
        + sum(table.size_bytes for table in list(engine.priorities.values()))
        + sum(group.inbox_bytes for group in groups)
        + sum(stream.slots_bytes for stream in batches),
        last_row_at_s=_last_row_at_s(engine),
        saves=engine.saver.statistics(),
    )


def _last_row_at_s(engine: Engine) -> float:
    """Of `time.time()`; 0.0 before the first row of an actor."""
    last_rows_at = engine.coordinator.last_rows_at
    if not last_rows_at:
        return 0.0
    opened_at_s, opened_at_monotonic_s = engine.opened_at
    return opened_at_s + last_rows_at - opened_at_monotonic_s


def _waits(engine: Engine) -> Iterator[Wait]:
    """The waits of this moment."""
    for stream in engine.streams:
        yield from stream.waits()
    held = engine.coordinator.held()
    why = engine.admission.reason() if held else ""
    if not why:  # what held them has ended at this moment
        held = []
    for _, name, waited_s in held:
        yield Wait(name, f"its rows may not be written yet: {why}", waited_s)
    for inbox, wait in (pair for group in engine.groups for pair in group.waits()):
        if not any(inbox is other for other, _, _ in held):
            yield wait
    yield from engine.local_writer.waits()


def description_of(engine: Engine) -> dict[str, Any]:
    """The answer to programs outside, ready for JSON; see docs/observing.md. In the status
    thread."""
    spec = engine.config.spec
    return {
        "format": FORMAT,
        "version": VERSION,
        "pid": os.getpid(),
        "argv": sys.orig_argv,
        "directory": os.readlink("/proc/self/cwd"),
        "time_s": time.time(),
        "uptime_s": time.monotonic() - engine.opened_at[1],
        "versions": _versions(),
        "spec": {
            "fields": [_field(spec, name) for name in spec],
            "is_steps": spec.is_steps,
        },
        "statistics": dataclasses.asdict(statistics_of(engine)),
    }


def _field(spec: Spec, name: str) -> dict[str, Any]:
    field = spec[name]
    return {
        "name": name,
        "shape": list(field.shape),
        "dtype": field.dtype.name,
        "row_bytes": field.row_bytes,
    }


def _versions() -> dict[str, str]:
    """The versions of the packages that a replay is made of."""
    names = ("areplay", "numpy", "uvloop", "aiomultiprocess")
    return {name: sys.modules[name].__version__ for name in names} | {
        "python": platform.python_version()
    }
