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
from areplay.cli.finding import FAIL, OK, WARN, Finding

if TYPE_CHECKING:
    from rich.console import RenderableType

_NAME = 20  # columns
_VALUE = 22  # columns


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
    """Make all checks, and show each finding as soon as it is there."""
    found: list[Finding] = []
    findings = _recorded(checks.findings(), found)
    if arguments.json:
        terminal.write_json(report(findings))
    elif terminal.has_rich():
        console = terminal.console("areplay doctor")
        for part in parts(findings):
            console.print(part)
    else:
        for finding in findings:
            mark = terminal.MARKS[finding.status]
            words = (mark, finding.name, finding.value, finding.meaning)
            terminal.write_columns(words, (1, _NAME, _VALUE, 0))
        print(verdict(found))
    return 1 if _failed(found) else 0


def _recorded(findings: Iterable[Finding], found: list[Finding]) -> Iterator[Finding]:
    for finding in findings:
        found.append(finding)
        yield finding


def _failed(findings: list[Finding]) -> list[str]:
    return [finding.name for finding in findings if finding.status == FAIL]


def report(findings: Iterable[Finding]) -> dict[str, object]:
    """Put all findings into a document for JSON."""
    found = list(findings)
    return {
        "format": "areplay doctor",
        "version": 1,
        "areplay": areplay.__version__,
        "time_s": time.time(),
        "is_fit": not _failed(found),
        "findings": [dataclasses.asdict(finding) for finding in found],
    }


def parts(findings: Iterable[Finding]) -> Iterator[RenderableType]:
    """Yield what rich prints: a heading for each section, a line for each finding, the verdict."""
    from rich.text import Text

    found: list[Finding] = []
    for finding in findings:
        if not found or found[-1].section != finding.section:
            yield Text(("\n" if found else "") + finding.section, "bold")
        found.append(finding)
        yield _line(finding)
    yield Text("\n" + verdict(found), terminal.STYLES[FAIL] if _failed(found) else "bold green")


def _line(finding: Finding) -> RenderableType:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    style = terminal.STYLES[finding.status]
    value = Text(terminal.clean(finding.value), style)
    meaning = Text(terminal.clean(finding.meaning))
    if finding.status == OK:
        value.style = "cyan"
        meaning.style = "dim"
    line = Table.grid(padding=(0, 2, 0, 0))
    for width in (1, _NAME, _VALUE, None):
        line.add_column(width=width)
    line.add_row(Text(terminal.MARKS[finding.status], style), Text(finding.name), value, meaning)
    return Padding(line, (0, 0, 0, 1))


def verdict(findings: list[Finding]) -> str:
    """Say in one sentence whether areplay can run here."""
    missing = _failed(findings)
    if missing:
        return f"areplay cannot run here: {', '.join(missing)}"
    warnings = sum(finding.status == WARN for finding in findings)
    if warnings > 1:
        return f"areplay can run here, with {warnings} restrictions, see above"
    return "areplay can run here" + (", with the restriction above" if warnings else "")
