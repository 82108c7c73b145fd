"""The comparison with the peers, without any of them: scripted sides, and areplay's own adapter for real, tiny."""

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

import pytest

from benchmarks.peers import environments, plots, report, results, switch
from benchmarks.peers.driver import Child, SideFailed, SideUnable
from benchmarks.peers.environments import PEERS, python_of
from benchmarks.peers.pairs import Contestant, Plan, measure_work
from benchmarks.peers.processes import family
from benchmarks.peers.protocol import FLAT, FLOOD, STEPS
from benchmarks.peers.works import WORKS

WATCHDOG_S = 60.0
TINY = replace(WORKS["cartpole"].tiny(), capacity=512, batch_size=16, prefetch=2, chunk_rows=8, rows_per_s=2_000)

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
        answer = {"answer": {"batches_per_s": batches_per_s, "rows_per_s": 5.0, "p50_us": 20.0, "p99_us": 40.0,
                             "max_us": 50.0, "mean_us": 21.0, "cpu_s_per_million_rows": 1.0, "seconds": 1.0}}
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
        return Child(name, (sys.executable, str(tmp_path / "side.py"), name, log, str(batches_per_s), *trouble))

    return start


def pair(
    scripted: Callable[..., Child], plan: Plan, *trouble: str, ours: float = 30.0, theirs: float = 10.0
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


def test_sides_take_turns_in_an_order_that_alternates(scripted: Callable[..., Child], tmp_path: Path) -> None:
    """Each mode is measured round by round, right after one another, and each number of producers prepared once."""
    cells, _ = pair(scripted, Plan(rounds=3, producers=(0,)))
    turns = [line for line in asked(tmp_path) if "close" not in line]
    assert turns == [
        "peer prepare 0", "areplay prepare 0",
        "areplay 0/flat", "peer 0/flat", "peer 0/flat", "areplay 0/flat", "areplay 0/flat", "peer 0/flat",
        "areplay 0/steps", "peer 0/steps", "peer 0/steps", "areplay 0/steps", "areplay 0/steps", "peer 0/steps",
    ]  # fmt: skip
    assert list(cells) == ["0/flat", "0/steps"]
    assert all(turn["memory_bytes"] > 1_000_000 for cell in cells.values() for turn in cell["areplay"])


def test_ratio_is_of_rounds_and_tells_how_many_times_better_areplay_is() -> None:
    """A rate is better when it is higher, a wait when it is lower; the median of the rounds' own ratios."""
    ours = [{"batches_per_s": rate, "p50_us": 10.0, "max_us": rate} for rate in (10.0, 40.0, 90.0)]
    theirs = [{"batches_per_s": rate, "p50_us": 15.0, "max_us": rate} for rate in (10.0, 20.0, 30.0)]
    cell = {"areplay": ours, "peer": theirs, "reason": ""}
    assert results.ratio(cell, "batches_per_s") == 2.0
    assert results.ratio(cell, "p50_us") == 1.5
    assert results.figure(cell, "areplay", "batches_per_s") == 40.0
    assert results.figure(cell, "areplay", "max_us") == 90.0  # the worst, not the median
    assert results.ratio(cell, "max_us") == pytest.approx(1 / 3)
    assert results.ratio({**cell, "reason": "it died"}, "p50_us") is None
    assert results.ratio({**cell, "peer": [{"batches_per_s": 0.0}] * 3}, "batches_per_s") is None


def test_hanging_side_is_killed_with_its_children(scripted: Callable[..., Child], tmp_path: Path) -> None:
    """The watchdog ends the wait, the reason says so, and nothing of it is left."""
    with scripted("peer", 1.0, "0/flat=hang") as child:
        child.ask({"do": "prepare", "producers": 0}, WATCHDOG_S)
        with pytest.raises(SideFailed, match=r"hung: no answer to `measure flat` within 3 s; killed"):
            child.ask({"do": "measure", "mode": "flat"}, 3.0)
    grandchild = next(int(line.split()[1]) for line in asked(tmp_path) if line.startswith("child"))
    wait_gone(grandchild)


def test_leaving_a_side_ends_its_process(scripted: Callable[..., Child]) -> None:
    """It is asked to close first."""
    with scripted("peer") as child:
        assert child.ask({"do": "prepare", "producers": 0}, WATCHDOG_S)["versions"] == {"peer": "1.0"}
        pid = child.pid
        assert pid in family(os.getpid())
    assert is_gone(pid)


def test_dying_side_is_reported_with_its_signal_and_last_words(scripted: Callable[..., Child]) -> None:
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


def test_other_cells_are_measured_when_a_side_dies(scripted: Callable[..., Child], tmp_path: Path) -> None:
    """It is started anew and prepared again; areplay, which is well, is not."""
    cells, _ = pair(scripted, Plan(rounds=1, producers=(1,)), "1/flat=crash")
    assert cells["1/flat"]["reason"] == "a peer died in `measure flat` with SIGABRT: out of luck"
    assert [cells[name]["reason"] for name in ("1/steps", "1/flood")] == ["", ""]
    assert asked(tmp_path).count("peer prepare 1") == 2
    assert asked(tmp_path).count("areplay prepare 1") == 1


def test_what_a_peer_cannot_do_is_asked_once(scripted: Callable[..., Child], tmp_path: Path) -> None:
    """Its reason stands in all cells of that number of producers, and areplay is not prepared for it."""
    cells, peer = pair(scripted, Plan(rounds=1, producers=(0, 2)), "prepare 2=unable")
    assert {cells[f"2/{mode}"]["reason"] for mode in (FLAT, STEPS, FLOOD)} == {"it has no such thing"}
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
        "plan": {"rounds": 1, "seconds": 0.5},
        "machine": machine,
        "cores_busy_with_others": 0.25,
    }
    return {"peers": {peer: about}, "pairs": {f"{peer}/{work}": one}}


def test_parts_of_a_run_are_merged(tmp_path: Path) -> None:
    """A pair takes the place of the one from before as a whole; others stay."""
    old, new = {"0/flat": {"old": 1}, "1/flat": {"old": 1}}, {"0/flat": {"new": 1}}
    first = results.merge(results.load(tmp_path / "none.json"), found(old)["pairs"], found(old)["peers"])
    other = found(old, "reverb", "atari")
    results.save(tmp_path / "peers.json", results.merge(first, other["pairs"], other["peers"]))
    again = found(new)
    merged = results.merge(results.load(tmp_path / "peers.json"), again["pairs"], again["peers"])
    assert set(merged["pairs"]) == {"cpprb/cartpole", "reverb/atari"} and set(merged["peers"]) == {"cpprb", "reverb"}
    assert merged["pairs"]["cpprb/cartpole"]["cells"] == new
    assert merged["pairs"]["reverb/atari"]["cells"] == old


def test_page_tells_ratios_reasons_and_where_a_peer_is_ahead(
    scripted: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ratio beside both figures, bold where the peer is ahead and then with a sentence; why a cell is empty."""
    monkeypatch.setattr(report.explanations, "EXPLANATIONS", {})
    cells, _ = pair(scripted, Plan(rounds=1, producers=(0, 1)), "1/steps=crash", ours=30.0, theirs=10.0)
    text = report.page(found(cells))
    assert "| cpprb | alone |  | 30.0 / 10.0 (3.00x) | 20.0 / 20.0 (1.00x) |" in text
    assert "- cpprb, no figures (1 producer, 5 ms steps): a peer died in `measure steps` with SIGABRT" in text
    assert "- cpprb: in its favour." in text and "cpprb 1.0" in text and "0.25 cores busy" in text
    assert "At the learner while producers write:\n\n- none" in text

    cells, _ = pair(scripted, Plan(rounds=1, producers=(0, 1)), ours=10.0, theirs=40.0)
    text = report.page(found(cells))
    assert "**10.0 / 40.0 (0.250x)**" in text
    line = "- cpprb, cartpole, batches/s, flat out: alone 0.250x, 1 producer 0.250x. "
    assert f"{line}No explanation yet." in text
    monkeypatch.setitem(report.explanations.EXPLANATIONS, ("cpprb", "cartpole"), {"batches_per_s": "It is in process."})
    assert f"At the learner while producers write:\n\n{line}It is in process." in report.page(found(cells))


def test_page_reports_a_peer_that_cannot_be_installed() -> None:
    """With its reason, and without figures."""
    about = {"versions": {}, "choices": [], "reason": "cannot be installed here: no wheel"}
    text = report.page({"peers": {"reverb": about}, "pairs": {}})
    assert "- **Reverb** cannot be installed here: no wheel" in text


def test_plots_are_drawn_with_and_without_figures(scripted: Callable[..., Child], tmp_path: Path) -> None:
    """A cell without a figure leaves a word; one without any is no reason to fail."""
    cells, _ = pair(scripted, Plan(rounds=1), "1/flat=crash", "2/steps=unable")
    for number, given in enumerate((found(cells), {"peers": {}, "pairs": {}})):
        for path in plots.write(tmp_path / str(number), given):
            assert path.stat().st_size > (10_000 if number == 0 else 1_000)


def test_environment_is_made_once_and_its_failure_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ready with the same requirements: nothing is done; otherwise made anew. The step that fails gives the reason."""
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
    assert python_of(replace(peer, requirements=("cpprb==12",))) == (None, "cannot be installed here: no wheel")
    assert not (tmp_path / "cpprb" / "ready").exists()


def test_failed_step_is_told_by_its_last_line() -> None:
    """And one that succeeded by nothing."""
    assert environments._failure((sys.executable, "-c", "import nothing_like_this")).startswith("ModuleNotFoundError")
    assert environments._failure((sys.executable, "-c", "print('fine')")) == ""


def test_producer_keeps_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many chunks a second; whoever is far behind does not catch up; stopped and ended when the switch says so."""
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


def test_areplay_itself_is_measured() -> None:
    """Its adapter, for real: batches and rows are counted, waits are waits, and all of its processes end."""
    command = (sys.executable, "-m", "benchmarks.peers.adapters.areplay")
    with Child("areplay", command) as child:
        for work, producers in ((TINY, 0), (replace(TINY, is_prioritized=True), 2)):
            question = {"do": "prepare", "work": json.loads(json.dumps(work.record())), "producers": producers}
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
        members = family(child.pid)
        assert len(members) >= 4  # itself, a sampler, two actors
        assert child.memory_bytes() > 20_000_000
    for member in members:
        wait_gone(member)
