"""Put the plain classes into Ray processes: rollout actors with pooled worlds, and the inference actor."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from st4vla.platform.contracts import ActionChunk, EpisodeSpec, Observation, PolicySpec, Spatial
from st4vla.platform.errors import ConfigError
from st4vla.platform.machine import prepare_process
from st4vla.workers.cluster import cpus_per_actor, num_cluster_cpus, num_cluster_gpus
from st4vla.workers.rollout.demonstrate import BLIND
from st4vla.workers.rollout.episode import Rollout, RolloutOptions, World, failed_result
from st4vla.workers.rollout.inference import (
    ActorClient,
    BatchConfig,
    InferenceServer,
    LocalClient,
    PerRobotClient,
    PolicyClient,
)
from st4vla.workers.rollout.policies import PolicySource, acting_for
from st4vla.workers.rollout.pooled import RolloutWorker
from st4vla.workers.rollout.watchdog import Stalled, WatchConfig, Watchdog
from st4vla.workers.rollout.worlds import family, warm_up

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class InferenceConfig:
    """Where and how a policy is computed.

    Attributes:
        place: "actor" batches the observations of all worlds in one process (right for a GPU); "local" gives each
            rollout actor the policy (right for a small policy on a CPU, where a batch saves nothing and the trip
            costs); "auto" is "actor" where the cluster has a GPU for it.
        device: of a checkpoint: "cpu", "cuda", or "auto" for the GPU that an inference actor has reserved, where there
            is one (written, not yet run).
        dtype: of a checkpoint's weights.
        statistics_key: the embodiment whose statistics a checkpoint acts with; None finds that of each world's robot
            (`PolicySource.statistics_keys`).
        replicas: inference actors; rollout actors spread over them.
        num_gpus: GPUs per inference actor; None for one where the cluster has one, shared where it has fewer.
        batch: when a batch is closed.
    """

    place: Literal["auto", "actor", "local"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    statistics_key: str | None = None
    replicas: int = 1
    num_gpus: float | None = None
    batch: BatchConfig = BatchConfig()

    def __post_init__(self) -> None:
        if self.place not in ("auto", "actor", "local"):
            raise ConfigError(f"inference.place is {self.place!r}; expected auto, actor or local.")
        if self.device not in DEVICES or self.dtype not in DTYPES:
            raise ConfigError(
                f"inference.device is {self.device!r} and dtype {self.dtype!r}; expected one of {', '.join(DEVICES)}, "
                f"and one of {', '.join(DTYPES)}."
            )
        if self.num_gpus is not None and self.num_gpus < 0:
            raise ConfigError(f"inference.num_gpus is {self.num_gpus}; expected 0 or more, or null.")
        if self.replicas < 1:
            raise ConfigError(f"inference.replicas is {self.replicas}; give at least 1.")


@dataclass(frozen=True)
class GpuWorkers:
    """Rollout actors that render on a GPU, beside those that do so on processors.

    A GPU's pictures differ from a processor's in the last bits, so rows are repeatable only with the same mix.

    Attributes:
        number: how many.
        gpus_each: share of a GPU each holds.
    """

    number: int = 0
    gpus_each: float = 0.25

    def __post_init__(self) -> None:
        if self.number < 0 or not 0 < self.gpus_each <= 1:
            raise ConfigError(
                f"gpu_workers.number is {self.number} and gpus_each {self.gpus_each}; expected 0 or more, and a share "
                "above 0 and up to 1."
            )


class ExpertClient:
    """The scripted expert of one world, as a policy that looks at nothing and gives one action at a time."""

    def __init__(self, world: Any, make_expert: Callable[[Any], Any]):
        self._world = world
        self._make_expert = make_expert
        self._expert: Any = None

    @property
    def spec(self) -> PolicySpec:
        """No cameras, so that nothing is rendered for it."""
        return BLIND

    def reset(self, session_id: str) -> None:
        """Start a fresh expert on the world as it is now."""
        self._expert = self._make_expert(self._world)

    def act(self, observation: Observation, session_id: str, noise_key: tuple[int, int]) -> ActionChunk:
        """Give the expert's next action, from the world's true state."""
        return ActionChunk(self._expert.act()[None])

    def read_out(self, images: Sequence[np.ndarray], instructions: Sequence[str]) -> list[Spatial]:
        """Give nothing: it knows, and sees nothing."""
        return []


@dataclass(frozen=True)
class WorkerSetup:
    """What a rollout actor is built from; picklable.

    Attributes:
        policy, options: who acts, and how its chunks are executed.
        world: family of worlds.
        first: an episode to warm up with; None warms up nothing.
        looks: whether pictures will be asked for.
        watch: how long one step may take.
        max_worlds: worlds an actor keeps at once.
        inference: how the policy is computed, where it is in the rollout actors.
        statistics: by the name of each robot, the statistics the policy acts with; {} for the policy's own.
    """

    policy: PolicySource
    options: RolloutOptions
    world: str = "tabletop"
    first: EpisodeSpec | None = None
    looks: bool = False
    watch: WatchConfig = WatchConfig()
    max_worlds: int = 4
    inference: InferenceConfig = InferenceConfig()
    statistics: Mapping[str, str] = field(default_factory=dict)


class RolloutActor:
    """Run episodes in this process, one at a time; `RolloutWorker` behind Ray, under a watchdog.

    The pool owns it and replaces it when it dies or is stuck; its worlds are lost with it.
    """

    def __init__(self, setup: WorkerSetup, inference: Any = None, timeout_s: float = 120.0, on_gpu: bool = False):
        prepare_process(render_on_gpu=on_gpu)
        self._setup = setup
        self._inference = inference
        self._timeout_s = timeout_s
        self._watchdog = Watchdog(setup.watch, hard_exit=True)
        self._worker: RolloutWorker

    def ready(self) -> bool:
        """Load what episodes need; errors made here reach the driver as they are."""
        self._watchdog.call(self._prepare)
        return True

    def _prepare(self) -> None:
        setup, worlds = self._setup, family(self._setup.world)
        make_client = self._make_client()
        self._worker = RolloutWorker(worlds.make_world, make_client, setup.options, worlds.key_of, setup.max_worlds)
        if setup.first is not None:
            world, _ = self._worker.pooled(setup.first)
            warm_up(world, setup.first, setup.looks)

    def _make_client(self) -> Callable[[World], PolicyClient]:
        if self._setup.policy.is_expert:
            return lambda world: ExpertClient(world, family(self._setup.world).expert())
        clients, statistics = self._clients(), self._setup.statistics
        return lambda world: PerRobotClient(world, lambda robot: clients[statistics.get(robot, "")])

    def _clients(self) -> dict[str, PolicyClient]:
        """Give a client for each of the statistics that are acted with, "" for the policy's own; weights are shared."""
        setup, keys = self._setup, set(self._setup.statistics.values()) or {""}
        if self._inference is not None:
            return {key: ActorClient(self._inference, self._timeout_s, key) for key in keys}
        device = "cpu" if setup.inference.device == "auto" else setup.inference.device  # no GPU is reserved for it here
        policy = setup.policy.load(device=device, dtype=setup.inference.dtype)
        return {key: LocalClient(acting_for(policy, key)) for key in keys}

    def pid(self) -> int:
        """Give the id of this process."""
        return os.getpid()

    def cpu_seconds(self) -> float:
        """Give the processor time of this process so far, all its threads'."""
        return time.process_time()

    def run(self, spec: EpisodeSpec) -> Rollout:
        """Run one episode; a step that hangs ends it, and this process is of no more use."""
        try:
            return self._watchdog.call(lambda: self._worker.run(spec, self._watchdog.beat))
        except Stalled as error:
            kind = "policy" if error.part == "policy" else "timeout"
            return Rollout(failed_result(spec, kind, str(error)), None, spent=True)

    def film(self, spec: EpisodeSpec, rollout: Rollout) -> bytes:
        """Render an episode from its recording, ask the policy what it saw, and give the MP4."""
        from st4vla.workers.rollout.film import film_episode

        def shoot() -> bytes:
            world, client = self._worker.pooled(spec)
            return film_episode(world, spec, rollout, self._watchdog.beat, client.read_out)

        return self._watchdog.call(shoot)


class InferenceActor(InferenceServer):
    """`InferenceServer` behind Ray, in a prepared process."""

    def __init__(self, source: PolicySource, config: BatchConfig, device: str = "cpu", dtype: str = "float32"):
        prepare_process()
        super().__init__(partial(source.load, device=device, dtype=dtype), config)


def start_inference(
    source: PolicySource,
    config: InferenceConfig,
    num_workers: int,
    gpu_workers: GpuWorkers = GpuWorkers(),  # noqa: B008 (frozen)
) -> list[Any]:
    """Start the inference actors for so many rollout actors; none where the policy is computed in those.

    A batch is no larger than the workers that can wait for it, so that a full house never waits for the timer.

    Raises:
        ConfigError: there is no GPU for them, or none is left.
    """
    import ray

    if source.is_expert or source.is_remote or resolve_place(config) == "local":
        return []
    bucket = max(1, min(config.batch.max_batch, -(-num_workers // config.replicas)))
    batch = replace(config.batch, max_batch=bucket)
    gpus = 0.0
    if source.is_checkpoint:
        gpus = gpus_per_replica(config, num_cluster_gpus(), gpu_workers.number * gpu_workers.gpus_each)
    needs: dict[str, Any] = {"num_cpus": 0, "num_gpus": gpus, "max_restarts": -1, "max_concurrency": 1000}
    actor: Any = ray.remote(**needs)(InferenceActor)
    device = "cpu" if config.device == "auto" and not gpus else config.device
    return [actor.remote(source, batch, device, config.dtype) for _ in range(config.replicas)]


def gpus_per_replica(config: InferenceConfig, num_gpus: float, held: float) -> float:
    """Decide how many GPUs an inference actor reserves, of `num_gpus` of which rendering holds `held`.

    Unless it is said: one, a share of one where there are more replicas than GPUs, none on a cluster without any.

    Raises:
        ConfigError: a GPU is wanted and there is none, or none is left.
    """
    if config.num_gpus is not None or config.device == "cpu":
        return config.num_gpus or 0.0
    if not num_gpus and config.device == "auto":
        return 0.0
    free = num_gpus - held
    if free <= 0:
        raise ConfigError(
            f"inference.device={config.device} wants a GPU; of the cluster's {num_gpus:g} rendering holds {held:g}. "
            "Lower gpu_workers.gpus_each, or give inference.device=cpu."
        )
    share = 1 / math.ceil(config.replicas / int(free)) if free >= 1 else free / config.replicas
    return int(share * 10_000) / 10_000


def resolve_place(config: InferenceConfig) -> str:
    """Decide "auto": an actor where the cluster has a GPU to use, else in the rollout actors (docs/evaluation.md)."""
    if config.place != "auto":
        return config.place
    return "actor" if config.device != "cpu" and num_cluster_gpus() > 0 else "local"


def rollout_actor_factory(
    setup: WorkerSetup,
    num_workers: int,
    inference: Sequence[Any] = (),
    timeout_s: float = 120.0,
    gpu_workers: GpuWorkers = GpuWorkers(),  # noqa: B008 (frozen)
) -> Callable[[int], Any]:
    """Give the function with which a pool starts its rollout actors; each is sized so that all fit at once.

    The first `num_workers` render on processors, those after them on GPUs.
    """
    import ray

    cpus = cpus_per_actor(num_workers + gpu_workers.number)
    actor = ray.remote(num_cpus=cpus, max_restarts=0)(RolloutActor)

    def make(index: int) -> Any:
        on_gpu = index >= num_workers
        placed = actor.options(num_gpus=gpu_workers.gpus_each) if on_gpu else actor
        return placed.remote(setup, inference[index % len(inference)] if inference else None, timeout_s, on_gpu)

    return make


def default_workers(wanted: int | None) -> int:
    """Give the number of rollout actors: what was asked for, else one per CPU of the cluster.

    Raises:
        ConfigError: fewer than one was asked for.
    """
    if wanted is not None and wanted < 1:
        raise ConfigError(f"workers is {wanted}; give at least 1, or null for one per CPU.")
    return wanted or num_cluster_cpus()
