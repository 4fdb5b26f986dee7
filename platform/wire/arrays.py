"""Arrays as protocols carry them: raw bytes beside a dtype and a shape, believed only after all three agree."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from st4vla.platform.errors import WireError
from st4vla.platform.wire.limits import WireLimits

# Booleans, integers and floats of a fixed size: nothing that holds objects, texts, dates or structures.
DTYPES = {f"{kind}{size}" for kind, sizes in {"b": "1", "i": "1248", "u": "1248", "f": "248"}.items() for size in sizes}
ORDERS = "<>|="


def read_array(data: Any, dtype: Any, shape: Any, path: str, limits: WireLimits) -> np.ndarray:
    """Give a read-only array in this machine's byte order.

    Raises:
        WireError: naming `path`.dtype, .shape or .data.
    """
    kind = read_dtype(dtype, f"{path}.dtype")
    sizes = read_shape(shape, f"{path}.shape", limits)
    if not isinstance(data, bytes):
        raise WireError("invalid", f"{path}.data", f"The array's data is {type(data).__name__}; expected bytes.")
    if (wanted := math.prod(sizes) * kind.itemsize) != len(data):
        raise WireError(
            "invalid", f"{path}.data", f"Shape {sizes} of {kind} needs {wanted} bytes; {len(data)} are there."
        )
    array = np.frombuffer(data, kind).reshape(sizes)
    return array if kind.isnative else array.astype(kind.newbyteorder("="))


def read_dtype(dtype: Any, path: str) -> np.dtype:
    """Give the dtype a text such as "<f4" names.

    Raises:
        WireError: it is not of the allow-list.
    """
    if isinstance(dtype, str) and 2 <= len(dtype) <= 3 and dtype.lstrip(ORDERS) in DTYPES:
        return np.dtype(dtype)
    shown = repr(dtype)[:40] if isinstance(dtype, str) else type(dtype).__name__
    raise WireError("invalid", path, f"The dtype is {shown}; expected booleans, integers or floats such as '<f4'.")


def read_shape(shape: Any, path: str, limits: WireLimits) -> tuple[int, ...]:
    """Give a shape whose every part is a natural number.

    Raises:
        WireError: it is not, or has too many dimensions or values.
    """
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise WireError("invalid", path, "The shape is not a list of natural numbers.")
    if len(shape) > limits.max_dims:
        raise WireError("too_large", path, f"The array has {len(shape)} dimensions; at most {limits.max_dims}.")
    # A size beside a zero passes no count of bytes, but must still fit the machine's integers.
    if math.prod(size or 1 for size in shape) > limits.max_bytes:
        raise WireError("too_large", path, f"The array has more than {limits.max_bytes} values.")
    return tuple(shape)


def read_scalar(value: Any, dtype: Any, path: str) -> np.generic:
    """Give a numpy scalar.

    Raises:
        WireError: the value does not fit the dtype.
    """
    kind = read_dtype(dtype, f"{path}.dtype")
    if isinstance(value, bool | int | float):
        try:
            scalar = kind.newbyteorder("=").type(value)
        except (OverflowError, ValueError, TypeError):
            scalar = None
        if scalar is not None and (kind.kind == "f" or scalar == value):
            return scalar
    raise WireError("invalid", f"{path}.data", f"The value is no number that fits {kind}.")


def plain_numbers(value: Any, path: str, dims: int) -> np.ndarray:
    """Give a list of numbers, `dims` deep and rectangular, as float32.

    Raises:
        WireError: it is not such a list.
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and _all_numbers(value, dims):
        try:
            with np.errstate(over="ignore"):
                return np.asarray(value, np.float32)
        except (ValueError, OverflowError):
            pass
    raise WireError("invalid", path, f"Expected a list of numbers, {dims} deep with rows of one length.")


def _all_numbers(value: Any, dims: int) -> bool:
    if dims == 0:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and all(_all_numbers(v, dims - 1) for v in value)
    )


def pick(entries: Mapping[Any, Any], keys: Sequence[Any], path: str) -> list[Any]:
    """Give the entries of exactly those keys beside the marking one.

    Raises:
        WireError: one is missing, or another is there.
    """
    names = [key.decode() if isinstance(key, bytes) else key for key in keys]
    for key, name in zip(keys, names, strict=True):
        if key not in entries:
            raise WireError("missing", f"{path}.{name}" if path else name, "An array or scalar lacks this entry.")
    if len(entries) != len(keys) + 1:
        raise WireError("invalid", path, f"An array or scalar has other entries than {', '.join(names)}.")
    return [entries[key] for key in keys]
