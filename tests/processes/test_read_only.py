"""A replay where nothing can be written, as in a container whose root file system is read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, os
import areplay

async def count_up(actor):
    number = 0
    while not actor.stopping:
        await actor.add(number=number)
        number += 1

async def main():
    for folder in ("/", "/tmp", "/dev/shm", "."):
        assert not os.access(folder, os.W_OK), folder
    async with (
        asyncio.timeout(60),
        areplay.Replay(areplay.Spec(number=((), "int64")), 1_000) as replay,
        replay.actors(count_up, 1, grace_s=30.0),
        replay.batches(batch_size=16, grace_s=30.0) as batches,
    ):
        for _ in range(20):
            await anext(batches)
        print("batches came", flush=True)

if __name__ == "__main__":
    areplay.run(main())
"""
ALL_READ_ONLY = """
awk '{print $2}' /proc/mounts | while read -r mount; do mount -o remount,bind,ro "$mount" 2>/dev/null; done
exec "$@"
"""
IN_A_NAMESPACE = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ALL_READ_ONLY, "sh"]


def can_make_all_read_only() -> bool:
    """Whether this user may, in a mount namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    probe = [
        *IN_A_NAMESPACE,
        sys.executable,
        "-c",
        "import os, sys; sys.exit(os.access('/tmp', os.W_OK))",
    ]
    return subprocess.run(probe, capture_output=True, timeout=60).returncode == 0


def test_a_replay_needs_no_place_to_write(tmp_path: Path) -> None:
    """Neither /tmp nor /dev/shm nor the directory that it was started in: real actors and samplers,
    up to batches."""
    if not can_make_all_read_only():
        pytest.skip("needs a mount namespace, which is root's, and not everywhere")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*IN_A_NAMESPACE, sys.executable, "-W", "error", str(program)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "batches came\n", "")
