"""Tests of `areplay doctor`: each thing that it looks at is missing once, on this machine or on a
made-up one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from kit import open_descriptors
from test_resource_limits import GIB, Machine

import areplay
from areplay.cli import doctor, kernel_checks, machine_checks, main, software_checks, trial
from areplay.cli.checks import findings
from areplay.cli.finding import Finding, Result
from tests.processes.watching import children

Patch = Callable[[pytest.MonkeyPatch], None]

KERNEL = (
    "Linux",
    "sealed memory files",
    "locks of open files",
    "pidfd",
    "eventfd",
    "parent death signal",
    "packet sockets",
    "abstract sockets",
    "populating memory",
)


def refuse(where: Any, name: str, error: int = errno.ENOSYS) -> Patch:
    """Lets a call fail."""

    def call(*args: Any, **kwargs: Any) -> Any:
        raise OSError(error, os.strerror(error))

    return lambda patch: patch.setattr(where, name, call)


def replace(where: Any, name: str, value: Any) -> Patch:
    """Puts something else there."""
    return lambda patch: patch.setattr(where, name, value)


class NoDeathSignal:
    """A C library of which prctl does as a sandbox lets it."""

    def __init__(self, result: int) -> None:
        self._result = result

    def prctl(self, *args: Any) -> int:
        """Changes nothing."""
        ctypes.set_errno(errno.EPERM)
        return self._result


def fcntl_without(command: int) -> Callable[..., Any]:
    """All other commands work."""

    def call(descriptor: int, which: int, *args: Any) -> Any:
        if which == command:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, which, *args)

    real = fcntl.fcntl
    return call


class Locks:
    """Block locks that exclude nobody, or give nothing back."""

    def __init__(self, answers: Iterator[bool]) -> None:
        self._answers = answers

    def __call__(self, *args: Any) -> Locks:
        return self

    def try_exclusive(self, block: int) -> bool:
        """As was said beforehand."""
        return next(self._answers)

    def close(self) -> None:
        """Nothing."""


def finding_of(name: str, root: Path = Path("/")) -> Finding:
    """What is found of one thing."""
    return next(finding for finding in findings(root) if finding.name == name)


@pytest.fixture
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes takes its time, and is tried elsewhere."""
    monkeypatch.setattr(trial, "result", lambda: Result("ok", "", ""))


@pytest.mark.parametrize("name", KERNEL)
def test_this_machine_has_what_the_other_tests_need(name: str) -> None:
    """Or they would fail; nothing is left open, and no child."""
    before, others = open_descriptors(), children()
    finding = finding_of(name)
    assert (finding.section, finding.status) == ("Kernel", "ok")
    assert open_descriptors() == before
    assert children() == others


@pytest.mark.parametrize(
    ("name", "missing", "value"),
    [
        ("Linux", replace(sys, "platform", "darwin"), "darwin is not Linux"),
        ("sealed memory files", refuse(os, "memfd_create"), "Function not implemented"),
        (
            "sealed memory files",
            refuse(os, "posix_fallocate", errno.EOPNOTSUPP),
            "Operation not supported",
        ),
        (
            "sealed memory files",
            replace(fcntl, "fcntl", fcntl_without(fcntl.F_ADD_SEALS)),
            "Invalid argument",
        ),
        ("sealed memory files", replace(os, "ftruncate", lambda *_: None), ""),
        ("locks of open files", replace(fcntl, "fcntl", fcntl_without(37)), "Invalid argument"),
        (
            "locks of open files",
            replace(kernel_checks, "BlockLocks", Locks(iter([True] * 4))),
            "a lock was had twice",
        ),
        (
            "locks of open files",
            replace(kernel_checks, "BlockLocks", Locks(iter([False]))),
            "a free lock could not be had",
        ),
        (
            "locks of open files",
            replace(kernel_checks, "BlockLocks", Locks(iter([True, True, False, False]))),
            "a lock outlived its holder",
        ),
        ("pidfd", refuse(os, "pidfd_open"), "Function not implemented"),
        ("pidfd", refuse(signal, "pidfd_send_signal", errno.EPERM), "Operation not permitted"),
        (
            "pidfd",
            replace(select, "select", lambda *_: ([], [], [])),
            "a child's death was not seen",
        ),
        ("eventfd", refuse(os, "eventfd"), "Function not implemented"),
        ("eventfd", replace(os, "eventfd_write", lambda *_: None), "no process was woken"),
        (
            "parent death signal",
            replace(ctypes, "CDLL", lambda *_, **__: NoDeathSignal(-1)),
            "Operation not permitted",
        ),
        (
            "parent death signal",
            replace(ctypes, "CDLL", lambda *_, **__: NoDeathSignal(0)),
            "it was accepted and not kept",
        ),
        (
            "packet sockets",
            refuse(socket, "socketpair", errno.EPROTONOSUPPORT),
            "Protocol not supported",
        ),
    ],
)
def test_without_it_areplay_cannot_run(
    name: str,
    missing: Patch,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The finding is "fail", says what the kernel said and what it is needed for; exit status 1,
    and no trial."""
    before = open_descriptors()
    if name == "eventfd" and value == "no process was woken":
        monkeypatch.setattr(select, "select", lambda *_: ([], [], []))
    missing(monkeypatch)
    monkeypatch.setattr(trial, "result", lambda: pytest.fail("it was tried all the same"))
    status = main(["doctor", "--json"])
    monkeypatch.undo()
    document = json.loads(capsys.readouterr().out)
    (found,) = [finding for finding in document["findings"] if finding["name"] == name]
    assert found["status"] == "fail" and value in found["value"] and len(found["meaning"]) > 20
    assert (status, document["is_fit"]) == (1, False)
    assert (
        document["findings"][-1]["status"] == "warn"
        and document["findings"][-1]["value"] == "not made"
    )
    assert open_descriptors() == before


@pytest.mark.usefixtures("no_trial")
@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("abstract sockets", refuse(kernel_checks, "listening_socket", errno.EPERM)),
        ("abstract sockets", replace(kernel_checks, "running_replays", list)),
        ("populating memory", replace(kernel_checks, "_MADV_POPULATE_WRITE", 9_999)),
        ("cores", replace(os, "sched_getaffinity", lambda pid: {0})),
        ("file descriptors", replace(resource, "getrlimit", lambda which: (256, 4_096))),
    ],
)
def test_without_it_areplay_runs_with_a_restriction(
    name: str, missing: Patch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The finding is "warn"; exit status 0."""
    missing(monkeypatch)
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (found,) = [finding for finding in document["findings"] if finding["name"] == name]
    assert found["status"] == "warn" and document["is_fit"]


def test_memory_and_its_limits(tmp_path: Path) -> None:
    """The least of host and cgroups, of either version; unknown, little, and none."""
    machine = Machine(tmp_path)
    assert machine_checks.memory(tmp_path).status == "warn"
    assert machine_checks.control_groups(tmp_path).value == "none, no limit"
    machine.has_memory(16 * GIB)
    assert (machine_checks.memory(tmp_path).status, machine_checks.memory(tmp_path).value) == (
        "ok",
        "16.0 GiB",
    )
    machine.is_in("0::/user")
    machine.v2("/user", 4 * GIB, 1 * GIB)
    assert machine_checks.memory(tmp_path).value == "3.0 GiB"
    assert machine_checks.control_groups(tmp_path).value == "v2, 4.0 GiB"
    machine.v2("/user", 4 * GIB, 4 * GIB - (300 << 20))
    found = machine_checks.memory(tmp_path)
    assert (found.status, found.value) == ("warn", "300.0 MiB") and "memory.max" in found.meaning
    machine.v2("/user", "max", GIB)
    assert machine_checks.control_groups(tmp_path).value == "v2, no limit"
    machine.is_in("4:memory:/job", "0::/")
    machine.v1("/job", 2 * GIB, GIB)
    assert machine_checks.control_groups(tmp_path).value == "v1, 2.0 GiB"
    machine.v1("/job", 9_223_372_036_854_771_712, GIB)
    assert machine_checks.control_groups(tmp_path).value == "v1, no limit"


def write(root: Path, path: str, text: str) -> None:
    """A file of a made-up machine."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_processors_and_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What affinity and quotas leave, and how many children there may be."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5})
    monkeypatch.setattr(
        resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    assert (machine_checks.cores(tmp_path).status, machine_checks.cores(tmp_path).value) == (
        "ok",
        "4 of 8",
    )
    assert (
        machine_checks.processes(tmp_path).status,
        machine_checks.processes(tmp_path).value,
    ) == (
        "ok",
        "no limit",
    )
    write(tmp_path, "proc/self/cgroup", "0::/user\n")
    write(tmp_path, "sys/fs/cgroup/user/cpu.max", "150000 100000\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000\n")
    write(tmp_path, "sys/fs/cgroup/user/pids.max", "100\n")
    write(tmp_path, "sys/fs/cgroup/user/pids.current", "60\n")
    assert (machine_checks.cores(tmp_path).status, machine_checks.cores(tmp_path).value) == (
        "warn",
        "4 of 8, quota 1.5",
    )
    assert (
        machine_checks.processes(tmp_path).status,
        machine_checks.processes(tmp_path).value,
    ) == ("warn", "40")
    write(tmp_path, "proc/self/cgroup", "5:cpu,cpuacct:/job\n6:pids:/job\n")
    write(tmp_path, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "300000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n")
    assert (machine_checks.cores(tmp_path).status, machine_checks.cores(tmp_path).value) == (
        "ok",
        "4 of 8, quota 3",
    )
    write(tmp_path, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "-1\n")
    assert machine_checks.cores(tmp_path).value == "4 of 8"
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (500, 500))
    assert (
        machine_checks.processes(tmp_path).status,
        machine_checks.processes(tmp_path).value,
    ) == ("ok", "500")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert machine_checks.processes(tmp_path).value == "no limit", "root has none of that kind"


def test_without_proc_nothing_is_known_and_nothing_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sandbox that does not mount it: a check is a finding, whatever it finds."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1_024, 4_096))
    found = machine_checks.descriptors(tmp_path)
    assert (found.status, found.value) == ("warn", "1,024") and "/proc" in found.meaning
    monkeypatch.setattr(trial, "result", lambda: Result("ok", "", ""))
    names = [finding.name for finding in findings(tmp_path)]
    assert names == [finding.name for finding in findings()]


def test_a_death_is_seen_where_sigchld_is_ignored() -> None:
    """As by areplay itself: the finding is that of any other machine."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        (found,) = [finding for finding in findings() if finding.name == "pidfd"]
        assert (found.status, found.value) == ("ok", "works")
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_descriptors_are_enough_for_so_many_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as can be started in fact; and who may raise the limit."""
    limit = open_descriptors() + machine_checks.DESCRIPTORS_TO_START + 6 * 20 + 5
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    found = machine_checks.descriptors(Path("/"))
    assert found.meaning == "enough for 20 actors; root can raise it"
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit + 1))
    assert (
        machine_checks.descriptors(Path("/")).meaning
        == "enough for 20 actors; `ulimit -n` raises it"
    )
    monkeypatch.setattr(
        resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    assert machine_checks.descriptors(Path("/")).status == "ok"


def test_what_does_not_matter_is_said_not_to(tmp_path: Path) -> None:
    """/dev/shm of any size, and huge pages or none."""
    assert (
        machine_checks.shared_memory(tmp_path).status,
        machine_checks.shared_memory(tmp_path).value,
    ) == (
        "ok",
        "none",
    )
    assert "not used" in machine_checks.shared_memory(Path("/")).meaning
    assert machine_checks.huge_pages(tmp_path).value == "none"
    for chosen, word in (
        ("never", "4 KiB"),
        ("advise", "4 KiB"),
        ("within_size", "2 MiB"),
        ("always", "2 MiB"),
    ):
        line = "always within_size advise never deny force".replace(chosen, f"[{chosen}]")
        write(tmp_path, "sys/kernel/mm/transparent_hugepage/shmem_enabled", line)
        found = machine_checks.huge_pages(tmp_path)
        assert (found.status, found.value) == ("ok", chosen) and word in found.meaning


@pytest.mark.parametrize(
    ("name", "found", "status"), [("numpy", "1.25.9", "fail"), ("uvloop", "0.20", "ok")]
)
def test_versions_are_compared_with_what_is_needed(
    name: str, found: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their numbers, not as text; one that is missing is a failure, and so is an old Python."""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda each: found if each == name else real(each))
    assert {each: result.status for each, result in software_checks.versions()}[name] == status

    def missing(each: str) -> str:
        if each == name:
            raise metadata.PackageNotFoundError(each)
        return real(each)

    monkeypatch.setattr(metadata, "version", missing)
    assert {each: result[:2] for each, result in software_checks.versions()}[name] == (
        "fail",
        "missing",
    )
    monkeypatch.setattr(software_checks.platform, "python_version", lambda: "3.9.18")
    assert {each: result.status for each, result in software_checks.versions()}["python"] == "fail"


def test_extras_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that brings them."""
    monkeypatch.setattr(
        software_checks.importlib.util,
        "find_spec",
        lambda name: None if name in ("jax", "rich") else object(),
    )
    found = software_checks.extras()
    assert (found.status, found.value) == ("ok", "3 of 5")
    assert found.meaning == "pip install '.[jax,cli]' in a clone"


def test_a_trial_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the last line of the error, which has the knob."""

    def fail(work: Any) -> None:
        work.close()
        raise areplay.ActorFailed("actor 0", 17, 1, 0, "Traceback\nImportError: no such thing")

    monkeypatch.setattr(areplay, "run", fail)
    found = trial.result()
    assert (found.status, found.value, found.meaning) == (
        "fail",
        "ActorFailed",
        "ImportError: no such thing",
    )


def test_the_whole_command_on_this_machine() -> None:
    """As a user runs it, with a trial of real processes: areplay can run here, since its tests
    do."""
    command = [sys.executable, "-m", "areplay", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100.0)
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    assert document["is_fit"] and document["areplay"] == areplay.__version__
    assert document["findings"][-1]["value"].startswith("100 batches")
    assert {finding["status"] for finding in document["findings"]} <= {"ok", "warn"}
    assert all(finding["meaning"] for finding in document["findings"])


@pytest.mark.usefixtures("no_trial")
@pytest.mark.parametrize("has_rich", [True, False])
def test_people_get_a_line_a_finding(
    has_rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """None is wrapped at 100 columns, with rich and without; the verdict comes last."""
    monkeypatch.setattr("areplay.cli.terminal.has_rich", lambda: has_rich)
    monkeypatch.setattr(machine_checks, "memory_limits", lambda root: iter(()))
    found = list(findings())
    assert main(["doctor"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 100
    marked = [line for line in lines if line.strip()[:1] in ("✓", "!")]
    assert len(marked) == len(found)
    for line, finding in zip(marked, found, strict=True):
        assert finding.name in line and line.endswith(finding.meaning)
    assert lines[-1].startswith("areplay can run here")


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        ("ok ok", "areplay can run here"),
        ("ok warn", "areplay can run here, with the restriction above"),
        ("warn warn", "areplay can run here, with 2 restrictions, see above"),
        ("fail warn", "areplay cannot run here: thing 0"),
        ("fail fail", "areplay cannot run here: thing 0, thing 1"),
    ],
)
def test_the_verdict(statuses: str, said: str) -> None:
    """In one sentence."""
    found = [
        Finding("Kernel", f"thing {k}", status, "", "") for k, status in enumerate(statuses.split())
    ]
    assert doctor.verdict(found) == said
