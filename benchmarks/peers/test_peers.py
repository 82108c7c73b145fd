"""The comparison with the peers, without any of them: scripted sides, and areplay's own adapter for
real, tiny."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers import environments, plots, protocol, report, results, switch, waits
from benchmarks.peers.adapters import rlpyt
from benchmarks.peers.driver import Child, SideFailed, SideUnable
from benchmarks.peers.environments import PEERS, python_of
from benchmarks.peers.pairs import MEMORY, Cell, Contestant, Plan, measure_work
from benchmarks.peers.processes import family
from benchmarks.peers.protocol import FLAT, FLOOD, STEPS
from benchmarks.peers.works import WORKS

WATCHDOG_S = 60.0
TINY = replace(
    WORKS["cartpole"].tiny(),
    capacity=512,
    batch_size=16,
    prefetch=2,
    chunk_rows=8,
    rows_per_s=2_000,
)

SCRIPTED = """
import json, os, subprocess, sys, time

name, log, batches_per_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
trouble = dict(pair.split("=") for pair in sys.argv[4:])  # "1/flat=hang"
producers = 0
for line in sys.stdin:
    question = json.loads(line)
    what = question["do"]
    if what == "prepare":
        producers = question["producers"]
    what = f"{producers}/{question['mode']}" if what == "measure" else f"{what} {producers}"
    with open(log, "a") as file:
        print(name, what, file=file)
    trouble_now = trouble.get(what, "")
    if trouble_now == "hang":
        child = subprocess.Popen(["sleep", "1000"])
        with open(log, "a") as file:
            print("child", child.pid, file=file)
        time.sleep(1000)
    while trouble_now == "wait" and not os.path.exists(log + ".go"):
        time.sleep(0.001)
    if trouble_now == "crash":
        print("out of luck", file=sys.stderr, flush=True)
        os.abort()
    if trouble_now == "raise":
        answer = {"failed": "Traceback\\n  somewhere\\nKeyError: 'obs'"}
    elif trouble_now == "unable":
        answer = {"unable": "it has no such thing"}
    elif question["do"] == "prepare":
        answer = {"answer": {"versions": {name: "1.0"}, "choices": [f"{name}: as it likes."]}}
    elif question["do"] == "measure":
        answer = {"answer": {"batches_per_s": batches_per_s, "rows_per_s": 5e4, "p50_us": 20.0, "p99_us": 40.0,
                             "max_us": 50.0, "mean_us": 21.0, "cpu_s_per_million_rows": 1.0, "seconds": 1.0,
                             "batches": 2, "waits": {"first_bin": 150, "waits": [2]}}}
    else:
        answer = {"answer": {}}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[..., Child]:
    """Starts a side that answers from a script; `log.txt` tells what it was asked."""
    (tmp_path / "side.py").write_text(SCRIPTED)

    def start(name: str, batches_per_s: float = 1.0, *trouble: str) -> Child:
        log = str(tmp_path / "log.txt")
        return Child(
            name,
            (sys.executable, str(tmp_path / "side.py"), name, log, str(batches_per_s), *trouble),
        )

    return start


def pair(
    scripted: Callable[..., Child],
    plan: Plan,
    *trouble: str,
    ours: float = 30.0,
    theirs: float = 10.0,
) -> tuple[dict[str, Any], Contestant]:
    """The cells of a scripted pair, and the peer."""
    side = Contestant("areplay", partial(scripted, "areplay", ours), plan)
    peer = Contestant("a peer", partial(scripted, "peer", theirs, *trouble), plan)
    try:
        cells = measure_work(side, peer, TINY, plan)
        return {name: cell.record() for name, cell in cells.items()}, peer
    finally:
        side.close()
        peer.close()


def asked(tmp_path: Path) -> list[str]:
    """What the scripted sides were asked, in order."""
    return (tmp_path / "log.txt").read_text().splitlines()


def is_gone(pid: int) -> bool:
    """Whether a process has ended, if perhaps nobody has fetched its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_gone(pid: int) -> None:
    """Wait until a process has ended."""
    deadline_s = time.monotonic() + WATCHDOG_S
    while not is_gone(pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_sides_take_turns_in_an_order_that_alternates(
    scripted: Callable[..., Child], tmp_path: Path
) -> None:
    """Each mode is measured round by round, right after one another, and each number of producers
    prepared once."""
    cells, _ = pair(scripted, Plan(rounds=3, producers=(0,)))
    turns = [line for line in asked(tmp_path) if "close" not in line]
    assert turns == [
        "peer prepare 0",
        "areplay prepare 0",
        "areplay 0/flat",
        "peer 0/flat",
        "peer 0/flat",
        "areplay 0/flat",
        "areplay 0/flat",
        "peer 0/flat",
        "areplay 0/steps",
        "peer 0/steps",
        "peer 0/steps",
        "areplay 0/steps",
        "areplay 0/steps",
        "peer 0/steps",
        "areplay 0/flat",
        "peer 0/flat",
    ]
    assert list(cells) == ["0/flat", "0/steps", "0/memory"]
    assert all(
        turn["memory_bytes"] > 1_000_000
        for side in ("areplay", "peer")
        for turn in cells["0/memory"][side]
    )


class Watched:
    """A side whose memory is looked at three times while it is asked, and once afterwards."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self._memory = iter((5, 9, 7, 3))

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def memory_bytes(self) -> int:
        """Another figure each time."""
        return next(self._memory)

    def ask(
        self, question: dict[str, Any], timeout_s: float, look: Callable[[], object] | None
    ) -> dict[str, Any]:
        """Look, if that is asked for."""
        self.asked.append(question)
        for _ in range(3):
            if look is not None:
                look()
        return {"batches_per_s": 1.0}


def test_memory_is_the_most_of_several_looks_in_a_turn_that_is_not_timed() -> None:
    """A look takes processor time, so it is not taken in any other turn. Each mode has its
    seconds."""
    side = Watched()
    contestant = Contestant(
        "a side", lambda: side, Plan(flat_s=1.0, steps_s=2.0, flood_s=3.0, settle_s=0.5)
    )  # type: ignore[arg-type, return-value]
    assert [contestant.measure(mode) for mode in (FLAT, STEPS, FLOOD)] == [
        {"batches_per_s": 1.0}
    ] * 3
    assert contestant.measure(MEMORY) == {"memory_bytes": 9, "looks": 4}
    assert [question["mode"] for question in side.asked] == [FLAT, STEPS, FLOOD, FLAT]
    assert [question["seconds"] for question in side.asked] == [1.0, 2.0, 3.0, 1.0]
    assert {question["settle_s"] for question in side.asked} == {0.5}


def test_driver_looks_again_and_again_until_the_answer_is_there(
    scripted: Callable[..., Child], tmp_path: Path
) -> None:
    """The side answers only once it has been looked at."""
    with scripted("peer", 1.0, "0/flat=wait") as child:
        child.ask({"do": "prepare", "producers": 0}, WATCHDOG_S)
        looks: list[int] = []

        def look() -> None:
            looks.append(child.memory_bytes())
            if len(looks) == 2:
                (tmp_path / "log.txt.go").touch()

        assert child.ask({"do": "measure", "mode": "flat"}, WATCHDOG_S, look)["batches"] == 2
        assert len(looks) >= 2 and min(looks) > 1_000_000


class Slow(protocol.Side):
    """A side on a clock of its own, whose rows come in at 1,000 a second of it."""

    def __init__(self, now_s: list[float]) -> None:
        super().__init__()
        self._now_s = now_s

    def idle(self, seconds: float) -> None:
        """Time goes by, and rows come in."""
        self._now_s[0] += seconds

    def take(self) -> Any:
        """Each batch takes 10 ms."""
        self._now_s[0] += 0.01
        return np.zeros((1, 1))

    def rows_in(self) -> int:
        """By the clock."""
        return round(1_000 * self._now_s[0])


@pytest.mark.parametrize("mode", [FLAT, FLOOD])
def test_slow_reading_of_processor_time_changes_no_rate(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a second before and a second after a turn; what goes on meanwhile is in no count of
    rows and batches."""
    now_s = [100.0]

    def slow_cpu_s(workers: list[int]) -> float:
        assert os.getpid() in workers
        now_s[0] += 1.0
        return now_s[0]

    monkeypatch.setattr(protocol, "cpu_s", slow_cpu_s)
    monkeypatch.setattr(protocol.time, "perf_counter", lambda: now_s[0])
    turn = protocol.measure(Slow(now_s), TINY, 1, mode, 2.0, 0.5)
    assert turn["rows_per_s"] == pytest.approx(1_000, rel=1e-3)
    assert turn["seconds"] == pytest.approx(2.0, abs=0.011)
    assert turn["batches_per_s"] == pytest.approx(100 if mode == FLAT else 0, rel=1e-3)
    if mode == FLAT:
        assert turn["batches"] == sum(turn["waits"]["waits"]) == pytest.approx(200, abs=1)
        assert turn["p50_us"] == turn["max_us"] == pytest.approx(10_000)


def test_percentiles_are_of_the_waits_of_all_rounds() -> None:
    """Of 98 waits of 100 us, 100 of 200 us and 2 of 1,000 us; not the mean or the median of the
    rounds' own."""
    first, second = waits.counts([100.0] * 98 + [1_000.0] * 2), waits.counts([200.0] * 100)
    for found in (waits.pooled([first, second]), waits.pooled([second, first])):
        assert sum(found["waits"]) == 200
        for percent, wait_us in (
            (1, 100),
            (49, 100),
            (49.5, 200),
            (50, 200),
            (99, 200),
            (99.5, 1_000),
            (100, 1_000),
        ):
            assert waits.percentile(found, percent) == pytest.approx(wait_us, rel=0.01)
    assert waits.percentile(waits.counts([0.0]), 50) == pytest.approx(1.0, rel=0.01)


def turns(quantity: str, *rounds: float) -> list[dict[str, Any]]:
    """Rounds of a side with nothing but that."""
    return [{quantity: value} for value in rounds]


def cell_of(quantity: str, ours: tuple[float, ...], theirs: tuple[float, ...]) -> dict[str, Any]:
    """A cell of rounds that have nothing but that."""
    return {
        "areplay": turns(quantity, *ours),
        "peer": turns(quantity, *theirs),
        "reason": "",
        "waits": {},
    }


@pytest.mark.parametrize(
    ("quantity", "ours", "theirs", "expected", "verdict"),
    [
        ("batches_per_s", (11, 40, 90), (10, 20, 30), (40, 20, 2.0, 1.1, 3.0), "areplay"),
        # not better in the first
        ("batches_per_s", (10, 40, 90), (10, 20, 30), (40, 20, 2.0, 1.0, 3.0), "level"),
        ("batches_per_s", (5, 40, 90), (10, 20, 30), (40, 20, 2.0, 0.5, 3.0), "level"),
        ("batches_per_s", (9, 10, 27), (10, 20, 30), (10, 20, 0.5, 0.5, 0.9), "peer"),
        ("batches_per_s", (9, 10, 30), (10, 20, 30), (10, 20, 0.5, 0.5, 1.0), "level"),
        # the less, the better
        ("cpu_s_per_million_rows", (4, 2, 1), (8, 8, 8), (2, 8, 4.0, 2.0, 8.0), "areplay"),
        # the worst, not the median
        ("max_us", (10, 10, 90), (20, 30, 30), (90, 30, 1 / 3, 1 / 3, 3.0), "level"),
        ("memory_bytes", (8,), (4,), (8, 4, 0.5, 0.5, 0.5), "peer"),
    ],
)
def test_ratio_is_that_of_the_figures_and_the_rounds_tell_who_is_ahead(
    quantity: str,
    ours: tuple[float, ...],
    theirs: tuple[float, ...],
    expected: tuple[float, ...],
    verdict: str,
) -> None:
    """`times` never contradicts the two figures; who is better in all rounds is ahead, anything
    else is level."""
    found = results.comparison(cell_of(quantity, ours, theirs), quantity)
    assert found is not None
    assert (found.ours, found.theirs, found.times, found.low, found.high) == pytest.approx(expected)
    assert (found.is_peer_ahead, found.is_level) == (verdict == "peer", verdict == "level")


def test_waits_of_all_rounds_may_tell_another_story_than_the_rounds() -> None:
    """areplay waits less in both rounds, but most of its batches are of the slow one: figures,
    ratio, no verdict."""

    def side(*rounds: tuple[float, int]) -> list[dict[str, Any]]:
        return [
            {
                "p50_us": us,
                "mean_us": us,
                "max_us": us,
                "batches": count,
                "waits": waits.counts([us] * count),
            }
            for us, count in rounds
        ]

    ours, theirs = side((10.0, 10), (100.0, 1_000)), side((11.0, 1_000), (110.0, 10))
    cell = Cell(ours, theirs).record()
    assert not any("waits" in turn for turn in cell["areplay"] + cell["peer"])  # only kept together
    found = results.comparison(cell, "p50_us")
    assert found is not None and found.is_level
    assert (found.ours, found.theirs, found.times) == pytest.approx((100, 11, 0.11), rel=0.02)
    assert (found.low, found.high) == pytest.approx((1.1, 1.1))
    mirrored = results.comparison(Cell(theirs, ours).record(), "p50_us")
    assert mirrored is not None and mirrored.is_level and mirrored.high < 1 < mirrored.times
    assert results.figure(cell, "areplay", "mean_us") == pytest.approx(
        (10 * 10 + 1_000 * 100) / 1_010
    )
    assert results.figure(Cell(side((1.0, 3))).record(), "areplay", "p99_us") is None
    # not above the longest wait
    assert results.figure(Cell(side((1.0, 3))).record(), "areplay", "p50_us") == 1.0


def test_no_ratio_without_figures_on_both_sides() -> None:
    """A cell with a reason, a quantity that was not measured, and nothing to divide by."""
    cell = cell_of("batches_per_s", (1.0, 2.0), (3.0, 4.0))
    assert results.comparison({**cell, "reason": "it died"}, "batches_per_s") is None
    assert results.comparison(cell, "rows_per_s") is None
    assert (
        results.comparison({**cell, "peer": turns("batches_per_s", 0.0, 4.0)}, "batches_per_s")
        is None
    )


def test_page_marks_sides_that_do_not_keep_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """50,000 rows/s are handed in: 45,000 will do, 44,999 will not; and nobody is handed anything
    alone."""
    monkeypatch.setattr(report.explanations, "EXPLANATIONS", {})

    def cell(ours: float, theirs: float) -> dict[str, Any]:
        sides = {"areplay": (10.0, ours), "peer": (5.0, theirs)}
        rounds = {
            name: [{"batches_per_s": each[0], "rows_per_s": each[1]}]
            for name, each in sides.items()
        }
        return {**rounds, "reason": "", "waits": {}}

    text = report.page(
        found({"0/flat": cell(0, 0), "1/flat": cell(45_000, 44_999), "2/flat": cell(1_000, 50_000)})
    )
    assert "| cpprb | alone |  | 10.0 / 5.00<br>2.00x |" in text
    assert "| cpprb | 1 producer | 45,000 / 44,999† | 10.0 / 5.00†<br>2.00x |" in text
    assert "| cpprb | 2 producers | 1,000† / 50,000 | 10.0† / 5.00<br>2.00x |" in text
    assert "| cpprb | cartpole | 2.00x† |" in text


def test_page_shows_the_range_of_the_rounds_and_what_it_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bold is the peer's, italics is nobody's; only the peer's cells are explained, those with one
    reason together."""
    why = {"batches_per_s": "It is in process.", "cpu_s_per_million_rows": "It is in process."}
    monkeypatch.setattr(report.explanations, "EXPLANATIONS", {(None, None): why})
    rates = "batches_per_s"
    cells = {
        "0/flat": cell_of(rates, (12.0, 15.0, 30.0), (10.0, 10.0, 10.0)),
        "1/flat": cell_of(rates, (4.0, 8.0, 25.0), (10.0, 10.0, 10.0)),
        "2/flat": cell_of(rates, (4.0, 5.0, 9.5), (10.0, 10.0, 10.0)),
    }
    for turn in (*cells["2/flat"]["areplay"], *cells["1/flat"]["areplay"]):
        turn["cpu_s_per_million_rows"] = 2.0
    for turn in (*cells["2/flat"]["peer"], *cells["1/flat"]["peer"]):
        turn["cpu_s_per_million_rows"] = 1.0
    text = report.page(found(cells))
    assert "15.0 / 10.0<br>1.50x (1.2-3.0) |" in text
    assert "8.00 / 10.0<br>*0.800x (0.40-2.5)* |" in text
    assert "5.00 / 10.0<br>**0.500x (0.40-0.95)** |" in text
    assert "2.00 / 1.00<br>**0.500x** |" in text
    assert "| cpprb | cartpole | *0.800x (0.40-2.5)* |  |  |" in text
    ahead = text.partition("## Where a peer is ahead")[2].partition("## How each")[0]
    assert ahead.split("\n") == [
        "",
        "",
        "At the learner while producers write:",
        "",
        "- It is in process.",
        "  - cpprb, cartpole, batches/s, flat out: 2 producers 0.500x",
        "",
        "The same, but not told apart, since the rounds do not agree:",
        "",
        "- It is in process.",
        "  - cpprb, cartpole, batches/s, flat out: 1 producer 0.800x",
        "",
        "Elsewhere:",
        "",
        "- It is in process.",
        "  - cpprb, cartpole, CPU s / million rows: 1 producer 0.500x, 2 producers 0.500x",
        "",
        "",
    ]


def test_longest_wait_counts_as_one_at_the_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind steps, while somebody writes, with the same words as any other wait."""
    monkeypatch.setattr(report.explanations, "EXPLANATIONS", {})
    cells = {
        "1/steps": cell_of("max_us", (20.0,), (10.0,)),
        "1/flat": cell_of("rows_per_s", (5e4,), (5e4,)),
    }
    text = (
        report.page(found(cells))
        .partition("At the learner while producers write:")[2]
        .partition("The same")[0]
    )
    assert (
        text == "\n\n- No explanation yet.\n  - cpprb, cartpole, wait behind steps, longest us: 1 "
        "producer 0.500x\n\n"
    )


def test_explanation_is_the_most_particular_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of peer and work, then of the peer. A wait flat out has one of its own."""
    given = {
        ("cpprb", "atari"): {"batches_per_s": "a"},
        ("cpprb", None): {"batches_per_s": "b", "flat_us": "c"},
    }
    monkeypatch.setattr(report.explanations, "EXPLANATIONS", given)
    explanation = report.explanations.explanation
    assert explanation("cpprb", "atari", FLAT, "batches_per_s") == "a"
    assert explanation("cpprb", "apex", FLAT, "batches_per_s") == "b"
    assert (
        explanation("cpprb", "atari", FLAT, "p99_us")
        == explanation("cpprb", "apex", FLAT, "p50_us")
        == "c"
    )
    assert (
        explanation("cpprb", "atari", STEPS, "p50_us")
        == explanation("rlpyt", "atari", FLAT, "p50_us")
        == ""
    )


@pytest.mark.parametrize("installed", [list(PEERS), list(PEERS)[:-1], []])
def test_page_says_that_all_are_there_only_when_they_are(installed: list[str]) -> None:
    """And not of a part of a run."""
    about = {"versions": {}, "choices": [], "reason": ""}
    text = report.page({"peers": dict.fromkeys(["areplay", *installed], about), "pairs": {}})
    assert ("All peers could be installed" in text) == (len(installed) == len(PEERS))


def test_json_keeps_a_turn_and_a_list_of_numbers_on_one_line(tmp_path: Path) -> None:
    """So that a difference between two runs can be read; what is loaded is what was saved, whatever
    a text holds."""
    cell = {
        "areplay": [{"p50_us": 1.5, "batches": 2}, {"p50_us": 2.5}],
        "reason": "{ \n [1,  2] }",
        "none": [],
    }
    given = {
        "format": results.FORMAT,
        "peers": {"a": {"choices": ["[one,  2]", "{ }"]}},
        "pairs": {"a/b": {"waits": [1, -2, 3.5, 1e-9], "cells": {"1/flat": cell}}},
    }
    results.save(tmp_path / "peers.json", given)
    lines = [line.strip() for line in (tmp_path / "peers.json").read_text().splitlines()]
    assert '{"batches": 2,"p50_us": 1.5},' in lines and '"waits": [1,-2,3.5,1e-09]' in lines
    assert results.load(tmp_path / "peers.json") == given


def test_figures_are_kept_in_five_digits() -> None:
    """More would say nothing, and make the file twice as long."""
    cell = Cell([{"p50_us": 123.456789}], [{"p50_us": 0.00123456789}]).record()
    assert (cell["areplay"], cell["peer"]) == ([{"p50_us": 123.46}], [{"p50_us": 0.0012346}])


def test_file_of_another_format_is_not_read(tmp_path: Path) -> None:
    """Its figures were made by other rules; a run begins anew then."""
    results.save(tmp_path / "peers.json", {"peers": {"a": {}}, "pairs": {"a/b": {}}})
    assert results.load(tmp_path / "peers.json") == {
        "format": results.FORMAT,
        "peers": {},
        "pairs": {},
    }


def test_hanging_side_is_killed_with_its_children(
    scripted: Callable[..., Child], tmp_path: Path
) -> None:
    """The watchdog ends the wait, the reason says so, and nothing of it is left."""
    with scripted("peer", 1.0, "0/flat=hang") as child:
        child.ask({"do": "prepare", "producers": 0}, WATCHDOG_S)
        with pytest.raises(
            SideFailed,
            match=r"hung: no answer to `measure flat` within 3 s; "
            r"killed",
        ):
            child.ask({"do": "measure", "mode": "flat"}, 3.0)
    grandchild = next(int(line.split()[1]) for line in asked(tmp_path) if line.startswith("child"))
    wait_gone(grandchild)


def test_leaving_a_side_ends_its_process(scripted: Callable[..., Child]) -> None:
    """It is asked to close first."""
    with scripted("peer") as child:
        assert child.ask({"do": "prepare", "producers": 0}, WATCHDOG_S)["versions"] == {
            "peer": "1.0"
        }
        pid = child.pid
        assert pid in family(os.getpid())
    assert is_gone(pid)


def test_dying_side_is_reported_with_its_signal_and_last_words(
    scripted: Callable[..., Child],
) -> None:
    """Not as an end of file."""
    with scripted("peer", 1.0, "0/flat=crash") as child:
        child.ask({"do": "prepare", "producers": 0}, WATCHDOG_S)
        with pytest.raises(SideFailed, match=r"died in `measure flat` with SIGABRT: out of luck"):
            child.ask({"do": "measure", "mode": "flat"}, WATCHDOG_S)


def test_raising_and_unable_sides_say_why(scripted: Callable[..., Child]) -> None:
    """One that is unable is well, and goes on; one that raised is not asked again."""
    with scripted("peer", 1.0, "0/flat=unable", "0/steps=raise") as child:
        child.ask({"do": "prepare", "producers": 0}, WATCHDOG_S)
        with pytest.raises(SideUnable, match=r"^it has no such thing$"):
            child.ask({"do": "measure", "mode": "flat"}, WATCHDOG_S)
        with pytest.raises(SideFailed, match=r"^raised KeyError: 'obs'$"):
            child.ask({"do": "measure", "mode": "steps"}, WATCHDOG_S)
        assert is_gone(child.pid)


def test_other_cells_are_measured_when_a_side_dies(
    scripted: Callable[..., Child], tmp_path: Path
) -> None:
    """It is started anew and prepared again; areplay, which is well, is not."""
    cells, _ = pair(scripted, Plan(rounds=1, producers=(1,)), "1/flat=crash")
    assert cells["1/flat"]["reason"] == "a peer died in `measure flat` with SIGABRT: out of luck"
    assert [cells[name]["reason"] for name in ("1/steps", "1/flood")] == ["", ""]
    assert asked(tmp_path).count("peer prepare 1") == 2
    assert asked(tmp_path).count("areplay prepare 1") == 1


def test_what_a_peer_cannot_do_is_asked_once(
    scripted: Callable[..., Child], tmp_path: Path
) -> None:
    """Its reason stands in all cells of that number of producers, and areplay is not prepared for
    it."""
    cells, peer = pair(scripted, Plan(rounds=1, producers=(0, 2)), "prepare 2=unable")
    assert {cells[f"2/{mode}"]["reason"] for mode in (FLAT, STEPS, FLOOD, MEMORY)} == {
        "it has no such thing"
    }
    assert cells["0/flat"]["reason"] == ""
    assert asked(tmp_path).count("peer prepare 2") == 1
    assert "areplay prepare 2" not in asked(tmp_path)
    assert peer.about["versions"] == {"peer": "1.0"}


def found(cells: dict[str, Any], peer: str = "cpprb", work: str = "cartpole") -> dict[str, Any]:
    """Results as a run leaves them."""
    about = {"versions": {peer: "1.0"}, "choices": [f"{peer}: in its favour."], "reason": ""}
    machine = {"cores": 2, "processor": "a processor", "python": "3.11"}
    one = {
        "cells": cells,
        "work": WORKS[work].record() | {"row_bytes": WORKS[work].row_bytes},
        "plan": {"rounds": 1, "flat_s": 0.5, "steps_s": 0.6, "flood_s": 0.7},
        "machine": machine,
        "cores_busy_with_others": 0.25,
    }
    return {"peers": {peer: about}, "pairs": {f"{peer}/{work}": one}}


def test_parts_of_a_run_are_merged(tmp_path: Path) -> None:
    """A pair takes the place of the one from before as a whole; others stay."""
    old, new = {"0/flat": {"old": 1}, "1/flat": {"old": 1}}, {"0/flat": {"new": 1}}
    first = results.merge(
        results.load(tmp_path / "none.json"), found(old)["pairs"], found(old)["peers"]
    )
    other = found(old, "reverb", "atari")
    results.save(tmp_path / "peers.json", results.merge(first, other["pairs"], other["peers"]))
    again = found(new)
    merged = results.merge(results.load(tmp_path / "peers.json"), again["pairs"], again["peers"])
    assert set(merged["pairs"]) == {"cpprb/cartpole", "reverb/atari"} and set(merged["peers"]) == {
        "cpprb",
        "reverb",
    }
    assert merged["pairs"]["cpprb/cartpole"]["cells"] == new
    assert merged["pairs"]["reverb/atari"]["cells"] == old


def test_page_tells_ratios_reasons_and_where_a_peer_is_ahead(
    scripted: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ratio beside both figures, bold where the peer is ahead and then with a sentence; why a
    cell is empty."""
    monkeypatch.setattr(report.explanations, "EXPLANATIONS", {})
    cells, _ = pair(
        scripted, Plan(rounds=1, producers=(0, 1)), "1/steps=crash", ours=30.0, theirs=10.0
    )
    text = report.page(found(cells))
    # 1.02 ** 150.5
    assert "| cpprb | alone |  | 30.0 / 10.0<br>3.00x | 19.7 / 19.7<br>*1.00x* |" in text
    assert (
        "- cpprb, no figures (1 producer, 5 ms steps): a peer died in `measure steps` with SIGABRT"
        in text
    )
    assert "- cpprb: in its favour." in text and "cpprb 1.0" in text and "0.25 cores busy" in text
    assert (
        "1 rounds for each side and mode, of 0.5 s flat out, 0.6 s behind steps and 0.7 s insert "
        "only" in text
    )
    assert "At the learner while producers write:\n\n- none" in text

    cells, _ = pair(scripted, Plan(rounds=1, producers=(0, 1)), ours=10.0, theirs=40.0)
    text = report.page(found(cells))
    assert "10.0 / 40.0<br>**0.250x**" in text
    line = "  - cpprb, cartpole, batches/s, flat out: alone 0.250x, 1 producer 0.250x\n"
    assert f"- No explanation yet.\n{line}" in text
    monkeypatch.setitem(
        report.explanations.EXPLANATIONS,
        ("cpprb", "cartpole"),
        {"batches_per_s": "It is in process."},
    )
    assert f"At the learner while producers write:\n\n- It is in process.\n{line}" in report.page(
        found(cells)
    )


def test_page_reports_a_peer_that_cannot_be_installed() -> None:
    """With its reason, and without figures."""
    about = {"versions": {}, "choices": [], "reason": "cannot be installed here: no wheel"}
    text = report.page({"peers": {"reverb": about}, "pairs": {}})
    assert "- **Reverb** cannot be installed here: no wheel" in text


def test_plots_are_drawn_with_and_without_figures(
    scripted: Callable[..., Child], tmp_path: Path
) -> None:
    """A cell without a figure leaves a word; one without any is no reason to fail."""
    cells, _ = pair(scripted, Plan(rounds=1), "1/flat=crash", "2/steps=unable")
    for number, given in enumerate((found(cells), {"peers": {}, "pairs": {}})):
        for path in plots.write(tmp_path / str(number), given):
            assert path.stat().st_size > (10_000 if number == 0 else 1_000)


def test_environment_is_made_once_and_its_failure_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ready with the same requirements: nothing is done; otherwise made anew. The step that fails
    gives the reason."""
    steps: list[tuple[str, ...]] = []
    reasons = [""] * 3

    def fail(command: tuple[str, ...]) -> str:
        steps.append(command)
        (tmp_path / "cpprb").mkdir(exist_ok=True)
        return reasons[(len(steps) - 1) % 3]

    monkeypatch.setattr(environments, "VENVS", tmp_path)
    monkeypatch.setattr(environments, "_failure", fail)
    peer = PEERS["cpprb"]
    assert python_of(peer) == (tmp_path / "cpprb" / "bin" / "python", "")
    assert python_of(peer) == (tmp_path / "cpprb" / "bin" / "python", "") and len(steps) == 3
    assert "cpprb==11.0.0" in steps[1]
    reasons[1] = "no wheel"
    assert python_of(replace(peer, requirements=("cpprb==12",))) == (
        None,
        "cannot be installed here: no wheel",
    )
    assert not (tmp_path / "cpprb" / "ready").exists()


def test_failed_step_is_told_by_its_last_line() -> None:
    """And one that succeeded by nothing."""
    assert environments._failure((sys.executable, "-c", "import nothing_like_this")).startswith(
        "ModuleNotFoundError"
    )
    assert environments._failure((sys.executable, "-c", "print('fine')")) == ""


def test_producer_keeps_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many chunks a second; whoever is far behind does not catch up; stopped and ended when the
    switch says so."""
    now_s = [100.0]
    monkeypatch.setattr(switch.time, "monotonic", lambda: now_s[0])
    told = switch.Switch()
    turn = switch.Turn(told)

    def handed_in(seconds: float) -> int:
        chunks, end_s = 0, now_s[0] + seconds
        while now_s[0] < end_s:
            pause_s = turn.pause_s()
            chunks += pause_s == 0
            now_s[0] += pause_s or 1e-4
        return chunks

    assert handed_in(1.0) == 0 and not turn.is_over()
    told.turn(switch.PACED, chunks_per_s=50.0)
    assert 49 <= handed_in(1.0) <= 51
    now_s[0] += 10.0
    assert 49 <= handed_in(1.0) <= 51
    told.turn(switch.FLAT_OUT)
    assert turn.pause_s() == turn.pause_s() == 0.0
    told.turn(switch.END)
    assert turn.is_over()


def test_tree_of_rlpyts_scheme_draws_by_priority() -> None:
    """Against plain priorities, their sum and a cumulative sum, after rows that wrap round and
    after updates."""
    work = replace(WORKS["apex"], obs_shape=(1,), capacity=100, batch_size=8)
    buffer, chunk, rng, expected = (
        rlpyt.Buffer(work),
        work.columns(30),
        np.random.default_rng(0),
        np.zeros(100),
    )
    for number in range(5):
        buffer.append(chunk)
        expected[np.arange(30 * number, 30 * number + 30) % 100] = 1.0
    for _ in range(50):
        _, places = buffer.sample(8, rng)
        buffer.update(places, errors := rng.random(8))
        # the first of two for a row stays
        for place, error in reversed(list(zip(places, errors, strict=True))):
            expected[place] = error**0.6
    shares = np.linspace(0, 1, 1_000, endpoint=False)
    places, chances = buffer._draw(shares)
    assert (
        places.tolist()
        == np.searchsorted(expected.cumsum(), shares * expected.sum(), side="right").tolist()
    )
    assert chances == pytest.approx(expected[places] / expected.sum())


def test_areplay_itself_is_measured() -> None:
    """Its adapter, for real: batches and rows are counted, waits are waits, and all of its
    processes end."""
    command = (sys.executable, "-m", "benchmarks.peers.adapters.areplay")
    with Child("areplay", command) as child:
        for work, producers in ((TINY, 0), (replace(TINY, is_prioritized=True), 2)):
            question = {
                "do": "prepare",
                "work": json.loads(json.dumps(work.record())),
                "producers": producers,
            }
            assert "areplay" in child.ask(question, WATCHDOG_S)["versions"]
            for mode in (FLAT, STEPS, FLOOD) if producers else (FLAT, STEPS):
                asked = {"do": "measure", "mode": mode, "seconds": 0.1, "settle_s": 0.02}
                turn = child.ask(asked, WATCHDOG_S)
                assert (turn["batches_per_s"] > 0) == (mode != FLOOD)
                assert (turn["rows_per_s"] > 0) == (producers > 0)
                assert turn["seconds"] >= 0.1 and turn["cpu_s_per_million_rows"] >= 0
                if mode != FLOOD:
                    assert 0 < turn["p50_us"] <= turn["p99_us"] <= turn["max_us"]
                if mode == STEPS:
                    assert turn["batches_per_s"] < 200  # a step takes 5 ms
        workers = family(child.pid)
        assert len(workers) >= 4  # itself, a sampler, two actors
        assert child.memory_bytes() > 20_000_000
    for member in workers:
        wait_gone(member)
