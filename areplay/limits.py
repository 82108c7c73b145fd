"""How much memory, and how many file descriptors, this process may still take.

Past a cgroup's limit there is no error, only an OOM kill at some later touch; past RLIMIT_NOFILE a child fails in the
middle of its start. So both are compared before anything is allocated.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from areplay.errors import DescriptorLimitExceeded, MemoryLimitExceeded


def check_memory(what: str, parts: dict[str, int], root: Path = Path("/")) -> None:
    """Raise `MemoryLimitExceeded` if the bytes in `parts` are together more than is available."""
    needed = sum(parts.values())
    available, limit = available_memory(root)
    if needed > available:
        raise MemoryLimitExceeded(what, needed, available, limit, parts)


def check_descriptors(what: str, needed: int) -> None:
    """Raise `DescriptorLimitExceeded` if fewer than `needed` file descriptors are left under RLIMIT_NOFILE."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    try:
        available = limit - (len(os.listdir("/proc/self/fd")) - 1)  # which lists the descriptor it is listed through
    except OSError:
        available = 0
    if needed > available:
        raise DescriptorLimitExceeded(what, needed, available, limit)


def available_memory(root: Path = Path("/")) -> tuple[int, str]:
    """Bytes that can still be taken, and the name of the limit that allows the least.

    The least of the host's available memory and, in each cgroup (v1 or v2) from ours up to the root, the limit less
    the use, where page cache that the kernel would drop does not count as used.
    """
    candidates = [(_host_available(root), "the host's available memory")]
    for group in _memory_groups(root):
        for limit_file, usage_file, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = _number(group / limit_file), _number(group / usage_file)
            if limit is not None and usage is not None:
                reclaimable = _keyed(group / "memory.stat", cache) or 0
                candidates.append((max(0, limit - usage + reclaimable), f"the limit in {group / limit_file}"))
    return min(candidates)


def _host_available(root: Path) -> int:
    available_kib = _keyed(root / "proc/meminfo", "MemAvailable:")
    return (1 << 62) if available_kib is None else available_kib * 1024


def _memory_groups(root: Path) -> Iterator[Path]:
    """The folders of our memory cgroup and its ancestors, for v1 and v2."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        # In a container the path may name a place outside of our view: then its ancestors that exist are what we see.
        folder = base / path.lstrip("/")
        while True:
            if folder.is_dir():
                yield folder
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None  # "max" means no limit


def _keyed(path: Path, key: str) -> int | None:
    for line in _lines(path):
        words = line.split()
        if words and words[0] == key:
            return int(words[1])
    return None
