"""Rows 9, 10 and 13: a tiny /dev/shm, a cgroup's limit, and a child that truncates the memory."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import areplay
from tests.processes.oracle import SPEC, row
from tests.processes.watching import until

PIPELINE = """
import asyncio, os, numpy as np, areplay
from tests.faults.test_memory import zeros

async def main():
    spec = areplay.Spec(x=((4096,), "uint8"))
    async with areplay.Replay(spec, 10_000, prefault=True) as replay:
        async with replay.actors(zeros, 1, args=(2_000,)) as actors, replay.batches(batch_size=64) as batches:
            await actors.wait()
            assert (await anext(batches))["x"].shape == (64, 4096)
        files = os.statvfs("/dev/shm")
        print(len(replay), files.f_blocks * files.f_frsize, (files.f_blocks - files.f_bfree) * files.f_frsize)

if __name__ == "__main__":
    areplay.run(main())
"""

REFUSED = """
import asyncio, os, sys, areplay
group, more_bytes, fewer_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
open(os.path.join(group, "cgroup.procs"), "w").write(str(os.getpid()))
spec = areplay.Spec(obs=((1_000,), "uint8"), reward=((), "float32"))
try:
    areplay.Replay(spec, more_bytes // 1_004)
except areplay.MemoryLimitExceeded as error:
    print(error)
async def fits():
    async with areplay.Replay(spec, fewer_bytes // 1_004, prefault=True) as replay:
        print("fits", replay.capacity_rows)
asyncio.run(fits())
"""


async def zeros(actor: areplay.Actor, count: int) -> None:
    """So many rows of nothing."""
    for _ in range(count):
        await actor.add(x=np.zeros(4_096, np.uint8))


def _python(
    code: str, *arguments: str, tmp_path: Path, before: list[str] | None = None
) -> subprocess.CompletedProcess:
    script = tmp_path / "program.py"
    script.write_text(code)
    return subprocess.run(
        [*(before or []), sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _small_shm() -> list[str]:
    """What to put before a command so that it sees a /dev/shm of 1 MiB; skips where that cannot be
    had."""
    if shutil.which("unshare") is None:
        pytest.skip("a /dev/shm of 1 MiB needs a mount namespace: the program unshare is missing")
    mounted, said = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', ""
    for options in (["-m"], ["-Urm"]):
        before = ["unshare", *options, "sh", "-c", mounted, "sh"]
        tried = subprocess.run(
            [*before, "true"], capture_output=True, text=True, check=False, timeout=60
        )
        if tried.returncode == 0:
            return before
        said = tried.stderr.strip()
    pytest.skip(f"a /dev/shm of 1 MiB needs a mount namespace, which may not be made here: {said}")


def test_a_tiny_dev_shm_makes_no_difference(tmp_path: Path) -> None:
    """40 MB of rows, an actor and a sampler, in a namespace where /dev/shm has 1 MiB, as in a
    container: it works and takes nothing of it."""
    done = _python(PIPELINE, tmp_path=tmp_path, before=_small_shm())
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2000", str(1 << 20), "0"]


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A memory cgroup with a limit of 256 MiB, empty at the end; skips where none can be made."""
    base, limit_file = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
    if not base.is_dir():
        base, limit_file = Path("/sys/fs/cgroup"), "memory.max"
    group = base / f"areplay-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(
            f"a limit needs a memory cgroup, which cannot be made here: {error}; see "
            "tests/test_resource_limits.py"
        )
    try:
        (group / limit_file).write_text(str(256 << 20))
    except OSError as error:
        group.rmdir()
        pytest.skip(
            f"the memory controller is missing in {base}: {error}; see "
            "tests/test_resource_limits.py"
        )
    yield group
    with suppress(OSError):
        group.rmdir()


def test_a_real_groups_limit_is_noticed_at_construction(
    limited_group: Path, tmp_path: Path
) -> None:
    """1 GiB of rows where 256 MiB may be had: refused with both numbers, the limit's name, the
    bytes of each field and what to lower; not killed later. What fits works, to the last page."""
    done = _python(REFUSED, str(limited_group), str(1 << 30), str(100 << 20), tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert f"the limit in {limited_group}" in said
    assert "needs 1,07" in said, "the bytes needed"
    assert "obs: 1,0" in said and "reward: 4,2" in said
    assert "lower capacity" in said
    assert "fits" in said


async def truncate(actor: areplay.Actor) -> None:
    """Try to resize whatever memory it has; report what came of it, and go on."""
    tried = 0
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:areplay"):
                continue
        except OSError:
            continue
        size = os.fstat(descriptor).st_size
        for new_size in (0, size // 2, size + 4_096):
            try:
                os.ftruncate(descriptor, new_size)
            except OSError as error:
                actor.report(errno=error.errno)
            else:
                actor.report(errno=0)
            tried += 1
    actor.report(tried=tried)
    await actor.add(**row(actor.index, 1, 0))


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_child_cannot_truncate_the_memory() -> None:
    """Shrinking and growing from an actor's process: EPERM each time, and all goes on."""
    async with areplay.Replay(SPEC, 1_000) as replay, replay.actors(truncate, 1) as actors:
        await actors.wait()
        seen: list[dict[str, object]] = []
        await until(
            lambda: (
                seen.extend(r.values for r in actors.reports()) or any("tried" in r for r in seen)
            )
        )
        results = [values["errno"] for values in seen if "errno" in values]
        assert len(results) >= 3
        assert set(results) == {errno.EPERM}
        await until(lambda: len(replay) == 1)
