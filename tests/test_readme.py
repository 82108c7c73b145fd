"""The README's program is run as a newcomer would run it."""

from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import areplay

README = Path(__file__).parent.parent / "README.md"


def test_the_readmes_program_learns_the_rule(tmp_path: Path) -> None:
    """Copied into a file and started, it prints the weights that its actors use."""
    program = tmp_path / "program.py"
    block, *_ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    program.write_text(block)
    done = subprocess.run(
        [sys.executable, "-W", "error", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    learnt = [float(number) for number in re.findall(r"-?\d+\.?\d*", done.stdout.split("from")[0])]
    assert all(abs(got - true) < 0.05 for got, true in zip(learnt, [1, -2, 3, 0.5], strict=True)), (
        done.stdout
    )
    # on a machine that stood still
    slow = r"^(actor|sampler) \d+ \(pid \d+\) has not ended, sending SIG(TERM|KILL)\n"
    assert re.sub(slow, "", done.stderr, flags=re.MULTILINE) == ""


def test_the_readmes_steps_are_what_the_package_takes(tmp_path: Path) -> None:
    """The second block's coroutine runs as an actor with real games, and its two streams give what
    it says."""
    pytest.importorskip("ale_py")
    _, block, _ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
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
        "    async with areplay.Replay(SPEC, 20_000, seed=0) as replay, replay.actors(explore, "
        "1):\n"
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


async def test_the_readmes_streams_give_batches() -> None:
    """Each line of the third block is a stream from which a learner gets a batch, with weights if
    it says so."""
    _, _, block = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    calls = [ast.get_source_segment(block, line) or "" for line in ast.parse(block).body]
    streams = [call for call in calls if call.startswith("replay.batches(")]
    assert len(streams) == 4
    spec = areplay.Spec(x=((), "float32"))
    for stream in streams:
        async with areplay.Replay(spec, 100_000) as replay:
            await replay.extend({"x": np.arange(20_000, dtype=np.float32)})
            async with eval(stream) as batches, asyncio.timeout(60):
                batch = await anext(batches)
                assert batch["x"].shape == (256,)
                if "Prioritized" in stream:
                    assert batch.importance_weights.shape == batch.probabilities.shape == (256,)
                    assert replay.update_priorities(batch.indices, batch["x"] + 1) == (256, 0)
