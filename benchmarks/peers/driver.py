"""A side as a child process: asked in JSON lines, under a watchdog, and killed with all of its own
when it hangs.

Rule: whatever a library does, a question ends with an answer or with a typed reason. Nothing here
knows areplay.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.processes import memory_bytes

ROOT = Path(__file__).parents[2]
LAST_WORDS = 300  # characters
CLOSE_S = 20.0
LOOK_S = 0.05


class SideFailed(Exception):
    """A side gave no figure; the message says why in a few words."""


class SideUnable(SideFailed):
    """The library has no way to do that; its process is well."""


class Child:
    """An adapter at work in a process group of its own: a context manager, which ends it.

    Args:
        command: the adapter's program and its arguments.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the child
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._said, self._is_killed = b"", False

    def ask(
        self,
        question: Mapping[str, Any],
        timeout_s: float,
        look: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        """The answer.

        Args:
            look: called again and again until the answer is there.

        Raises:
            SideUnable: the library has no way to do that.
            SideFailed: it hung and was killed, it died, or it raised; the child cannot be asked
                again.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; reading says so
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
        words = json.loads(
            self._line(f"{question['do']} {question.get('mode', '')}".strip(), timeout_s, look)
        )
        if "unable" in words:
            raise SideUnable(words["unable"])
        if "failed" in words:
            self.kill()
            raise SideFailed(f"raised {words['failed'].strip().splitlines()[-1][:LAST_WORDS]}")
        return words["answer"]

    @property
    def pid(self) -> int:
        """Of its process, which leads its group."""
        return self._process.pid

    def memory_bytes(self) -> int:
        """Memory of the side at this moment, all its processes together."""
        return memory_bytes(self._process.pid)

    def kill(self) -> None:
        """End it and all processes that it started, at once. Once: the number may be another's
        afterwards."""
        if self._is_killed:
            return
        self._is_killed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *failure: object) -> None:
        """Ask it to close, and let it end by itself, as libraries have names in /dev/shm to take
        back; then kill it."""
        if not self._is_killed:
            with contextlib.suppress(SideFailed, subprocess.TimeoutExpired):
                self.ask({"do": "close"}, CLOSE_S)
                assert self._process.stdin is not None
                self._process.stdin.close()
                self._process.wait(CLOSE_S)
        self.kill()
        self._selector.close()
        self._log.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _line(self, what: str, timeout_s: float, look: Callable[[], object] | None) -> bytes:
        assert self._process.stdout is not None
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._said:
            if (left_s := deadline_s - time.monotonic()) <= 0:
                self.kill()
                raise SideFailed(f"hung: no answer to `{what}` within {timeout_s:.0f} s; killed")
            if not self._selector.select(min(left_s, LOOK_S) if look else left_s):
                if look:
                    look()
                continue
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                raise SideFailed(f"died in `{what}` with {self._status()}")
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return line

    def _status(self) -> str:
        self.kill()
        code = self._process.returncode
        with contextlib.suppress(ValueError):
            return f"{signal.Signals(-code).name}{self._last_words()}"
        return f"exit status {code}{self._last_words()}"

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:LAST_WORDS]}" if lines else ""
