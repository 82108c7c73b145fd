"""Tests of `_processes.supervisor` that need no process."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from areplay._processes.supervision import SupervisorConfig, SupervisorOptions
from areplay._processes.supervisor import Supervisor
from areplay.errors import ActorFailed


async def _nothing(*args: Any) -> None:
    """A body, and what is done after an exit."""


def test_a_child_holds_its_supervisor() -> None:
    """A loop that watches a child holds the supervisor by it, so both are garbage together: the
    supervisor's finalizer has the loop stop watching."""
    supervisor = Supervisor(
        SupervisorConfig(
            kind="actor",
            count=1,
            body=_nothing,
            arguments=lambda index, run: (),
            options=SupervisorOptions(0, 1.0, 1.0),
            failure=ActorFailed,
            ask=lambda index: None,
            after_exit=_nothing,
            on_change=lambda: None,
        )
    )
    child = supervisor._new_child(supervisor.workers[0])
    reference = weakref.ref(supervisor)
    del supervisor
    gc.collect()
    assert reference() is not None
    del child
    gc.collect()
    assert reference() is None
