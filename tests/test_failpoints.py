"""Tests of `_base.failpoints`, with a copy of the module that would kill somebody else."""

from __future__ import annotations

import importlib.util
import os
import signal
from types import ModuleType

import pytest

from areplay._base import failpoints as failpoints


class Killed(Exception):
    """What happens instead of a death."""


def loaded_with(setting: str | None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A fresh copy of the module, as a process with that AREPLAY_KILL would have it."""
    if setting is None:
        monkeypatch.delenv("AREPLAY_KILL", raising=False)
    else:
        monkeypatch.setenv("AREPLAY_KILL", setting)

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (os.getpid(), signal.SIGKILL)
        raise Killed

    monkeypatch.setattr(os, "kill", kill)
    spec = importlib.util.spec_from_file_location("failpoints_of_a_child", failpoints.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("passes", [1, 3])
def test_the_process_dies_at_the_nth_pass_of_that_point(
    passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SIGKILL, sent by itself; other points do not count."""
    module = loaded_with(f"add.written:{passes}", monkeypatch)
    for _ in range(passes - 1):
        module.failpoint("add.before")
        module.failpoint("add.written")
    module.failpoint("add.before")
    with pytest.raises(Killed):
        module.failpoint("add.written")


def test_nothing_happens_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable every point is passed."""
    module = loaded_with(None, monkeypatch)
    for _ in range(3):
        module.failpoint("add.written")
        module.failpoint("")


def test_a_disarmed_process_passes_every_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restarted child must not die of the same again."""
    module = loaded_with("add.written:1", monkeypatch)
    module.disarm()
    for _ in range(3):
        module.failpoint("add.written")
