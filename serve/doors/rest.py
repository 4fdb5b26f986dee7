"""The HTTP door: JSON in and out, described by OpenAPI; for whoever has no WebSocket, at the price of base64 images."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect

from st4vla.platform.contracts import Observation, PolicySpec
from st4vla.platform.errors import WireError
from st4vla.platform.wire import json_form
from st4vla.platform.wire.stamps import KEY, plain_spatial
from st4vla.serve.desk import Desk, Visit
from st4vla.serve.keymap import KeyMap, read_observation

# A body that takes longer to arrive is given up.
BODY_TIMEOUT_S = 10.0
IMAGE_SCHEMA = {
    "type": "object",
    "required": ["format", "data"],
    "properties": {
        "format": {"enum": ["png", "jpeg", "raw"]},
        "data": {"type": "string", "contentEncoding": "base64"},
        "shape": {"type": "array", "items": {"type": "integer"}, "description": "[H, W, 3], where the format is raw"},
    },
}
STAMP_SCHEMA = {
    "type": "object",
    "properties": {
        "robot": {"type": "string"},
        "session": {"type": "string"},
        "sequence": {"type": "integer", "minimum": 0},
        "deadline_ms": {"type": "number", "minimum": 0},
        "delay_steps": {"type": "integer", "minimum": 0},
        "executed_steps": {"type": "integer", "minimum": 0},
        "spatial": {"type": "boolean"},
        "recording": {"type": "boolean"},
    },
}
ACT_SCHEMA = {
    "type": "object",
    "required": ["images", "instruction"],
    "properties": {
        "images": {"type": "object", "additionalProperties": IMAGE_SCHEMA},
        "state": {"type": ["array", "null"], "items": {"type": "number"}},
        "instruction": {"type": "string"},
        KEY: STAMP_SCHEMA,
    },
}
GROUND_SCHEMA = {
    "type": "object",
    "required": ["image", "question"],
    "properties": {"image": IMAGE_SCHEMA, "question": {"type": "string"}},
}


def body_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Say in OpenAPI that a request carries JSON of a schema."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class HttpDoor:
    """Answers `POST /v1/act` and `POST /v1/ground`."""

    def __init__(self, desk: Desk, admit: Callable[[Request, str], Visit]):
        self._desk = desk
        self._admit = admit

    def lay(self, app: FastAPI) -> None:
        """Add the two paths."""
        app.post("/v1/act", summary="Get a chunk of actions.", openapi_extra=body_of(ACT_SCHEMA))(self.act)
        app.post("/v1/ground", summary="Ask where something is.", openapi_extra=body_of(GROUND_SCHEMA))(self.ground)

    async def act(self, request: Request) -> dict[str, Any]:
        """Decode, act, encode."""
        visit = self._admit(request, "act")
        received_s = time.monotonic()
        body = await self.body(request)
        form = await asyncio.to_thread(json_form.read_act, body, self._desk.limits)

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
        form = await asyncio.to_thread(json_form.read_ground, await self.body(request), self._desk.limits)
        text, spatial, label = await self._desk.ground(visit, form.image, form.question, received_s)
        return {"answer": text, "spatial": plain_spatial(spatial) if spatial else None, "model_version": label}

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
