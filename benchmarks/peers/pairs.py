"""Pairs: areplay and a peer in turns on the same work, round by round.

Rule: the two sides of a round are measured one right after the other, in an order that alternates,
so that a drift of the machine falls on both; a ratio is of one round. A side that fails leaves its
reason in the cell, and the other cells go on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.clocks import progress
from benchmarks.peers import waits
from benchmarks.peers.driver import Child, SideFailed, SideUnable
from benchmarks.peers.protocol import FLAT, FLOOD, STEPS
from benchmarks.peers.works import Work

MEMORY = "memory"  # flat out once more, without its times: looking at memory takes processor time
MODES = (FLAT, STEPS, FLOOD, MEMORY)

Start = Callable[[], Child]


@dataclass(frozen=True)
class Plan:
    """How long and how often: six peers and four works take some forty minutes on two cores.

    Args:
        rounds: turns of each side in each mode.
        flat_s, steps_s, flood_s: measured in a turn of that mode. Behind steps only some 200
            batches a second are taken, and a 99th percentile of all rounds needs a thousand.
        settle_s: thrown away before each turn.
        producers: how many write.
        prepare_s: a side that takes longer to get ready hangs.
        answer_s: so does one that takes longer than this beyond what it was to measure.
    """

    rounds: int = 5
    flat_s: float = 0.5
    steps_s: float = 1.2
    flood_s: float = 0.4
    settle_s: float = 0.15
    producers: tuple[int, ...] = (0, 1, 2)
    prepare_s: float = 240.0
    answer_s: float = 90.0

    @classmethod
    def quick(cls) -> Plan:
        """Everything once and short: shows that it runs, measures nothing."""
        return cls(rounds=1, flat_s=0.1, steps_s=0.1, flood_s=0.1, settle_s=0.05)

    def seconds(self, mode: str) -> float:
        """What a turn of that mode measures."""
        return {FLAT: self.flat_s, STEPS: self.steps_s, FLOOD: self.flood_s, MEMORY: self.flat_s}[
            mode
        ]


@dataclass
class Cell:
    """One mode with one number of producers: the rounds of both sides, or why there are none."""

    areplay: list[dict[str, Any]] = field(default_factory=list)
    peer: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""

    def record(self) -> dict[str, Any]:
        """For JSON: the rounds of both sides, in five digits, and their waits, which are only kept
        together."""
        sides = {"areplay": self.areplay, "peer": self.peer}
        rounds = {
            side: [
                {name: float(f"{turn[name]:.5g}") for name in turn if name != "waits"}
                for turn in turns
            ]
            for side, turns in sides.items()
        }
        counts = {
            side: [turn["waits"] for turn in turns if "waits" in turn]
            for side, turns in sides.items()
        }
        return {
            **rounds,
            "reason": self.reason,
            "waits": {side: waits.pooled(each) for side, each in counts.items() if each},
        }


class Contestant:
    """A side that is started when it is needed, and anew after it was killed."""

    def __init__(self, name: str, start: Start, plan: Plan) -> None:
        self.name, self._start, self._plan = name, start, plan
        self._stack, self._child = ExitStack(), None
        self._ready: tuple[Work, int] | None = None
        self._refused: dict[tuple[Work, int], SideFailed] = {}
        self.about: dict[str, Any] = {}

    def prepare(self, work: Work, producers: int) -> None:
        """Get ready, unless it is. What could not be done once is not tried again.

        Raises:
            SideFailed: see `Child.ask`.
        """
        wanted = (work, producers)
        if wanted in self._refused:
            raise self._refused[wanted]
        if wanted == self._ready:
            return
        question = {"do": "prepare", "work": work.record(), "producers": producers}
        self._ready = None
        try:
            self.about = self._ask(question, self._plan.prepare_s)
        except SideFailed as reason:
            self._refused[wanted] = reason
            raise
        self._ready = wanted

    def measure(self, mode: str) -> dict[str, Any]:
        """One turn.

        Raises:
            SideFailed: see `Child.ask`.
        """
        if mode == MEMORY:
            return self._measure_memory()
        return self._ask(self._question(mode), self._limit_s(mode))

    def _measure_memory(self) -> dict[str, Any]:
        """The most memory at any of several looks while it takes batches and rows come in."""
        looks: list[int] = []

        def look() -> None:
            assert self._child is not None
            looks.append(self._child.memory_bytes())

        self._ask(self._question(FLAT), self._limit_s(FLAT), look)
        look()
        return {"memory_bytes": max(looks), "looks": len(looks)}

    def _question(self, mode: str) -> dict[str, Any]:
        return {
            "do": "measure",
            "mode": mode,
            "seconds": self._plan.seconds(mode),
            "settle_s": self._plan.settle_s,
        }

    def _limit_s(self, mode: str) -> float:
        return self._plan.seconds(mode) + self._plan.settle_s + self._plan.answer_s

    def close(self) -> None:
        """End its process."""
        self._child = self._ready = None
        self._stack.close()

    def _ask(
        self, question: dict[str, Any], timeout_s: float, look: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        if self._child is None:
            self._child = self._stack.enter_context(self._start())
        try:
            return self._child.ask(question, timeout_s, look)
        except SideUnable:
            raise
        except SideFailed as reason:
            self.close()
            raise SideFailed(f"{self.name} {reason}") from None


def measure_work(ours: Contestant, peer: Contestant, work: Work, plan: Plan) -> dict[str, Cell]:
    """All cells of a pair for a work: `"1/steps"` is one producer, the learner behind steps."""
    cells: dict[str, Cell] = {}
    for producers in plan.producers:
        for mode in MODES:
            if producers or mode != FLOOD:
                name = f"{producers}/{mode}"
                rounds = 1 if mode == MEMORY else plan.rounds
                cells[name] = _cell(ours, peer, work, producers, mode, rounds)
                progress(f"{work.name} {name}: {_short(cells[name], peer.name)}")
    return cells


def _cell(
    ours: Contestant, peer: Contestant, work: Work, producers: int, mode: str, rounds: int
) -> Cell:
    cell = Cell()
    sides = [(ours, cell.areplay), (peer, cell.peer)]
    try:
        for side, _ in reversed(sides):  # what the peer cannot do is not prepared on the other side
            side.prepare(work, producers)
        for turn in range(rounds):
            for side, series in sides if turn % 2 == 0 else sides[::-1]:
                series.append(side.measure(mode))
    except SideFailed as reason:
        cell.reason = str(reason)
    return cell


def _short(cell: Cell, peer: str) -> str:
    if cell.reason:
        return f"no figure: {cell.reason}"
    return "; ".join(
        f"{name} {_of_turn(rounds[-1])}"
        for name, rounds in (("areplay", cell.areplay), (peer, cell.peer))
    )


def _of_turn(turn: dict[str, Any]) -> str:
    if "memory_bytes" in turn:
        return f"{turn['memory_bytes'] / 1e6:,.0f} MB"
    return (
        f"{turn['batches_per_s']:,.0f} batches/s, {turn['rows_per_s']:,.0f} rows/s in, "
        f"waits {turn.get('p50_us', 0):,.0f} / {turn.get('p99_us', 0):,.0f} us"
    )
