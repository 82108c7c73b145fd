"""All checks of `areplay doctor`, in the order in which the report shows them.

A check takes the root of the file system and returns a `Result`. It never raises: what it cannot
do is what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from areplay.cli import kernel_checks, machine_checks, software_checks, trial
from areplay.cli.finding import FAIL, WARN, Finding, Result

Check = Callable[[Path], Result]

_MACHINE: tuple[tuple[str, str, Check], ...] = (
    ("Memory", "available", machine_checks.memory),
    ("Memory", "cgroup", machine_checks.control_groups),
    ("Memory", "/dev/shm", machine_checks.shared_memory),
    ("Memory", "huge pages", machine_checks.huge_pages),
    ("Limits", "cores", machine_checks.cores),
    ("Limits", "file descriptors", machine_checks.descriptors),
    ("Limits", "processes", machine_checks.processes),
)
_NO_TRIAL = Result(WARN, "not made", "what fails above comes first")


def findings(root: Path = Path("/")) -> Iterator[Finding]:
    """Yield the findings of all checks as they are made.

    The last check is a trial with real processes. It is left out if any other check fails.
    """
    is_fit = True
    for finding in _without_trial(root):
        is_fit &= finding.status != FAIL
        yield finding
    yield Finding("Trial", "actor to batch", *(trial.result() if is_fit else _NO_TRIAL))


def _without_trial(root: Path) -> Iterator[Finding]:
    for name, check in kernel_checks.CHECKS.items():
        yield Finding("Kernel", name, *check(root))
    for section, name, check in _MACHINE:
        yield Finding(section, name, *check(root))
    for name, result in software_checks.versions():
        yield Finding("Software", name, *result)
    yield Finding("Software", "extras", *software_checks.extras())
