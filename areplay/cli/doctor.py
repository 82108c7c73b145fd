"""`areplay doctor`: whether this machine has what areplay needs, and what each finding means for
you."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import areplay
from areplay.cli import checks as checks
from areplay.cli import terminal as terminal
from areplay.cli.checks import FAIL, WARN, Finding

if TYPE_CHECKING:
    from rich.console import RenderableType

_NAME, _VALUE = 20, 22  # columns


def add_to(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "doctor",
        help="try what areplay needs of this machine",
        description="Try what areplay needs of this machine, and say what each finding means. "
        "Exit status 1 if something is missing that it cannot do without.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look at everything, and show it as it is found."""
    found: list[Finding] = []

    def each() -> Iterator[Finding]:
        for finding in checks.findings():
            found.append(finding)
            yield finding

    if arguments.json:
        terminal.write_json(report(each()))
    elif terminal.has_rich():
        console = terminal.console("areplay doctor")
        for part in parts(each()):
            console.print(part)
    else:
        lines = (
            (terminal.MARKS[each.status], each.name, each.value, each.meaning) for each in each()
        )
        terminal.write(lines, (1, _NAME, _VALUE, 0))
        print(verdict(found))
    return 1 if any(finding.status == FAIL for finding in found) else 0


def report(findings: Iterable[Finding]) -> dict[str, object]:
    """All of it, ready for JSON."""
    found = list(findings)
    return {
        "format": "areplay doctor",
        "version": 1,
        "areplay": areplay.__version__,
        "time_s": time.time(),
        "is_fit": not any(finding.status == FAIL for finding in found),
        "findings": [dataclasses.asdict(finding) for finding in found],
    }


def parts(findings: Iterable[Finding]) -> Iterator[RenderableType]:
    """What there is to see, part by part."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    found: list[Finding] = []
    for finding in findings:
        if not found or found[-1].section != finding.section:
            yield Text(("\n" if found else "") + finding.section, "bold")
        found.append(finding)
        style = terminal.STYLES[finding.status]
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(width=1)
        line.add_column(width=_NAME)
        line.add_column(width=_VALUE)
        line.add_column()
        line.add_row(
            Text(terminal.MARKS[finding.status], style),
            Text(finding.name),
            Text(terminal.clean(finding.value), style if finding.status != checks.OK else "cyan"),
            Text(terminal.clean(finding.meaning), "dim" if finding.status == checks.OK else ""),
        )
        yield Padding(line, (0, 0, 0, 1))
    is_fit = not any(each.status == FAIL for each in found)
    yield Text("\n" + verdict(found), "bold green" if is_fit else terminal.STYLES[FAIL])


def verdict(findings: list[Finding]) -> str:
    """In one sentence."""
    missing = [finding.name for finding in findings if finding.status == FAIL]
    if missing:
        return f"areplay cannot run here: {', '.join(missing)}"
    warnings = sum(finding.status == WARN for finding in findings)
    restrictions = {0: "", 1: ", with the restriction above"}.get(
        warnings, f", with {warnings} restrictions, see above"
    )
    return f"areplay can run here{restrictions}"
