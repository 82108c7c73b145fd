"""cpprb, the fastest peer; its `MP` buffers have shared memory: one producer process, one process
that samples.

cpprb is optional. Where it cannot be imported, `reason_missing` says so and its line in the table
stays empty.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.baselines import end_children, spawn
from benchmarks.harness.clocks import clock
from benchmarks.harness.options import Options
from benchmarks.workloads import Workload

START_S = 60.0


@dataclass(frozen=True)
class PeerRates:
    """What one round of the peer gave."""

    batches_per_s: float
    rows_per_s: float


def reason_missing() -> str:
    """Why cpprb cannot be measured here; empty when it can."""
    try:
        importlib.import_module("cpprb")
    except Exception as failure:  # an optional extension module can fail to load in any way
        return (
            f"cpprb cannot be imported ({type(failure).__name__}: {failure}); pip install "
            "cpprb==11.0.0"
        )
    return ""


@contextmanager
def cpprb_buffer(
    workload: Workload, options: Options, kind: str = "MPReplayBuffer", **settings: Any
) -> Iterator[Any]:
    """A full buffer for the workload; the name of its class begins with `MP` if it has shared
    memory."""
    module = importlib.import_module("cpprb")
    fields = {
        name: {"shape": shape or 1, "dtype": dtype}
        for name, (shape, dtype) in workload.fields.items()
    }
    if kind.startswith("MP"):
        settings["ctx"] = spawn
    buffer = getattr(module, kind)(options.capacity, fields, **settings)
    chunk = workload.columns(256)
    for _ in range(-(-options.capacity // 256)):
        buffer.add(**chunk)
    yield buffer


def measure_cpprb(
    buffer: Any,
    workload: Workload,
    chunk_rows: int,
    options: Options,
    take: Callable[[], object] | None = None,
) -> PeerRates:
    """Sample as fast as it goes while one process adds chunks as fast as it goes.

    Args:
        take: what is done for a batch; samples it by default.
    """
    take = take or partial(buffer.sample, options.batch_size)
    stop, pushed = spawn.Event(), spawn.Value("q", 0, lock=False)
    end_at = clock() + START_S + options.settle_s + options.seconds
    child = spawn.Process(
        target=_produce, args=(buffer, workload, chunk_rows, stop, pushed, end_at), daemon=True
    )
    try:
        child.start()
        while pushed.value == 0 and child.is_alive() and clock() < end_at:
            time.sleep(0.005)
        times_per_s(take, options.settle_s)
        before, start = pushed.value, time.perf_counter()
        batches_per_s = times_per_s(take, options.seconds)
        return PeerRates(batches_per_s, (pushed.value - before) / (time.perf_counter() - start))
    finally:
        stop.set()
        end_children([child])


def times_per_s(take: Callable[[], object], seconds: float) -> float:
    """How often each second, for so long."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        take()
        done += 1
    return done / (time.perf_counter() - start)


def _produce(
    buffer: Any, workload: Workload, chunk_rows: int, stop: Any, pushed: Any, end_at: float
) -> None:
    chunk = workload.columns(chunk_rows)
    while not stop.is_set() and clock() < end_at:
        buffer.add(**chunk)
        pushed.value += chunk_rows
