"""cpprb's `MPReplayBuffer`, the fastest peer with shared memory: one producer process, one process that samples.

cpprb is optional. Where it cannot be imported, `reason_missing` says so and its line in the table stays empty.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.baselines import end_children, spawn
from benchmarks.clocks import clock
from benchmarks.harness import Options
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
        return f"cpprb cannot be imported ({type(failure).__name__}: {failure}); pip install cpprb==11.0.0"
    return ""


@contextmanager
def cpprb_buffer(workload: Workload, options: Options) -> Iterator[Any]:
    """A full `MPReplayBuffer` for the workload."""
    module = importlib.import_module("cpprb")
    fields = {name: {"shape": shape or 1, "dtype": dtype} for name, (shape, dtype) in workload.fields.items()}
    buffer = module.MPReplayBuffer(options.capacity, fields, ctx=spawn)
    chunk = workload.columns(256)
    for _ in range(-(-options.capacity // 256)):
        buffer.add(**chunk)
    yield buffer


def measure_cpprb(buffer: Any, workload: Workload, chunk_rows: int, options: Options) -> PeerRates:
    """Sample as fast as it goes while one process adds chunks as fast as it goes."""
    stop, pushed = spawn.Event(), spawn.Value("q", 0, lock=False)
    end_at = clock() + START_S + options.settle_s + options.seconds
    child = spawn.Process(target=_produce, args=(buffer, workload, chunk_rows, stop, pushed, end_at), daemon=True)
    try:
        child.start()
        while pushed.value == 0 and child.is_alive() and clock() < end_at:
            time.sleep(0.005)
        _sample(buffer, options.batch_size, options.settle_s)
        before, start = pushed.value, time.perf_counter()
        batches = _sample(buffer, options.batch_size, options.seconds)
        elapsed_s = time.perf_counter() - start
        return PeerRates(batches / elapsed_s, (pushed.value - before) / elapsed_s)
    finally:
        stop.set()
        end_children([child])


def _sample(buffer: Any, batch_size: int, seconds: float) -> int:
    done, end_at = 0, time.perf_counter() + seconds
    while time.perf_counter() < end_at:
        buffer.sample(batch_size)
        done += 1
    return done


def _produce(buffer: Any, workload: Workload, chunk_rows: int, stop: Any, pushed: Any, end_at: float) -> None:
    chunk = workload.columns(chunk_rows)
    while not stop.is_set() and clock() < end_at:
        buffer.add(**chunk)
        pushed.value += chunk_rows
