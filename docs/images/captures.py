"""Captures of `areplay top` and `areplay doctor` for the documentation.

Of this machine, and of a program that runs.

    make captures

`top.svg` shows examples/cartpole.py some seconds after learning has begun.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console, RenderableType

from areplay._status.client import fetch_report, running_replays
from areplay.cli import checks as checks
from areplay.cli import doctor
from areplay.cli.picture import picture
from areplay.cli.rates import rates

HERE = Path(__file__).parent
EXAMPLE = HERE.parent.parent / "examples" / "cartpole.py"
WIDTH = 100
START_S, INTERVAL_S = 120.0, 2.0


def capture(name: str, title: str, parts: Iterable[RenderableType]) -> None:
    """Write what a terminal would show."""
    with open(os.devnull, "w") as nowhere:
        console = Console(
            width=WIDTH, file=nowhere, record=True, highlight=False, force_terminal=True
        )
        for part in parts:
            console.print(part)
    console.save_svg(str(HERE / f"{name}.svg"), title=title, unique_id=name)


def capture_top() -> None:
    """Of a program that is learning."""
    command = [sys.executable, str(EXAMPLE), "--quiet", "--picture", os.devnull]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + START_S
            while True:
                found = [
                    address
                    for address in running_replays()
                    if address.pid == process.pid
                ]
                before = fetch_report(found[0]) if found else None
                if (
                    before is not None
                    and sum(
                        s["batches_delivered"] for s in before["statistics"]["batches"]
                    )
                    > 100
                ):
                    break
                assert process.poll() is None and time.monotonic() < deadline, (
                    "it has not begun to learn"
                )
                time.sleep(0.1)
            time.sleep(INTERVAL_S)
            now = fetch_report(found[0])
        finally:
            process.terminate()
    now["argv"] = [
        "python",
        "examples/cartpole.py",
    ]  # and not where it is on this machine
    capture("top", "areplay top", [picture(now, rates(now, before))])


if __name__ == "__main__":
    capture_top()
    capture("doctor", "areplay doctor", doctor.parts(checks.findings()))
