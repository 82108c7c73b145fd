"""Row 25: processes that are stopped and go on in another order, with kills in between. A minute in
`make faults`."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from areplay._processes.worker import Worker
from tests.faults.storm import KINDS, Outcome, Resources, Round

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

IS_LONG = os.environ.get("AREPLAY_FAULTS") == "long"
SECONDS = 60.0 if IS_LONG else 5.0
PROGRESS_S = 5.0
SLOWEST_S = 4 * PROGRESS_S  # on a machine that has other things to do; the promise is 5 s


class Swizzle(Round):
    """A round in which children are stopped one by one, and let go on one by one, in another
    order."""

    stops = 0
    slowest_s = 0.0

    async def _strike(self, workers: list[Worker]) -> None:
        """Stop, kill and let go on at random moments; at least one actor and one sampler always
        run."""
        actors, samplers = workers[: self.actors], workers[self.actors :]
        stopped: dict[int, int] = {}  # by id of a member: the process id of its child
        ends, seen, seen_at = time.monotonic() + SECONDS, self.batches, time.monotonic()
        while time.monotonic() < ends:
            await self._pause(0.1)
            now = time.monotonic()
            if self.batches > seen:
                self.slowest_s, seen, seen_at = (
                    max(self.slowest_s, now - seen_at),
                    self.batches,
                    now,
                )
            assert now < seen_at + SLOWEST_S, "progress, with at least one live actor and sampler"
            supervisor = self.chance.choice([actors, samplers])
            running = [m for m in supervisor if m.is_alive and id(m) not in stopped]
            if self.chance.random() < 0.5:
                if len(running) > 1:
                    stopped |= self._stop(self.chance.choice(running))
            elif stopped:
                self._go_on(stopped.pop(self.chance.choice(list(stopped))))
            if self.chance.random() < 0.1 and len(running) > 1:
                victim = self.chance.choice(
                    [m for m in supervisor if id(m) in stopped] or running[1:]
                )
                self._kill(victim)
                stopped.pop(id(victim), None)
        for pid in stopped.values():
            self._go_on(pid)

    async def _pause(self, seconds: float) -> None:
        ends = time.monotonic() + self.chance.uniform(0.0, 2 * seconds)
        await self._until(lambda: time.monotonic() > ends, "time passes")

    def _stop(self, member: Worker) -> dict[int, int]:
        assert member.child is not None
        with suppress(ProcessLookupError):
            os.kill(member.child.pid, signal.SIGSTOP)
        self.stops += 1
        return {id(member): member.child.pid}

    @staticmethod
    def _go_on(pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    "kind",
    [kind for kind in KINDS if kind.name == "lapped" or (IS_LONG and kind.name == "paced")],
    ids=lambda k: k.name,
)
async def test_stopped_processes_hold_nobody_up(kind: object, tmp_path: Path) -> None:
    """Batches go on while others are stopped; nothing is torn, lost or there twice when all are
    back; and as many descriptors, mappings, threads and processes are there as before."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    outcome, before = Outcome(seed), Resources.now()
    swizzle = Swizzle(kind, outcome, random.Random(seed), 0, 3, 3, 0.0, tmp_path)  # type: ignore[arg-type]
    await swizzle.run()
    print(
        f"{swizzle.stops} stops, {outcome.kills} kills, at most {swizzle.slowest_s:.2f} s "
        "without a batch"
    )
    assert outcome.is_clean, outcome.notes
    assert swizzle.stops > 0
    assert Resources.now().left_over(before) == []
