"""What has been measured so far: one JSON file, into which a run puts its pairs in place of the ones from before.

Rule: a pair (a peer and a work) is replaced as a whole, so its cells come from one run; others are kept, so that a long
run may be split.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
WORST = {"max_us", "memory_bytes"}  # of the rounds, not their median
SIDES = ("areplay", "peer")


def load(path: Path) -> dict[str, Any]:
    """The results so far."""
    if path.exists():
        return json.loads(path.read_text())
    return {"peers": {}, "pairs": {}}


def merge(results: dict[str, Any], pairs: Mapping[str, Any], peers: Mapping[str, Any]) -> dict[str, Any]:
    """The results with these pairs and what is known of these peers put in."""
    return {"peers": {**results["peers"], **peers}, "pairs": {**results["pairs"], **pairs}}


def save(path: Path, results: Mapping[str, Any]) -> None:
    """Write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def figure(cell: Mapping[str, Any], side: str, quantity: str) -> float | None:
    """The median of the rounds of a side, or the worst of them; None where there is none."""
    rounds = [] if cell["reason"] else [turn[quantity] for turn in cell[side] if quantity in turn]
    if not rounds:
        return None
    return max(rounds) if quantity in WORST else statistics.median(rounds)


def ratio(cell: Mapping[str, Any], quantity: str) -> float | None:
    """How many times better areplay is, the median of the rounds; below 1 where the peer is ahead."""
    values = (figure(cell, "areplay", quantity), figure(cell, "peer", quantity))
    if None in values:
        return None
    if quantity in WORST:
        pairs = [values]
    else:
        pairs = [(a[quantity], b[quantity]) for a, b in zip(cell["areplay"], cell["peer"], strict=True)]
    if any(a <= 0 or b <= 0 for a, b in pairs):
        return None
    return statistics.median((a / b) ** BETTER[quantity] for a, b in pairs)
