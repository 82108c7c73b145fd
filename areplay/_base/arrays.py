"""Arrays: what a user hands in, as numpy arrays of the very same values.

Rule: each value comes out as it went in, or the caller gets a `Refusal` that says what came and how
to mend it. No exception of another library leaves this module: a torch tensor that requires a
gradient, a deleted jax array or an object whose `__array__` raises are refused like a value of the
wrong shape.

Knows neither fields nor specs, and imports no library of arrays but numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
Columns = Mapping[str, Array]

# bool, signed, unsigned, float, complex: fixed size and no pointers, so bytes can be shared
KINDS = "biufc"
_EXACT_IN_FLOAT64 = 1 << 53  # float64 holds every whole number up to this one
# values that nobody can change in place
_FIXED = (bool, int, float, complex, str, bytes, type(None), np.generic)
_PLAIN = frozenset({bool, int, float, complex, *np.sctypeDict.values()})


class Refusal(NamedTuple):
    """Why a value is no array: what came, and the remedy (empty if the caller knows a better
    one)."""

    got: str
    remedy: str


def as_array(value: object) -> Array | Refusal:
    """`value` as a numpy array of exactly the values that it holds; it shares the memory of `value`
    where it can.

    Refused are objects that cannot be converted, masked arrays with masked values, and lists in
    which numpy would round a whole number, as in `[2**53 + 1, 0.5]`.
    """
    if type(value) is np.ndarray:
        return value
    try:
        if has_masked(value):
            return Refusal(
                "a masked array",
                "masked values cannot be stored: fill them, for example .filled(0)",
            )
        array = np.asarray(value)
        if isinstance(value, (list, tuple)) and array.dtype.kind in KINDS:
            return _refusal_of_list(value, array) or array
    except Exception as error:  # whatever the array's own library raises
        return _refusal_of(value, error)
    return array


def exactly(given: Array, dtype: np.dtype[Any]) -> Array | None:
    """`given` as an array of `dtype` in which each value survives; `None` if one would not.

    Whole numbers come out as they went in. A float may be rounded to a shorter float, which is what
    a field of float32 asks for, but must not overflow. A longdouble must be a value of float64.
    """
    if not given.dtype.isnative or given.dtype.kind not in KINDS:
        return None
    kinds = given.dtype.kind, dtype.kind
    if KINDS.index(kinds[0]) > KINDS.index(kinds[1]) and set(kinds) != {"i", "u"}:
        return None  # a float for an integer, a complex for a float, a number for a bool
    if dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        survives = given.size == 0 or (low <= int(given.min()) and int(given.max()) <= high)
        return given.astype(dtype) if survives else None
    with np.errstate(all="ignore"):
        if given.dtype.char in "gG":
            shorter = given.astype(np.float64 if given.dtype.char == "g" else np.complex128)
            if not np.array_equal(shorter, given, equal_nan=True):
                return None
            given = shorter
        converted = given.astype(dtype)
        if given.dtype.kind in "fc":
            finite = np.isfinite(converted)  # if all are, all were
            survives = bool(finite.all()) or bool(np.array_equal(np.isfinite(given), finite))
        else:
            survives = given.dtype.kind == "b" or _whole_numbers_survive(given, converted)
    return converted if survives else None


def detached(value: Any) -> Any:
    """`value` with a memory of its own: what the caller writes into its arrays later does not reach
    it.

    Mappings, tuples and lists are copied with what is in them. A value that cannot be converted is
    returned as it is, and refused where it is stored.
    """
    if isinstance(value, _FIXED):
        return value
    if isinstance(value, Mapping):
        return {name: detached(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(detached(inner) for inner in value)
    if isinstance(value, list):
        return [detached(inner) for inner in value]
    if isinstance(value, np.ndarray):
        if value.dtype != object:
            return value.copy()
        copy = np.empty(value.shape, object)
        for at in np.ndindex(value.shape):
            copy[at] = detached(value[at])
        return copy
    array = as_array(value)
    return value if isinstance(array, Refusal) or array.dtype == object else array.copy()


def own_columns(columns: Mapping[str, Array], given: Mapping[str, Any]) -> dict[str, Array]:
    """`columns`, which were made of what the caller gave, with a memory that the caller cannot
    write to."""
    return {
        name: column if _is_own(column, given.get(name)) or _is_read_only(column) else column.copy()
        for name, column in columns.items()
    }


def share_memory(one: object, other: object) -> bool:
    """Whether writing to `one` may change `other`: one object that can change, or arrays whose
    memories overlap.

    Lists are compared part by part, tensors as the arrays that they are.
    """
    return _meet(one, other, np.may_share_memory)


def is_same_memory(one: object, other: object) -> bool:
    """Whether both are one object that can change, or arrays that begin at the same address, with
    the same strides."""
    return _meet(one, other, _begin_alike)


def _meet(one: object, other: object, arrays_do: Callable[[Array, Array], bool]) -> bool:
    if one is other:
        return not isinstance(one, _FIXED)
    if type(one) is not np.ndarray or type(other) is not np.ndarray:
        if isinstance(one, _FIXED) or isinstance(other, _FIXED):
            return False
        if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
            return any(
                _meet(mine, others, arrays_do) for mine, others in zip(one, other, strict=False)
            )
        one, other = as_array(one), as_array(other)
        if isinstance(one, Refusal) or isinstance(other, Refusal):
            return False
    if one.base is None and other.base is None:  # two arrays, each with a memory of its own
        return False
    return arrays_do(one, other)


def _begin_alike(one: Array, other: Array) -> bool:
    mine, others = one.__array_interface__, other.__array_interface__
    return bool(mine["data"] == others["data"] and one.strides == other.strides and one.nbytes > 0)


def has_masked(value: object) -> bool:
    """Whether `value` is a masked array of which a value is masked."""
    return isinstance(value, np.ma.MaskedArray) and bool(np.ma.getmaskarray(value).any())


def shown(value: object) -> str:
    """A value as an error names it: its `repr`, cut short; of an object whose `repr` raises, its
    type."""
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}..."


def told(error: Exception) -> str:
    """What an exception of another library says, in one line; its type, if it cannot be asked."""
    try:
        return " ".join(str(error).split())[:200]
    except Exception:
        return type(error).__name__


def remedy_for(value: object) -> str:
    """What to do with a value that is no array, such as a tensor that requires a gradient; "" for
    all others."""
    given = as_array(value)
    return given.remedy if isinstance(given, Refusal) else ""


def plain(value: object) -> object:
    """The number in an array or tensor of shape (), as a numpy scalar; anything else as it is."""
    if isinstance(value, _FIXED) or not hasattr(value, "__array__"):
        return value
    array = as_array(value)
    return value if isinstance(array, Refusal) or array.shape != () else array[()]


def torch_tensor_in(value: object, depth: int = 8) -> Any:
    """`value` if it is a torch tensor, or the first one in nested lists and tuples; else `None`."""
    if isinstance(value, (list, tuple)):
        for one in value if depth else ():
            if (tensor := torch_tensor_in(one, depth - 1)) is not None:
                return tensor
        return None
    kinds = type(value).__mro__
    is_tensor = any(
        kind.__name__ == "Tensor" and kind.__module__.split(".")[0] == "torch" for kind in kinds
    )
    return value if is_tensor else None


def _is_own(array: Array, given: object) -> bool:
    if isinstance(given, (list, tuple)):
        return True
    return (
        isinstance(given, np.ndarray)
        and array is not given
        and not np.may_share_memory(array, given)
    )


def _is_read_only(array: Array) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):  # a view may be read-only, and what it is a view of not
        if base.flags.writeable:
            return False
        base = base.base
    # Of another owner nobody knows: behind a sliding_window_view, or a read-only memoryview,
    # somebody may write.
    return base is None or type(base) is bytes


def _whole_numbers_survive(given: Array, converted: Array) -> bool:
    # up to here a float of that many bits holds each whole number
    limit = 1 << (np.finfo(converted.dtype).nmant + 1)
    if given.size == 0 or (-limit <= int(given.min()) and int(given.max()) <= limit):
        return True
    # Python's numbers are compared without rounding, numpy's are not.
    return bool(np.isfinite(converted).all()) and bool(given.tolist() == converted.real.tolist())


def _refusal_of_list(values: Sequence[Any], array: Array) -> Refusal | None:
    """Why a list is not what `array` holds, if it is not."""
    if _has_masked_within(values):
        return Refusal(
            "a list with masked values", "masked values cannot be stored: fill them, .filled(0)"
        )
    if array.dtype.char not in "dDgG":  # what numpy makes of wide whole numbers beside a float
        return None
    if not (np.abs(array) >= _EXACT_IN_FLOAT64).any():
        return None
    for given, stored in zip(np.array(values, object).ravel(), array.ravel().tolist(), strict=True):
        number = given.item() if hasattr(given, "item") else given
        if isinstance(number, int) and number != stored:
            return Refusal(
                f"a list with {number}, which is rounded beside a float",
                "give whole numbers only, or less",
            )
    return None


def _has_masked_within(values: Sequence[Any]) -> bool:
    if set(map(type, values)) <= _PLAIN:
        return False
    return any(
        _has_masked_within(one) if isinstance(one, (list, tuple)) else has_masked(one)
        for one in values
    )


def _refusal_of(value: object, error: Exception) -> Refusal:
    tensor = torch_tensor_in(value)
    if tensor is not None:
        try:
            return _refusal_of_tensor(tensor)
        except Exception:  # a subclass of a tensor that is not like one
            return Refusal(
                f"a {type(tensor).__name__}",
                "give a numpy array, for example tensor.detach().cpu().numpy()",
            )
    return Refusal(f"{type(value).__name__} that is no array ({told(error)})", "")


def _refusal_of_tensor(tensor: Any) -> Refusal:
    kind = str(tensor.dtype)
    got = f"a torch tensor of {kind} on {tensor.device}" + (
        " that requires a gradient" if tensor.requires_grad else ""
    )
    if str(tensor.layout) != "torch.strided":
        got += f", {tensor.layout}"
    if tensor.device.type == "meta":
        return Refusal(
            got, "a meta tensor has no values: give one that has, as tensor.detach().cpu()"
        )
    if tensor.is_nested:
        return Refusal(
            f"{got}, nested",
            "its parts may differ in length, which a field cannot: hand in one of tensor.unbind() "
            "each time, or tensor.detach().to_padded_tensor(0).cpu()",
        )
    steps = ".detach()"
    if str(tensor.layout) != "torch.strided":
        steps += ".to_dense()"
    if tensor.is_quantized:
        steps += ".dequantize()"
    steps += ".cpu()"
    if kind == "torch.bfloat16" or kind.startswith("torch.float8"):
        steps += ".float()"
    if not tensor.is_quantized and (tensor.is_conj() or tensor.is_neg()):
        steps += ".resolve_conj().resolve_neg()"
    return Refusal(got, f"hand in tensor{steps}")
