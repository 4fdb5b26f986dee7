"""Keep one WebSocket connection to a policy server up, from a thread of its own; requests go in, events come out.

The openpi handshake: the server speaks first, with its metadata; then one request is answered by one reply. After any
loss the link connects again, waiting longer each time, until it is closed. A wrong key is not tried again.
"""

import queue
import random
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from st4vla.platform.errors import ConfigError, WireError
from st4vla.platform.wire import openpi
from st4vla.platform.wire.stamps import read_refusal

# What packing raises of a picture that is no array, a number beyond 64 bits, or a text that is no Unicode.
UNSENDABLE = (TypeError, ValueError, OverflowError)


@dataclass(frozen=True)
class LinkConfig:
    """Where the server is, and how hard it is looked for.

    Attributes:
        url: "ws://host:port" or "wss://host:port", as openpi's clients name it.
        api_key: sent as "Authorization: Api-Key KEY"; never logged or shown.
        ca_file: certificates to trust for wss, "" for the system's.
        timeout_s: an answer that takes longer counts as a lost connection.
        retry_s, longest_retry_s: pauses before connecting again, the first and the longest; they double, with jitter.
    """

    url: str = "ws://127.0.0.1:8000"
    api_key: str = field(default="", repr=False)
    ca_file: str = ""
    timeout_s: float = 5.0
    retry_s: float = 0.1
    longest_retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("ws://", "wss://")):
            raise ConfigError(f"url is {self.url!r}; expected ws://HOST:PORT or wss://HOST:PORT.")
        for name in ("timeout_s", "retry_s", "longest_retry_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0.")


@dataclass(frozen=True)
class Connected:
    """The handshake is done; `metadata` is what the server said of itself."""

    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """The answer to the request of that ticket."""

    ticket: int
    message: Mapping[str, Any]


@dataclass(frozen=True)
class Refused:
    """The server refused the request of that ticket (0: the connection itself), and why."""

    ticket: int
    error: WireError


@dataclass(frozen=True)
class Lost:
    """The connection is gone, and with it any request in flight; or, if it never was up, it could not be made."""

    reason: str
    was_up: bool = True


Event = Connected | Reply | Refused | Lost


class Link:
    """A connection that comes back; `send` and `poll` never wait.

    It owns one thread and one socket. A request that was in flight when the connection was lost is not sent again:
    its picture is old, and whoever sent it will take a new one.
    """

    def __init__(self, config: LinkConfig, wait: Callable[[threading.Event, float], bool] | None = None) -> None:
        self.config = config
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._requests: queue.SimpleQueue[tuple[int, dict[str, Any]] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._wait = wait or (lambda closing, seconds: closing.wait(seconds))
        self._thread = threading.Thread(target=self._keep_up, name="st4vla-link", daemon=True)
        self._is_up = False

    @property
    def is_up(self) -> bool:
        """Whether a request can be sent now."""
        return self._is_up

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def send(self, ticket: int, message: dict[str, Any]) -> None:
        """Send a request; its reply or refusal bears the same ticket, which is above 0."""
        self._requests.put((ticket, message))

    def poll(self) -> Event | None:
        """Give the next event that has happened, None where there is none."""
        try:
            return self._events.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Close the connection and end the thread."""
        self._closing.set()
        self._requests.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=self.config.timeout_s + 1)

    def _keep_up(self) -> None:
        pause = self.config.retry_s
        while not self._closing.is_set():
            reason, worked = self._connection()
            if reason is None:
                return
            self._events.put(Lost(reason, worked))
            pause = self.config.retry_s if worked else min(2 * pause, self.config.longest_retry_s)
            self._wait(self._closing, pause * random.uniform(0.5, 1.0))

    def _connection(self) -> tuple[str | None, bool]:
        """Connect and answer requests until it ends: give why (None for good), and whether it had worked."""
        from websockets.exceptions import InvalidStatus, WebSocketException

        worked = False
        try:
            with self._connect() as socket:
                self._greet(socket)
                worked = True
                self._serve(socket)
                return None, True
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                kind = "unauthorized" if status == 401 else "forbidden"
                self._events.put(Refused(0, WireError(kind, "", f"The server turned the key away (HTTP {status}).")))
                return None, worked
            return f"the server answered HTTP {status}", worked
        except WireError as error:
            return f"the server sent what cannot be read: {error}", worked
        except TimeoutError:
            return f"no answer within {self.config.timeout_s:g} s", worked
        except (OSError, EOFError, WebSocketException) as error:
            return f"{type(error).__name__}: {error}"[:200], worked
        finally:
            self._is_up = False
            self._drop_requests()

    def _connect(self) -> Any:
        from websockets.sync.client import connect

        headers = {"Authorization": f"Api-Key {self.config.api_key}"} if self.config.api_key else None
        context = None
        if self.config.url.startswith("wss://"):
            context = ssl.create_default_context(cafile=self.config.ca_file or None)
        return connect(
            self.config.url,
            additional_headers=headers,
            compression=None,
            max_size=16 * 1024 * 1024,
            open_timeout=self.config.timeout_s,
            close_timeout=1,
            ssl=context,
        )

    def _greet(self, socket: Any) -> None:
        first = socket.recv(timeout=self.config.timeout_s)
        if isinstance(first, str):
            raise WireError("unavailable", "", first[:200])
        metadata = openpi.unpack(first)
        self._drop_requests()
        self._is_up = True
        self._events.put(Connected(metadata))

    def _serve(self, socket: Any) -> None:
        """Answer requests one after another; ends when the link is closed."""
        while (request := self._next_request(socket)) is not None:
            ticket, message = request
            try:
                frame = openpi.pack(message)
            except UNSENDABLE as error:
                self._events.put(Refused(ticket, unsendable(message, error)))
                continue
            socket.send(frame)
            answer = socket.recv(timeout=self.config.timeout_s)
            if isinstance(answer, str):
                self._events.put(Refused(ticket, WireError("internal", "", answer[:200])))
                continue
            reply = openpi.unpack(answer)
            refusal = read_refusal(reply)
            self._events.put(Reply(ticket, reply) if refusal is None else Refused(ticket, refusal))

    def _next_request(self, socket: Any) -> tuple[int, dict[str, Any]] | None:
        """Wait for a request; a connection that is lost meanwhile is noticed within half a second.

        Raises:
            EOFError: it was lost.
        """
        while True:
            try:
                return self._requests.get(timeout=0.5)
            except queue.Empty:
                if socket.state.name != "OPEN":
                    raise EOFError("the server closed the connection") from None

    def _drop_requests(self) -> None:
        while not self._closing.is_set():
            try:
                self._requests.get_nowait()
            except queue.Empty:
                return


def unsendable(message: Mapping[str, Any], error: Exception) -> WireError:
    """Say which entry of a message cannot be packed, as the refusal that the server has no chance to send."""
    for name, value in message.items():
        try:
            openpi.pack({name: value})
        except UNSENDABLE:
            return WireError("invalid", name, f"It cannot be sent: {error}. Give texts, numbers and numpy arrays.")
    return WireError("invalid", "", f"The message cannot be sent: {error}.")
