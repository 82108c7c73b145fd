"""flashbax: pure functions over a state, compiled by jax, in the learner's process."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import flashbax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.protocol import Side, serve
from benchmarks.peers.works import Work

FILL_ROWS = 512


class Flashbax(Side):
    """Its item buffers hold rows as they are; a batch is arrays of jax, ready when the learner has
    it."""

    packages = ("flashbax", "jax", "numpy")
    choices = (
        "flashbax: item buffers, with `add`, `sample` and `set_priorities` compiled, and the state "
        "donated to those that change it, as its documentation says.",
        "flashbax: rows are handed in as numpy arrays in chunks; a batch counts as in hand after "
        "`block_until_ready`.",
        "flashbax: without any sharing between processes; producers are threads, and a lock keeps "
        "two from using the state that one of them donates. A learner that added the rows itself "
        "waited 1.5 to 1.9 times as long behind steps, and flat out got 0.6 to 1.4 times as many "
        "batches.",
        "flashbax: jax keeps the 64-bit action of the CartPole rows in 32 bits.",
    )

    def __init__(self) -> None:
        super().__init__()
        self._lock, self._work = threading.Lock(), None
        self._state: Any = None
        self._batch: Any = None

    def prepare(self, work: Work, producers: int) -> None:
        """See `Side.prepare`."""
        self.end_producers()
        if work != self._work:
            self._state = self._batch = None
            self._open(work)
            self._work = work
        self.thread_producers(
            producers, work.chunk_rows, partial(self._insert, work.columns(work.chunk_rows))
        )

    def take(self) -> np.ndarray[Any, Any]:
        """See `Side.take`."""
        with self._lock:
            self._key, self._batch = self._sample(self._state, self._key)
            jax.block_until_ready(self._batch)
        return np.asarray(self._batch.experience["obs"])

    def update(self) -> None:
        """See `Side.update`."""
        with self._lock:
            self._state = self._set_priorities(self._state, self._batch.indices, self._errors)

    def _insert(self, chunk: dict[str, Any]) -> None:
        with self._lock:
            self._state = self._add(self._state, chunk)
            jax.block_until_ready(self._state.current_index)

    def _open(self, work: Work) -> None:
        make = (
            flashbax.make_prioritised_item_buffer
            if work.is_prioritized
            else flashbax.make_item_buffer
        )
        settings = {"priority_exponent": 0.6, "device": "cpu"} if work.is_prioritized else {}
        buffer = make(
            work.capacity,
            work.batch_size,
            work.batch_size,
            add_sequences=True,
            add_batches=False,
            **settings,
        )
        row = {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in work.fields.items()}
        self._add = jax.jit(buffer.add, donate_argnums=0)

        def sample(state: Any, key: Any) -> Any:
            key, use = jax.random.split(key)
            return key, buffer.sample(state, use)

        self._sample = jax.jit(sample)
        if work.is_prioritized:
            self._set_priorities = jax.jit(buffer.set_priorities, donate_argnums=0)
            self._errors = jnp.asarray(
                np.random.default_rng(0).random(work.batch_size), jnp.float32
            )
        self._key = jax.random.PRNGKey(0)
        self._state = jax.jit(buffer.init)(row)
        chunk = work.columns(FILL_ROWS)
        for _ in range(-(-work.capacity // FILL_ROWS)):
            self._insert(chunk)
        self._insert(work.columns(work.chunk_rows))
        self.take()


if __name__ == "__main__":
    serve(Flashbax())
