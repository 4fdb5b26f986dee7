"""Every door of one serving process as one ASGI application.

/                WebSocket, openpi; also /m/MODEL for one model by name
/vla-eval        WebSocket, vla-eval
POST /v1/act     JSON; POST /v1/ground likewise; /openapi.json describes both, /docs shows them
GET /healthz     the process answers
GET /readyz      a model is loaded and the process is not draining
/v1/fleet        status and administration, for keys with the scopes observe and admin
"""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from st4vla.platform.errors import WireError
from st4vla.serve.access import Caller
from st4vla.serve.desk import Desk, Visit
from st4vla.serve.doors.admin import AdminDoor
from st4vla.serve.doors.line import Line, Lines
from st4vla.serve.doors.openpi import OpenpiDoor
from st4vla.serve.doors.rest import HttpDoor
from st4vla.serve.doors.schemas import ELSE, STATUS
from st4vla.serve.doors.vla_eval import VlaEvalDoor

Talk = Callable[[Line, Visit], Awaitable[None]]


class Doors:
    """The ASGI application: WebSockets are led to their door directly, everything else to FastAPI."""

    def __init__(self, desk: Desk, lines: Lines, openpi: OpenpiDoor, vla_eval: VlaEvalDoor, admin: AdminDoor):
        self.entrance = Entrance(desk, lines)
        self._openpi = openpi
        self._vla_eval = vla_eval
        self.app = FastAPI(
            title="st4vla",
            version="1",
            description="Actions for robots.",
            redoc_url=None,
            telemetry={"auto_configure": False},
        )
        lay_health(self.app, desk, lines)
        HttpDoor(desk, self.entrance.admit_http).lay(self.app)
        admin.lay(self.app, self.entrance.admit_http)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection or request."""
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        socket, path = WebSocket(scope, receive, send), scope["path"]
        if path == "/":
            await self.entrance.enter(socket, "openpi", self._openpi.talk)
        elif path.startswith("/m/"):
            await self.entrance.enter(socket, "openpi", self._openpi.talk, path.removeprefix("/m/"))
        elif path.rstrip("/") == "/vla-eval":
            await self.entrance.enter(socket, "vla-eval", self._vla_eval.talk)
        else:
            await socket.close()


def lay_health(app: FastAPI, desk: Desk, lines: Lines) -> None:
    """Add what balancers and clients ask for, and how refusals look over HTTP."""

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        return PlainTextResponse("OK\n")

    @app.get("/health", include_in_schema=False)
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        ready = bool(desk.house.production) and not lines.is_draining
        return PlainTextResponse("OK\n" if ready else "not ready\n", 200 if ready else 503)

    @app.exception_handler(WireError)
    async def refused(request: Request, error: WireError) -> Response:
        return JSONResponse(error.as_plain(), STATUS.get(error.kind, ELSE))


class Entrance:
    """Let callers in: by their key, and while there is room."""

    def __init__(self, desk: Desk, lines: Lines):
        self._desk = desk
        self._lines = lines

    async def enter(self, socket: WebSocket, door: str, talk: Talk, model: str = "") -> None:
        """Serve one WebSocket; before it is accepted a refusal is an HTTP status, 403, and nothing else."""
        try:
            caller = self._desk.lock.admit(socket.headers.get("authorization"), "act", address_of(socket))
            who = who_is(caller)
            self._lines.check_room(who)
            name = self._lines.free_name(f"{door}-{who}")
            visit = visit_of(caller, door, name, f"{door}-{who}", model)
            self._desk.house.choose(visit.robot, model)
        except WireError as error:
            self._desk.refused(error, stranger(socket, door))
            await refuse_handshake(socket, error)
            return
        # Counted from here on, so that handshakes that wait take their room and their name from nobody.
        with self._lines.hold(Line(socket, who, name)) as line:
            await socket.accept()
            await talk(line, visit)

    def admit_http(self, request: Request, scope: str) -> Visit:
        """Let one HTTP request in.

        Raises:
            WireError: its key does not open this.
        """
        try:
            caller = self._desk.lock.admit(request.headers.get("authorization"), scope, address_of(request))
        except WireError as error:
            raise self._desk.refused(error, stranger(request, "http")) from None
        name = f"http-{who_is(caller)}"
        return replace(visit_of(caller, "http", name, name), is_single=True)


def who_is(caller: Caller) -> str:
    """Name a caller by what it cannot choose anew for each request: its key, else its address."""
    return caller.key_id or caller.address or "somebody"


def visit_of(caller: Caller, door: str, name: str, kin: str, model: str = "") -> Visit:
    """Give a visit: its robot goes by the key's own robot where there is one alone, else by a name, until it says one.

    The session's name is drawn, so that two who do not name theirs never share one.
    """
    session = f"{door}-{secrets.token_hex(6)}"
    if caller.own_robot:
        return Visit(caller, door, caller.own_robot, session, model)
    return Visit(caller, door, name, session, model, kin)


def stranger(connection: Any, door: str) -> Visit:
    """Name somebody who was not let in: all that is known of them is their address."""
    return Visit(Caller("", (), (), address_of(connection)), door, "", "")


def address_of(connection: Any) -> str:
    """Give the peer's address; behind our own gate the one that the gate saw."""
    return connection.client.host if connection.client else ""


async def refuse_handshake(socket: WebSocket, error: WireError) -> None:
    """Refuse a WebSocket before it is one, with a status and our plain refusal."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(JSONResponse(error.as_plain(), STATUS.get(error.kind, ELSE)))
    else:
        await socket.close()
