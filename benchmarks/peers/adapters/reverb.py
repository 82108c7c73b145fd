"""Reverb: a server in the learner's process, a dataset that the learner reads, writers in processes
of their own."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from typing import Any

import numpy as np
import reverb
import tensorflow as tf

from benchmarks.peers.protocol import Side, serve
from benchmarks.peers.switch import Switch, produce
from benchmarks.peers.works import Work

TABLE = "rows"
FILL_ROWS = 512
SMALL_ROW_BYTES, SMALL_ROWS = 1_000, 16  # so many rows of at most that size are compressed together


class Writer:
    """Hands in chunks, row by row, each row an item."""

    def __init__(self, address: str, work: Work, rows: int, seed: int) -> None:
        columns = work.columns(rows, seed)
        self._rows = [{name: column[at] for name, column in columns.items()} for at in range(rows)]
        length = SMALL_ROWS if work.row_bytes <= SMALL_ROW_BYTES else 1
        self._writer = reverb.Client(address).trajectory_writer(
            num_keep_alive_refs=length, validate_items=False
        )
        for name in columns:
            self._writer.configure((name,), num_keep_alive_refs=length, max_chunk_length=length)

    def add(self) -> None:
        """Hand in the chunk; one chunk may be under way when this returns."""
        writer = self._writer
        for row in self._rows:
            writer.append(row)
            writer.create_item(
                TABLE, 1.0, {name: column[-1] for name, column in writer.history.items()}
            )
        writer.flush(block_until_num_items=len(self._rows))

    def end(self) -> None:
        """Wait until all is in the table."""
        self._writer.end_episode()
        self._writer.close()


def push(switch: Switch, number: int, address: str, work: Work) -> None:
    """A producer process."""
    writer = Writer(address, work, work.chunk_rows, number)
    produce(switch, number, work.chunk_rows, writer.add)
    writer.end()


class Reverb(Side):
    """Batches come from a dataset of TensorFlow, as numpy arrays without a copy."""

    packages = ("dm-reverb", "tensorflow", "numpy")
    choices = (
        "Reverb: the server lives in the learner's process, so that sampling needs no connection; "
        "producers are client processes.",
        "Reverb: `TrajectoryDataset` with two batches in flight, batched and prefetched, read by "
        "`as_numpy_iterator`, which hands out TensorFlow's memory.",
        "Reverb: an item a row, squeezed. Sixteen CartPole rows are compressed together: one "
        "writer alone inserted 1.3 to 3 times as many then, and the learner got about as many "
        "batches. Larger rows are compressed one by one, so that a sampled row decompresses no "
        "other: with sixteen 3 kB rows together the wait behind steps was twice as long or more.",
        "Reverb: writers do not validate, and may have one chunk under way.",
    )

    def __init__(self) -> None:
        super().__init__()
        self._work: Work | None = None
        self._server: Any = None
        self._batches: Any = None
        self._keys = np.empty(0, np.uint64)

    def prepare(self, work: Work, producers: int) -> None:
        """See `Side.prepare`."""
        self.end_producers()
        if work != self._work:
            self._open(work)
            self._work = work
        self.spawn_producers(producers, push, self._address, work)

    def take(self) -> np.ndarray[Any, Any]:
        """See `Side.take`."""
        sample = next(self._batches)
        self._keys = sample.info.key
        return sample.data["obs"]

    def update(self) -> None:
        """See `Side.update`."""
        self._client.mutate_priorities(
            TABLE, dict(zip(self._keys.tolist(), self._errors, strict=True))
        )

    def close(self) -> None:
        """See `Side.close`."""
        super().close()
        self._batches = None
        if self._server is not None:
            self._server.stop()

    def _open(self, work: Work) -> None:
        if self._server is not None:
            self._batches = None
            self._server.stop()
        table = reverb.Table(
            TABLE,
            sampler=reverb.selectors.Prioritized(0.6)
            if work.is_prioritized
            else reverb.selectors.Uniform(),
            remover=reverb.selectors.Fifo(),
            max_size=work.capacity,
            rate_limiter=reverb.rate_limiters.MinSize(work.batch_size),
            signature={
                name: tf.TensorSpec(shape, dtype) for name, (shape, dtype) in work.fields.items()
            },
        )
        self._server = reverb.Server([table])
        self._address = f"localhost:{self._server.port}"
        self._client = reverb.Client(self._address)
        self._errors = np.random.default_rng(0).random(work.batch_size).tolist()
        writer = Writer(self._address, work, FILL_ROWS, 0)
        for _ in range(-(-work.capacity // FILL_ROWS)):
            writer.add()
        writer.end()
        dataset = reverb.TrajectoryDataset.from_table_signature(
            self._address, TABLE, max_in_flight_samples_per_worker=2 * work.batch_size
        )
        dataset = dataset.batch(work.batch_size, drop_remainder=True).prefetch(work.prefetch)
        self._batches = dataset.as_numpy_iterator()
        self.take()


if __name__ == "__main__":
    serve(Reverb())
