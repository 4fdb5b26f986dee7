"""The models one serving process holds, and which of them answers a robot."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from st4vla.platform.contracts import PolicySpec
from st4vla.platform.errors import WireError
from st4vla.serve.replica import Replica, ReplicaConfig
from st4vla.serve.session import Sessions
from st4vla.serve.state import Routes
from st4vla.serve.systems import Systems, systems_of

log = logging.getLogger(__name__)
Load = Callable[[str], Any]


@dataclass(frozen=True)
class Chosen:
    """The model that answers a robot."""

    label: str
    replica: Replica
    is_canary: bool


class House:
    """Load what the routes need, beside the requests, and answer each robot by the model that the routes name.

    Until a wanted model is loaded the one before it goes on answering, so that a change of routes refuses nobody. A
    model that fails to load is reported and left out; a process that starts then answers with the one before it, never
    with one that is only served by name or to some robots. Sessions are shared: a robot keeps its own across models.

    Args:
        check: raises for a policy that the doors cannot show what robots send.
    """

    def __init__(
        self,
        load: Load,
        config: ReplicaConfig,
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[PolicySpec], object] = lambda spec: None,
    ):
        self._load = load
        self._check = check
        self._config = config
        self._clock = clock
        self.sessions = Sessions(config.session, clock)
        self.routes: Routes | None = None
        self.loaded: dict[str, Replica] = {}
        self.failed: dict[str, str] = {}
        self._serving = ""
        self._following = asyncio.Lock()

    @property
    def production(self) -> str:
        """Label of the model that answers everybody now; "" before the first."""
        return self._serving

    @property
    def is_settled(self) -> bool:
        """Whether everything that the routes need was loaded or has failed to load."""
        routes = self.routes
        return routes is not None and all(label in self.loaded or label in self.failed for label in routes.needed)

    async def follow(self, routes: Routes) -> None:
        """Change over to routes; returns when everything they need is loaded or has failed to load."""
        self.routes = routes
        async with self._following:
            for label in routes.needed:
                if label not in self.loaded and routes is self.routes:
                    await self._bring(label, routes.models[label])
                if label == routes.production and label in self.loaded and routes is self.routes:
                    self._serving = label
            if self._serving not in self.loaded and routes.previous in self.loaded and routes is self.routes:
                log.error("%s answers in place of %s, which could not be loaded", routes.previous, routes.production)
                self._serving = routes.previous
            if routes is self.routes:
                await self._dismiss(routes)

    def choose(self, robot: str, label: str = "") -> Chosen:
        """Give the model for a robot, or the one it asks for by name.

        Raises:
            WireError: "unavailable" while nothing is loaded, "invalid" for a name that is not served.
        """
        if label:
            if label not in self.loaded:
                raise WireError("invalid", "model", "No model of this name is served.")
            return Chosen(label, self.loaded[label], self.routes is not None and label == self.routes.canary)
        routes = self.routes
        # A change back must not wait for the loading of something else.
        if routes is not None and routes.production in self.loaded:
            self._serving = routes.production
        if routes is not None and routes.canary in self.loaded and in_canary(robot, routes):
            return Chosen(routes.canary, self.loaded[routes.canary], True)
        if self._serving not in self.loaded:
            failed = routes is not None and routes.production in self.failed
            why = "The model in production could not be loaded." if failed else "No model is loaded yet; ask again."
            raise WireError("unavailable", "", why)
        return Chosen(self._serving, self.loaded[self._serving], False)

    async def close(self) -> None:
        """Let every model answer what waits, and stop."""
        for replica in self.loaded.values():
            await replica.close()

    async def _bring(self, label: str, reference: str) -> None:
        began = time.perf_counter()
        try:
            systems = await asyncio.to_thread(self._built, reference)
        except Exception as error:  # a model that cannot be loaded must not end the one that answers
            log.exception("model %s could not be loaded from %s", label, reference)
            self.failed[label] = f"{type(error).__name__}: {error}"
            return
        self.failed.pop(label, None)
        self.loaded[label] = Replica(systems, self._config, label, self._clock, self.sessions)
        log.info("model %s is ready after %.1f s", label, time.perf_counter() - began)

    def _built(self, reference: str) -> Systems:
        systems = systems_of(self._load(reference))
        self._check(systems.spec)
        Replica(systems, self._config).warm_up()
        return systems

    async def _dismiss(self, routes: Routes) -> None:
        """Drop models that nobody needs any more, once they have answered what waits."""
        self.failed = {label: why for label, why in self.failed.items() if label in routes.needed}
        for label in [label for label in self.loaded if label not in routes.needed and label != self._serving]:
            await self.loaded.pop(label).close()


def in_canary(robot: str, routes: Routes) -> bool:
    """Whether the canary answers a robot: by name, or because the digest of its name falls into the share."""
    if robot in routes.robots:
        return True
    digest = hashlib.sha256(f"canary:{routes.canary}:{robot}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < routes.share * 2**64
