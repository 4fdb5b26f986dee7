"""The HTTP door: JSON in and out, described by OpenAPI; for whoever has no WebSocket, at the price of base64 images."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect

from st4vla.platform.contracts import Observation, PolicySpec
from st4vla.platform.errors import WireError
from st4vla.platform.wire import json_form
from st4vla.platform.wire.limits import WireLimits
from st4vla.platform.wire.stamps import KEY, RequestStamp, plain_spatial
from st4vla.serve.desk import Desk, Visit
from st4vla.serve.doors.schemas import ACT_REPLY_SCHEMA, ACT_SCHEMA, GROUND_REPLY_SCHEMA, GROUND_SCHEMA, described
from st4vla.serve.keymap import KeyMap, read_observation

# A body that takes longer to arrive is given up.
BODY_TIMEOUT_S = 10.0
Form = TypeVar("Form")


class HttpDoor:
    """Answers `POST /v1/act` and `POST /v1/ground`."""

    def __init__(self, desk: Desk, admit: Callable[[Request, str], Visit]):
        self._desk = desk
        self._admit = admit

    def lay(self, app: FastAPI) -> None:
        """Add the two paths."""
        act, ground = described(ACT_SCHEMA, ACT_REPLY_SCHEMA), described(GROUND_SCHEMA, GROUND_REPLY_SCHEMA)
        app.post("/v1/act", summary="Get a chunk of actions, or say that an episode is over.", **act)(self.act)
        app.post("/v1/ground", summary="Ask where something is.", **ground)(self.ground)

    async def act(self, request: Request) -> dict[str, Any]:
        """Decode, act, encode; a message that only ends something is answered without actions."""
        visit = self._admit(request, "act")
        received_s = time.monotonic()
        form = await self._decoded(request, visit, json_form.read_act)
        if form.stamp.end:
            return self._ended(visit, form.stamp)

        def read(spec: PolicySpec) -> Observation:
            message = {"images": form.images, "state": form.state, "prompt": form.instruction}
            return read_observation(message, KeyMap.native(spec), spec, self._desk.limits)

        try:
            reply = await self._desk.act(visit, form.stamp, read, received_s)
        finally:
            self._desk.left(visit)
        return {"actions": reply.actions.tolist(), KEY: reply.stamp.as_plain()}

    async def ground(self, request: Request) -> dict[str, Any]:
        """Decode, ask, encode."""
        visit = self._admit(request, "act")
        received_s = time.monotonic()
        form = await self._decoded(request, visit, json_form.read_ground)
        text, spatial, label = await self._desk.ground(visit, form.image, form.question, received_s)
        return {"answer": text, "spatial": plain_spatial(spatial) if spatial else None, "model_version": label}

    def _ended(self, visit: Visit, stamp: RequestStamp) -> dict[str, Any]:
        """Take note that an episode or a session is over, which must be named: one without a name ends by itself."""
        if not stamp.session:
            wrong = WireError("missing", f"{KEY}.session", "Over HTTP only a session that is named can be ended.")
            raise self._desk.refused(wrong, visit, stamp.robot or visit.robot)
        self._desk.end(visit, stamp)
        return {KEY: {"session": stamp.session, "sequence": stamp.sequence, "end": stamp.end}}

    async def _decoded(self, request: Request, visit: Visit, read: Callable[[bytes, WireLimits], Form]) -> Form:
        """Read a request's body.

        Raises:
            WireError: it cannot be read; the watchers have been told.
        """
        try:
            return await asyncio.to_thread(read, await self.body(request), self._desk.limits)
        except Exception as error:  # the boundary to the network: whatever comes in, a typed refusal goes out
            raise self._desk.refused(error, visit, visit.robot) from error

    async def body(self, request: Request) -> bytes:
        """Read a body, not more of it than the limits allow, and not for ever.

        Raises:
            WireError: it is too large or too slow.
        """
        limit = self._desk.limits.max_bytes
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise WireError("too_large", "", f"The body has more than {limit} bytes.")
                    parts.append(part)
        except (TimeoutError, ClientDisconnect):
            raise WireError("deadline", "", f"The body did not arrive within {BODY_TIMEOUT_S:g} s.") from None
        return b"".join(parts)
