"""The works: which rows, how many in a batch, how they come in, and what the learner does with a
batch.

Rule: a work says nothing of how a library does it, and both sides of a pair get the same one. It
crosses to the adapters as JSON, and imports nothing but numpy, so that every environment has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

Columns = dict[str, Any]
Fields = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Work:
    """One kind of work.

    Args:
        obs_shape, obs_dtype: of an observation.
        has_next_obs: whether a row has a second observation.
        rows_per_s: what all producers together hand in while batches are taken; 0 is as fast as
            they can.
        chunk_rows: rows that a producer hands in at once.
        prefetch: batches that are kept ready, where a library can do that.
        is_prioritized: rows are drawn by priority, and each batch gives its rows new ones.
    """

    name: str
    title: str
    obs_shape: tuple[int, ...]
    obs_dtype: str
    has_next_obs: bool
    capacity: int
    batch_size: int
    prefetch: int
    chunk_rows: int
    rows_per_s: int
    is_prioritized: bool

    @property
    def fields(self) -> Fields:
        """Name -> shape and dtype."""
        fields: dict[str, tuple[tuple[int, ...], str]] = {"obs": (self.obs_shape, self.obs_dtype)}
        if self.has_next_obs:
            return fields | {
                "action": ((), "int64"),
                "reward": ((), "float32"),
                "next_obs": (self.obs_shape, self.obs_dtype),
                "terminated": ((), "bool"),
            }
        scalars = {"action": "int32", "reward": "float32", "discount": "float32", "step": "int32"}
        return fields | {name: ((), dtype) for name, dtype in scalars.items()}

    @property
    def row_bytes(self) -> int:
        """Bytes of a row over all fields."""
        return sum(
            math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.fields.values()
        )

    def columns(self, rows: int, seed: int = 0) -> Columns:
        """That many rows of noise, column by column."""
        rng = np.random.default_rng(seed)
        return {
            name: rng.integers(0, 2 if dtype == "bool" else 100, (rows, *shape)).astype(dtype)
            for name, (shape, dtype) in self.fields.items()
        }

    def record(self) -> dict[str, Any]:
        """The work as JSON takes it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Work:
        """The work that `record` gave."""
        return cls(**{**record, "obs_shape": tuple(record["obs_shape"])})

    def tiny(self) -> Work:
        """The same with few rows, to show that everything runs."""
        return replace(self, capacity=4_096)


WORKS = {
    work.name: work
    for work in (
        Work("cartpole", "CartPole rows of 45 bytes, batches of 256",
             (4,), "float32", True, 100_000, 256, 16, 256, 50_000, False),
        Work("atari", "Atari rows of 28,240 bytes, batches of 256",
             (4, 84, 84), "uint8", False, 100_000, 256, 16, 64, 10_000, False),
        Work("flashbax", "flashbax's chart: 32x32x3 frames, batches of 256",
             (32, 32, 3), "uint8", False, 100_000, 256, 16, 64, 10_000, False),
        Work("apex", "Ape-X's shape: 28,240 bytes, prioritised batches of 512 with updates, "
                     "inserts of 50",
             (4, 84, 84), "uint8", False, 100_000, 512, 16, 50, 12_500, True),
    )
}  # fmt: skip
