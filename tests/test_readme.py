"""The README's program is run as a newcomer would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_readmes_program_learns_the_rule(tmp_path: Path) -> None:
    """Copied into a file and started, it prints the weights that its actors use."""
    program = tmp_path / "program.py"
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    program.write_text(block)
    done = subprocess.run([sys.executable, "-W", "error", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    learnt = [float(number) for number in re.findall(r"-?\d+\.?\d*", done.stdout.split("from")[0])]
    assert all(abs(got - true) < 0.05 for got, true in zip(learnt, [1, -2, 3, 0.5], strict=True)), done.stdout
    assert done.stderr == ""
