"""The openpi message form: msgpack, arrays as maps whose keys are bytes (peers: openpi-client 0.1.2, any version)."""

from typing import Any

import msgpack
import numpy as np

from st4vla.platform.errors import WireError
from st4vla.platform.wire.arrays import pick, read_array, read_scalar
from st4vla.platform.wire.limits import DEFAULT_LIMITS, WireLimits
from st4vla.platform.wire.reader import Key, read_frame

ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"
DATA, DTYPE, SHAPE = b"data", b"dtype", b"shape"


def unpack(frame: bytes, limits: WireLimits = DEFAULT_LIMITS) -> dict[str, Any]:
    """Decode a message into texts, numbers, lists, maps with text keys, and read-only numpy arrays.

    Raises:
        WireError: naming the field that cannot be read, see `reader.read_frame`; or the message is not a map.
    """

    def fold(entries: dict[Key, Any], path: str) -> Any:
        if ARRAY in entries:
            data, dtype, shape = pick(entries, (DATA, DTYPE, SHAPE), path)
            return read_array(data, dtype, shape, path, limits)
        if SCALAR in entries:
            value, dtype = pick(entries, (DATA, DTYPE), path)
            return read_scalar(value, dtype, path)
        if any(isinstance(key, bytes) for key in entries):
            raise WireError("malformed", path, "A map has keys that are bytes; expected text.")
        return entries

    message = read_frame(frame, fold, limits)
    if not isinstance(message, dict):
        raise WireError("malformed", "", f"The message is {type(message).__name__}; expected a map.")
    return message


def pack(message: dict[str, Any]) -> bytes:
    """Encode a message of texts, numbers, lists, maps, numpy arrays and numpy scalars."""
    return bytes(msgpack.Packer(default=_as_map).pack(message))


def _as_map(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "biuf":
        raise TypeError(f"an array of {value.dtype} cannot be sent; expected booleans, integers or floats")
    if isinstance(value, np.ndarray):
        return {ARRAY: True, DATA: value.tobytes(), DTYPE: value.dtype.str, SHAPE: value.shape}
    if isinstance(value, np.generic):
        return {SCALAR: True, DATA: value.item(), DTYPE: value.dtype.str}
    raise TypeError(f"{type(value).__name__} cannot be sent in an openpi message")
