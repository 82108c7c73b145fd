"""`areplay bench`: measure a replay on this machine, with rows of the user's own shape; plots, JSON and a table."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import areplay
from areplay.limits import available_memory
from areplay.measures import plots
from areplay.measures.catalogue import MEASURES
from areplay.measures.fields import SYNTAX, plain_rows, rows_of
from areplay.measures.measurement import Measurement
from areplay.measures.options import Options, Progress
from areplay.measures.report import JSON, TABLE, Report
from areplay.measures.workloads import CARTPOLE, FRAMES, Workload
from areplay.options import seconds

MAX_S = 1_800.0  # a measurement that takes longer hangs
MEMORY_SHARE = 0.4  # of what is free, for the rows of a replay


def add_to(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `bench` to the commands."""
    parser = subparsers.add_parser(
        "bench",
        help="measure a replay on this machine, with rows of your own shape",
        description="Measures a replay on this machine and writes plots, JSON and a table. Some fifteen minutes.",
    )
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--row", type=_positive, metavar="BYTES", help="rows of so many bytes")
    rows.add_argument("--fields", nargs="+", metavar="FIELD", help=f"rows with these fields, each {SYNTAX}")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=MEASURES, help=", ".join(MEASURES))
    parser.add_argument("--capacity", type=_positive, help="rows of each replay (100,000, or what the memory allows)")
    parser.add_argument("--batch-size", type=_positive, help="rows of a batch (256)")
    parser.add_argument("--seconds", type=_seconds, help="measured for each figure (1.5)")
    parser.add_argument(
        "--budget",
        type=_seconds,
        metavar="SECONDS",
        dest="budget_s",
        help="for more and more actors, or larger and larger rings (90)",
    )
    parser.add_argument("--out", type=Path, default=Path("areplay-bench"), help="folder to write to (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny: shows in seconds that all runs, measures nothing")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure what was asked for; 1 if something could not be measured, else 0."""
    try:
        workloads = _workloads(arguments)
        options = _options(arguments)
    except ValueError as error:
        arguments.parser.error(str(error))
    report = Report(arguments.out, workloads, options)
    work = [(name, workload) for workload in workloads for name in arguments.only or MEASURES]
    with _display(len(work)) as (show, say), _without_warnings():
        for name, workload in work:
            what = f"{name}, {workload.row_bytes:,}-byte rows"
            show(what)
            start = time.monotonic()
            try:
                report.add(_measured(name, workload, options, say))
            except Exception as error:
                report.fail(what, f"{type(error).__name__}: {error}")
                say(f"{what}: {report.failures[what]}")
            say(f"{what}: {time.monotonic() - start:.0f} s")
    print(*report.lines(), sep="\n")
    print(f"\nwritten to {arguments.out}: {TABLE}, {JSON}")
    if not plots.can_draw():
        print("no plots: they need matplotlib, which `pip install '.[bench]'` in a clone of areplay brings")
    return 1 if report.failures else 0


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Children that are killed on purpose are no news."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _measured(name: str, workload: Workload, options: Options, say: Progress) -> Measurement:
    async def within_limits() -> Measurement:
        async with asyncio.timeout(MAX_S):
            return await MEASURES[name](workload, _fitting(workload, options), say)

    return areplay.run(within_limits())


def _workloads(arguments: argparse.Namespace) -> list[Workload]:
    if arguments.row is not None:
        return [plain_rows(arguments.row)]
    if arguments.fields is not None:
        return [rows_of(arguments.fields)]
    return [FRAMES, CARTPOLE]


def _options(arguments: argparse.Namespace) -> Options:
    options = Options.quick() if arguments.quick else Options(steps=1_000)
    asked = {name: getattr(arguments, name) for name in ("capacity", "batch_size", "seconds", "budget_s")}
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
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}") from None


@contextmanager
def _display(steps: int) -> Iterator[tuple[Progress, Progress]]:
    """Two ways to say what is going on: which step begins, and how far it is. By rich, if it is there."""
    if importlib.util.find_spec("rich") is None or not sys.stderr.isatty():
        yield lambda what: _line(f"{what} ..."), lambda line: _line(f"  {line}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns: tuple[Any, ...] = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
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
