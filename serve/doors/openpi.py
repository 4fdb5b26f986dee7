"""The openpi door: the server greets with its metadata, then answers each frame with one, until the client leaves."""

import json
import time
from dataclasses import replace
from typing import Any

from st4vla.platform.contracts import Observation, PolicySpec
from st4vla.platform.errors import WireError
from st4vla.platform.wire import openpi
from st4vla.platform.wire.stamps import KEY, RequestStamp
from st4vla.serve.desk import Desk, Reply, Visit
from st4vla.serve.doors.line import Line
from st4vla.serve.keymap import KeyMap, in_policys_terms, in_robots_terms, read_observation


class OpenpiDoor:
    """Speaks openpi on one connection. A client that sends our stamp once is answered, and refused, in our form."""

    def __init__(self, desk: Desk, keys: KeyMap):
        self._desk = desk
        self._keys = keys

    async def talk(self, line: Line, visit: Visit) -> None:
        """Serve one connection until it ends."""
        conversation = Conversation(self._desk, self._keys, visit)
        await line.send(openpi.pack(self._desk.handshake(visit)))
        try:
            await line.converse(conversation)
        finally:
            self._desk.left(visit)


class Conversation:
    """What one connection has said so far: whether it knows our stamp, and how many requests it has made."""

    def __init__(self, desk: Desk, keys: KeyMap, visit: Visit):
        self._desk = desk
        self._keys = keys
        self._visit = visit
        self._is_ours = False
        self._sequence = 0
        self._last_total_ms: float | None = None

    async def answer(self, frame: bytes) -> bytes:
        """Answer one frame.

        Raises:
            WireError: it is refused.
        """
        received_s = time.monotonic()
        try:
            message = openpi.unpack(frame, self._desk.limits)
            stamp = self._stamp(message)
        except WireError as error:
            raise self._desk.refused(error, self._visit, self._visit.robot) from None
        if stamp.end:
            self._desk.end(self._visit, stamp)
            return openpi.pack({KEY: {"session": stamp.session, "sequence": stamp.sequence, "end": stamp.end}})
        reply = await self._desk.act(self._visit, stamp, self._reader(message), received_s)
        return self._packed(reply)

    def refusal(self, refusal: WireError) -> bytes | str:
        """Give a refusal as this client can read it: a text frame is what an openpi client takes for an error."""
        plain = refusal.as_plain()
        return openpi.pack(plain) if self._is_ours else json.dumps(plain)

    def _stamp(self, message: dict[str, Any]) -> RequestStamp:
        self._sequence += 1
        if KEY not in message:
            return RequestStamp(sequence=self._sequence)
        self._is_ours = True
        stamp = in_policys_terms(RequestStamp.read(message[KEY]), self._keys.gripper)
        return stamp if "sequence" in message[KEY] else replace(stamp, sequence=self._sequence)

    def _reader(self, message: dict[str, Any]) -> Any:
        def read(spec: PolicySpec) -> Observation:
            return read_observation(message, self._keys.fit(spec), spec, self._desk.limits)

        return read

    def _packed(self, reply: Reply) -> bytes:
        timing: dict[str, float] = {"infer_ms": reply.infer_ms}
        if self._last_total_ms is not None:
            timing["prev_total_ms"] = self._last_total_ms
        self._last_total_ms = reply.stamp.timing_ms["total"]
        message: dict[str, Any] = {
            "actions": in_robots_terms(reply.actions, self._keys.gripper),
            "policy_timing": {"infer_ms": reply.infer_ms},
            "server_timing": timing,
        }
        if self._is_ours:
            message[KEY] = reply.stamp.as_plain()
        return openpi.pack(message)
