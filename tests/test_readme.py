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
    block, *_ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    program.write_text(block)
    done = subprocess.run([sys.executable, "-W", "error", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    learnt = [float(number) for number in re.findall(r"-?\d+\.?\d*", done.stdout.split("from")[0])]
    assert all(abs(got - true) < 0.05 for got, true in zip(learnt, [1, -2, 3, 0.5], strict=True)), done.stdout
    assert done.stderr == ""


def test_the_readmes_steps_are_what_the_package_takes(tmp_path: Path) -> None:
    """The second block's coroutine runs as an actor with real games, and its two streams give what it says."""
    _, block = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    code, _, streams = block.partition("\nreplay.batches")
    shapes = re.findall(r'# batch\["(\w+)"\]: (\(.*?\))', streams)
    items = re.findall(r"replay\.batches\((.*), batch_size=(\d+)\)", "replay.batches" + streams)
    assert len(shapes) == len(items) == 2
    program = tmp_path / "program.py"
    program.write_text(
        "import numpy as np\nimport areplay\nfrom ale_py.vector_env import AtariVectorEnv\n\n"
        "policy = lambda obs: np.zeros(len(obs), np.int64)\n"
        f"{code}\n"
        "async def main():\n"
        "    async with areplay.Replay(SPEC, 20_000, seed=0) as replay, replay.actors(explore, 1):\n"
        + "".join(
            f"        async with replay.batches({item}, batch_size={size}) as batches:\n"
            f"            batch = await anext(batches)\n"
            f"            assert batch['{field}'].shape == {shape}, batch['{field}'].shape\n"
            for (item, size), (field, shape) in zip(items, shapes, strict=True)
        )
        + "if __name__ == '__main__':\n    areplay.run(main())\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
