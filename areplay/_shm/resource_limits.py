"""How much memory, and how many file descriptors, this process may still take.

Past a cgroup's limit there is no error, only an OOM kill at some later touch; past RLIMIT_NOFILE a
child fails in the middle of its start. So both are compared before anything is allocated.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from areplay.errors import DescriptorLimitExceeded, MemoryLimitExceeded

# in the parent of a child: its socket, its pidfd and the pipe whose end is the parent's
DESCRIPTORS_A_CHILD = 3
# while a child is being started, beside those: pipes, a segment, an event loop
DESCRIPTORS_TO_START = 16
# two doorbells, and the block locks of the coordinator for it
DESCRIPTORS_AN_INBOX = 3


def check_memory(what: str, parts: dict[str, int], root: Path = Path("/")) -> None:
    """Raise `MemoryLimitExceeded` if the bytes in `parts` are together more than is available."""
    needed = sum(parts.values())
    available, limit = available_memory(root)
    if needed > available:
        raise MemoryLimitExceeded(what, needed, available, limit, parts)


def check_descriptors(what: str, needed: int) -> None:
    """Raise `DescriptorLimitExceeded` if fewer than `needed` file descriptors are left under
    RLIMIT_NOFILE."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    try:
        # which lists the descriptor it is listed through
        available = limit - (len(os.listdir("/proc/self/fd")) - 1)
    except OSError:
        available = 0
    if needed > available:
        raise DescriptorLimitExceeded(what, needed, available, limit)


def available_memory(root: Path = Path("/")) -> tuple[int, str]:
    """Bytes that can still be taken, and the name of the limit that allows the least.

    The least of the host's available memory and, in each cgroup (v1 or v2) from ours up to the
    root, the limit less the use, where page cache that the kernel would drop does not count as
    used.
    """
    candidates = [(_host_available(root), "the host's available memory")]
    candidates += [
        (available, f"the limit in {file}") for file, _, available in memory_limits(root)
    ]
    return min(candidates)


def memory_limits(root: Path = Path("/")) -> Iterator[tuple[Path, int, int]]:
    """`(file, limit, available)` in bytes of each cgroup from ours up to the root that has a limit,
    v1 or v2."""
    for group in groups(root, "memory"):
        for limit_file, usage_file, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = _number(group / limit_file), _number(group / usage_file)
            if limit is not None and usage is not None:
                reclaimable = _keyed(group / "memory.stat", cache) or 0
                yield group / limit_file, limit, max(0, limit - usage + reclaimable)


def processor_quota(root: Path = Path("/")) -> float | None:
    """How many processors' time our cgroups, v1 or v2, allow; None if that is not limited."""
    quotas = []
    for group in groups(root, "cpu"):
        words = " ".join(_lines(group / "cpu.max")).split()
        # A quota of -1 means that there is no limit.
        v1 = [_number(group / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
        quota, period = map(int, words) if words and words[0] != "max" else v1
        if quota is not None and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def process_limit(root: Path = Path("/")) -> int | None:
    """How many processes and threads more our cgroups allow; None if that is not limited."""
    left = []
    for group in groups(root, "pids"):
        limit, usage = _number(group / "pids.max"), _number(group / "pids.current")
        if limit is not None and usage is not None:
            left.append(max(0, limit - usage))
    return min(left, default=None)


def groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of our cgroup of that controller and its ancestors, for v1 and v2."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        # In a container the path may name a place outside of our view: then its ancestors that
        # exist are what we see.
        folder = base / path.lstrip("/")
        while True:
            if folder.is_dir():
                yield folder
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent


def _host_available(root: Path) -> int:
    available_kib = _keyed(root / "proc/meminfo", "MemAvailable:")
    return (1 << 62) if available_kib is None else available_kib * 1024


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
