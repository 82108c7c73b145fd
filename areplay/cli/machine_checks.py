"""Checks of `areplay doctor`: the machine's memory, its processors, and the limits of a process."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

from areplay._shm.resource_limits import (
    DESCRIPTORS_A_CHILD,
    DESCRIPTORS_AN_INBOX,
    DESCRIPTORS_TO_START,
    available_memory,
    memory_limits,
    process_limit,
    processor_quota,
)
from areplay.cli.finding import OK, WARN, Result

_UNLIMITED = 1 << 60  # bytes; version 1 of cgroups says "no limit" by a number
_FEW_ACTORS = 64
_LITTLE_MEMORY_BYTES = 1 << 30
_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def memory(root: Path) -> Result:
    """Tell how much memory a replay may take."""
    available, limit = available_memory(root)
    if available >= _UNLIMITED:
        return Result(WARN, "unknown", "/proc/meminfo is missing: too large a replay is killed")
    if available < _LITTLE_MEMORY_BYTES:
        return Result(WARN, _binary_size(available), f"little for a replay; {limit} decides")
    meaning = "more than that is refused before it is allocated"
    return Result(OK, _binary_size(available), meaning)


def control_groups(root: Path) -> Result:
    """Tell the least limit that a cgroup sets on memory."""
    version = _cgroup_version(root)
    limits = [(limit, file) for file, limit, _ in memory_limits(root) if limit < _UNLIMITED]
    if not limits:
        return Result(OK, f"{version}, no limit", "only the host's memory is a limit")
    limit, file = min(limits)
    meaning = f"areplay keeps below it, where the kernel would kill; it is in {file}"
    return Result(OK, f"{version}, {_binary_size(limit)}", meaning)


def _cgroup_version(root: Path) -> str:
    hierarchies = _matches(root / "proc/self/cgroup", r"^\d+:([^:]*):")
    if any("memory" in controllers.split(",") for controllers in hierarchies):
        return "v1"
    return "v2" if "" in hierarchies else "none"


def shared_memory(root: Path) -> Result:
    """Tell the size of /dev/shm, which areplay does not use."""
    try:
        size = os.statvfs(root / "dev/shm")
        value = _binary_size(size.f_frsize * size.f_blocks)
    except OSError:
        value = "none"
    return Result(OK, value, "not used: 64 MiB in a container are no obstacle")


def huge_pages(root: Path) -> Result:
    """Tell whether the kernel backs shared memory by huge pages."""
    setting = root / "sys/kernel/mm/transparent_hugepage/shmem_enabled"
    chosen = _matches(setting, r"\[(\w+)\]")
    value = chosen[0] if chosen else "none"
    if value in ("always", "within_size", "force"):
        return Result(OK, value, "pages of 2 MiB: fresh memory is there sooner")
    return Result(OK, value, "pages of 4 KiB; prefault=True touches them at once")


def cores(root: Path) -> Result:
    """Tell how many processes can run at the same time."""
    usable = len(os.sched_getaffinity(0))
    quota = processor_quota(root)
    value = f"{usable} of {os.cpu_count() or 1}"
    if quota is not None:
        value += f", quota {quota:g}"
    if min(usable, quota or usable) < 2:
        return Result(WARN, value, "learner, samplers and actors have to take turns")
    return Result(OK, value, "for the learner, samplers and actors together")


def descriptors(root: Path) -> Result:
    """Tell for how many actors RLIMIT_NOFILE has room."""
    limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return Result(OK, "no limit", "enough for any number of actors")
    try:
        taken = len(os.listdir(root / "proc/self/fd"))
    except OSError:
        return Result(WARN, f"{limit:,}", "how many are open is not known without /proc")
    free = limit - taken - DESCRIPTORS_TO_START
    actors = max(0, free // (DESCRIPTORS_A_CHILD + DESCRIPTORS_AN_INBOX))
    meaning = f"enough for {actors:,} actors"
    if actors >= _FEW_ACTORS:
        return Result(OK, f"{limit:,}", meaning)
    may_raise = hard_limit == resource.RLIM_INFINITY or hard_limit > limit
    remedy = "`ulimit -n` raises it" if may_raise else "root can raise it"
    return Result(WARN, f"{limit:,}", f"{meaning}; {remedy}")


def processes(root: Path) -> Result:
    """Tell how many children cgroups and RLIMIT_NPROC allow."""
    limits = [limit for limit in (process_limit(root), _user_process_limit()) if limit is not None]
    if not limits:
        return Result(OK, "no limit", "as many actors as the memory is enough for")
    least = min(limits)
    status = WARN if least < _FEW_ACTORS else OK
    return Result(status, f"{least:,}", "each actor and sampler is one, with some threads")


def _user_process_limit() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    is_unlimited = limit == resource.RLIM_INFINITY or os.geteuid() == 0
    return None if is_unlimited else limit


def _binary_size(size_bytes: float) -> str:
    for unit, scale in _UNITS:
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def _matches(path: Path, pattern: str) -> list[str]:
    """Find the pattern in a file; an empty list if the file cannot be read."""
    try:
        return re.findall(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return []
