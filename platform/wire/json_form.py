"""The JSON forms of `POST /v1/act` and `POST /v1/ground`.

image    {"format": "png" | "jpeg" | "raw", "data": base64 [, "shape": [H, W, 3] where raw]}
act      {"images": {camera: image}, "state": [numbers] | null, "instruction": text, "st4vla": {request stamp}}
     ->  {"actions": [[numbers]], "st4vla": {reply stamp}}
ground   {"image": image, "question": text}
     ->  {"answer": text, "spatial": {label, box, points, trajectory} | null, "model_version": text}
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from st4vla.platform.errors import WireError
from st4vla.platform.wire.arrays import plain_numbers, read_array
from st4vla.platform.wire.images import PixelBudget, decode_image, encode_image
from st4vla.platform.wire.limits import DEFAULT_LIMITS, WireLimits
from st4vla.platform.wire.stamps import KEY, RequestStamp

ACT_FIELDS = ("images", "state", "instruction", KEY)
GROUND_FIELDS = ("image", "question")


@dataclass(frozen=True)
class ActForm:
    """A decoded request for actions."""

    images: dict[str, np.ndarray]
    state: np.ndarray | None
    instruction: str
    stamp: RequestStamp


@dataclass(frozen=True)
class GroundForm:
    """A decoded question about one image."""

    image: np.ndarray
    question: str


def read_act(body: bytes, limits: WireLimits = DEFAULT_LIMITS) -> ActForm:
    """Decode the body of `POST /v1/act`.

    Raises:
        WireError: naming the field.
    """
    entries = read_object(body, ACT_FIELDS, limits)
    images = entries.get("images", {})
    if not isinstance(images, dict) or len(images) > limits.max_entries:
        raise WireError("invalid", "images", "Expected a map from camera to image.")
    budget = PixelBudget(limits)
    decoded = {name: read_image(image, f"images.{name[:64]}", limits, budget) for name, image in images.items()}
    state = entries.get("state")
    state = None if state is None else plain_numbers(state, "state", 1)
    stamp = dict(entries.get(KEY) or {}) if isinstance(entries.get(KEY) or {}, dict) else entries[KEY]
    if isinstance(stamp, dict) and "remaining" in stamp:
        stamp["remaining"] = plain_numbers(stamp["remaining"], f"{KEY}.remaining", 2)
    return ActForm(
        decoded, state, read_text(entries.get("instruction", ""), "instruction", limits), RequestStamp.read(stamp)
    )


def read_ground(body: bytes, limits: WireLimits = DEFAULT_LIMITS) -> GroundForm:
    """Decode the body of `POST /v1/ground`.

    Raises:
        WireError: naming the field.
    """
    entries = read_object(body, GROUND_FIELDS, limits)
    for name in GROUND_FIELDS:
        if name not in entries:
            raise WireError("missing", name, f"The request lacks it; expected {' and '.join(GROUND_FIELDS)}.")
    image = read_image(entries["image"], "image", limits, PixelBudget(limits))
    return GroundForm(image, read_text(entries["question"], "question", limits))


def read_object(body: bytes, known: tuple[str, ...], limits: WireLimits) -> dict[str, Any]:
    """Parse a JSON object that has no other fields than those.

    Raises:
        WireError: it is larger than the limits, no JSON, nested too deeply, or has another field.
    """
    if len(body) > limits.max_bytes:
        raise WireError("too_large", "", f"The body has {len(body)} bytes; at most {limits.max_bytes} are read.")
    # Brackets bound how many containers there can be; numbers and texts take at least two bytes each.
    if body.count(b"{") + body.count(b"[") + body.count(b",") > limits.max_items:
        raise WireError("too_large", "", f"The body holds more than {limits.max_items} values.")
    try:
        entries = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise WireError("malformed", "", "The body is not JSON in UTF-8, or is nested too deeply.") from None
    if not isinstance(entries, dict):
        raise WireError("malformed", "", f"The body is {type(entries).__name__}; expected an object.")
    for name in entries:
        if name not in known:
            raise WireError("invalid", name[:64], f"Unknown field; expected {', '.join(known)}.")
    return entries


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def read_text(value: Any, path: str, limits: WireLimits) -> str:
    if isinstance(value, str) and len(value) <= limits.max_text:
        return value
    raise WireError("invalid", path, f"Expected a text of at most {limits.max_text} characters.")


def read_image(value: Any, path: str, limits: WireLimits, budget: PixelBudget) -> np.ndarray:
    """Read one image object into uint8 RGB [H,W,3].

    Raises:
        WireError: naming the field.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("data"), str):
        raise WireError("invalid", path, 'Expected {"format", "data"}, the data in base64.')
    try:
        data = base64.b64decode(value["data"], validate=True)
    except (binascii.Error, ValueError):
        raise WireError("invalid", f"{path}.data", "The data is not base64.") from None
    if value.get("format") == "raw":
        return read_array(data, "|u1", value.get("shape"), path, limits)
    return decode_image(data, value.get("format"), path, limits, budget)


def write_image(image: np.ndarray, form: str = "png") -> dict[str, Any]:
    """Give the JSON object of an image."""
    if form == "raw":
        data = image.astype(np.uint8).tobytes()
        return {"format": form, "shape": list(image.shape), "data": base64.b64encode(data).decode()}
    return {"format": form, "data": base64.b64encode(encode_image(image, form)).decode()}
