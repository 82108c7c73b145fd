"""What figures depend on, without naming the host; and the processor time that this process and its
children took."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import areplay

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, object]:
    """Cores, processor and versions, areplay's own among them."""
    versions = {
        name: importlib.metadata.version(name) for name in ("numpy", "uvloop", "aiomultiprocess")
    }
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "areplay": areplay.__version__,
        "python": platform.python_version(),
        **versions,
    }


def own_cpu_s() -> float:
    """Processor time of this process and its descendants; of those that have ended, by way of who
    reaped them."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            parents[int(entry.name)] = int(words[1])
            used[int(entry.name)] = sum(int(word) for word in words[11:15])
    ours = {os.getpid()}
    while fresh := {pid for pid, parent in parents.items() if parent in ours and pid not in ours}:
        ours |= fresh
    return sum(used.get(pid, 0) for pid in ours) / _TICKS_PER_S


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
