"""The vla-eval door: the client greets first; then each observation is answered by one action of the same number."""

import time
from typing import Any

import numpy as np

from st4vla.platform.contracts import Observation, PolicySpec
from st4vla.platform.errors import WireError
from st4vla.platform.wire import vla_eval
from st4vla.platform.wire.stamps import RequestStamp
from st4vla.platform.wire.vla_eval import Message, MessageType
from st4vla.serve.desk import Desk, Visit
from st4vla.serve.doors.line import Line
from st4vla.serve.keymap import KeyMap, in_robots_terms, read_observation

VERSION = "st4vla"
GRIPPERS = {"as_is": "continuous_01", "close_positive": "binary_close_positive", "closed_one": "binary_close_01"}


class VlaEvalDoor:
    """Speaks vla-eval on one connection."""

    def __init__(self, desk: Desk, keys: KeyMap):
        self._desk = desk
        self._keys = keys

    async def talk(self, line: Line, visit: Visit) -> None:
        """Serve one connection until it ends."""
        episodes = Episodes(self._desk, self._keys, visit)
        try:
            await line.converse(episodes)
        finally:
            self._desk.left(visit)


class Episodes:
    """What one connection has said so far; a chunk is sent whole, and the client decides how much of it is executed."""

    def __init__(self, desk: Desk, keys: KeyMap, visit: Visit):
        self._desk = desk
        self._keys = keys
        self._visit = visit
        self._number = 0

    async def answer(self, frame: bytes) -> bytes | None:
        """Answer one frame; None where the protocol expects nothing.

        Raises:
            WireError: it is refused.
        """
        received_s = time.monotonic()
        try:
            message = vla_eval.unpack(frame, self._desk.limits)
        except WireError as error:
            raise self._desk.refused(error, self._visit, self._visit.robot) from None
        self._number = message.seq
        match message.type:
            case "hello":
                return self._packed("hello", self._greeting())
            case "observation":
                return await self._act(message.payload, received_s)
            case "episode_start" | "episode_end":
                self._end(message)
                return None
        wrong = WireError("invalid", "type", f"A client does not send {message.type}.")
        raise self._desk.refused(wrong, self._visit, self._visit.robot)

    def refusal(self, refusal: WireError) -> bytes:
        """Give a refusal as vla-eval reads it."""
        return self._packed("error", {"error": str(refusal), **refusal.as_plain()["error"]})

    async def _act(self, payload: dict[str, Any], received_s: float) -> bytes:
        def read(spec: PolicySpec) -> Observation:
            return read_observation(payload, self._keys.fit(spec), spec, self._desk.limits)

        stamp = RequestStamp(sequence=max(self._number, 0))
        reply = await self._desk.act(self._visit, stamp, read, received_s)
        actions = np.ascontiguousarray(in_robots_terms(reply.actions, self._keys.gripper), np.float32)
        return self._packed("action", {"actions": actions})

    def _end(self, message: Message) -> None:
        success = message.payload.get("success")
        known = bool(success) if isinstance(success, bool | np.bool_) else None
        self._desk.end(self._visit, RequestStamp(end="episode", success=known))

    def _greeting(self) -> dict[str, Any]:
        """Say what the policy shows and wants, in vla-eval's words for it."""
        chosen = self._desk.house.choose(self._visit.robot, self._visit.model)
        spec = chosen.replica.spec
        image = {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"}
        seen = {path.split("/")[-1]: image for path in self._keys.fit(spec).images.values()}
        words = {"language": {"name": "language", "dims": 0, "format": "language"}}
        return {
            "harness_version": VERSION,
            "protocol_version": vla_eval.PROTOCOL_VERSION,
            "model_server": chosen.label,
            "capabilities": {},
            "observation_params": {"send_state": bool(spec.state_dim), "send_wrist_image": len(spec.cameras) > 1},
            "action_spec": self._action_spec(spec),
            "observation_spec": {**seen, **words},
        }

    def _action_spec(self, spec: PolicySpec) -> dict[str, Any]:
        if spec.action_form != "delta_end_effector" or spec.action_dim != 7:
            return {"joints": {"name": "joints", "dims": spec.action_dim, "format": spec.action_form}}
        return {
            "position": {"name": "position", "dims": 3, "format": "delta_xyz"},
            "rotation": {"name": "rotation", "dims": 3, "format": "axis_angle"},
            "gripper": {"name": "gripper", "dims": 1, "format": GRIPPERS[self._keys.gripper]},
        }

    def _packed(self, kind: MessageType, payload: dict[str, Any]) -> bytes:
        return vla_eval.pack(Message(kind, payload, self._number))
