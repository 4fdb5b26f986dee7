"""The administration door: what the fleet's server is doing, and the few things one can change about it.

A browser adds what it remembers, a password for one, to whatever any page asks of us. So nothing is changed for a
password, nor for a page that is not ours: a change needs the key in a header that a script must set itself.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from fastapi import FastAPI, Request

from st4vla.platform.errors import WireError
from st4vla.serve.desk import Desk, Visit
from st4vla.serve.events import Admin, Stopped

Admit = Callable[[Request, str], Visit]
LARGEST_BODY = 65_536
# Whose pages may change something while there are no keys: a name that leads to loopback could be anybody's.
OWN_NAMES = ("127.0.0.1", "localhost", "::1")


class Keeper(Protocol):
    """Whoever keeps the control record; every call answers the state that it leaves, in plain form."""

    async def status(self) -> dict[str, Any]: ...

    async def change(self, action: str, **details: Any) -> dict[str, Any]: ...


class AdminDoor:
    """Answers `GET /v1/fleet` and `POST /v1/fleet/ACTION`."""

    ACTIONS: dict[str, tuple[str, ...]] = {
        "update": ("model",),
        "canary": ("model", "share", "robots"),
        "promote": (),
        "rollback": (),
        "stop": ("robot", "reason"),
        "release": ("robot",),
    }

    def __init__(self, desk: Desk, keeper: Keeper):
        self._desk = desk
        self._keeper = keeper

    def lay(self, app: FastAPI, admit: Admit) -> None:
        """Add the paths."""

        @app.get("/v1/fleet", summary="What is served, by whom, and who is stopped.")
        async def fleet(request: Request) -> dict[str, Any]:
            admit(request, "observe")
            return await self._keeper.status()

        @app.post("/v1/fleet/{action}", summary="update, canary, promote, rollback, stop or release.")
        async def change(request: Request, action: str) -> dict[str, Any]:
            try:
                check_own_page(request.headers, self._desk.lock.is_open)
            except WireError as error:
                raise self._desk.refused(error) from None
            visit = admit(request, "admin")
            try:
                return await self.change(visit, action, await self._details(request, action))
            except Exception as error:  # the boundary to whoever keeps the record, and to the network
                raise self._desk.refused(error, visit) from error

    async def change(self, visit: Visit, action: str, details: dict[str, Any]) -> dict[str, Any]:
        """Change something and tell the watchers."""
        state = await self._keeper.change(action, **details)
        key = visit.caller.key_id
        self._desk.observers.tell(Admin(action, details, key))
        if action in ("stop", "release"):
            robot, reason = details.get("robot", ""), details.get("reason", "")
            self._desk.observers.tell(Stopped(action == "stop", robot, reason, key))
        return state

    async def _details(self, request: Request, action: str) -> dict[str, Any]:
        known = self.ACTIONS.get(action)
        if known is None:
            raise WireError("invalid", "action", f"Expected one of {', '.join(self.ACTIONS)}.")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_BODY:
                raise WireError("too_large", "", f"The body has more than {LARGEST_BODY} bytes.")
        try:
            details = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            raise WireError("malformed", "", "The body is not JSON.") from None
        if not isinstance(details, dict) or not set(details) <= set(known):
            raise WireError("invalid", "", f"{action} takes {', '.join(known) or 'nothing'}.")
        return checked(details)


def check_own_page(headers: Mapping[str, str], is_open: bool) -> None:
    """Refuse what a page of somebody else makes a browser ask, and what it was let in with by itself.

    Args:
        is_open: whether there are no keys, so that only this machine's own pages may change something.

    Raises:
        WireError: "forbidden", or "unauthorized" for a password.
    """
    if headers.get("authorization", "").lower().startswith("basic"):
        raise WireError(
            "unauthorized", "Authorization", "A password changes nothing; send the header Authorization: Api-Key KEY."
        )
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
    if site in ("same-origin", "none") and (origin is None or is_own(origin, headers.get("host", ""), is_open)):
        return
    raise WireError("forbidden", "Origin", "Another site's page may change nothing here.")


def is_own(origin: str, host: str, is_open: bool) -> bool:
    """Say whether a page comes from the address that it asks."""
    try:
        asked = urlsplit(origin)
        return asked.netloc.lower() == host.lower() and (not is_open or asked.hostname in OWN_NAMES)
    except ValueError:
        return False


def checked(details: dict[str, Any]) -> dict[str, Any]:
    """Check each detail's type.

    Raises:
        WireError: naming the field.
    """
    for name, value in details.items():
        if name == "share":
            right = isinstance(value, int | float) and not isinstance(value, bool)
        elif name == "robots":
            right = isinstance(value, list) and all(isinstance(robot, str) for robot in value)
        else:
            right = isinstance(value, str) and len(value) <= 1024
        if not right:
            raise WireError("invalid", name, "It is of another type than expected.")
    return details
