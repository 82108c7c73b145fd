"""The storm: random SIGKILLs of actors and samplers under full load, with an exact oracle.

    python -m tests.faults.storm --kills 5000 [--seed N] [--actors 3] [--samplers 5]

It goes in rounds. Each has a replay of its own, of one of five kinds that take turns:

    all kept      every row stays in the ring, so that each life of an actor is compared with its
                  ledger
    lapped        a small ring that is overwritten all the time, by actors with small inboxes
    prioritised   the same, with priorities that change with every batch
    paced         with a limiter: actors and learner wait for each other
    in order      Fifo: each row is delivered once, and in order

Each actor writes how many rows it is about to hand in (pending) and how many were accepted (acked)
to a file mapping of its own, which outlives it. At the end of a round: acked <= stored <= pending
for every life, no row twice, none torn; and every batch on the way was whole, and of rows that
somebody did hand in. Between rounds the process has as many descriptors, mappings, threads and
children as before the first one.

The choice of victims and moments repeats with the seed; what they were doing at that moment is the
machine's choice. A strike waits until half of the children are ready: on a machine so busy that a
child takes longer to start than it would live, a storm would otherwise show no more than that the
dead do no work. How long the learner waited is told twice: in all, and while nobody was missing
whom it needed (a sampler; where batches come in turn, or actors are waited for, all).
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import faulthandler
import gc
import logging
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import areplay
from areplay._processes import worker as worker_module
from areplay._processes.worker import Worker
from tests.processes.oracle import SPEC, torn
from tests.processes.watching import (
    children,
    running_actors,
    shared_memory_bytes,
    threads,
    until_now,
)

from . import workers

HUNG_AFTER_S = 60.0
ROUND_KILLS = 100
WATCHDOG_S = 900.0
BATCH_SIZE = 256
MEMORY_TOLERANCE_BYTES = 64 << 20  # of the interpreter's own allocator, after thousands of restarts
_ALL_AT_ONCE = 0.02  # the share of strikes that hit everybody
# the share of strikes at a starting child that miss: else few would ever run
_SPARED_AT_START = 0.7
_LIMIT = 1 << 30


@dataclass(frozen=True)
class Kind:
    """What the replay of a round is like."""

    name: str
    capacity: int
    inbox_rows: int | None = None
    selector: Callable[[], Any] = areplay.Uniform
    limiter: Callable[[], areplay.SamplesPerInsert | None] = lambda: None
    needs_all: bool = False  # the learner waits for each of the children, not for any sampler


KINDS = (
    Kind("all kept", 4_000_000),
    Kind("lapped", 20_000, inbox_rows=64),
    Kind("prioritised", 20_000, inbox_rows=512, selector=areplay.Prioritized),
    Kind(
        "paced",
        50_000,
        limiter=lambda: areplay.SamplesPerInsert(4.0, min_size_to_sample=1_000),
        needs_all=True,
    ),
    Kind("in order", 50_000, inbox_rows=512, selector=areplay.Fifo, needs_all=True),
)


@dataclass
class Resources:
    """What this process holds at one moment."""

    descriptors: int
    mappings: int
    threads: int
    processes: int
    memory_bytes: int
    shared_bytes: int

    @classmethod
    def now(cls) -> Resources:
        """Count them, once the threads that nobody waits for have ended."""
        until_now(lambda: not any(name.startswith("areplay-files") for name in threads()))
        gc.collect()
        # what is free, but kept by the C library, for threads that compared many rows
        ctypes.CDLL(None).malloc_trim(0)
        status = Path("/proc/self/status").read_text()
        return cls(
            descriptors=len(os.listdir("/proc/self/fd")) - 1,
            mappings=Path("/proc/self/maps").read_text().count("memfd:areplay"),
            # idle ones of its executor
            threads=sum(not name.startswith("uvloop_") for name in threads()),
            processes=len(children()),
            memory_bytes=int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024,  # type: ignore[index]
            shared_bytes=shared_memory_bytes(),
        )

    def left_over(self, before: Resources) -> list[str]:
        """What is more than before."""
        found = [
            f"{name}: {getattr(before, name)} before, {getattr(self, name)} after"
            for name in ("descriptors", "mappings", "threads", "processes")
            if getattr(self, name) > getattr(before, name)
        ]
        if self.memory_bytes > before.memory_bytes + MEMORY_TOLERANCE_BYTES:
            found.append(
                f"memory: {before.memory_bytes:,} bytes before, {self.memory_bytes:,} after"
            )
        return found


@dataclass
class Outcome:
    """What a storm found."""

    seed: int
    kills: int = 0
    kills_while_starting: int = 0
    rounds: int = 0
    torn: int = 0
    lost: int = 0
    duplicated: int = 0
    invented: int = 0
    hung: int = 0
    rows: int = 0
    lives: int = 0
    lives_compared: int = 0
    batches: int = 0
    longest_wait_s: float = 0.0
    longest_wait_served_s: float = 0.0
    recoveries_s: list[float] = field(default_factory=list)
    before: Resources | None = None
    after: Resources | None = None
    duration_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether all is as it must be."""
        return not (
            self.torn or self.lost or self.duplicated or self.invented or self.hung or self.notes
        )

    def note(self, text: str) -> None:
        """Something that must not be."""
        self.notes.append(text)
        print(f"VIOLATION: {text}", flush=True)

    def table(self) -> str:
        """All of it, for people."""
        recoveries = np.array(self.recoveries_s or [0.0])
        lines = [
            ("seed", str(self.seed)),
            (
                "kills",
                f"{self.kills:,}, {self.kills_while_starting:,} of them of a child that was "
                "starting",
            ),
            ("duration", f"{self.duration_s:,.0f} s, {self.rounds} rounds"),
            (
                "rows stored",
                f"{self.rows:,}, of {self.lives:,} lives, {self.lives_compared:,} "
                "compared one by one",
            ),
            ("batches", f"{self.batches:,} of {BATCH_SIZE}"),
            ("torn", str(self.torn)),
            ("acked but lost", str(self.lost)),
            ("duplicated", str(self.duplicated)),
            ("never handed in", str(self.invented)),
            ("hung", str(self.hung)),
            ("longest learner wait", f"{self.longest_wait_s:.2f} s"),
            ("with all ready whom it needed", f"{self.longest_wait_served_s:.3f} s"),
            (
                "kill to READY of the successor",
                f"median {np.median(recoveries):.2f} s, p99 {np.quantile(recoveries, 0.99):.2f} s, "
                f"max {recoveries.max():.2f} s",
            ),
        ]
        if self.before is not None and self.after is not None:
            for name in ("descriptors", "mappings", "threads", "processes"):
                lines.append(
                    (
                        name,
                        f"{getattr(self.before, name)} before, {getattr(self.after, name)} after",
                    )
                )
            for name in ("memory_bytes", "shared_bytes"):
                before, after = (
                    getattr(self.before, name) / 2**20,
                    getattr(self.after, name) / 2**20,
                )
                lines.append(
                    (name.replace("_bytes", ""), f"{before:.1f} MiB before, {after:.1f} MiB after")
                )
        lines += [("violation", note) for note in self.notes]
        return "\n".join(f"{name:32}{value}" for name, value in lines)


class Round:
    """One replay and all that happens to it."""

    def __init__(
        self,
        kind: Kind,
        outcome: Outcome,
        chance: random.Random,
        kills: int,
        actors: int,
        samplers: int,
        interval_s: float,
        folder: Path,
    ) -> None:
        self.kind, self.outcome, self.chance, self.kills = kind, outcome, chance, kills
        self.actors, self.samplers, self.interval_s, self.folder = (
            actors,
            samplers,
            interval_s,
            folder,
        )
        self.batches = 0
        self.peak_wait_s = 0.0
        self.delivered: dict[tuple[int, int], int] = defaultdict(int)  # by life, if in order
        self.delivered_rows = 0
        self._pending: dict[tuple[int, int], int] = defaultdict(int)  # as last read
        # by id of the member: it, the pid killed, and when
        self._down: dict[int, tuple[Worker, int, float]] = {}

    async def run(self) -> None:
        """From the opening of the replay to the last comparison."""
        outcome, kind = self.outcome, self.kind
        async with areplay.Replay(SPEC, kind.capacity) as replay:
            async with (  # the batches first: in order are delivered what comes after that
                replay.batches(
                    batch_size=BATCH_SIZE,
                    samplers=self.samplers,
                    prefetch=2 * self.samplers,
                    selector=kind.selector(),
                    limiter=kind.limiter(),
                    max_restarts=_LIMIT,
                    timeout_s=HUNG_AFTER_S,
                ) as batches,
                replay.actors(
                    workers.without_pause,
                    self.actors,
                    args=(str(self.folder),),
                    inbox_rows=kind.inbox_rows,
                    max_restarts=_LIMIT,
                ) as actors,
            ):
                samplers = batches._stream.queue.supervisor.workers
                actor_places = running_actors(actors)._supervisor.workers
                places = actor_places + samplers
                held = len(os.listdir("/proc/self/fd"))
                async with asyncio.TaskGroup() as group:
                    learner = group.create_task(self._learn(replay, batches))
                    watcher = group.create_task(self._watch(actor_places, samplers))
                    await self._strike(places)
                    await self._until(
                        lambda: all(m.is_alive for m in places) and not self._down, "all are back"
                    )
                    at = self.batches
                    await self._until(lambda: self.batches > at + 10, "batches go on")
                    if kind.capacity <= 50_000:
                        inserted = replay.statistics().rows_inserted
                        await self._until(
                            lambda: replay.statistics().rows_inserted > inserted, "rows come in"
                        )
                    with suppress(AssertionError):
                        await self._until(
                            lambda: len(os.listdir("/proc/self/fd")) <= held, "", within=5.0
                        )
                    if (now := len(os.listdir("/proc/self/fd"))) > held:
                        outcome.note(
                            f"{kind.name}: {now} descriptors with all children back, "
                            f"{held} at first"
                        )
                    await actors.close()
                    coordinator = replay._opened().coordinator
                    assert coordinator is not None
                    await self._until(lambda: not coordinator.has_rows, "all rows are taken")
                    if isinstance(batches._stream.config.selector, areplay.Fifo):
                        total = replay.statistics().rows_inserted
                        await self._until(
                            lambda: self.delivered_rows > total - BATCH_SIZE,
                            "all rows are delivered",
                        )
                    watcher.cancel()
                    learner.cancel()
                statistics = batches.statistics()
                batches._stream.queue.slots.check()
                self.peak_wait_s = statistics.peak_learner_wait_s
                outcome.longest_wait_s = max(outcome.longest_wait_s, self.peak_wait_s)
            outcome.batches += self.batches
            await asyncio.to_thread(self._compare, replay)

    async def _learn(self, replay: areplay.Replay, batches: areplay.Batches) -> None:
        """Take batches, and look at each of them."""
        in_order = isinstance(batches._stream.config.selector, areplay.Fifo)
        is_prioritised = isinstance(batches._stream.config.selector, areplay.Prioritized)
        async for batch in batches:
            self.outcome.torn += torn(batch)
            actors, lives, numbers = batch["actor"], batch["life"], batch["number"]
            for life in np.unique(lives):
                mine = lives == life
                name, of_life = (int(actors[mine][0]), int(life)), numbers[mine]
                if int(of_life.max()) >= self._pending[name]:
                    self._pending[name] = workers.read_ledger(self.folder / f"{name[0]}-{name[1]}")[
                        1
                    ]
                    self.outcome.invented += int(np.count_nonzero(of_life >= self._pending[name]))
                if in_order:
                    start = self.delivered[name]
                    self.outcome.duplicated += int(np.count_nonzero(of_life < start))
                    if not np.array_equal(of_life, np.arange(start, start + len(of_life))):
                        self.outcome.note(
                            f"life {name}: delivered {of_life[:3]} ... where {start} was next"
                        )
                    self.delivered[name] = int(of_life.max()) + 1
            if is_prioritised:
                replay.update_priorities(batch.indices, numbers % 7 + 1.0)
            self.batches += 1
            self.delivered_rows += len(numbers)

    async def _strike(self, workers: list[Worker]) -> None:
        """Kill so many, at random moments."""
        done = 0
        while done < self.kills:
            await asyncio.sleep(self.chance.uniform(0.0, 2 * self.interval_s))
            everybody = self.chance.random() < _ALL_AT_ONCE
            await self._until(
                lambda: 2 * sum(m.is_alive for m in workers) >= len(workers),
                "half of all are ready",
            )
            victim, is_spared = self.chance.choice(workers), self.chance.random() < _SPARED_AT_START
            for member in workers if everybody else [victim]:
                is_starting = member.child is not None and not member.child.is_ready
                if done < self.kills and (everybody or not is_starting or not is_spared):
                    done += self._kill(member)

    def _kill(self, member: Worker) -> bool:
        child = member.child
        if child is None or not child.pid or child.exit is not None:
            return False  # its place is empty at this moment
        down = self._down.get(id(member))
        if down is not None and down[1] == child.pid:
            return False  # dead, and nobody has noticed yet
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        self.outcome.kills += 1
        self.outcome.kills_while_starting += not child.is_ready
        self._down[id(member)] = member, child.pid, time.monotonic() if down is None else down[2]
        return True

    async def _watch(self, actors: list[Worker], samplers: list[Worker]) -> None:
        """See who is back, how long that took, and how long the learner waits though nobody is
        missing."""
        needed = len(actors) + len(samplers) if self.kind.needs_all else 1
        at, since, those = 0, time.monotonic(), set[int]()
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            able = actors + samplers if self.kind.needs_all else samplers
            ready = {m.child.pid for m in able if m.is_alive and m.child is not None}
            those &= ready
            if self.batches == at > 0 and len(those) >= needed:
                self.outcome.longest_wait_served_s = max(
                    self.outcome.longest_wait_served_s, now - since
                )
            else:
                at, since, those = self.batches, now, ready
            for key, (member, pid, since) in list(self._down.items()):
                if member.is_alive and member.child is not None and member.child.pid != pid:
                    self.outcome.recoveries_s.append(now - since)
                    del self._down[key]

    async def _until(
        self, condition: Callable[[], bool], what: str, within: float = HUNG_AFTER_S
    ) -> None:
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
            await asyncio.sleep(0.005)

    def _compare(self, replay: areplay.Replay) -> None:
        """Everything that is stored with everything that was promised."""
        outcome = self.outcome
        inserted = replay.statistics().rows_inserted
        promised = {}
        for path in self.folder.iterdir():
            actor, _, life = path.name.partition("-")
            promised[int(actor), int(life)] = workers.read_ledger(path)
        ends = self._ends(replay)
        acked = sum(counts[0] for counts in promised.values())
        pending = sum(counts[1] for counts in promised.values())
        outcome.lost += max(0, acked - inserted)
        outcome.invented += max(0, inserted - pending)
        outcome.rows += inserted
        outcome.lives += len(promised)
        is_whole = inserted <= replay.capacity_rows and len(replay) == inserted
        for name, (of_acked, of_pending) in promised.items():
            if name in ends or is_whole:
                stored = max(ends.get(name, 0), self.delivered.get(name, 0))
                outcome.lost += max(0, of_acked - stored)
                outcome.invented += max(0, stored - of_pending)
                outcome.lives_compared += 1
            elif name in self.delivered:  # every row of it was delivered
                outcome.lost += max(0, of_acked - self.delivered[name])
                outcome.lives_compared += 1
        if unknown := ends.keys() - promised.keys():
            outcome.note(f"rows of lives that nobody lived: {unknown}")

    def _ends(self, replay: areplay.Replay) -> dict[tuple[int, int], int]:
        """Of each life that has rows in the ring: the number after the last one. Counts what is
        torn or there twice."""
        ring = replay._opened().ring
        assert ring is not None
        serials, counts = ring.occupied()
        blocks: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for serial, count in zip(serials.tolist(), counts.tolist(), strict=True):
            blocks[ring.chain(serial)[0]].append((serial, count))
        ends: dict[tuple[int, int], int] = {}
        for stream, mine in blocks.items():
            places = np.concatenate(
                [
                    serial % ring.blocks * ring.block_rows + np.arange(count)
                    for serial, count in sorted(mine)
                ]
            )
            columns = {name: column[places] for name, column in ring.columns.items()}
            self.outcome.torn += torn(columns)
            names = {(int(columns["actor"][k]), int(columns["life"][k])) for k in (0, -1)}
            if len(names) > 1 or len(np.unique(columns["life"])) > 1:
                self.outcome.note(f"stream {stream} has rows of several lives: {names}")
            name = names.pop()
            steps = np.diff(columns["number"])
            self.outcome.duplicated += int(np.count_nonzero(steps <= 0)) + (name in ends)
            # A block that a reader held is left alone for a lap, and may outlive its neighbours.
            if (gaps := int(np.count_nonzero(steps > 1))) and self.kind.capacity > 50_000:
                self.outcome.note(f"life {name}: {gaps} gaps")
            ends[name] = int(columns["number"][-1]) + 1
        return ends


async def storm(
    kills: int,
    seed: int,
    *,
    actors: int = 3,
    samplers: int = 5,
    interval_s: float = 0.1,
    round_kills: int = ROUND_KILLS,
    kinds: tuple[Kind, ...] = KINDS,
    progress: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """So many kills, in rounds; what was found. Stops at the first round that hangs."""
    outcome, chance, longest = Outcome(seed), random.Random(seed), worker_module._LONGEST_BACK_OFF_S
    worker_module._LONGEST_BACK_OFF_S = 0.05  # pauses of seconds would leave little to kill
    started = time.monotonic()
    try:
        # what is opened once and kept
        await _round(kinds[0], outcome, chance, 0, actors, samplers, interval_s)
        outcome.before = Resources.now()
        while outcome.kills < kills and not outcome.hung:
            kind = kinds[outcome.rounds % len(kinds)]
            share = min(round_kills, kills - outcome.kills)
            peak_wait_s = await _round(kind, outcome, chance, share, actors, samplers, interval_s)
            outcome.rounds += 1
            outcome.after, outcome.duration_s = Resources.now(), time.monotonic() - started
            for text in outcome.after.left_over(outcome.before):
                outcome.note(f"left over after a round that was {kind.name}: {text}")
            progress(
                f"{outcome.duration_s:6.0f} s  {outcome.kills:5,} kills  {kind.name:12}  "
                f"{outcome.rows:12,} rows  {outcome.batches:9,} batches  torn {outcome.torn}  lost "
                f"{outcome.lost}  duplicated {outcome.duplicated}  hung {outcome.hung}  longest "
                f"wait {peak_wait_s:5.2f} s  {outcome.after.descriptors} descriptors  "
                f"{outcome.after.memory_bytes / 2**20:.0f} MiB"
            )
    finally:
        worker_module._LONGEST_BACK_OFF_S = longest
    return outcome


async def _round(
    kind: Kind,
    outcome: Outcome,
    chance: random.Random,
    kills: int,
    actors: int,
    samplers: int,
    interval_s: float,
) -> float:
    """The longest wait of its learner."""
    with tempfile.TemporaryDirectory(prefix="areplay-storm-") as folder:
        one = Round(kind, outcome, chance, kills, actors, samplers, interval_s, Path(folder))
        try:
            await one.run()
        except BaseExceptionGroup as errors:
            outcome.hung += 1
            outcome.note(f"{kind.name}: {[repr(error) for error in errors.exceptions]}")
        except (AssertionError, areplay.AreplayError) as error:
            outcome.hung += 1
            outcome.note(f"{kind.name}: {error!r}")
        return one.peak_wait_s


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.storm", description="Kill, and count what is lost."
    )
    parser.add_argument("--kills", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--actors", type=int, default=3)
    parser.add_argument("--samplers", type=int, default=5)
    parser.add_argument(
        "--interval", type=float, default=0.1, help="mean seconds between two strikes"
    )
    parser.add_argument("--round", type=int, default=ROUND_KILLS, help="kills a round")
    options = parser.parse_args()
    logging.getLogger("areplay").setLevel(logging.ERROR)
    module = sys.modules["__main__"]  # children need not import it: they start faster
    module.__spec__ = None
    del module.__file__
    print(f"seed {options.seed}", flush=True)

    def progress(line: str) -> None:
        faulthandler.dump_traceback_later(WATCHDOG_S, exit=True)
        print(line, flush=True)

    faulthandler.dump_traceback_later(WATCHDOG_S, exit=True)
    outcome = areplay.run(
        storm(
            options.kills,
            options.seed,
            actors=options.actors,
            samplers=options.samplers,
            interval_s=options.interval,
            round_kills=options.round,
            progress=progress,
        )
    )
    faulthandler.cancel_dump_traceback_later()
    print(outcome.table(), flush=True)
    return 0 if outcome.is_clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
