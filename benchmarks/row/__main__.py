"""`python -m benchmarks.row`: measure a replay on this machine with rows of your own; plots, JSON
and a table."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from areplay._base.validation import seconds
from areplay._shm.resource_limits import available_memory
from benchmarks.harness.options import Options, Progress
from benchmarks.harness.panels import Measurement
from benchmarks.harness.runner import run_each
from benchmarks.row import plots
from benchmarks.row.catalogue import MEASURES
from benchmarks.row.fields import SYNTAX, plain_rows, rows_of
from benchmarks.row.report import JSON, TABLE, Report
from benchmarks.workloads import CARTPOLE, FRAMES, Workload

OUT = Path(__file__).parents[1] / "results" / "row"
MEMORY_SHARE = 0.4  # of what is free, for the rows of a replay


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for; 1 if something could not be measured, else 0."""
    command = parser()
    asked = command.parse_args(arguments)
    try:
        workloads = _workloads(asked)
        options = _options(asked)
    except ValueError as error:
        command.error(str(error))
    report = Report(asked.out, workloads, options)
    with _display(len(workloads) * len(asked.only or MEASURES)) as (show, say), _without_warnings():
        works = {
            f"{name}, {workload.row_bytes:,}-byte rows": partial(
                _measured, name, workload, options, say
            )
            for workload in workloads
            for name in asked.only or MEASURES
        }
        for outcome in run_each(works, show):
            if outcome.value is None:
                report.fail(outcome.name, outcome.failure)
                say(f"{outcome.name}: {outcome.failure}")
            else:
                report.add(outcome.value)
            say(f"{outcome.name}: {outcome.seconds:.0f} s")
    print(*report.lines(), sep="\n")
    print(f"\nwritten to {asked.out}: {TABLE}, {JSON}")
    if not plots.can_draw():
        print(
            "no plots: they need matplotlib, which `pip install '.[bench]'` in a clone of "
            "areplay brings"
        )
    return 1 if report.failures else 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.row",
        description="Measures a replay on this machine and writes plots, JSON and a table. Some "
        "fifteen minutes.",
    )
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--row", type=_positive, metavar="BYTES", help="rows of so many bytes")
    rows.add_argument(
        "--fields", nargs="+", metavar="FIELD", help=f"rows with these fields, each {SYNTAX}"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=MEASURES, help=", ".join(MEASURES)
    )
    parser.add_argument(
        "--capacity",
        type=_positive,
        help="rows of each replay (100,000, or what the memory allows)",
    )
    parser.add_argument("--batch-size", type=_positive, help="rows of a batch (256)")
    parser.add_argument("--seconds", type=_seconds, help="measured for each figure (1.5)")
    parser.add_argument(
        "--budget",
        type=_seconds,
        metavar="SECONDS",
        dest="budget_s",
        help="for more and more actors, or larger and larger rings (90)",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to (%(default)s)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny: shows in seconds that all runs, measures nothing",
    )
    return parser


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Children that are killed on purpose are no news."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


async def _measured(name: str, workload: Workload, options: Options, say: Progress) -> Measurement:
    return await MEASURES[name](workload, _fitting(workload, options), say)


def _workloads(arguments: argparse.Namespace) -> list[Workload]:
    if arguments.row is not None:
        return [plain_rows(arguments.row)]
    if arguments.fields is not None:
        return [rows_of(arguments.fields)]
    return [FRAMES, CARTPOLE]


def _options(arguments: argparse.Namespace) -> Options:
    options = Options.quick() if arguments.quick else Options(rounds=3, steps=1_000)
    asked = {
        name: getattr(arguments, name) for name in ("capacity", "batch_size", "seconds", "budget_s")
    }
    return replace(options, **{name: value for name, value in asked.items() if value is not None})


def _fitting(workload: Workload, options: Options) -> Options:
    """With as many rows as the free memory allows."""
    rows = int(MEMORY_SHARE * available_memory()[0]) // workload.row_bytes
    return replace(options, capacity=max(options.batch_size, min(options.capacity, rows)))


def _positive(text: str) -> int:
    try:
        number = int(text.replace(",", "").replace("_", ""))
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


def _seconds(text: str) -> float:
    try:
        return seconds("time", float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number of seconds above 0, got {text!r}"
        ) from None


@contextmanager
def _display(steps: int) -> Iterator[tuple[Progress, Progress]]:
    """Two ways to say what is going on: which step begins, and how far it is. By rich, if it is
    there."""
    if importlib.util.find_spec("rich") is None or not sys.stderr.isatty():
        yield lambda what: _line(f"{what} ..."), lambda line: _line(f"  {line}")
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bar

    columns: tuple[Any, ...] = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task, begun = bar.add_task("", total=steps), 0

        def show(what: str) -> None:
            nonlocal begun
            bar.update(task, description=what, completed=begun)
            begun += 1

        yield show, lambda line: bar.console.print(f"  {line}", style="dim", highlight=False)
        bar.update(task, completed=steps)


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
