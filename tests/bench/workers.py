"""What measurements are given by their tests, and children import."""

from __future__ import annotations

from collections.abc import Mapping

import areplay
from areplay._base.arrays import Array
from areplay._storage.windows import Windows
from benchmarks.harness.panels import Panel, Series, waits_panel

PANELS = (
    Panel(
        "lines",
        "x",
        "y",
        (Series("a", (1.0, 10.0), (0.0, 2.0)), Series("b", (1.0, 10.0), (3.0, 4.0))),
        is_log=True,
    ),
    Panel("steps", "x", "", (Series("a", (0.0, 1.0), (1.0, 0.5)),), "steps", top=1.0),
    Panel(
        "bars",
        "",
        "y",
        (Series("a", (0.0, 1.0), (5.0, 6.0)),),
        "bars",
        ((0.0, "one"), (1.0, "two")),
    ),
    waits_panel([20.0, 30.0, 4_000.0], "waits"),
)
"""One of each kind."""


class Tears(areplay.Rows):
    """Rows of which the first one of each copy is spoilt, in one bit of one field."""

    def __init__(self, field: str) -> None:
        self.field = field

    def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
        """Copy, and spoil."""
        super().assemble(windows, out)
        out[self.field].reshape(len(windows), -1).view("uint8")[0, -1] ^= 1
