"""`python -m benchmarks [names ...]`: run benchmarks, print the table, write the JSON.

The exit status is 1 when a benchmark failed to run; a missed target is a figure and not a failure.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.catalogue import BENCHMARKS
from benchmarks.harness.clocks import progress
from benchmarks.harness.figures import Figure, summary, table, write_json
from benchmarks.harness.machine import machine
from benchmarks.harness.options import Options
from benchmarks.harness.quiet import Patience
from benchmarks.harness.runner import MAX_S, run_each
from benchmarks.queue_fill import PICTURE

RESULTS = Path(__file__).parent / "results" / "latest.json"
LAST_RESORT_S = 60.0


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; the exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(BENCHMARKS):
        parser.error(
            f"no benchmark is called {', '.join(sorted(unknown))}; there are "
            f"{', '.join(BENCHMARKS)}"
        )
    options = _options(asked)
    figures: list[Figure] = []
    others: dict[str, float] = {}
    failed = []
    for outcome in run_each(
        {name: partial(BENCHMARKS[name], options) for name in asked.names or BENCHMARKS}, _begin
    ):
        others[outcome.name] = outcome.others
        if outcome.value is None:
            failed.append(outcome.name)
            figures.append(Figure(f"{outcome.name}: failed", (), note=outcome.failure))
        else:
            figures += outcome.value
        progress(
            f"{outcome.name} took {outcome.seconds:.0f} s, beside {outcome.others:.2f} cores "
            "busy with others"
        )
        write_json(asked.json, figures, options, others)
    faulthandler.cancel_dump_traceback_later()
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    print(
        "cores busy with others:",
        ", ".join(f"{name} {cores:.2f}" for name, cores in others.items()),
    )
    print("", table(figures), "", *summary(figures), sep="\n")
    for name in failed:
        print(f"{name} could not be measured, see its traceback above")
    print(f"\nwritten to {asked.json}")
    return 1 if failed else 0


def _begin(name: str) -> None:
    """Say which one begins. Past the last resort, print where it hangs and end: its loop is
    blocked."""
    progress(name)
    faulthandler.dump_traceback_later(MAX_S + LAST_RESORT_S, exit=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--rounds", type=int, help="how often the sides of each comparison take turns"
    )
    parser.add_argument(
        "--capacity", type=int, help="rows of each replay; 100,000 large rows are 2.8 GB"
    )
    parser.add_argument("--seconds", type=float, help="measured, each side and round")
    parser.add_argument(
        "--patience",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="to wait for others to leave the machine alone",
    )
    parser.add_argument(
        "--json", type=Path, default=RESULTS, help="where the figures go (default: %(default)s)"
    )
    parser.add_argument(
        "--picture", default=str(PICTURE), help="where queue_fill draws (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny: shows that everything runs, measures nothing"
    )
    return parser


def _options(asked: argparse.Namespace) -> Options:
    options = (
        Options.quick()
        if asked.quick
        else Options(picture=asked.picture, patience=Patience(asked.patience))
    )
    given = {name: getattr(asked, name) for name in ("rounds", "capacity", "seconds")}
    return replace(options, **{name: value for name, value in given.items() if value is not None})


if __name__ == "__main__":
    sys.exit(main())
