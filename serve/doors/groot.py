"""The GR00T door: clients of GR00T's ZeroMQ server find the same endpoints here, answered in batches over robots.

It is off unless a port is given. ZeroMQ knows neither TLS nor HTTP proxies, so the port is bound by one serving
process, on the loopback address unless told otherwise; robots elsewhere reach it through a tunnel. `kill`, which stops
GR00T's own server for anybody who asks, is refused.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import zmq
import zmq.asyncio

from st4vla.platform.contracts import Observation, PolicySpec
from st4vla.platform.errors import ConfigError, WireError
from st4vla.platform.wire import groot
from st4vla.platform.wire.groot import Modality
from st4vla.platform.wire.stamps import KEY, RequestStamp
from st4vla.serve.access import Caller
from st4vla.serve.desk import Desk, Visit
from st4vla.serve.keymap import KeyMap, in_policys_terms, in_robots_terms, read_observation

log = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class GrootConfig:
    """Where GR00T clients are served, and what they call things.

    Attributes:
        port: 0 serves none.
        host: address to bind; another one than loopback needs API keys.
        keys: where a request has what the policy needs, as paths such as "video/CAMERA", "state/NAME" and
            "language/KEY"; without images, the policy's cameras by their own names.
        actions: {name: [first, end] of the action's columns} of the answer; empty for one group "action".
        max_batch: robots in one request.
        max_waiting: requests being answered at a time; more are refused.
    """

    port: int = 0
    host: str = "127.0.0.1"
    keys: KeyMap = field(default_factory=lambda: KeyMap("groot", {}, ("state/state",), "language/task"))
    actions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    max_batch: int = 16
    max_waiting: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.port < 65536:
            raise ConfigError(f"groot.port is {self.port}; expected 1 to 65535, or 0 for none.")
        for name, span in self.actions.items():
            if len(span) != 2 or not 0 <= span[0] < span[1]:
                raise ConfigError(f"groot.actions.{name} is {list(span)}; expected [first, end] with first < end.")
        if self.max_batch < 1 or self.max_waiting < 1:
            raise ConfigError("groot.max_batch and groot.max_waiting must be 1 or more.")

    def keys_for(self, spec: PolicySpec) -> KeyMap:
        """Give where a request has what a policy needs.

        Raises:
            ConfigError: the map lacks a camera of the policy, or `actions` names columns that it does not give.
        """
        for name, (_, end) in self.actions.items():
            if end > spec.action_dim:
                raise ConfigError(f"groot.actions.{name} ends at {end}; the policy's actions have {spec.action_dim}.")
        images = self.keys.images or {camera: f"video/{camera}" for camera in spec.cameras}
        return replace(self.keys, images=images).fit(spec)


class PortTaken(ConfigError):
    """Somebody else listens at the port."""


class GrootDoor:
    """Serves one port until it is closed; made and used on one event loop.

    Raises:
        PortTaken: another process has the port.
        ConfigError: keys are needed and there are none.
    """

    MOST_CLIENTS = 1024

    def __init__(self, desk: Desk, config: GrootConfig) -> None:
        if config.host not in LOOPBACK and desk.lock.is_open:
            raise ConfigError(
                f"groot.host is {config.host}, which others reach, and there are no keys; make one first."
            )
        self._desk, self._config = desk, config
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        # What is larger is dropped by ZeroMQ with its connection, before memory is set aside for it.
        self._socket.setsockopt(zmq.MAXMSGSIZE, desk.limits.max_bytes)
        self._socket.setsockopt(zmq.RCVHWM, 2)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(f"tcp://{config.host}:{config.port}")
        except zmq.ZMQError as error:
            self._socket.close()
            self._context.term()
            where = f"port {config.port} of {config.host}"
            raise PortTaken(f"{where} cannot be bound: {error}; choose another.") from error
        self._clients: OrderedDict[bytes, _Client] = OrderedDict()
        self._answers: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._run(), name="groot")

    async def close(self) -> None:
        """Stop listening; what is being answered is given up."""
        for task in (self._task, *self._answers):
            task.cancel()
        await asyncio.gather(self._task, *self._answers, return_exceptions=True)
        self._socket.close()
        self._context.term()

    async def _run(self) -> None:
        while True:
            parts = await self._socket.recv_multipart()
            # REQ sends [its identity, nothing, the body]; whatever else comes is nobody's request.
            if len(parts) != 3 or parts[1]:
                continue
            task = asyncio.create_task(self._answer(parts[0], parts[2], time.monotonic()))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def _answer(self, identity: bytes, frame: bytes, received_s: float) -> None:
        client = self._client(identity)
        try:
            if len(self._answers) > self._config.max_waiting:
                raise self._desk.refused(
                    WireError("overloaded", "", f"{self._config.max_waiting} requests are being answered; ask later.")
                )
            answer = await self._answered(client, frame, received_s)
        except WireError as refusal:
            answer = as_answer(refusal)
        except Exception as error:  # the boundary to the network: a client that gets no reply waits for ever
            answer = as_answer(self._desk.refused(error, None, client.name))
        await self._socket.send_multipart([identity, b"", groot.pack(answer)])

    async def _answered(self, client: "_Client", frame: bytes, received_s: float) -> Any:
        """Answer one request.

        Raises:
            WireError: it is refused; the watchers have been told.
        """
        try:
            request = groot.unpack(frame, self._desk.limits)
            token = f"Bearer {request.token}" if request.token else None
            self._check_reach()
            caller = self._desk.lock.admit(token, "act", "zmq")
            visit = visit_of(caller, client.name)
            if request.endpoint not in ("ping", "get_action", "reset", "get_modality_config"):
                raise WireError("forbidden", "endpoint", f"{request.endpoint!r} is not for robots to ask.")
        except WireError as error:
            raise self._desk.refused(error, None, client.name) from None
        match request.endpoint:
            case "ping":
                return {"status": "ok", "message": "st4vla is running"}
            case "get_modality_config":
                return self._modalities(self._desk.house.choose(visit.robot, visit.model).replica.spec)
            case "reset":
                self._desk.end(visit, replace(self._stamp(visit, client, request.data), end="episode"))
                return {}
        return await self._act(visit, client, request.data, received_s)

    def _check_reach(self) -> None:
        """Refuse everybody at an address that others reach where it turns out, once opened, that there are no keys."""
        if self._config.host not in LOOPBACK and self._desk.lock.is_open:
            raise WireError("unauthorized", "api_token", "There are no keys, and others reach this address.")

    async def _act(self, visit: Visit, client: "_Client", data: Mapping[str, Any], received_s: float) -> Any:
        try:
            stamp = self._stamp(visit, client, data)
            seen = rows_of(data.get("observation"), self._config.max_batch)
        except WireError as error:
            raise self._desk.refused(error, visit, visit.robot) from None
        asks = [self._act_on(visit, stamp, row, number, received_s) for number, row in enumerate(seen)]
        replies = await asyncio.gather(*asks)
        actions = np.stack([in_robots_terms(reply.actions, self._config.keys.gripper) for reply in replies])
        info = {"st4vla": [reply.stamp.as_plain() for reply in replies]}
        groups = self._config.actions or {"action": (0, actions.shape[2])}
        return [{name: actions[:, :, first:end].astype(np.float32) for name, (first, end) in groups.items()}, info]

    async def _act_on(
        self, visit: Visit, stamp: RequestStamp, message: Mapping[str, Any], number: int, received_s: float
    ) -> Any:
        """Answer one row of a request; rows behind the first are robots of their own."""
        if number:
            visit = replace(visit, robot=f"{visit.robot}/{number}", session=f"{visit.session}/{number}")
            given = {name: getattr(stamp, name) for name in ("robot", "session")}
            names = {name: f"{value}/{number}" if value else "" for name, value in given.items()}
            stamp = replace(stamp, **names)

        def read(spec: PolicySpec) -> Observation:
            return read_observation(message, self._config.keys_for(spec), spec, self._desk.limits)

        return await self._desk.act(visit, stamp, read, received_s)

    def _stamp(self, visit: Visit, client: "_Client", data: Mapping[str, Any]) -> RequestStamp:
        """Read our stamp from the options, where GR00T leaves room; number the requests that bring none."""
        options = data.get("options")
        if isinstance(options, dict) and KEY in options:
            return in_policys_terms(RequestStamp.read(options[KEY]), self._config.keys.gripper)
        client.sequence += 1
        return RequestStamp(sequence=client.sequence)

    def _modalities(self, spec: PolicySpec) -> dict[str, Modality]:
        keys, now = self._config.keys_for(spec), (0,)
        return {
            "video": Modality(now, tuple(_last(path) for path in keys.images.values())),
            "state": Modality(now, tuple(_last(path) for path in keys.state) if spec.state_dim else ()),
            "action": Modality(tuple(range(spec.chunk_length)), tuple(self._config.actions) or ("action",)),
            "language": Modality(now, (_last(keys.prompt),)),
        }

    def _client(self, identity: bytes) -> "_Client":
        """Know a client by its connection; a client may choose that identity, so the name is a digest of it."""
        client = self._clients.get(identity)
        if client is None:
            client = self._clients[identity] = _Client(f"groot-{hashlib.sha256(identity).hexdigest()[:12]}")
            if len(self._clients) > self.MOST_CLIENTS:
                self._clients.popitem(last=False)
        self._clients.move_to_end(identity)
        return client


def as_answer(refusal: WireError) -> dict[str, str]:
    """Give a refusal as GR00T's clients read it: they raise what stands under "error"."""
    return {"error": str(refusal), "kind": refusal.kind, "field": refusal.field}


def visit_of(caller: Caller, client: str) -> Visit:
    """Give a client's visit, named as at every door: by the key's own robot, else by the key and the connection.

    A connection is known by what it is given anew each time, so a stop of one holds for all such clients of its key.
    """
    if caller.own_robot:
        return Visit(caller, "groot", caller.own_robot, client)
    kin = f"groot-{caller.key_id}" if caller.key_id else "groot"
    return Visit(caller, "groot", f"{kin}-{client.removeprefix('groot-')}", client, kin=kin)


async def hold_groot(desk: Desk, config: GrootConfig, retry_s: float = 1.0) -> None:
    """Serve the port until cancelled; while another process of the application has it, wait for it to go."""
    door = None
    try:
        while door is None:
            try:
                door = GrootDoor(desk, config)
            except PortTaken as error:
                log.info("%s; trying again", error)
                await asyncio.sleep(retry_s)
            except ConfigError as error:
                # Keys may be made while we serve; without them the door stays shut and the others stay open.
                log.error("the GR00T door stays shut: %s", error)
                await asyncio.sleep(10 * retry_s)
        await asyncio.Event().wait()
    finally:
        if door is not None:
            await door.close()


@dataclass
class _Client:
    name: str
    sequence: int = -1


def rows_of(observation: Any, max_batch: int) -> list[dict[str, Any]]:
    """Split a batched observation into one message for each robot, the newest step of each.

    Raises:
        WireError: it is of another form, or its parts have different numbers of rows.
    """
    path = "data.observation"
    if not isinstance(observation, dict):
        raise WireError("missing", path, "The request has no observation.")
    arrays = {group: _arrays(observation.get(group), f"{path}.{group}") for group in ("video", "state")}
    counts = {len(array) for group in arrays.values() for array in group.values()}
    if len(counts) != 1 or not 1 <= (count := counts.pop()) <= max_batch:
        raise WireError("invalid", path, f"Every array needs the same number of rows, from 1 to {max_batch}.")
    words = observation.get("language") or {}
    if not isinstance(words, dict):
        raise WireError("invalid", f"{path}.language", "Expected a map of lists of texts.")
    return [
        {name: {key: array[row, -1] for key, array in group.items()} for name, group in arrays.items()}
        | {"language": {key: _text(value, row, f"{path}.language.{key}") for key, value in words.items()}}
        for row in range(count)
    ]


def _arrays(group: Any, path: str) -> dict[str, np.ndarray]:
    """Give the arrays of a group; each has a row for every robot and a step for every moment, at least one of each."""
    if not isinstance(group or {}, dict):
        raise WireError("invalid", path, "Expected a map of arrays.")
    for name, array in (group or {}).items():
        if not isinstance(array, np.ndarray) or array.ndim < 3 or 0 in array.shape[:2]:
            raise WireError("invalid", f"{path}.{name}", "Expected an array [robots, moments, ...].")
    return group or {}


def _text(value: Any, row: int, path: str) -> str:
    """Give one robot's instruction of [[text], ...], or of [text, ...]."""
    if isinstance(value, list) and value:
        said = value[row] if row < len(value) else value[0]
        said = said[-1] if isinstance(said, list) and said else said
        if isinstance(said, str):
            return said
    raise WireError("invalid", path, "Expected a list with a list of texts for each robot.")


def _last(path: str) -> str:
    return path.split("/")[-1]
