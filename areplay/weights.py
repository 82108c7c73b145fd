"""Weights: named arrays that the learner publishes and the actors read, whole and without waiting.

There are three copies. The learner writes version v into copy v % 3 while readers look at older
ones, so a reader is disturbed only if two more versions are published while it copies; then it
copies anew.

Shared words (int64):

    begun     written by the publisher before it touches copy `begun % 3`
    version   written by the publisher when that copy is whole; -1 before the first

A publisher that dies leaves the last whole version readable. Readers write nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Array, Refusal, as_array
from areplay._base.field import Field
from areplay._shm.layout import WORDS_A_LINE, Layout, int64_word
from areplay._shm.memory_order import fence, order
from areplay._shm.segment import Segment
from areplay.errors import SpecMismatch

_COPIES = 3
_ROUNDS = 3  # of copying in vain, before a reader is content with the whole version that it has


class Weights:
    """Arrays by name, in shared memory: `weights = Weights({"w": w0, "b": b0})`; they are version
    0.

    Made by the learner, handed to `Replay.actors(weights=...)`, read in each actor as
    `actor.weights`. One process publishes, any number read. Several actors groups may share one.

    Raises:
        ValueError: no arrays, or arrays of a dtype that cannot be shared.
        MemoryLimitExceeded: three copies of them are more than this process may take.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        if not isinstance(arrays, Mapping) or not arrays:
            raise ValueError(
                "weights must be a mapping of names to at least one array, got "
                f"{type(arrays).__name__}"
            )
        given: dict[str, Array] = {}
        for name, value in arrays.items():
            array = as_array(value)
            if isinstance(array, Refusal):
                raise ValueError(
                    f"weights {name!r}: {array.got}; {array.remedy or 'give an array'}"
                )
            given[name] = array
        for name, array in given.items():
            if array.dtype.kind not in "biufc" or not array.dtype.isnative:
                raise ValueError(
                    f"weights {name!r}: {array.dtype.str} cannot be shared; use a "
                    "native numeric dtype"
                )
        self._fields = {
            name: Field(name, array.shape, array.dtype) for name, array in given.items()
        }
        copies = {f"array:{f.name}": ((_COPIES, *f.shape), f.dtype) for f in self._fields.values()}
        layout = Layout("weights", {"words": ((2, WORDS_A_LINE), np.int64), **copies})
        self._segment = Segment(
            layout, f"weights of {sum(f.row_bytes for f in self._fields.values()):,} bytes"
        )
        self._view()
        self._begun[0] = self._version[0] = -1
        self.publish(given)

    def _view(self) -> None:
        self._origin = forks.current
        arrays = self._segment.arrays
        self._begun, self._version = int64_word(arrays["words"], 0), int64_word(arrays["words"], 1)
        self._copies = {name: arrays[f"array:{name}"] for name in self._fields}
        self._latest: tuple[int, Mapping[str, Array]] = (-1, {})

    @property
    def version(self) -> int:
        """Number of the newest whole version; the first is 0."""
        if self._origin is not forks.current:
            forks.check(self._origin, "these weights")
        version: int = self._version[0]
        return version

    def publish(self, arrays: Mapping[str, Array]) -> int:
        """Make these arrays the newest version, all at once for every reader; its number.

        Args:
            arrays: the same names, shapes and dtypes as at the start.

        Raises:
            SpecMismatch: a name, shape or dtype differs, or a tensor has to be detached first. The
                newest version stays what it was.
            Closed: after `close`.
        """
        forks.check(self._origin, "these weights")
        if not isinstance(arrays, Mapping):
            raise TypeError(f"expected a mapping of name to array, got {type(arrays).__name__}")
        if arrays.keys() != self._fields.keys():
            wrong = next(iter(arrays.keys() ^ self._fields.keys()))
            raise SpecMismatch(
                wrong,
                f"exactly the arrays {', '.join(self._fields)}",
                ", ".join(arrays),
                "publish all",
            )
        checked = {name: field.convert(arrays[name]) for name, field in self._fields.items()}
        self._segment.descriptor  # noqa: B018  raises Closed
        version = self.version + 1
        self._begun[0] = version
        fence()  # a reader of the copy that is now overwritten must be able to see that it is
        for name, copy in self._copies.items():
            copy[version % _COPIES] = checked[name]
        order()
        self._version[0] = version
        return version

    def latest(self) -> tuple[int, Mapping[str, Array]]:
        """`(version, arrays)`: the newest whole version, as arrays of this process's own that
        nobody changes.

        If the learner publishes faster than they can be copied, an older version that was had
        before; never a torn one. As long as the version stays the same so does the mapping, and the
        call costs half a microsecond.
        """
        version, rounds = self.version, 0
        while version != self._latest[0] and (rounds < _ROUNDS or self._latest[0] < 0):
            rounds += 1
            order()
            arrays = {
                name: copy[version % _COPIES, ...].copy() for name, copy in self._copies.items()
            }
            order()
            if self._begun[0] < version + _COPIES:  # nobody has begun to overwrite that copy
                for array in arrays.values():
                    array.flags.writeable = False
                self._latest = version, MappingProxyType(arrays)
                break
            version = self.version
        return self._latest

    def close(self) -> None:
        """Give back the descriptor. What readers hold stays readable; nothing more can be
        published."""
        self._segment.close()

    def __getstate__(self) -> dict[str, object]:
        forks.check(self._origin, "these weights")
        return {"_fields": self._fields, "_segment": self._segment}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._view()

    def __repr__(self) -> str:
        if self._origin is not forks.current:
            return f"<Weights of process {self._origin.pid}>"
        return f"<Weights version {self.version} of {', '.join(self._fields)}>"
