"""Row 19, the samplers' half: user code in items and transforms that misbehaves (actors:
tests/processes)."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping

import pytest

import areplay
from areplay._base.arrays import Array
from areplay._storage.windows import Windows
from tests.processes import workers
from tests.processes.oracle import OWNER, SPEC, rows, torn
from tests.processes.watching import is_running, until_now

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


class Misbehaves(areplay.Rows):
    """Rows that go wrong at their third copying, in one way or another."""

    def __init__(self, way: str, folder: str = "") -> None:
        self.way, self.folder, self.left = way, folder, 3

    def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
        """Copy, and misbehave."""
        super().assemble(windows, out)
        self.left -= 1
        if self.left:
            return
        if self.way == "raises what cannot be pickled":
            raise workers.Unpicklable("with a lock")
        if self.way == "exits with 3":
            sys.exit(3)
        if self.way == "leaves with 0":
            os._exit(0)
        if self.way == "breaks in native code":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.way == "forks and raises":
            pid = os.fork()
            if pid == 0:
                time.sleep(120.0)
                os._exit(0)
            with open(os.path.join(self.folder, str(pid)), "w"):
                raise RuntimeError("after the fork")
        if self.way == "prints a lot":
            print("x" * (1 << 20), file=sys.stderr, flush=True)
        if self.way == "blocks its loop":
            time.sleep(1.0)


FATAL = {
    "raises what cannot be pickled": (1, r"(?s)Traceback.*Unpicklable: with a lock"),
    "exits with 3": (3, "SystemExit: 3"),
    "leaves with 0": (0, "without a word"),
    "breaks in native code": (-signal.SIGSEGV, "signal 11"),
    "forks and raises": (1, "RuntimeError: after the fork"),
}


async def test_each_is_a_typed_error_with_the_samplers_words_and_the_others_go_on(
    tmp_path: object,
) -> None:
    """SamplerFailed with the exit code, the traceback and the number of restarts; a stream beside
    is untouched, and one whose samplers print or block goes on."""
    async with areplay.Replay(SPEC, 1_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 1_000))

        async def ends(way: str) -> areplay.SamplerFailed:
            item, restarts = Misbehaves(way, str(tmp_path)), int("pickled" in way)
            async with replay.batches(
                item, 8, prefetch=1, max_restarts=restarts, timeout_s=60.0
            ) as batches:
                with pytest.raises(areplay.SamplerFailed, match=FATAL[way][1]) as failed:
                    async for batch in batches:
                        assert torn(batch) == 0
                assert failed.value.restarts == batches.statistics().restarts == restarts
                assert batches.statistics().batches_delivered >= 2
                return failed.value

        async def goes_on(way: str) -> None:
            async with replay.batches(Misbehaves(way), 8, prefetch=1, timeout_s=60.0) as batches:
                for _ in range(20):
                    assert torn(await anext(batches)) == 0
                assert batches.statistics().restarts == 0

        try:
            async with asyncio.TaskGroup() as group:
                ended = {way: group.create_task(ends(way)) for way in FATAL}
                group.create_task(goes_on("prints a lot"))
                group.create_task(goes_on("blocks its loop"))
            for way, task in ended.items():
                assert task.result().exit_code == FATAL[way][0], way
                task.result().__traceback__ = None
        finally:
            orphans = [int(name) for name in os.listdir(str(tmp_path))]
            assert all(is_running(pid) for pid in orphans)
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
            until_now(lambda: not any(is_running(pid) for pid in orphans))
        assert torn(replay.sample(8)) == 0
