"""`python -m benchmarks.peers`: make the environments, measure pair by pair, write tables, JSON and
plots.

A run may be a part (`--peers cpprb --works atari`): its pairs take the place of the ones from
before in the JSON, from which tables and plots are made.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.clocks import progress
from benchmarks.harness.machine import machine
from benchmarks.harness.quiet import OthersLoad
from benchmarks.peers import plots, report, results
from benchmarks.peers.driver import ROOT, Child
from benchmarks.peers.environments import PEERS, python_of
from benchmarks.peers.pairs import Contestant, Plan, measure_work
from benchmarks.peers.works import WORKS, Work

DOCS = ROOT / "docs" / "benchmarks"
QUICK = ROOT / "benchmarks" / "results" / "peers-quick"


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; the exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    for kind, names, known in (("peer", asked.peers, PEERS), ("work", asked.works, WORKS)):
        if unknown := set(names) - set(known):
            parser.error(
                f"no {kind} is called {', '.join(sorted(unknown))}; there are {', '.join(known)}"
            )
    folder = asked.into or (QUICK if asked.quick else DOCS)
    if not asked.report_only:
        _measure(folder / "peers.json", asked)
    found = results.load(folder / "peers.json")
    report.write(folder / "peers.md", found)
    plots.write(folder, found)
    progress(f"written to {folder}")
    return 0


def _measure(path: Path, asked: argparse.Namespace) -> None:
    plan = Plan.quick() if asked.quick else Plan()
    plan = replace(plan, producers=tuple(asked.producers), rounds=asked.rounds or plan.rounds)
    if asked.seconds:
        plan = replace(plan, flat_s=asked.seconds, steps_s=asked.seconds, flood_s=asked.seconds)
    works = [WORKS[name].tiny() if asked.quick else WORKS[name] for name in asked.works]
    if asked.capacity:
        works = [replace(work, capacity=asked.capacity) for work in works]
    pythons: dict[str, Path] = {}
    for name in asked.peers:
        python, reason = python_of(PEERS[name])
        if python is None:
            progress(f"{PEERS[name].title} {reason}")
            about = {"reason": reason, "versions": {}, "choices": []}
            results.save(path, results.merge(results.load(path), {}, {name: about}))
        else:
            pythons[name] = python
    for work in works:
        with ExitStack() as stack:
            ours = Contestant("areplay", partial(_child, "areplay", Path(sys.executable)), plan)
            stack.callback(ours.close)
            for name, python in pythons.items():
                _measure_pair(path, ours, name, python, work, plan)


def _measure_pair(
    path: Path, ours: Contestant, name: str, python: Path, work: Work, plan: Plan
) -> None:
    start_s, load = time.monotonic(), OthersLoad()
    peer = Contestant(PEERS[name].title, partial(_child, name, python), plan)
    try:
        cells = measure_work(ours, peer, work, plan)
    finally:
        peer.close()
    pair: dict[str, Any] = {
        "cells": {cell_name: cell.record() for cell_name, cell in cells.items()},
        "work": work.record() | {"row_bytes": work.row_bytes},
        "plan": asdict(plan),
        "machine": machine(),
        "cores_busy_with_others": round(load.cores(), 2),
    }
    known = {} if not peer.about else {name: {"reason": "", **peer.about}}
    if ours.about:
        known["areplay"] = {"reason": "", **ours.about}
    results.save(path, results.merge(results.load(path), {f"{name}/{work.name}": pair}, known))
    progress(
        f"{name}/{work.name} took {time.monotonic() - start_s:.0f} s; others kept "
        f"{load.cores():.2f} cores busy"
    )


def _child(name: str, python: Path) -> Child:
    return Child(name, (str(python), "-m", f"benchmarks.peers.adapters.{name}"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument(
        "--peers", nargs="*", default=list(PEERS), metavar="NAME", help=", ".join(PEERS)
    )
    parser.add_argument(
        "--works", nargs="*", default=list(WORKS), metavar="NAME", help=", ".join(WORKS)
    )
    parser.add_argument(
        "--producers", nargs="*", type=int, default=[0, 1, 2], metavar="N", help="how many write"
    )
    parser.add_argument("--rounds", type=int, help="how often the two sides take turns")
    parser.add_argument("--seconds", type=float, help="measured, each side, round and mode")
    parser.add_argument(
        "--capacity", type=int, help="rows; 100,000 large ones are 2.8 GB, on each side"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny: shows that everything runs, measures nothing"
    )
    parser.add_argument(
        "--into",
        type=Path,
        metavar="FOLDER",
        help=f"where to write (default: {DOCS}; quick: {QUICK})",
    )
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="tables and plots again, from the JSON that is there",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
