"""What has been measured so far: one JSON file, into which a run puts its pairs in place of the
ones from before.

Rule: a pair (a peer and a work) is replaced as a whole, so its cells come from one run; others are
kept, so that a long run may be split. What a cell says is worked out here and nowhere else: a
figure for each side, their ratio, and whether the rounds agree on who is ahead.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import waits

# of the file; one of another format is not read, since its figures were made by other rules
FORMAT = 2
# objects that hold no other, and lists of numbers
INNERMOST = re.compile(r"""\{[^][{}]*\}|\[[^][{}"]*\]""")
HIGHER, LOWER = 1, -1
BETTER = {
    "batches_per_s": HIGHER,
    "rows_per_s": HIGHER,
    "p50_us": LOWER,
    "mean_us": LOWER,
    "p99_us": LOWER,
    "max_us": LOWER,
    "cpu_s_per_million_rows": LOWER,
    "memory_bytes": LOWER,
}
PERCENTILES = {"p50_us": 50, "p99_us": 99}  # of the waits of all rounds
WORST = {"max_us", "memory_bytes"}  # of the rounds, not their median
SIDES = ("areplay", "peer")
# of the rows that it was handed, what a side must take in for the rest to be comparable
MIN_PACE = 0.9


@dataclass(frozen=True)
class Comparison:
    """A quantity on both sides.

    Args:
        times: how many times better areplay is: the ratio of the two figures, whatever they are.
        low, high: of the ratios of the single rounds, each of two turns that followed one another.
    """

    ours: float
    theirs: float
    times: float
    low: float
    high: float

    @property
    def is_level(self) -> bool:
        """Whether the rounds do not tell who is ahead: not all of their ratios are on the side of 1
        that `times` is."""
        return not (self.is_peer_ahead or (self.times > 1 and self.low > 1))

    @property
    def is_peer_ahead(self) -> bool:
        """Whether the peer is better, and was so in every round."""
        return self.times < 1 and self.high < 1


def load(path: Path) -> dict[str, Any]:
    """The results so far; none where there is no file, or one of another format."""
    if path.exists() and (found := json.loads(path.read_text())).get("format") == FORMAT:
        return found
    return {"format": FORMAT, "peers": {}, "pairs": {}}


def merge(
    results: dict[str, Any], pairs: Mapping[str, Any], peers: Mapping[str, Any]
) -> dict[str, Any]:
    """The results with these pairs and what is known of these peers put in."""
    return {
        **results,
        "peers": {**results["peers"], **peers},
        "pairs": {**results["pairs"], **pairs},
    }


def save(path: Path, results: Mapping[str, Any]) -> None:
    """Write them; a turn takes one line, and so does a list of numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, sort_keys=True)
    path.write_text(INNERMOST.sub(lambda found: re.sub(r"\n\s*", "", found[0]), text) + "\n")


def figure(cell: Mapping[str, Any], side: str, quantity: str) -> float | None:
    """What a side did, over all rounds; None where there is no figure.

    Percentiles and the mean are of the waits of all rounds together; of the longest wait and of
    memory the worst round is taken, of anything else the median round.
    """
    rounds = [] if cell["reason"] else [turn for turn in cell[side] if quantity in turn]
    if not rounds:
        return None
    if quantity in PERCENTILES:
        found = waits.percentile(cell["waits"][side], PERCENTILES[quantity])
        # its bin may end behind the longest wait
        return min(found, max(turn["max_us"] for turn in rounds))
    if quantity == "mean_us":
        return sum(turn["batches"] * turn["mean_us"] for turn in rounds) / sum(
            turn["batches"] for turn in rounds
        )
    values = [turn[quantity] for turn in rounds]
    return max(values) if quantity in WORST else statistics.median(values)


def comparison(cell: Mapping[str, Any], quantity: str) -> Comparison | None:
    """Both sides and their ratio; None where a side has no figure, or none that can be divided
    by."""
    ours, theirs = (figure(cell, side, quantity) for side in SIDES)
    if ours is None or theirs is None:
        return None
    rounds = [
        (a[quantity], b[quantity]) for a, b in zip(cell["areplay"], cell["peer"], strict=True)
    ]
    if any(a <= 0 or b <= 0 for a, b in [(ours, theirs), *rounds]):
        return None
    ratios = [(a / b) ** BETTER[quantity] for a, b in rounds]
    return Comparison(ours, theirs, (ours / theirs) ** BETTER[quantity], min(ratios), max(ratios))


def is_behind_pace(cell: Mapping[str, Any], side: str, rows_per_s: float) -> bool:
    """Whether a side took in so few of the rows that it was handed that its other figures are not
    comparable."""
    came_in = figure(cell, side, "rows_per_s")
    return came_in is not None and came_in < MIN_PACE * rows_per_s
