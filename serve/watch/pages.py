"""The paths that show the fleet: the page, what it asks for, and the metrics.

GET /fleet                       the page
GET /v1/robots                   JSON: robots, versions, stops, troubles, replicas
GET /v1/robots/frame?robot=NAME  JPEG: what the robot saw last
GET /metrics                     Prometheus text of all replicas

All need the scope "observe". A browser cannot send our header by itself, so the page asks for the key as a password.
"""

from collections.abc import Callable
from typing import Any, Protocol

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from st4vla.platform.errors import WireError
from st4vla.serve.watch.board import Board
from st4vla.serve.watch.fleet_page import fleet_page

SCOPE = "observe"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ASK_FOR_KEY = {"WWW-Authenticate": 'Basic realm="st4vla: any name, your key as the password", charset="UTF-8"'}


class BoardLink(Protocol):
    """The board as a process sees it, near or far."""

    async def call(self, method: str, *arguments: Any) -> Any: ...


class NearBoard:
    """A board in this process."""

    def __init__(self, board: Board | None = None) -> None:
        self._board = board or Board()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the board."""
        return getattr(self._board, method)(*arguments)


def lay_fleet(app: FastAPI, admit: Callable[[Request, str], Any], board: BoardLink) -> None:
    """Add the paths; `admit` raises WireError for a request that may not pass."""
    page = fleet_page()

    @app.get("/fleet", include_in_schema=False)
    async def fleet(request: Request) -> Response:
        try:
            admit(request, SCOPE)
        except WireError as error:
            if error.kind != "unauthorized":
                raise
            return JSONResponse(error.as_plain(), 401, ASK_FOR_KEY)
        return Response(page.content, headers=page.headers)

    @app.get("/v1/robots", summary="How every robot is doing.")
    async def robots(request: Request) -> Response:
        admit(request, SCOPE)
        return JSONResponse(await ask(board, "fleet"))

    @app.get("/v1/robots/frame", summary="What a robot saw last, as JPEG.")
    async def frame(request: Request, robot: str) -> Response:
        admit(request, SCOPE)
        picture = await ask(board, "picture", robot)
        if picture is None:
            raise WireError("invalid", "robot", "There is no picture of a robot of this name.")
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})

    @app.get("/metrics", summary="Prometheus metrics of all replicas.")
    async def metrics(request: Request) -> Response:
        admit(request, SCOPE)
        return Response(await ask(board, "metrics"), headers={"Content-Type": METRICS_TYPE})


async def ask(board: BoardLink, method: str, *arguments: Any) -> Any:
    """Ask the board.

    Raises:
        WireError: "unavailable": it does not answer; robots are served all the same.
    """
    try:
        return await board.call(method, *arguments)
    except Exception as error:
        # A boundary: the board may be away or restarting, and its error is nothing for outsiders.
        raise WireError("unavailable", "", "The fleet's board does not answer; ask again.") from error
