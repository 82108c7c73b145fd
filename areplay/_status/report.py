"""Observed: what a replay does to be looked at, by its own program and from outside.

`statistics` is what the program asks; whoever asks from outside (`areplay top`) gets the same and
what the process is, see `areplay._status.server`. Both only look, at counts that others keep
anyway, and may be called from any thread.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from areplay._base import forks
from areplay._checkpoint.service import Saver
from areplay._ingest.actor_group import ActorGroup
from areplay._ingest.admission import Admission
from areplay._ingest.coordinator import Coordinator
from areplay._ingest.local_writer import LocalWriter
from areplay._processes.dropped import Living, unless_gone
from areplay._sampling.standstill import Standstill
from areplay._sampling.stream import Stream
from areplay._status.server import FORMAT, VERSION, StatusServer
from areplay._storage.priorities import Priorities
from areplay._storage.ring import Ring
from areplay.errors import ActorFailed
from areplay.spec import Spec
from areplay.statistics import Statistics, Wait


class Observed(ABC):
    """What a replay consists of, as far as it can be seen.

    Attributes:
        spec: the fields of a row.
    """

    spec: Spec
    _admission: Admission
    _standstill: Standstill

    def __init__(self) -> None:
        super().__init__()
        self._priorities: dict[float, Priorities] = {}
        self._updated = self._stale = 0  # priorities
        self._groups: Living[ActorGroup] = Living()  # the user's: those that are dropped leave
        self._streams: Living[Stream] = Living()
        self._saver: Saver | None = None  # these while it is open
        self._coordinator: Coordinator | None = None
        self._local_writer: LocalWriter | None = None
        self._status_server: StatusServer | None = None
        self._opened_at = time.time(), time.monotonic()  # the same moment
        self._origin: forks.Origin | None = None  # the process that has opened it

    def statistics(self) -> Statistics:
        """Counts and states at this moment. From any thread."""
        ring = self._opened()
        assert self._saver is not None
        groups, streams = list(self._groups), list(self._streams)
        batches = tuple(stream.statistics() for stream in streams)
        last_rows_at = self._coordinator_now().last_rows_at
        return Statistics(
            rows=ring.rows_now[0],
            capacity_rows=ring.capacity_rows,
            rows_inserted=ring.rows_inserted[0],
            row_bytes=self.spec.row_bytes,
            blocks=ring.blocks,
            block_rows=ring.block_rows,
            blocks_started=ring.next_serial[0],
            priorities_updated=self._updated,
            priorities_stale=self._stale,
            actors=tuple(record for group in groups for record in group.statistics()),
            batches=batches,
            waits=tuple(self._waits()),
            opened_at_s=self._opened_at[0],
            memory_bytes=ring.segment.size_bytes
            + sum(priorities.size_bytes for priorities in list(self._priorities.values()))
            + sum(group.inbox_bytes for group in groups)
            + sum(stream.slots_bytes for stream in batches),
            last_row_at_s=self._opened_at[0] + last_rows_at - self._opened_at[1]
            if last_rows_at
            else 0.0,
            saves=self._saver.statistics(),
        )

    def _waits(self) -> Iterator[Wait]:
        """Who waits at this moment."""
        for stream in self._streams:
            yield from stream.waits()
        held = self._coordinator_now().held()
        why = self._admission.reason() if held else ""
        if not why:  # what held them has ended at this moment
            held = []
        for _, name, waited_s in held:
            yield Wait(name, f"its rows may not be written yet: {why}", waited_s)
        for inbox, wait in (pair for group in self._groups for pair in group.waits()):
            if not any(inbox is other for other, _, _ in held):
                yield wait
        yield from self._own().waits()

    def _serve_status(self) -> None:
        """From now on, answer those who ask from outside."""
        self._opened_at = time.time(), time.monotonic()
        self._status_server = StatusServer(unless_gone(self._description, "this replay"))

    def _description(self) -> dict[str, Any]:
        """The answer, ready for JSON; see docs/observing.md. In the thread of the address."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "pid": os.getpid(),
            "argv": sys.orig_argv,
            "directory": os.readlink("/proc/self/cwd"),
            "time_s": time.time(),
            "uptime_s": time.monotonic() - self._opened_at[1],
            "versions": _versions(),
            "spec": {
                "fields": [_field(self.spec, name) for name in self.spec],
                "is_steps": self.spec.is_steps,
            },
            "statistics": dataclasses.asdict(self.statistics()),
        }

    def _on_change(self) -> None:
        failure = self._failure_to_raise()
        for stream in self._streams:
            stream.tell_failure(failure)
            stream.look_again()

    def _failure_to_raise(self) -> ActorFailed | None:
        return next(
            (failure for group in self._groups if (failure := group.failure_to_raise) is not None),
            None,
        )

    def _why_hopeless(self) -> str:
        """Why rows of this process can never be written; "" if they may be."""
        return self._standstill.why_hopeless()

    @abstractmethod
    def _opened(self) -> Ring:
        """The ring; raises `Closed` if there is none."""

    @property
    def _is_foreign(self) -> bool:
        """Whether another process has opened it, and this one was forked from that."""
        return self._origin is not None and self._origin is not forks.current

    def _check_process(self) -> None:
        if self._origin is not None:
            forks.check(self._origin, "this replay")

    def _own(self) -> LocalWriter:
        self._opened()
        assert self._local_writer is not None
        return self._local_writer

    def _coordinator_now(self) -> Coordinator:
        assert self._coordinator is not None
        return self._coordinator


def _field(spec: Spec, name: str) -> dict[str, Any]:
    field = spec[name]
    return {
        "name": name,
        "shape": list(field.shape),
        "dtype": field.dtype.name,
        "row_bytes": field.row_bytes,
    }


def _versions() -> dict[str, str]:
    """Of what a replay is made of."""
    names = ("areplay", "numpy", "uvloop", "aiomultiprocess")
    return {name: sys.modules[name].__version__ for name in names} | {
        "python": platform.python_version()
    }
