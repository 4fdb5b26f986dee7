"""One serving process, whole: the models, the desk, the doors, and the loop that follows the control record.

`Post` is the plain class; `application.py` makes it a Ray Serve replica, and tests run it under any ASGI server.
"""

import asyncio
import logging
import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from st4vla.platform.contracts import PolicySpec, Spatial
from st4vla.platform.errors import ConfigError, WireError
from st4vla.platform.wire.limits import WireLimits
from st4vla.serve.access import Lock, RateConfig
from st4vla.serve.control import Control
from st4vla.serve.desk import Desk
from st4vla.serve.doors.admin import AdminDoor
from st4vla.serve.doors.asgi import Doors
from st4vla.serve.doors.groot import GrootConfig, hold_groot
from st4vla.serve.doors.line import Lines
from st4vla.serve.doors.openpi import OpenpiDoor
from st4vla.serve.doors.vla_eval import VlaEvalDoor
from st4vla.serve.events import Observer, Observers
from st4vla.serve.house import House
from st4vla.serve.keymap import KeyMap
from st4vla.serve.models import LoaderConfig, function_of, load, resolve
from st4vla.serve.replica import ReplicaConfig
from st4vla.serve.safety.guard import Safety, SafetyConfig
from st4vla.serve.state import State
from st4vla.serve.watch.fleet import FLEET
from st4vla.serve.watch.observers import Watch, WatchConfig, keep_board
from st4vla.serve.watch.pages import BoardLink, NearBoard, lay_fleet

log = logging.getLogger(__name__)
REPORT_S = 1.0
FOLLOW_RETRY_S = 1.0
LONGEST_START_S = 600.0


@dataclass(frozen=True)
class PostConfig:
    """What one serving process is made from.

    Attributes:
        keys, vla_eval_keys: where robots put what a policy needs, at either door.
        vla_eval: whether vla-eval has a port of its own, so that a policy which its map does not fit is not served.
        vla_eval_rows: rows of a chunk that a vla-eval benchmark is given before the policy is asked anew; 0 for all.
        idle_s: a connection that sends nothing for so long is closed.
        leave_s: how long a process that is replaced keeps its robots while no new one can take them.
        watch: the recorder, metrics, audit log and the fleet's view.
        groot: the GR00T door.
        watchers: dotted names of functions of no argument, each giving a further observer of `events.py`.
        safety: the limits of the robots' embodiments.
        pages: dotted names of functions of (app, post) that add further paths.
        tracking_uri: where registry references are looked up.
    """

    replica: ReplicaConfig = ReplicaConfig()
    loader: LoaderConfig = LoaderConfig()
    rate: RateConfig = RateConfig()
    limits: WireLimits = WireLimits()
    keys: KeyMap = KeyMap()
    vla_eval_keys: KeyMap = KeyMap()
    vla_eval: bool = False
    vla_eval_rows: int = 0
    idle_s: float = 900.0
    leave_s: float = 25.0
    watch: WatchConfig = WatchConfig()
    groot: GrootConfig = GrootConfig()
    watchers: tuple[str, ...] = ()
    safety: SafetyConfig = SafetyConfig()
    pages: tuple[str, ...] = ()
    tracking_uri: str = ""

    def __post_init__(self) -> None:
        if self.vla_eval_rows < 0:
            raise ConfigError(f"vla_eval_rows is {self.vla_eval_rows}; expected 1 or more, or 0 for a whole chunk.")

    def check_fit(self, spec: PolicySpec) -> None:
        """Check that what robots send at each door that is in use shows a policy all that it needs.

        Raises:
            ConfigError: a map lacks something; it is said when the model is loaded, not when a robot asks.
        """
        self.keys.fit(spec)
        if self.vla_eval:
            self.vla_eval_keys.fit(spec)
        if self.groot.port:
            self.groot.keys_for(spec)


class Follow(Protocol):
    """The control record as a process sees it, near or far."""

    async def watch(self, revision: int) -> State | None: ...

    async def call(self, method: str, *arguments: Any) -> Any: ...


class NearControl:
    """A control record in this process."""

    def __init__(self, control: Control):
        self._control = control

    async def watch(self, revision: int) -> State | None:
        """Wait for something newer."""
        return await self._control.watch(revision)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the record."""
        return await getattr(self._control, method)(*arguments)


class Post:
    """Serve: made on an event loop, started once, closed once."""

    def __init__(
        self,
        config: PostConfig,
        control: Follow,
        name: str = "",
        observers: Sequence[Observer] = (),
        board: BoardLink | None = None,
    ):
        self.name = name or f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(2)}"
        self._config = config
        self._control = control
        self._board: BoardLink = board or NearBoard()
        self.watch = Watch(config.watch, self.name, self._waiting, self._stops, self._read_out)
        made = [*self.watch.observers, *(function_of(dotted)() for dotted in config.watchers)]
        loader = partial(load, config=config.loader, tracking_uri=config.tracking_uri)
        self.house = House(loader, config.replica, check=config.check_fit)
        self._safety = Safety(config.safety, report=lambda trouble: self.desk.observers.tell(trouble))
        told = Observers([*observers, *made, self._safety.note])
        self.desk = Desk(self.house, Lock(None), config.rate, told, self._safety, config.limits)
        self.lines = Lines(config.rate, config.idle_s)
        self.doors = Doors(
            self.desk,
            self.lines,
            OpenpiDoor(self.desk, config.keys),
            VlaEvalDoor(self.desk, config.vla_eval_keys, config.vla_eval_rows),
            AdminDoor(self.desk, self),
        )
        lay_fleet(self.doors.app, self.doors.entrance.admit_http, self._board)
        for page in config.pages:
            function_of(page)(self.doors.app, self)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._own_address = ""
        self._generation = 0
        self._leaving_since: float | None = None
        self._is_finished = False

    async def start(self) -> None:
        """Follow the control record, and return once a model answers, or all were tried and some are loaded.

        Raises:
            WireError: "unavailable": none could be.
        """
        self._spawn(self._follow())
        self._spawn(self._look_after())
        self._spawn(keep_board(self.watch, self._board, self._facts))
        if self._config.groot.port:
            self._spawn(hold_groot(self.desk, self._config.groot))
        async with asyncio.timeout(LONGEST_START_S):
            while not self.house.production and not (self.house.is_settled and self.house.loaded):
                self.check_health()
                await asyncio.sleep(0.02)
        await self._tell_control()

    async def finish(self) -> None:
        """Finish what is being answered, close every connection, and let the watchers finish, too."""
        await self.lines.drain()
        if not self._is_finished:
            self._is_finished = True
            await asyncio.to_thread(self.watch.close)

    async def close(self) -> None:
        """Finish, and stop."""
        await self.finish()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.house.close()
        await asyncio.to_thread(self._safety.close)

    def check_health(self) -> None:
        """Raise if this process cannot answer and will not be able to: every model that it needs failed to load.

        Raises:
            WireError: "unavailable".
        """
        if self.house.is_settled and not self.house.loaded:
            causes = "; ".join(f"{label}: {why}" for label, why in self.house.failed.items())
            raise WireError("unavailable", "", f"No model could be loaded. {causes}")

    async def status(self) -> dict[str, Any]:
        """Give the fleet's status."""
        return await self._control.call("status")

    async def change(self, action: str, **details: Any) -> dict[str, Any]:
        """Change the control record and give what it then is.

        Raises:
            WireError: what is asked for is not possible.
        """
        arguments: list[Any] = []
        if action in ("update", "canary"):
            if not details.get("model"):
                raise WireError("missing", "model", "Name the model: a registry reference or a checkpoint folder.")
            try:
                found = await asyncio.to_thread(
                    resolve, details["model"], self._config.loader, self._config.tracking_uri
                )
            except Exception as error:  # a wrong name must be told apart from a broken server
                raise WireError("invalid", "model", f"It cannot be found: {error}") from error
            arguments = [found.label, found.place]
        if action == "canary":
            arguments += [float(details.get("share", 0.0)), tuple(details.get("robots", ()))]
        if action in ("stop", "release"):
            arguments = [details.get("robot", "")] + ([details.get("reason", "")] if action == "stop" else [])
        state = await self._control.call(action, *arguments)
        return state.as_plain()

    def report(self) -> dict[str, Any]:
        """Say how this process is."""
        loaded = {
            label: {"waiting": replica.waiting, **replica.report()} for label, replica in self.house.loaded.items()
        }
        return {
            "production": self.house.production,
            "loaded": loaded,
            "failed": dict(self.house.failed),
            "connections": len(self.lines),
            "sessions": len(self.house.sessions),
            "served": self.desk.totals.served,
            "refused": dict(self.desk.totals.refused),
            "draining": self.lines.is_draining,
            "finished": self._is_finished and not self.lines,
            "revision": self.desk.state.revision,
            "generation": self._generation,
        }

    def _waiting(self) -> int:
        """Count the requests that wait for a batch."""
        return sum(replica.waiting for replica in self.house.loaded.values())

    def _stops(self) -> dict[str, str]:
        """Give the stops in force as watchers name them: "*" is the fleet."""
        return {robot or FLEET: reason for robot, reason in self.desk.state.stopped.items()}

    def _read_out(self, robot: str, image: np.ndarray, instruction: str) -> Spatial | None:
        """Ask the planner of the model that answers a robot what it sees; blocks, for a thread."""
        return self.house.choose(robot).replica.read_out(image, instruction)

    def _facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Say in a few words how this process is, and what is deployed."""
        about = {"connections": len(self.lines), "waiting": self._waiting(), "draining": self.lines.is_draining}
        routes = self.desk.state.routes
        return about, {"production": routes.production, "canary": routes.canary, "canary_share": routes.share}

    def application(self) -> Any:
        """Give the application for an ASGI server; it learns the address it is reached at from the first request."""

        async def application(scope: Any, receive: Any, send: Any) -> None:
            if not self._own_address and scope.get("server") and scope["server"][1]:
                host, port = scope["server"][:2]
                self._own_address = f"http://{host}:{port}"
            await self.doors(scope, receive, send)

        return application

    def _spawn(self, story: Any) -> None:
        task = asyncio.ensure_future(story)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self) -> None:
        """Take up every new state; while the record is away, go on as before."""
        revision = 0
        while True:
            try:
                state = await self._control.watch(revision)
            except Exception as error:  # its keeper may be restarting
                log.warning("the control record does not answer (%s); going on as before", type(error).__name__)
                await asyncio.sleep(FOLLOW_RETRY_S)
                continue
            if state is not None and state.revision != revision:
                revision = state.revision
                self._generation = self._generation or state.generation
                self._spawn(self.desk.follow(state))
                if state.ending and not self._is_finished:
                    self._spawn(self.finish())

    async def _look_after(self) -> None:
        """Once a second: report, end what is silent, and drain when the proxy has let go of this process."""
        while True:
            await asyncio.sleep(REPORT_S)
            await self._tell_control()
            self.house.sessions.forget_old()
            self._spawn(self.lines.end_silent())
            if not self.lines.is_draining and await self._must_leave():
                log.info("draining: every connection is closed behind its answer")
                self._spawn(self.lines.drain())

    async def _tell_control(self) -> None:
        try:
            await self._control.call("report", self.name, self.report())
        except Exception as error:  # as in `_follow`
            log.debug("no report was taken: %s", type(error).__name__)

    async def _must_leave(self) -> bool:
        """Say whether to let go of the connections: Serve has taken this process out, and another can take them.

        A robot that is let go of too early lands at a process that is replaced next, and is let go of twice.
        """
        if self._leaving_since is None:
            if not await asyncio.to_thread(is_draining, self._own_address):
                return False
            self._leaving_since = time.monotonic()
        if time.monotonic() - self._leaving_since > self._config.leave_s:
            return True
        try:
            replicas = (await self._control.call("status"))["replicas"]
        except Exception as error:  # as in `_follow`
            log.debug("no status was given: %s", type(error).__name__)
            return False
        # Where no newer deployment has begun, there are too many of us, and another one of this deployment will do.
        newest = self.desk.state.generation
        others = (one for name, one in replicas.items() if name != self.name)
        return any(one["generation"] >= newest and one["production"] and not one["draining"] for one in others)


def is_draining(address: str) -> bool:
    """Ask the Serve process around us whether it is being taken out of service; only its health page says so."""
    if not address:
        return False
    try:
        with urllib.request.urlopen(f"{address}/-/healthz", timeout=2):
            return False
    except urllib.error.HTTPError as error:
        return error.code == 503 and b"DRAINING" in error.read(200)
    except OSError:
        return False
