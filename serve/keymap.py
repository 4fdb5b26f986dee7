"""Read a robot's own message into an Observation, and give actions in the robot's own terms: one KeyMap a robot family.

A path such as "observation/image" is looked up as it stands and then step by step, so that flat and nested messages
are read alike. Images may be [H,W,3] or [3,H,W], whole numbers 0..255 or floats 0..1; numbers may stand alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from st4vla.platform.contracts import Observation, PolicySpec
from st4vla.platform.errors import ConfigError, WireError
from st4vla.platform.wire.images import check_pixels
from st4vla.platform.wire.limits import DEFAULT_LIMITS, WireLimits
from st4vla.platform.wire.stamps import RequestStamp

GripperForm = Literal["as_is", "close_positive", "closed_one"]
MAX_STATE = 512


@dataclass(frozen=True)
class KeyMap:
    """Where one family of robots puts what a policy needs.

    Attributes:
        name: what the family is called in configs.
        images: {camera of the policy: path in the message}.
        state: paths whose numbers, one after another, are the state; () for a robot that sends none.
        prompt: path of the instruction.
        default_prompt: instruction where the message has none; "" refuses such a message.
        gripper: the last column of the actions as the robot wants it: "as_is" as the policy gives it; "close_positive"
            turns 0 closed .. 1 open into 1 closed .. -1 open, "closed_one" into 1 closed .. 0 open.
    """

    name: str = "native"
    images: Mapping[str, str] = field(default_factory=dict)
    state: tuple[str, ...] = ("state",)
    prompt: str = "prompt"
    default_prompt: str = ""
    gripper: GripperForm = "as_is"

    def __post_init__(self) -> None:
        if self.gripper not in ("as_is", "close_positive", "closed_one"):
            raise ConfigError(f"keymap.gripper is {self.gripper!r}; expected as_is, close_positive or closed_one.")

    @classmethod
    def native(cls, spec: PolicySpec) -> "KeyMap":
        """Give the map of messages that name the policy's own cameras: {"images": {camera}, "state", "prompt"}."""
        return cls(images={camera: f"images/{camera}" for camera in spec.cameras})

    def fit(self, spec: PolicySpec) -> "KeyMap":
        """Check that the map has all that the policy needs; the native map is filled in.

        Raises:
            ConfigError: it lacks a camera.
        """
        if not self.images:
            native = KeyMap.native(spec).images
            return KeyMap(self.name, native, self.state, self.prompt, self.default_prompt, self.gripper)
        if missing := [camera for camera in spec.cameras if camera not in self.images]:
            raise ConfigError(
                f"keymap {self.name} names no place for the camera {missing[0]!r} of the policy, only for "
                f"{', '.join(self.images)}; set +keymap.images.{missing[0]}=PATH."
            )
        return self


def read_observation(
    message: Mapping[str, Any], keys: KeyMap, spec: PolicySpec, limits: WireLimits = DEFAULT_LIMITS
) -> Observation:
    """Give what the policy is shown; entries of the message that it does not need are not looked at.

    Raises:
        WireError: naming the path at fault.
    """
    images = {
        camera: read_image(find(message, keys.images[camera]), keys.images[camera], limits) for camera in spec.cameras
    }
    state = read_state(message, keys.state, spec.state_dim) if spec.state_dim else None
    return Observation(images, state, read_prompt(message, keys, limits))


def find(message: Mapping[str, Any], path: str) -> Any:
    """Give the entry at a path, None where there is none."""
    if path in message:
        return message[path]
    entry: Any = message
    for step in path.split("/"):
        if not isinstance(entry, Mapping) or step not in entry:
            return None
        entry = entry[step]
    return entry


def read_image(value: Any, path: str, limits: WireLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Give uint8 [H,W,3].

    Raises:
        WireError: it is missing, no image, too large, or not finite.
    """
    if value is None:
        raise WireError("missing", path, "The message lacks this image.")
    if not isinstance(value, np.ndarray) or value.ndim != 3 or value.size == 0:
        raise WireError("invalid", path, f"Expected an image [H,W,3] or [3,H,W]; got {describe(value)}.")
    if value.shape[2] != 3 and value.shape[0] == 3:
        value = value.transpose(1, 2, 0)
    if value.shape[2] != 3:
        raise WireError("invalid", path, f"Expected three colours; got {describe(value)}.")
    check_pixels(value.shape[0], value.shape[1], path, limits)
    if value.dtype == np.uint8:
        return np.ascontiguousarray(value)
    return from_other_range(value, path)


def from_other_range(value: np.ndarray, path: str) -> np.ndarray:
    """Turn whole numbers 0..255, or floats 0..1, into uint8.

    Raises:
        WireError: values lie outside.
    """
    top = 1.0 if value.dtype.kind == "f" else 255
    low, high = value.min(), value.max()
    if value.dtype.kind == "b" or not (low >= 0 and high <= top):  # NaN fails both
        raise WireError("invalid", path, f"Values of {value.dtype} run from {low} to {high}; expected 0 to {top}.")
    scaled = np.rint(value.astype(np.float32) * 255) if value.dtype.kind == "f" else value
    return np.ascontiguousarray(scaled.astype(np.uint8))


def read_state(message: Mapping[str, Any], paths: Sequence[str], width: int) -> np.ndarray:
    """Give float32 [S], the numbers at the paths one after another.

    Raises:
        WireError: one is missing or not finite, or there are more or fewer than the policy needs.
    """
    parts = [numbers(find(message, path), path) for path in paths]
    state = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if len(state) != width:
        raise WireError(
            "invalid", paths[0] if paths else "state", f"The state has {len(state)} numbers; expected {width}."
        )
    return state


def numbers(value: Any, path: str) -> np.ndarray:
    """Give float32 [N] of an array, a list of numbers or a lone number.

    Raises:
        WireError: it is missing, something else, or not finite.
    """
    if value is None:
        raise WireError("missing", path, "The message lacks it.")
    if isinstance(value, list) and not all(type(entry) in (int, float) for entry in value):
        raise WireError("invalid", path, "Expected numbers.")
    if not isinstance(value, list | int | float | np.ndarray | np.generic) or isinstance(value, bool):
        raise WireError("invalid", path, f"Expected numbers; got {describe(value)}.")
    array = np.asarray(value)
    if array.size > MAX_STATE or array.dtype.kind not in "iuf":
        raise WireError("invalid", path, f"Expected at most {MAX_STATE} numbers; got {describe(value)}.")
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        flat = array.reshape(-1).astype(np.float32)
    if not np.isfinite(flat).all():
        raise WireError("invalid", path, "It holds a number that is not finite.")
    return flat


def read_prompt(message: Mapping[str, Any], keys: KeyMap, limits: WireLimits = DEFAULT_LIMITS) -> str:
    """Give the instruction.

    Raises:
        WireError: there is none and no default, or it is no text of bounded length.
    """
    prompt = find(message, keys.prompt)
    if prompt is None or prompt == "":
        prompt = keys.default_prompt
        if not prompt:
            raise WireError("missing", keys.prompt, "The message has no instruction, and the server no default one.")
    if not isinstance(prompt, str) or len(prompt) > limits.max_text:
        raise WireError("invalid", keys.prompt, f"Expected a text; got {describe(prompt)}.")
    return prompt


def in_robots_terms(actions: np.ndarray, gripper: GripperForm) -> np.ndarray:
    """Give actions [T,A] with the gripper column as the robot wants it."""
    if gripper == "as_is":
        return actions
    turned = actions.copy()
    turned[:, -1] = 1 - actions[:, -1] if gripper == "closed_one" else 1 - 2 * actions[:, -1]
    return turned


def in_policys_terms(stamp: RequestStamp, gripper: GripperForm) -> RequestStamp:
    """Turn back the rows that a robot says are left of its chunk: they came to it through `in_robots_terms`."""
    if stamp.remaining is None or not stamp.remaining.size or gripper == "as_is":
        return stamp
    turned = stamp.remaining.copy()
    turned[:, -1] = 1 - turned[:, -1] if gripper == "closed_one" else (1 - turned[:, -1]) / 2
    return replace(stamp, remaining=turned)


def describe(value: Any) -> str:
    """Say what a value is, never what it holds."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
