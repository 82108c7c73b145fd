"""Tests of `_ingest.quiet_watch`: when a look acts, and what is told of a process that starts."""

from __future__ import annotations

import asyncio
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from areplay._ingest import quiet_watch
from areplay._ingest.actor_config import ActorGroupConfig, actor_program, inbox_options
from areplay._ingest.quiet import quiet_options
from areplay._ingest.running_actors import RunningActors
from areplay._processes.supervision import supervisor_options
from areplay.spec import Spec

SPEC = Spec(number=((), "int64"))


class Watch:
    """Keeps how it was asked to look; the looks end after some."""

    def __init__(self) -> None:
        self.acted: list[bool] = []
        self.is_over = asyncio.Event()

    def look(self, *, acts: bool) -> None:
        """As the real one."""
        self.acted.append(acts)
        if len(self.acted) == 5:
            self.is_over.set()


async def test_the_first_look_that_comes_late_only_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole job may have been stopped. A second late one acts: a learner may always be late."""
    pauses_s = iter([1.0, 100.0, 100.0, 1.0, 100.0, *[1.0] * 1_000])
    now = 0.0
    is_look = False

    def monotonic() -> float:
        """Time passes before each look, and stands still from there to the next sleep."""
        nonlocal now, is_look
        now += next(pauses_s) if is_look else 0.0
        is_look = not is_look
        return now

    monkeypatch.setattr(quiet_watch, "time", SimpleNamespace(monotonic=monotonic))
    real_sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: real_sleep(0))
    watch = Watch()
    looking = asyncio.create_task(quiet_watch._look_at_intervals(weakref.ref(watch), 1.0))  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        await watch.is_over.wait()
    looking.cancel()
    assert watch.acted == [True, False, True, True, False]


async def program(actor: object) -> None:
    """Never run."""


async def test_a_successor_that_hands_nothing_in_is_in_its_first_reset() -> None:
    """Rows of its predecessor do not count as its own."""
    config = ActorGroupConfig(
        number=0,
        seeds=np.random.SeedSequence(1),
        spec=SPEC,
        body=program,
        program=actor_program(program, (), None, None, None),
        count=1,
        inbox=inbox_options(SPEC, 8),
        supervisor=supervisor_options(3, 60.0, 2.0),
        quiet=quiet_options(10.0, None),
        raises=False,
    )
    running = RunningActors(config, SimpleNamespace(), lambda: None)  # type: ignore[arg-type]
    assert "first reset" in running._quiet.cause(0)
    running._inbox[0].put({"number": 1})
    assert "its environment may hang" in running._quiet.cause(0)
    (given,) = running._arguments(0, 1)
    assert (given.index, given.seeds.spawn_key) == (0, (0, 1))
    assert "first reset" in running._quiet.cause(0)
    running._inboxes.close()
