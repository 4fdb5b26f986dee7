"""The vla-eval door: the client greets first; then each observation is answered by one action [A], numbered alike."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from st4vla.platform.contracts import Observation, PolicySpec
from st4vla.platform.errors import ConfigError, WireError
from st4vla.platform.wire import vla_eval
from st4vla.platform.wire.stamps import RequestStamp
from st4vla.platform.wire.vla_eval import Message, MessageType
from st4vla.serve.desk import Desk, Visit
from st4vla.serve.doors.line import Line
from st4vla.serve.keymap import KeyMap, in_robots_terms, read_observation

VERSION = "st4vla"
GRIPPERS = {"as_is": "continuous_01", "close_positive": "binary_close_positive", "closed_one": "binary_close_01"}


class VlaEvalDoor:
    """Speaks vla-eval on one connection.

    Args:
        rows: of each chunk that are given before the policy is asked anew; 0 for all of them.
    """

    def __init__(self, desk: Desk, keys: KeyMap, rows: int = 0):
        self._desk = desk
        self._keys = keys
        self._rows = rows

    async def talk(self, line: Line, visit: Visit) -> None:
        """Serve one connection until it ends."""
        episodes = Episodes(self._desk, self._keys, visit, self._rows)
        try:
            await line.converse(episodes)
        finally:
            self._desk.left(visit)


class Episodes:
    """What one connection has said so far, and the chunk whose rows answer its observations one by one.

    A vla-eval benchmark takes one action a step and leaves chunks to the server, so the policy is shown only the
    observations that come when no row is left.
    """

    def __init__(self, desk: Desk, keys: KeyMap, visit: Visit, rows: int = 0):
        self._desk = desk
        self._keys = keys
        self._visit = visit
        self._rows = rows
        self._number = 0
        self._is_live = False
        self._forget()

    async def answer(self, frame: bytes) -> bytes | None:
        """Answer one frame; None where the protocol expects nothing.

        Raises:
            WireError: it is refused.
        """
        received_s = time.monotonic()
        try:
            message = vla_eval.unpack(frame, self._desk.limits)
        except WireError as error:
            raise self._refused(error) from None
        self._number = message.seq
        match message.type:
            case "hello":
                return self._greeted()
            case "observation":
                return await self._act(message.payload, received_s)
            case "episode_start" | "episode_end":
                self._end(message)
                return None
        raise self._refused(WireError("invalid", "type", f"A client does not send {message.type}."))

    def refusal(self, refusal: WireError) -> bytes:
        """Give a refusal as vla-eval reads it."""
        return self._packed("error", {"error": str(refusal), **refusal.as_plain()["error"]})

    async def _act(self, payload: dict[str, Any], received_s: float) -> bytes:
        """Give the next row [A] of the chunk, of a new one where none is left."""
        if self._given < len(self._chunk):
            self._check()
        else:
            self._chunk, self._given = await self._ask(payload, received_s), 0
        self._given += 1
        return self._packed("action", {"actions": self._chunk[self._given - 1]})

    async def _ask(self, payload: dict[str, Any], received_s: float) -> np.ndarray:
        """Ask the policy for a chunk [T,A] in the robot's terms, and cut it to the rows that are to be given."""

        def read(spec: PolicySpec) -> Observation:
            return read_observation(payload, self._keys.fit(spec), spec, self._desk.limits)

        # A live benchmark steps by its own clock: a row that was given may have come too late to be executed.
        executed = None if self._is_live or not self._given else self._given
        stamp = RequestStamp(sequence=max(self._number, 0), executed_steps=executed)
        reply = await self._desk.act(self._visit, stamp, read, received_s)
        actions = np.ascontiguousarray(in_robots_terms(reply.actions, self._keys.gripper), np.float32)
        return actions[: self._rows or None]

    def _check(self) -> None:
        """Refuse a row as the desk would refuse a request; what is left of the chunk is not given any more.

        Raises:
            WireError: "unauthorized", "rate_limited" or "stopped"; the watchers have been told.
        """
        try:
            self._desk.check(self._visit, self._visit.robot)
        except WireError as error:
            self._chunk = self._chunk[: self._given]
            raise self._refused(error) from None

    def _end(self, message: Message) -> None:
        self._forget()
        if message.type == "episode_start":
            self._is_live = message.payload.get("mode") == "live"
        self._desk.end(self._visit, RequestStamp(end="episode", success=success_of(message.payload)))

    def _forget(self) -> None:
        self._chunk, self._given = np.zeros((0, 0), np.float32), 0

    def _refused(self, error: WireError | ConfigError) -> WireError:
        return self._desk.refused(error, self._visit, self._visit.robot)

    def _greeted(self) -> bytes:
        """Answer a hello.

        Raises:
            WireError: "unavailable": there is no model, or the key map does not fit it; the watchers have been told.
        """
        try:
            return self._packed("hello", self._greeting())
        except (WireError, ConfigError) as error:
            raise self._refused(error) from None

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


def success_of(result: Mapping[str, Any]) -> bool | None:
    """Give what an ended episode says of its success, which vla-eval puts under "metrics"; None if nothing."""
    metrics = result.get("metrics")
    success = (metrics if isinstance(metrics, Mapping) else result).get("success")
    return bool(success) if isinstance(success, bool | np.bool_) else None
