"""Stable-Baselines3: `ReplayBuffer` in the learner's process, fed by a thread."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from benchmarks.peers.protocol import Side, Unable, serve
from benchmarks.peers.works import Work


class StableBaselines3(Side):
    """A row is a transition with two observations; batches are torch tensors."""

    packages = ("stable_baselines3", "torch", "numpy")
    choices = (
        "Stable-Baselines3: its rows always have a second observation, so an observation of the "
        "works without one is split into two halves; a row has the same bytes.",
        "Stable-Baselines3: a chunk is one step of a vector of as many environments, one `add` "
        "call.",
        "Stable-Baselines3: without any sharing between processes; producers are threads that take "
        "a lock for each `add`, and the learner for each `sample`. A learner that added the rows "
        "itself got 0.8 to 1.2 times as many CartPole batches flat out, and waited 1.0 to 1.7 "
        "times as long behind steps.",
        "Stable-Baselines3: `handle_timeout_termination=False`, the cheaper way.",
    )

    def __init__(self) -> None:
        super().__init__()
        self._lock, self._buffer, self._work = threading.Lock(), None, None

    def prepare(self, work: Work, producers: int) -> None:
        """See `Side.prepare`."""
        if work.is_prioritized:
            raise Unable("it has no prioritised replay")
        self.end_producers()
        step = one_step(work)
        if work != self._work:
            self._buffer = None
            self._buffer, self._work = filled(work, step), work
        self._producer_count, self._batch_size = producers, work.batch_size
        self.thread_producers(producers, work.chunk_rows, partial(self._add, step))

    def take(self) -> np.ndarray[Any, Any]:
        """See `Side.take`."""
        with self._lock:
            batch = self._buffer.sample(self._batch_size)
        return batch.observations.numpy()

    def _add(self, step: tuple[Any, ...]) -> None:
        with self._lock:
            self._buffer.add(*step)


def one_step(work: Work) -> tuple[Any, ...]:
    """What `add` takes: a step of as many environments as a chunk has rows."""
    chunk = work.columns(work.chunk_rows)
    if work.has_next_obs:
        obs, next_obs = chunk["obs"], chunk["next_obs"]
    else:
        half = work.obs_shape[0] // 2
        obs, next_obs = chunk["obs"][:, :half].copy(), chunk["obs"][:, half:].copy()
    done = np.zeros(work.chunk_rows, np.bool_)
    return (
        obs,
        next_obs,
        chunk["action"].astype(np.int64),
        chunk["reward"],
        done,
        [{}] * work.chunk_rows,
    )


def filled(work: Work, step: tuple[Any, ...]) -> ReplayBuffer:
    """A buffer, full."""
    shape, dtype = step[0].shape[1:], step[0].dtype
    high = 255 if dtype == np.uint8 else np.inf
    obs_space = spaces.Box(0 if dtype == np.uint8 else -np.inf, high, shape, dtype.type)
    buffer = ReplayBuffer(
        work.capacity,
        obs_space,
        spaces.Discrete(100),
        device="cpu",
        n_envs=work.chunk_rows,
        handle_timeout_termination=False,
    )
    for _ in range(buffer.buffer_size):
        buffer.add(*step)
    return buffer


if __name__ == "__main__":
    serve(StableBaselines3())
