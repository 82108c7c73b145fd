"""The terminal: how the commands print.

rich prints if the extra `cli` is installed. Without it, commands that need no live display print
plain text. Text of another process or of a file reaches the terminal without control characters.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from areplay.errors import MissingDependency

if TYPE_CHECKING:
    from rich.bar import Bar
    from rich.console import Console

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
LABEL = 10
"""Columns of a label in the picture."""
WIDTH = 100
"""Columns, if standard output is not a terminal."""


def console(feature: str) -> Console:
    """Make rich's console.

    Raises:
        MissingDependency: rich is not installed.
    """
    if not has_rich():
        raise MissingDependency(feature, "cli")
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process with status 1

    return Plain(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def has_rich() -> bool:
    """Whether rich is installed."""
    return importlib.util.find_spec("rich") is not None


def write_columns(words: tuple[str, ...], widths: tuple[int, ...]) -> None:
    """Print the words of one line in columns, where rich is missing."""
    columns = (f"{word:{width}}" for word, width in zip(words, widths, strict=True))
    print("  ".join(columns).rstrip())


def write_json(document: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """Print one document."""
    print(json.dumps(document, indent=indent), flush=True)


def clean(text: str) -> str:
    """Replace the characters that could move a cursor or change a colour."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def gauge(share: float, colour: str, width: int) -> Bar:
    """Draw a bar that is filled to `share`, from 0 to 1."""
    from rich.bar import Bar

    return Bar(1.0, 0.0, share, width=width, color=colour, bgcolor="grey27")


def per_s(rate: float) -> str:
    """Write a rate for people, with a decimal if it is below 100."""
    return f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}"


def size(count_bytes: float) -> str:
    """Write a size for people, in decimal units."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count_bytes >= scale:
            return f"{count_bytes / scale:.1f} {unit}"
    return f"{count_bytes:.0f} B"


def span(seconds: float) -> str:
    """Write a length of time for people."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
