"""Identities: names for objects of the user's that are the same in every process and every run.

A stream of batches goes on where the one in a checkpoint was if both consist of the same item.
Objects cannot be compared across runs, and most have a `repr` with an address in it. So an identity
is the name of the object's class and a digest of its state, as pickle would take it. Equal states
have equal digests, whatever the order of their sets and dicts and whichever of their parts are one
object.

Left out is what differs between runs though nothing has changed: the module, since the same script
is `__main__` in one run and imported in the next, and the state of random generators. What has no
state that can be taken, such as a lock, counts by its class.
"""

from __future__ import annotations

import copyreg
import hashlib
import random
import types
from collections.abc import Iterable
from typing import Any

import numpy as np

_ATOMS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    range,
    slice,
    type(...),
    type(NotImplemented),
)
_NAMED = (
    type,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    np.ufunc,
)
_GENERATORS = (np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)
_DIGEST_BYTES = 8


def identity(thing: object, *more: object) -> str:
    """A name of that object: the `repr` of one of areplay's own; of others the class's name and a
    digest.

    Args:
        more: values that belong to its state though it does not hold them, such as attributes of
            its class.
    """
    kind = type(thing)
    if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return repr(thing)
    try:
        return f"{kind.__qualname__}#{_Digests().of((thing, *more)).hex()}"
    # at a depth that depends on the caller's: so none of the state can count
    except RecursionError:
        return kind.__qualname__


class _Digests:
    """Digests of values and of their parts."""

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}
        self._kept: list[object] = []  # as long as their ids are in `_known`
        self._path: dict[int, int] = {}  # what is being looked at, and how deep it lies

    def of(self, value: Any) -> bytes:
        """The digest of a value."""
        if type(value) in _ATOMS:
            return _hash(type(value).__name__, [repr(value).encode()])
        key = id(value)
        if key in self._path:  # it is a part of itself
            return _hash("above", [str(len(self._path) - self._path[key]).encode()])
        if key not in self._known:
            self._path[key] = len(self._path)
            try:
                self._known[key] = self._of_parts(value)
            finally:
                del self._path[key]
            self._kept.append(value)
        return self._known[key]

    def _of_parts(self, value: Any) -> bytes:
        kind = type(value)
        if kind in (tuple, list):
            return _hash(kind.__name__, map(self.of, value))
        if kind in (set, frozenset):
            return _hash(kind.__name__, sorted(map(self.of, value)))
        if kind is dict:
            return self._of_pairs(value.items())
        if isinstance(value, np.ndarray):
            return self._of_array(value)
        if isinstance(value, _NAMED):
            name = value.__name__ if kind is np.ufunc else value.__qualname__
            return _hash("named", [name.encode()])
        if isinstance(value, types.ModuleType):
            return _hash("module", [value.__name__.encode()])
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        if isinstance(value, types.MethodType):
            return _hash("method", [self.of(value.__func__), self.of(value.__self__)])
        if isinstance(value, types.CodeType):
            return self._of_code(value)
        if isinstance(value, _GENERATORS):
            return _hash("generator", [kind.__qualname__.encode()])
        return self._of_object(value)

    def _of_array(self, array: np.ndarray[Any, Any]) -> bytes:
        if array.dtype.hasobject:
            content = self.of(array.tolist())
        else:
            content = np.ascontiguousarray(array).tobytes()
        kind = type(array).__qualname__
        return _hash(kind, [str(array.dtype).encode(), repr(array.shape).encode(), content])

    def _of_code(self, code: types.CodeType) -> bytes:
        names = (code.co_names, code.co_varnames, code.co_freevars)
        return _hash("code", [code.co_code, *map(self.of, code.co_consts), *map(self.of, names)])

    def _of_pairs(self, pairs: Iterable[tuple[Any, Any]]) -> bytes:
        return _hash("dict", sorted(self.of(key) + self.of(value) for key, value in pairs))

    def _of_function(self, function: types.FunctionType) -> bytes:
        """By its name, which stays the same if it is mended; one that has no name of its own by
        what it does."""
        name = function.__qualname__.encode()
        if b"<" not in name:
            return _hash("function", [name])
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append(self.of(cell.cell_contents))
            except ValueError:  # it is empty still
                cells.append(b"empty")
        defaults = (function.__defaults__, function.__kwdefaults__)
        return _hash("function", [self.of(function.__code__), self.of(defaults), *cells])

    def _of_object(self, value: Any) -> bytes:
        """By what pickle would make it of."""
        name = type(value).__qualname__.encode()
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            parts = value.__reduce_ex__(4) if reduce is None else reduce(value)
            if isinstance(parts, str):  # the name of a global
                return _hash("global", [parts.encode()])
            make, arguments, state, items, pairs = (*parts, None, None, None)[:5]
            listed, paired = list(items or ()), list(pairs or ())
        except RecursionError:
            raise
        except Exception:  # it cannot be pickled, so it is no state
            return _hash("opaque", [name])
        values = map(self.of, (make, arguments, state, listed))
        return _hash("object", [name, *values, self._of_pairs(paired)])


def _hash(kind: str, parts: Iterable[bytes]) -> bytes:
    found = hashlib.blake2b(kind.encode(), digest_size=_DIGEST_BYTES)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()
