"""Pairs: areplay and a peer in turns on the same work, round by round.

Rule: the two sides of a round are measured one right after the other, in an order that alternates, so that a drift of
the machine falls on both; a ratio is of one round. A side that fails leaves its reason in the cell, and the other cells
go on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.clocks import progress
from benchmarks.peers.driver import Child, SideFailed, SideUnable
from benchmarks.peers.protocol import FLOOD, MODES
from benchmarks.peers.works import Work

Start = Callable[[], Child]


@dataclass(frozen=True)
class Plan:
    """How long and how often."""

    rounds: int = 3
    seconds: float = 0.6  # measured, each side, round and mode
    settle_s: float = 0.2  # thrown away before that
    producers: tuple[int, ...] = (0, 1, 2)
    prepare_s: float = 240.0  # a side that takes longer to get ready hangs
    answer_s: float = 90.0  # so does one that takes longer than this beyond what it was to measure

    @classmethod
    def quick(cls) -> Plan:
        """Everything once and short: shows that it runs, measures nothing."""
        return cls(rounds=1, seconds=0.1, settle_s=0.05)


@dataclass
class Cell:
    """One mode with one number of producers: the rounds of both sides, or why there are none."""

    areplay: list[dict[str, float]] = field(default_factory=list)
    peer: list[dict[str, float]] = field(default_factory=list)
    reason: str = ""

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"areplay": self.areplay, "peer": self.peer, "reason": self.reason}


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

    def measure(self, mode: str) -> dict[str, float]:
        """One turn.

        Raises:
            SideFailed: see `Child.ask`.
        """
        plan = self._plan
        question = {"do": "measure", "mode": mode, "seconds": plan.seconds, "settle_s": plan.settle_s}
        answer = self._ask(question, plan.seconds + plan.settle_s + plan.answer_s)
        assert self._child is not None
        return answer | {"memory_bytes": self._child.memory_bytes()}

    def close(self) -> None:
        """End its process."""
        self._child = self._ready = None
        self._stack.close()

    def _ask(self, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if self._child is None:
            self._child = self._stack.enter_context(self._start())
        try:
            return self._child.ask(question, timeout_s)
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
                cells[name] = _cell(ours, peer, work, producers, mode, plan.rounds)
                progress(f"{work.name} {name}: {_short(cells[name], peer.name)}")
    return cells


def _cell(ours: Contestant, peer: Contestant, work: Work, producers: int, mode: str, rounds: int) -> Cell:
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
        f"{name} {rounds[-1]['batches_per_s']:,.0f} batches/s, {rounds[-1]['rows_per_s']:,.0f} rows/s in, "
        f"waits {rounds[-1].get('p50_us', 0):,.0f} / {rounds[-1].get('p99_us', 0):,.0f} us"
        for name, rounds in (("areplay", cell.areplay), (peer, cell.peer))
    )
