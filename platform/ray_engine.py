"""Stand on Ray for the length of a `with` block: a Ray of our own, or a cluster that is already there."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from st4vla.platform.errors import ConfigError
from st4vla.platform.machine import process_environment

log = logging.getLogger(__name__)

LOCAL = "local"
MB = 1024 * 1024


@dataclass(frozen=True)
class EngineConfig:
    """Which Ray carries the work.

    Attributes:
        address: "local" starts a Ray that ends with the command; "auto" or host:port joins a running cluster.
        num_cpus: CPUs a local Ray may hand out; None for all of this machine's.
        object_store_mb: shared memory of a local Ray.
    """

    address: str = LOCAL
    num_cpus: int | None = None
    object_store_mb: int = 512

    def __post_init__(self) -> None:
        if self.num_cpus is not None and self.num_cpus < 1:
            raise ConfigError(f"engine.num_cpus is {self.num_cpus}; give at least 1, or null for all CPUs.")
        if self.object_store_mb < 100:
            raise ConfigError(f"engine.object_store_mb is {self.object_store_mb}; Ray needs at least 100.")


@contextmanager
def connect(config: EngineConfig) -> Iterator[None]:
    """Initialise Ray, and shut down what was initialised here; a Ray that already runs in this process is shared.

    Inside a Ray job (RAY_ADDRESS is set there) a local address joins the job's cluster instead. Joining a cluster
    that asks for a token needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, as for every Ray client.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray announces on every start that it uses tokens, which is as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    try:
        ray.init(**init_arguments(config))
    except (ConnectionError, RuntimeError) as error:
        raise ConfigError(
            f"no Ray cluster answered at engine.address={config.address}: {error} Start one with "
            "`st4vla cluster start`, name another engine.address=, or use engine=local."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def init_arguments(config: EngineConfig) -> dict[str, Any]:
    """Give the keyword arguments of `ray.init` for this configuration."""
    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    inherited = os.environ.get("RAY_ADDRESS")
    if config.address != LOCAL or inherited:
        return {**quiet, "address": inherited if config.address == LOCAL else config.address}
    # Workers are forked from a fresh interpreter: what the driver can import is passed on by path.
    paths = os.pathsep.join(dict.fromkeys(path for path in sys.path if path))
    return {
        **quiet,
        "address": LOCAL,
        "num_cpus": config.num_cpus or os.cpu_count(),
        "include_dashboard": False,
        "object_store_memory": config.object_store_mb * MB,
        # Ray starts workers at niceness 15: whatever else runs on the machine would starve them.
        "_system_config": {"worker_niceness": 0},
        "runtime_env": {"env_vars": {**process_environment(), "PYTHONPATH": paths}},
    }
