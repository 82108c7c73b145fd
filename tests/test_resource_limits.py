"""Tests of `_shm.resource_limits`, on made-up machines: a folder with the files that the kernel
would show."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from areplay._shm.resource_limits import available_memory, check_descriptors, check_memory
from areplay.errors import DescriptorLimitExceeded, MemoryLimitExceeded

GIB = 1 << 30
UNLIMITED_V1 = 9_223_372_036_854_771_712


class Machine:
    """A root folder to which memory, and cgroups of either version, can be added."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has_memory(self, available: int) -> None:
        """What /proc/meminfo says."""
        self._write(
            "proc/meminfo",
            f"MemTotal: {64 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: "
            f"{available // 1024} kB\n",
        )

    def is_in(self, *lines: str) -> None:
        """What /proc/self/cgroup says."""
        self._write("proc/self/cgroup", "".join(f"{line}\n" for line in lines))

    def v2(self, path: str, limit: int | str, usage: int, inactive: int = 0) -> None:
        """A group of version 2."""
        folder = f"sys/fs/cgroup{path}"
        self._write(f"{folder}/memory.max", f"{limit}\n")
        self._write(f"{folder}/memory.current", f"{usage}\n")
        self._write(
            f"{folder}/memory.stat", f"anon 5\nfile 7\ninactive_anon 9\ninactive_file {inactive}\n"
        )

    def v1(self, path: str, limit: int, usage: int, inactive: int = 0) -> None:
        """A group of version 1."""
        folder = f"sys/fs/cgroup/memory{path}"
        self._write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self._write(f"{folder}/memory.usage_in_bytes", f"{usage}\n")
        stat = f"cache 3\ninactive_file 1\ntotal_cache 4\ntotal_inactive_file {inactive}\n"
        self._write(f"{folder}/memory.stat", stat)

    def _write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with 16 GiB available and no cgroups."""
    machine = Machine(tmp_path)
    machine.has_memory(16 * GIB)
    return machine


def test_without_cgroups_the_hosts_available_memory_counts(machine: Machine) -> None:
    """MemAvailable, not MemFree or MemTotal, in bytes."""
    assert available_memory(machine.root) == (16 * GIB, "the host's available memory")


def test_the_least_of_host_and_groups_counts(machine: Machine) -> None:
    """A group that allows more than the host has does not help."""
    machine.is_in("0::/job")
    machine.v2("/job", 64 * GIB, GIB)
    assert available_memory(machine.root)[0] == 16 * GIB
    machine.v2("/job", 4 * GIB, GIB)
    assert available_memory(machine.root)[0] == 3 * GIB


def test_the_limit_that_counts_is_named(machine: Machine) -> None:
    """The user learns which file to look at."""
    machine.is_in("0::/job")
    machine.v2("/job", 4 * GIB, GIB)
    assert str(machine.root / "sys/fs/cgroup/job/memory.max") in available_memory(machine.root)[1]


def test_an_ancestor_of_our_v2_group_may_be_the_narrowest(machine: Machine) -> None:
    """Every group from ours up to the root is looked at, also where some on the way have no
    limit."""
    machine.is_in("0::/a/b/c")
    machine.v2("/a/b/c", "max", 0)
    machine.v2("/a/b", 8 * GIB, GIB)
    machine.v2("/a", 5 * GIB, 3 * GIB)
    assert available_memory(machine.root)[0] == 2 * GIB
    machine.v2("", 2 * GIB, GIB)
    assert available_memory(machine.root)[0] == GIB


def test_a_limit_of_max_is_no_limit(machine: Machine) -> None:
    """Version 2 says "max", version 1 a number beyond all memory."""
    machine.is_in("0::/job", "4:memory:/old")
    machine.v2("/job", "max", 3 * GIB)
    machine.v1("/old", UNLIMITED_V1, 3 * GIB)
    assert available_memory(machine.root)[0] == 16 * GIB


def test_page_cache_that_would_be_dropped_is_not_used_memory(machine: Machine) -> None:
    """Inactive file pages are given back under pressure; of version 1 the hierarchical count is
    taken."""
    machine.is_in("0::/job")
    machine.v2("/job", 4 * GIB, 3 * GIB, inactive=GIB)
    assert available_memory(machine.root)[0] == 2 * GIB
    machine.v2("/job", "max", 0)
    machine.is_in("7:cpu,memory:/old")
    machine.v1("/old", 4 * GIB, 3 * GIB, inactive=2 * GIB)
    assert available_memory(machine.root)[0] == 3 * GIB


def test_a_group_over_its_limit_leaves_nothing(machine: Machine) -> None:
    """Not a negative number."""
    machine.is_in("0::/job")
    machine.v2("/job", GIB, 2 * GIB)
    assert available_memory(machine.root)[0] == 0


def test_v1_groups_count_with_their_ancestors(machine: Machine) -> None:
    """As for version 2; controllers other than memory are of no interest."""
    machine.is_in("9:cpuset:/elsewhere", "8:memory:/a/b", "1:name=systemd:/x")
    machine.v1("/a/b", 9 * GIB, GIB)
    machine.v1("/a", 3 * GIB, GIB)
    machine.v2("/elsewhere", 1, 0)
    machine.v1("/elsewhere", 1, 0)
    machine.v1("/x", 1, 0)
    assert available_memory(machine.root)[0] == 2 * GIB


def test_a_container_whose_group_lies_outside_of_its_view_sees_the_root(machine: Machine) -> None:
    """In a container /proc may name a path of the host: the part of it that exists is what we
    see."""
    machine.is_in("0::/kubepods/pod1/box")
    machine.v2("", 2 * GIB, GIB)
    assert available_memory(machine.root)[0] == GIB
    machine.is_in("0::/../../other")
    assert available_memory(machine.root)[0] == GIB


def test_a_machine_that_shows_nothing_sets_no_limit(tmp_path: Path) -> None:
    """No /proc, no cgroups: nothing is known, so nothing is refused."""
    available, limit = available_memory(tmp_path)
    assert available >= 1 << 60
    assert limit
    check_memory("a lot", {"x": 1 << 50}, tmp_path)


def test_a_group_without_a_usage_file_is_passed_over(machine: Machine) -> None:
    """The root group of version 2 has no memory.max, an odd one may lack either file."""
    machine.is_in("0::/job")
    machine.v2("/job", GIB, 0)
    (machine.root / "sys/fs/cgroup/job/memory.current").unlink()
    assert available_memory(machine.root)[0] == 16 * GIB


def test_a_group_without_statistics_counts_all_its_use(machine: Machine) -> None:
    """No memory.stat: no cache is known that could be dropped."""
    machine.is_in("0::/job")
    machine.v2("/job", 4 * GIB, 3 * GIB, inactive=GIB)
    (machine.root / "sys/fs/cgroup/job/memory.stat").unlink()
    assert available_memory(machine.root)[0] == GIB


def test_more_than_is_available_is_refused_with_both_numbers_and_a_line_a_part(
    machine: Machine,
) -> None:
    """Needed, available, the limit, each field and the knobs are in the message."""
    machine.has_memory(8 * GIB)
    with pytest.raises(MemoryLimitExceeded) as caught:
        check_memory("a replay of 3 rows", {"obs": 8 * GIB, "reward": 1}, machine.root)
    error = caught.value
    assert (error.needed_bytes, error.available_bytes) == (8 * GIB + 1, 8 * GIB)
    assert error.parts == {"obs": 8 * GIB, "reward": 1}
    lines = str(error).splitlines()
    assert "a replay of 3 rows needs 8,589,934,593 bytes" in lines[0]
    assert (
        "8,589,934,592" in lines[0]
        and "the host's available memory" in lines[0]
        and "lower capacity" in lines[0]
    )
    assert [line.strip() for line in lines[1:]] == ["obs: 8,589,934,592 bytes", "reward: 1 bytes"]


def test_exactly_what_is_available_is_allowed(machine: Machine) -> None:
    """The limit itself may be reached."""
    check_memory("a replay", {"obs": 16 * GIB - 1, "reward": 1}, machine.root)
    with pytest.raises(MemoryLimitExceeded):
        check_memory("a replay", {"obs": 16 * GIB - 1, "reward": 2}, machine.root)


def test_this_machine_has_memory() -> None:
    """The real files of the machine that runs the tests are understood."""
    available, limit = available_memory()
    assert 1 << 20 < available < 1 << 62
    assert limit
    with pytest.raises(MemoryLimitExceeded):
        check_memory("too much", {"x": available * 2 + GIB})


def limit_descriptors(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    """Pretend that RLIMIT_NOFILE is that."""
    monkeypatch.setattr(
        resource, "getrlimit", lambda which: {resource.RLIMIT_NOFILE: (soft, 1 << 20)}[which]
    )


def test_too_few_descriptors_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in use count; the message names the limit and the way to raise it."""
    used = len(os.listdir("/proc/self/fd"))
    limit_descriptors(monkeypatch, used + 100)
    check_descriptors("25 actors", 90)
    with pytest.raises(DescriptorLimitExceeded) as caught:
        check_descriptors("50 actors", 200)
    error = caught.value
    assert (error.needed, error.limit) == (200, used + 100)
    assert 90 <= error.available <= 110
    text = str(error)
    assert "50 actors need 200" in text and "RLIMIT_NOFILE" in text and "ulimit -n" in text


def test_descriptors_opened_meanwhile_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what is left that matters, not the limit."""
    limit_descriptors(monkeypatch, len(os.listdir("/proc/self/fd")) + 20)
    check_descriptors("4 actors", 16)
    opened = [os.dup(0) for _ in range(10)]
    try:
        with pytest.raises(DescriptorLimitExceeded):
            check_descriptors("4 actors", 16)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def test_no_limit_on_descriptors_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """RLIM_INFINITY is -1, which must not be taken for a number."""
    limit_descriptors(monkeypatch, resource.RLIM_INFINITY)
    check_descriptors("a million actors", 4_000_000)
