"""Ask a policy server that speaks the openpi WebSocket protocol, as if it were a policy of ours.

The server speaks first (its metadata), then answers one observation at a time with a map that holds `actions` [T,A].
The protocol knows no session and no reset, so each episode has a connection of its own. Every wait has a deadline and
every frame a bound; after a late answer the connection is closed, as the next frame on it would belong to the past.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from st4vla.platform.contracts import ActionChunk, Observation, PolicySpec, RotationForm
from st4vla.platform.errors import ConfigError, PolicyError, WireError
from st4vla.platform.wire import openpi
from st4vla.platform.wire.limits import MIB, WireLimits

log = logging.getLogger(__name__)

STATE, INSTRUCTION = "state", "instruction"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_TEXT = 300


@dataclass(frozen=True)
class RemoteConfig:
    """Where a policy server is, what it calls things, and how long it may take.

    Attributes:
        url: ws:// or wss://, host, port and path.
        keys: the server's name of each part of the observation, and ours: a camera, "state" or "instruction"; None
            leaves a part out.
        image_size: edge in pixels of the squares we render for it; None for the camera's own size and shape.
        resize: edge in pixels to which pictures are scaled and padded before they are sent; None leaves them.
        rotation_form: what the rotation of its actions is: a rotation vector, or roll, pitch and yaw about the fixed
            axes ("euler_xyz"), as of policies that learned from Open X-Embodiment data.
        state_dim, action_dim, chunk_length, control_hz: what it reads and gives back; the protocol does not say.
        gripper_open, gripper_closed: its last action's value for an open and a closed gripper; ours are 1 and 0.
        deadline_s: how long one answer may take.
        connect_timeout_s: how long a connection and the server's first frame may take.
        api_key_variable: environment variable that holds the server's key, "" for none.
        max_reply_mb: largest frame that is read.
    """

    url: str = ""
    keys: Mapping[str, str | None] = field(
        default_factory=lambda: {
            "observation/image": "third_person",
            "observation/wrist_image": "wrist",
            "observation/state": STATE,
            "prompt": INSTRUCTION,
        }
    )
    image_size: int | None = None
    resize: int | None = 224
    rotation_form: RotationForm = "rotation_vector"
    state_dim: int = 7
    action_dim: int = 7
    chunk_length: int = 16
    control_hz: float = 5.0
    gripper_open: float = 1.0
    gripper_closed: float = 0.0
    deadline_s: float = 10.0
    connect_timeout_s: float = 10.0
    api_key_variable: str = ""
    max_reply_mb: int = 4

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ConfigError(f"url is {self.url!r}; policy=remote needs one such as url=ws://127.0.0.1:8000.")
        if self.deadline_s <= 0 or self.connect_timeout_s <= 0:
            raise ConfigError(f"remote.deadline_s is {self.deadline_s}; expected more than 0 seconds.")
        if self.rotation_form not in get_args(RotationForm):
            known = ", ".join(get_args(RotationForm))
            raise ConfigError(f"remote.rotation_form is {self.rotation_form!r}; expected one of {known}.")
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"remote.image_size is {self.image_size}; expected pixels, or null for the camera's own.")
        if self.gripper_open == self.gripper_closed:
            raise ConfigError(f"remote.gripper_open and gripper_closed are both {self.gripper_open}; they must differ.")
        if self.api_key_variable and parts.scheme == "ws" and parts.hostname not in LOOPBACK:
            raise ConfigError(f"url is {self.url}: a key is sent over wss:// or to this machine only.")

    @property
    def sent(self) -> dict[str, str]:
        """What is sent: the server's name and ours."""
        return {theirs: ours for theirs, ours in self.keys.items() if ours}

    def digest(self) -> str:
        """Identify the server and how it is asked; its weights cannot be seen from here."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class RemotePolicy:
    """A contracts.Policy that asks over one connection."""

    def __init__(self, config: RemoteConfig):
        self.config = config
        self.metadata: dict[str, Any] = {}
        self._limits = WireLimits(max_bytes=config.max_reply_mb * MIB)
        self._connection: Any = None

    @property
    def spec(self) -> PolicySpec:
        """What the config says of it."""
        config = self.config
        ours = config.sent.values()
        return PolicySpec(
            cameras=tuple(dict.fromkeys(name for name in ours if name not in (STATE, INSTRUCTION))),
            image_size=config.image_size or 0,
            state_dim=config.state_dim if STATE in ours else 0,
            action_dim=config.action_dim,
            chunk_length=config.chunk_length,
            control_hz=config.control_hz,
            statistics_key="",
            rotation_form=config.rotation_form,
        )

    def reset(self, session_id: str) -> None:
        """End the last episode's connection."""
        self.close()

    def act(
        self,
        observations: Sequence[Observation],
        session_ids: Sequence[str],
        noise_keys: Sequence[tuple[int, int]],
    ) -> list[ActionChunk]:
        """Ask for one observation after the other; the server draws its own noise.

        Raises:
            PolicyError: no connection, no answer in time, or one that cannot be read; the reason is in the message.
        """
        return [self._ask(observation) for observation in observations]

    def connect(self) -> dict[str, Any]:
        """Connect unless connected, and give the server's metadata.

        Raises:
            PolicyError: nobody answers there, or not in this protocol.
        """
        if self._connection is None:
            from websockets.exceptions import WebSocketException
            from websockets.sync.client import connect

            config = self.config
            try:
                self._connection = connect(
                    config.url,
                    open_timeout=config.connect_timeout_s,
                    close_timeout=1,
                    max_size=self._limits.max_bytes,
                    compression=None,
                    additional_headers=self._headers(),
                )
            except (OSError, WebSocketException) as error:
                raise PolicyError(f"no policy server answered at {config.url}: {_cut(error)}") from error
            self.metadata = self._receive(config.connect_timeout_s)
        return self.metadata

    def _headers(self) -> dict[str, str] | None:
        name = self.config.api_key_variable
        if not name:
            return None
        if not os.environ.get(name):
            raise PolicyError(f"the environment variable {name} (remote.api_key_variable) is not set.")
        return {"Authorization": f"Api-Key {os.environ[name]}"}

    def _ask(self, observation: Observation) -> ActionChunk:
        from websockets.exceptions import WebSocketException

        started = time.monotonic()
        self.connect()
        try:
            self._connection.send(openpi.pack(self._message(observation)))
        except (OSError, WebSocketException) as error:
            self.close()
            raise PolicyError(f"the policy server at {self.config.url} went away: {_cut(error)}") from error
        reply = self._receive(self.config.deadline_s)
        return ActionChunk(self._actions(reply), timing={"remote_s": time.monotonic() - started})

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        """Read one frame in time; a text is the server's error."""
        from websockets.exceptions import WebSocketException

        url = self.config.url
        try:
            frame = self._connection.recv(timeout=timeout_s)
            if isinstance(frame, bytes):
                return openpi.unpack(frame, self._limits)
            reason = f"the policy server at {url} reported: {_cut(frame)}"
        except TimeoutError:
            reason = f"the policy server at {url} gave no answer within {timeout_s:g} s"
        except WireError as error:
            reason = f"the answer of the policy server at {url} cannot be read: {error}"
        except (OSError, EOFError, WebSocketException) as error:
            reason = f"the policy server at {url} went away: {_cut(error)}"
        self.close()
        raise PolicyError(reason)

    def _message(self, observation: Observation) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        for theirs, ours in self.config.sent.items():
            if ours == INSTRUCTION:
                parts[theirs] = observation.instruction
            elif ours == STATE:
                parts[theirs] = observation.state
            else:
                parts[theirs] = pad_resize(np.asarray(observation.images[ours]), self.config.resize)
        return parts

    def _actions(self, reply: Mapping[str, Any]) -> np.ndarray:
        actions = reply.get("actions")
        if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu":
            seen = _cut(sorted(map(str, reply)))
            raise PolicyError(f"the policy server's answer has {seen}; expected an array of numbers, `actions`.")
        actions = np.array(actions, np.float32)
        if actions.ndim == 2 and actions.shape[1] == self.config.action_dim:
            span = self.config.gripper_open - self.config.gripper_closed
            actions[:, -1] = (actions[:, -1] - self.config.gripper_closed) / span
        return actions

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def pad_resize(image: np.ndarray, edge: int | None) -> np.ndarray:
    """Scale uint8 [H,W,3] to fit a square of `edge` pixels and pad it with black, as openpi's clients do."""
    if edge is None or image.shape[:2] == (edge, edge):
        return np.ascontiguousarray(image)
    height, width = image.shape[:2]
    scale = edge / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = np.zeros((edge, edge, 3), np.uint8)
    top, left = (edge - size[1]) // 2, (edge - size[0]) // 2
    scaled = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    canvas[top : top + size[1], left : left + size[0]] = np.asarray(scaled)
    return canvas


def _cut(what: Any) -> str:
    """Shorten what a stranger said to one line."""
    text = " ".join(str(what).split()) or type(what).__name__
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "..."
