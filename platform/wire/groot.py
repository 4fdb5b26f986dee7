"""The GR00T message form (N1.5 and later): msgpack over ZeroMQ, arrays as the bytes that numpy.save writes.

    request   {"endpoint": name, "data": {...}, "api_token": text}; no endpoint means get_action
    get_action data {"observation": {"video": {camera: uint8 [B,T,H,W,3]}, "state": {name: float32 [B,T,D]},
                     "language": {key: [[text]]}}, "options": {...} or None}
           -> [{name: float32 [B,T,D]}, {info}]
    errors -> {"error": text}

numpy's own reader of such bytes evaluates a Python literal and believes the sizes in it; here the header must be
letter by letter what numpy.save writes, and agree with the bytes behind it.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from st4vla.platform.errors import WireError
from st4vla.platform.wire.arrays import read_array
from st4vla.platform.wire.limits import DEFAULT_LIMITS, WireLimits
from st4vla.platform.wire.reader import Key, read_frame

ARRAY, MODALITY = "__ndarray_class__", "__ModalityConfig_class__"
MAGIC = b"\x93NUMPY\x01\x00"
LONGEST_HEADER = 512
HEADER = re.compile(
    rb"\{'descr': '([<>|=][a-z]\d)', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,10}, ?)*(?:\d{1,10})?)\), \} *\n"
)
LONGEST_TOKEN = 256


@dataclass(frozen=True)
class Request:
    """One decoded request; `token` is "" where none was sent."""

    endpoint: str
    data: Mapping[str, Any]
    token: str = ""


@dataclass(frozen=True)
class Modality:
    """One entry of a modality config: which steps around now, and which names, a policy reads or gives."""

    steps: tuple[int, ...]
    names: tuple[str, ...]


def unpack(frame: bytes, limits: WireLimits = DEFAULT_LIMITS) -> Request:
    """Decode one request.

    Raises:
        WireError: naming the field that cannot be read.
    """

    def fold(entries: dict[Key, Any], path: str) -> Any:
        if any(isinstance(key, bytes) for key in entries):
            raise WireError("malformed", path, "A map has keys that are bytes; expected text.")
        if ARRAY in entries:
            return read_npy(entries.get("as_npy"), path, limits)
        if MODALITY in entries:
            raise WireError("invalid", path, "A modality config is what the server gives; a robot sends none.")
        return entries

    message = read_frame(frame, fold, limits)
    if not isinstance(message, dict):
        raise WireError("malformed", "", f"The message is {type(message).__name__}; expected a map.")
    endpoint, data = message.get("endpoint", "get_action"), message.get("data")
    token = message.get("api_token")
    if not isinstance(endpoint, str) or len(endpoint) > 64:
        raise WireError("invalid", "endpoint", "The endpoint is no short text.")
    if data is not None and not isinstance(data, dict):
        raise WireError("invalid", "data", f"The data is {type(data).__name__}; expected a map.")
    if token is not None and (not isinstance(token, str) or len(token) > LONGEST_TOKEN):
        raise WireError("invalid", "api_token", "The token is no short text.")
    return Request(endpoint, data or {}, token or "")


def read_npy(content: Any, path: str, limits: WireLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Read what numpy.save wrote of an array of booleans, integers or floats; the array is read-only.

    Raises:
        WireError: it is anything else.
    """
    if not isinstance(content, bytes) or not content.startswith(MAGIC):
        raise WireError("invalid", f"{path}.as_npy", "The array is not in the bytes of numpy.save, version 1.0.")
    start = len(MAGIC) + 2
    length = int.from_bytes(content[len(MAGIC) : start], "little")
    header = content[start : start + length] if length <= LONGEST_HEADER else b""
    found = HEADER.fullmatch(header)
    if found is None:
        raise WireError("invalid", f"{path}.as_npy", "The array's header is not one that numpy.save writes.")
    shape = [int(size) for size in found[3].split(b",") if size.strip()]
    is_fortran = found[2] == b"True"
    data = content[start + length :]
    array = read_array(data, found[1].decode(), shape[::-1] if is_fortran else shape, path, limits)
    return array.T if is_fortran else array


def pack(answer: Any) -> bytes:
    """Encode an answer of texts, numbers, lists, maps, arrays and modalities."""
    return msgpack.packb(answer, default=_as_map) or b""


def _as_map(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return {ARRAY: True, "as_npy": buffer.getvalue()}
    if isinstance(value, Modality):
        return {MODALITY: True, "as_json": {"delta_indices": list(value.steps), "modality_keys": list(value.names)}}
    raise TypeError(f"{type(value).__name__} cannot be sent in a GR00T message")
