"""The Ray Serve application: `Post` as a replica, the control record as an actor, and how they are deployed.

HAProxy takes connections and hands each, for as long as it lives, to one replica, which holds the model itself: a call
through a Serve handle would cost ten milliseconds. Batching is over the robots of a replica.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError
from st4vla.serve.control import Control
from st4vla.serve.post import Post, PostConfig
from st4vla.serve.state import State
from st4vla.serve.watch.board import Board

log = logging.getLogger(__name__)
NAME = "st4vla"
CONTROL, BOARD = "st4vla-control", "st4vla-board"
NAMESPACE = "st4vla-serve"


@dataclass(frozen=True)
class ScaleConfig:
    """How many replicas there are.

    Attributes:
        min_replicas, max_replicas: equal for a fixed number.
        robots_per_replica: open connections at which another replica is started.
        num_cpus, num_gpus: what a replica reserves.
        drain_s: how long a replica that is replaced keeps its robots while a new one starts; a start takes less.
        upscale_delay_s, downscale_delay_s: how long there must be too many, or too few, before that is acted on.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    robots_per_replica: int = 16
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    drain_s: float = 30.0
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 120.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigError(
                f"scale.min_replicas is {self.min_replicas} and scale.max_replicas {self.max_replicas}; "
                "expected 1 <= min <= max."
            )
        delays = (self.drain_s, self.upscale_delay_s, self.downscale_delay_s)
        if self.robots_per_replica < 1 or self.num_cpus <= 0 or self.num_gpus < 0 or min(delays) <= 0:
            raise ConfigError(f"scale is {self}; its numbers must be positive.")


class FarActor:
    """An actor of which there is one, found by name again whenever it was lost."""

    def __init__(self, find: Callable[[], Any]):
        self._find = find
        self._handle: Any = None

    async def watch(self, revision: int) -> State | None:
        """Wait for something newer in the control record."""
        return await self.call("watch", revision)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method; an error of its own comes back as it was raised."""
        from ray.exceptions import RayActorError, RayTaskError

        if self._handle is None:
            self._handle = self._find()
        try:
            return await getattr(self._handle, method).remote(*arguments)
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError:
            self._handle = None
            raise


def control_actor(folder: str) -> Any:
    """Give the one control actor of this cluster, made if need be; it outlives whoever made it, and comes back."""
    return _one_actor(Control, CONTROL, folder, max_concurrency=1000)


def board_actor() -> Any:
    """Give the one board of this cluster, likewise; a new one knows everything again within a second."""
    return _one_actor(Board, BOARD, max_concurrency=4)


def _one_actor(kind: type, name: str, *arguments: Any, max_concurrency: int) -> Any:
    import ray

    return (
        ray.remote(kind)
        .options(
            name=name,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=max_concurrency,
            num_cpus=0,
        )
        .remote(*arguments)
    )


class PostReplica:
    """`Post` as a Ray Serve replica: Serve owns it, restarts it and reads its health.

    What dies with it: its connections, which reconnect elsewhere, and its sessions' plans, which are made again.
    """

    async def __init__(self, config: PostConfig, folder: str):
        from st4vla.platform.machine import prepare_process

        prepare_process()
        self._post = Post(config, FarActor(partial(control_actor, folder)), board=FarActor(board_actor))
        await self._post.start()

    def __serve_build_asgi_app__(self) -> Any:
        return self._post.application()

    def check_health(self) -> None:
        """Raise if there is no hope of answering."""
        self._post.check_health()

    async def __del__(self) -> None:
        if hasattr(self, "_post"):
            await self._post.close()


def build(config: PostConfig, scale: ScaleConfig, folder: Path, max_connections: int) -> Any:
    """Give the Serve application."""
    from ray import serve

    options: dict[str, Any] = {
        "name": "Post",
        "max_ongoing_requests": max_connections,
        "graceful_shutdown_timeout_s": scale.drain_s + 10.0,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 10.0,
        "ray_actor_options": {"num_cpus": scale.num_cpus, "num_gpus": scale.num_gpus},
    }
    if scale.min_replicas == scale.max_replicas:
        options["num_replicas"] = scale.min_replicas
    else:
        options["autoscaling_config"] = {
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.robots_per_replica,
            "upscale_delay_s": scale.upscale_delay_s,
            "downscale_delay_s": scale.downscale_delay_s,
        }
    return serve.deployment(**options)(serve.ingress()(PostReplica)).bind(config, str(folder))


def deploy(config: PostConfig, scale: ScaleConfig, folder: Path, host: str, port: int) -> None:
    """Start Serve at an address, or replace what runs there, and wait until it is ready."""
    from ray import serve

    options: Any = {"host": host, "port": port, "location": "EveryNode"}
    try:
        serve.start(http_options=options)
    except TimeoutError:
        # A minute is what Serve gives its proxies, whatever they are set to; a busy machine needs longer.
        log.warning("Serve's proxies are slow to start; going on as soon as they are there")
        serve.start(http_options=options)
    serve.run(build(config, scale, folder, config.rate.max_connections), name=NAME, route_prefix="/", blocking=False)
