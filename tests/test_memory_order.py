"""Tests of `_shm.memory_order`. Whether a processor keeps the order cannot be tested; that the
calls are made can."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import signal
import time
from types import FrameType, ModuleType

import pytest

from areplay._shm import memory_order as memory_order_module


def loaded_on(machine: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A fresh copy of the module, as it would be on that kind of machine."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    spec = importlib.util.spec_from_file_location("a_fence", memory_order_module.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Libatomic:
    """Stands in for the library: keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.names: list[str] = []

    def __call__(self, name: str) -> Libatomic:
        self.names.append(name)
        return self

    def atomic_thread_fence(self, order: int) -> None:
        """What the module calls."""
        self.calls.append(order)


@pytest.mark.parametrize("machine", ["x86_64", "AMD64"])
def test_x86_needs_no_library(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of stores and of loads costs nothing there, a fence one locked instruction."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail(f"{name} was loaded"))
    module = loaded_on(machine, monkeypatch)
    assert module.order() is None
    assert module.fence() is None
    assert module.fence is not module.order


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "riscv64"])
def test_elsewhere_both_are_full_fences(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequentially consistent fences of libatomic, one a call, for `order` as well."""
    library = Libatomic()
    monkeypatch.setattr(ctypes, "CDLL", library)
    module = loaded_on(machine, monkeypatch)
    assert library.names == ["libatomic.so.1"]
    module.fence()
    module.order()
    assert library.calls == [5, 5], "memory_order_seq_cst is 5"


def test_elsewhere_without_the_library_the_import_fails_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Going on without a fence would be silent corruption; the error names the package to
    install."""

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(ImportError, match=r"libatomic\.so\.1 on aarch64: install libatomic1"):
        loaded_on("aarch64", monkeypatch)


def test_a_signal_handler_may_fence_while_a_fence_is_interrupted() -> None:
    """No state is shared between calls, so a handler in the middle of one cannot deadlock."""
    handled = 0

    def handler(_: int, __: FrameType | None) -> None:
        nonlocal handled
        memory_order_module.fence()
        handled += 1

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        end = time.monotonic() + 20
        while handled < 50 and time.monotonic() < end:
            for _ in range(200):
                memory_order_module.fence()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled >= 50
