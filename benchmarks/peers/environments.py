"""An environment for each peer, made when it is first needed. One that cannot be made is reported,
with the reason.

Rule: a directory `.venvs/NAME` with a `ready` file that holds the present requirements is used as
it is; any other is made anew. Versions are pinned, so that a table tells what it measured.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.clocks import progress

VENVS = Path(__file__).parent / ".venvs"
MAX_S = 1_200.0
TORCH = "torch==2.13.0"  # its plain index brings gigabytes of CUDA


@dataclass(frozen=True)
class Peer:
    """A library to compare with.

    Args:
        name: of its adapter and its environment.
        title: as it calls itself.
        wants: other than that, what must be importable there.
    """

    name: str
    title: str
    requirements: tuple[str, ...]
    wants: str


PEERS = {
    peer.name: peer
    for peer in (
        Peer("cpprb", "cpprb", ("cpprb==11.0.0",), "cpprb"),
        Peer("torchrl", "torchrl", (TORCH, "torchrl==0.14.1"), "torchrl.data"),
        Peer(
            "stable_baselines3",
            "Stable-Baselines3",
            (TORCH, "stable-baselines3==2.9.2"),
            "stable_baselines3",
        ),
        Peer("flashbax", "flashbax", ("flashbax==0.1.3",), "flashbax"),
        Peer("reverb", "Reverb", ("dm-reverb[tensorflow]==0.14.0",), "reverb"),
        Peer("rlpyt", "rlpyt's scheme", ("numpy==2.4.6",), "numpy"),
    )
}


def python_of(peer: Peer) -> tuple[Path | None, str]:
    """The interpreter of the peer's environment, which is made if need be; or None, and why it
    cannot be made."""
    home = VENVS / peer.name
    ready, python = home / "ready", home / "bin" / "python"
    wanted = "\n".join(peer.requirements) + "\n"
    if ready.exists() and ready.read_text() == wanted:
        return python, ""
    progress(f"making the environment of {peer.title}: {' '.join(peer.requirements)}")
    shutil.rmtree(home, ignore_errors=True)
    for step in (
        (sys.executable, "-m", "venv", str(home)),
        (
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *peer.requirements,
        ),
        (str(python), "-c", f"import {peer.wants}"),
    ):
        if reason := _failure(step):
            return None, f"cannot be installed here: {reason}"
    ready.write_text(wanted)
    return python, ""


def _failure(command: tuple[str, ...]) -> str:
    """What went wrong, in its last line; empty when nothing did."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MAX_S)
    except subprocess.TimeoutExpired:
        return f"no end within {MAX_S:.0f} s"
    lines = (
        done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
    ).splitlines()
    return lines[-1][:300] if done.returncode else ""
