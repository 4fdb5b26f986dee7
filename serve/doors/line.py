"""WebSocket connections: frames in, frames out, and closed gracefully when the server drains or a robot is silent."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from typing import Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from st4vla.platform.errors import WireError
from st4vla.serve.access import RateConfig

RESTART, POLICY, TOO_BIG, TRY_LATER, INTERNAL = 1012, 1008, 1009, 1013, 1011
# Refusals in a row after which a connection is not worth keeping.
MOST_REFUSALS = 50


class Speaker(Protocol):
    """One protocol on one connection."""

    async def answer(self, frame: bytes) -> bytes | None:
        """Answer one frame; None where the protocol expects nothing. Raises WireError where it is refused."""
        ...

    def refusal(self, refusal: WireError) -> bytes | str:
        """Give a refusal as the client reads it."""
        ...


class Line:
    """One connection; used by one task.

    Args:
        who: the key or address that it comes from.
        name: of its robot, as long as that gives none.
    """

    def __init__(self, socket: WebSocket, who: str, name: str = ""):
        self._socket = socket
        self.who = who
        self.name = name
        self.used_s = time.monotonic()
        self.is_idle = True
        self.is_closing = False
        self.refusals = 0

    async def converse(self, speaker: Speaker) -> None:
        """Answer frames until the client leaves, or is refused once too often or for want of a key."""
        while True:
            try:
                frame = await self.receive()
                if frame is None:
                    return
                answer = await speaker.answer(frame)
                if answer is not None:
                    await self.send(answer)
                self.refusals = 0
            except WireError as refusal:
                await self.send(speaker.refusal(refusal))
                # A stopped robot that asks until it is released does what it should, and must not lose its connection.
                self.refusals += refusal.kind != "stopped"
                if self.refusals >= MOST_REFUSALS or refusal.kind == "unauthorized":
                    await self.close(POLICY, refusal.kind)
                    return

    async def receive(self) -> bytes | None:
        """Wait for a frame; None when the connection is over.

        Raises:
            WireError: the frame is text.
        """
        if self.is_closing:
            await self.close(RESTART, "the server is restarting; connect again")
            return None
        self.is_idle, self.used_s = True, time.monotonic()
        try:
            message = await self._socket.receive()
        except (WebSocketDisconnect, RuntimeError):
            return None
        self.is_idle, self.used_s = False, time.monotonic()
        if message["type"] == "websocket.disconnect":
            return None
        frame = message.get("bytes")
        if frame is None:
            raise WireError("malformed", "", "The frame is text; expected binary.")
        return frame

    async def send(self, frame: bytes | str) -> None:
        """Send a frame; a connection that is gone is noticed when the next one is waited for."""
        try:
            if isinstance(frame, str):
                await self._socket.send_text(frame)
            else:
                await self._socket.send_bytes(frame)
        except (WebSocketDisconnect, RuntimeError, OSError):
            self.is_closing = True

    async def close(self, code: int, reason: str) -> None:
        """Close the connection, if it is still open."""
        if self._socket.application_state is WebSocketState.CONNECTED:
            try:
                await self._socket.close(code, reason)
            except (RuntimeError, OSError):
                pass


class Lines:
    """Every open connection of this process: counts them, ends silent ones, drains them all."""

    def __init__(self, rate: RateConfig, idle_s: float = 900.0):
        self._rate = rate
        self._idle_s = idle_s
        self._open: set[Line] = set()
        self.is_draining = False

    def __len__(self) -> int:
        """Count the open connections."""
        return len(self._open)

    def check_room(self, who: str) -> None:
        """Refuse one connection too many.

        Raises:
            WireError: "overloaded" or "unavailable".
        """
        if self.is_draining:
            raise WireError("unavailable", "", "The server is restarting; connect again.")
        if len(self._open) >= self._rate.max_connections:
            raise WireError("overloaded", "", "Too many connections are open; come back later.")
        if sum(line.who == who for line in self._open) >= self._rate.connections:
            raise WireError(
                "rate_limited", "", f"{self._rate.connections} connections of this caller are open already."
            )

    def free_name(self, name: str) -> str:
        """Give that name, or with the lowest number behind it that no open connection has; who returns has it again."""
        taken = {line.name for line in self._open}
        numbered = (f"{name}-{number}" for number in count(2))
        return next(one for one in chain([name], numbered) if one not in taken)

    @contextmanager
    def hold(self, line: Line) -> Iterator[Line]:
        """Count a connection while it is open."""
        self._open.add(line)
        try:
            yield line
        finally:
            self._open.discard(line)

    async def end_silent(self) -> None:
        """Close connections that have sent nothing for long, all at once: each may take seconds to take its leave."""
        now = time.monotonic()
        silent = [line for line in self._open if line.is_idle and now - line.used_s > self._idle_s]
        await asyncio.gather(*(line.close(POLICY, "no message for too long") for line in silent))

    async def drain(self) -> None:
        """Let every connection finish the request it is at, and close it; new ones are refused."""
        self.is_draining = True
        lines = list(self._open)
        for line in lines:
            line.is_closing = True
        idle = (line for line in lines if line.is_idle)
        await asyncio.gather(*(line.close(RESTART, "the server is restarting; connect again") for line in idle))
        while any(not line.is_idle for line in self._open):
            await asyncio.sleep(0.02)
