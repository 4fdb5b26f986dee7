"""The vla-eval message form: a typed envelope in msgpack, arrays with text keys, images as PNG, JPEG or raw."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import msgpack
import numpy as np

from st4vla.platform.errors import WireError
from st4vla.platform.wire.arrays import pick, read_array
from st4vla.platform.wire.images import PixelBudget, decode_image, encode_image
from st4vla.platform.wire.limits import DEFAULT_LIMITS, WireLimits
from st4vla.platform.wire.reader import Key, read_frame

PROTOCOL_VERSION = 1
MessageType = Literal["hello", "observation", "action", "episode_start", "episode_end", "error"]
ImageFormat = Literal["png", "jpeg", "raw"]
TYPES = ("hello", "observation", "action", "episode_start", "episode_end", "error")
ENVELOPE = ("type", "payload", "seq", "timestamp")
ARRAY, IMAGE = "__ndarray__", "__image__"


@dataclass(frozen=True)
class Message:
    """One frame; `seq` of an answer is its question's, `timestamp` is Unix time in seconds."""

    type: MessageType
    payload: dict[str, Any]
    seq: int = 0
    timestamp: float = field(default_factory=time.time)


def unpack(frame: bytes, limits: WireLimits = DEFAULT_LIMITS) -> Message:
    """Decode one frame; arrays and images become numpy arrays.

    Raises:
        WireError: naming the field that cannot be read.
    """
    budget = PixelBudget(limits)

    def fold(entries: dict[Key, Any], path: str) -> Any:
        if any(isinstance(key, bytes) for key in entries):
            raise WireError("malformed", path, "A map has keys that are bytes; expected text.")
        if IMAGE in entries:
            return read_image(entries, path, limits, budget)
        if ARRAY in entries:
            data, dtype, shape = pick(entries, ("data", "dtype", "shape"), path)
            return read_array(data, dtype, shape, path, limits)
        return entries

    return read_envelope(read_frame(frame, fold, limits))


def read_envelope(entries: Any) -> Message:
    if not isinstance(entries, dict):
        raise WireError("malformed", "", f"The message is {type(entries).__name__}; expected a map.")
    for name in ENVELOPE:
        if name not in entries:
            raise WireError("missing", name, f"The message lacks it; expected {', '.join(ENVELOPE)}.")
    if entries["type"] not in TYPES:
        raise WireError("invalid", "type", f"The type is none of {', '.join(TYPES)}.")
    if not isinstance(entries["payload"], dict):
        raise WireError("invalid", "payload", "The payload is not a map.")
    if type(entries["seq"]) is not int or not isinstance(entries["timestamp"], int | float):
        raise WireError("invalid", "seq", "The sequence number is no integer, or the time no number.")
    return Message(*(entries[name] for name in ENVELOPE))


def read_image(entries: dict[Any, Any], path: str, limits: WireLimits, budget: PixelBudget) -> np.ndarray:
    """Read an image map: {"__image__", "format", "data", "shape"}, with "dtype" where it is raw."""
    if entries.get("format") == "raw":
        data, dtype, shape, _ = pick(entries, ("data", "dtype", "shape", "format"), path)
        return read_array(data, dtype, shape, path, limits)
    data, form, _ = pick(entries, ("data", "format", "shape"), path)
    return decode_image(data, form, path, limits, budget)


def pack(message: Message, image_format: ImageFormat = "raw") -> bytes:
    """Encode one frame; uint8 arrays [H,W,3] become images unless the format is raw."""

    def as_map(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            raise TypeError(f"{type(value).__name__} cannot be sent in a vla-eval message")
        if image_format != "raw" and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3:
            data = encode_image(value, image_format)
            return {IMAGE: True, "format": image_format, "data": data, "shape": list(value.shape)}
        return {ARRAY: True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}

    envelope = {name: getattr(message, name) for name in ENVELOPE}
    return bytes(msgpack.Packer(default=as_map).pack(envelope))
