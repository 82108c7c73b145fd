"""What a side costs: processor time and memory of a process and all that descend from it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")


def family(pid: int) -> list[int]:
    """The process and its descendants that are alive."""
    parents: dict[int, int] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
            except OSError:  # it has just ended
                continue
    workers = {pid} & set(parents)
    while fresh := {
        child for child, parent in parents.items() if parent in workers and child not in workers
    }:
        workers |= fresh
    return sorted(workers)


def cpu_s(workers: Iterable[int]) -> float:
    """Processor seconds of processes so far; of children that have ended, by way of who reaped
    them."""
    ticks = 0
    for member in workers:
        try:
            ticks += sum(int(word) for word in _stat(member)[11:15])
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int:
    """Memory of the family; what several of them share counts once (the sum of their proportional
    set sizes)."""
    total = 0
    for member in family(pid):
        try:
            text = (PROC / str(member) / "smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total * 1024


def _stat(pid: int) -> list[str]:
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
