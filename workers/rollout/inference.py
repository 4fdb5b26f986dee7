"""Ask one policy on behalf of many worlds: collect what arrives within a few milliseconds into one batch.

A `PolicyClient` is the policy as one world sees it. `LocalClient` holds the policy in the world's own process;
`ActorClient` asks an inference actor, whose `BatchCollector` does the batching.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from st4vla.platform.contracts import ActionChunk, Observation, Policy, PolicySpec, Spatial
from st4vla.platform.errors import ConfigError, PolicyError, WorkerLost
from st4vla.workers.rollout.policies import acting_for

# How often a client asks whether a dead inference actor is back.
RESTART_POLL_S = 0.2


class PolicyClient(Protocol):
    """A policy as the rollout loop of one world uses it: one observation in, one chunk out.

    `read_out` says for each picture, under its instruction, what the planner sees; nothing at all for a policy without
    a planner that answers.
    """

    @property
    def spec(self) -> PolicySpec: ...

    def reset(self, session_id: str) -> None: ...

    def act(self, observation: Observation, session_id: str, noise_key: tuple[int, int]) -> ActionChunk: ...

    def read_out(self, images: Sequence[np.ndarray], instructions: Sequence[str]) -> list[Spatial]: ...


def read_out_of(policy: Any, images: Sequence[np.ndarray], instructions: Sequence[str]) -> list[Spatial]:
    """Ask a policy's planner what it sees; [] where it has none."""
    ask = getattr(policy, "read_out", None)
    return [] if ask is None else ask(images, instructions)


class LocalClient:
    """Hold the policy in this process; best for a small policy on a CPU, see docs/evaluation.md."""

    def __init__(self, policy: Policy):
        self._policy = policy

    @property
    def spec(self) -> PolicySpec:
        """The policy's own."""
        return self._policy.spec

    def reset(self, session_id: str) -> None:
        """Forget the session."""
        self._policy.reset(session_id)

    def act(self, observation: Observation, session_id: str, noise_key: tuple[int, int]) -> ActionChunk:
        """Ask with a batch of one."""
        return self._policy.act([observation], [session_id], [noise_key])[0]

    def read_out(self, images: Sequence[np.ndarray], instructions: Sequence[str]) -> list[Spatial]:
        """Ask its planner."""
        return read_out_of(self._policy, images, instructions)


class HasRobot(Protocol):
    """A world, as far as a client asks which robot stands in it; once it is reset."""

    @property
    def embodiment(self) -> str: ...


class PerRobotClient:
    """The policy for whatever robot stands in one world now: each acts with its own statistics.

    Args:
        client_of: gives the client for an embodiment's name.
    """

    def __init__(self, world: HasRobot, client_of: Callable[[str], PolicyClient]):
        self._world = world
        self._client_of = client_of

    @property
    def _client(self) -> PolicyClient:
        return self._client_of(self._world.embodiment)

    @property
    def spec(self) -> PolicySpec:
        """The policy's, as it acts for that robot."""
        return self._client.spec

    def reset(self, session_id: str) -> None:
        """Forget the session."""
        self._client.reset(session_id)

    def act(self, observation: Observation, session_id: str, noise_key: tuple[int, int]) -> ActionChunk:
        """Ask for that robot."""
        return self._client.act(observation, session_id, noise_key)

    def read_out(self, images: Sequence[np.ndarray], instructions: Sequence[str]) -> list[Spatial]:
        """Ask the planner, which is the same for all robots."""
        return self._client.read_out(images, instructions)


@dataclass(frozen=True)
class BatchConfig:
    """When a batch is closed.

    Attributes:
        max_batch: observations in one call of the policy at most; its bucket.
        max_wait_ms: how long the first observation of a batch waits for others.
        timeout_s: how long a world waits for its answer before the episode counts as a policy failure.
    """

    max_batch: int = 8
    max_wait_ms: float = 3.0
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ConfigError(f"inference.max_batch is {self.max_batch}; a batch holds at least 1 observation.")
        if not 0 <= self.max_wait_ms < math.inf:
            raise ConfigError(f"inference.max_wait_ms is {self.max_wait_ms}; give milliseconds, 0 not to wait.")


# What is seen, session, noise key, and the statistics to act with, "" for the policy's own.
Request = tuple[Observation, str, tuple[int, int], str]
ActBatch = Callable[[Sequence[Request]], Awaitable[Sequence[ActionChunk]]]


class BatchCollector:
    """Collect single requests into batches; one batch is computed at a time.

    A batch closes when it is full, or when its first request has waited `max_wait_ms`. While one batch is computed
    the next collects, so that nobody waits for a timer that a computation already outlasts. An error of the policy
    goes to every request of its batch, and to no other.
    """

    def __init__(self, act_batch: ActBatch, config: BatchConfig):
        self._act_batch = act_batch
        self._config = config
        self._waiting: list[tuple[Request, asyncio.Future[ActionChunk]]] = []
        self._computing = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, request: Request) -> ActionChunk:
        """Put one request into the batch that is collecting and wait for its own answer."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[ActionChunk] = loop.create_future()
        self._waiting.append((request, answer))
        if len(self._waiting) >= self._config.max_batch:
            self._close()
        elif self._timer is None:
            self._timer = loop.call_later(self._config.max_wait_ms / 1000, self._close)
        return await answer

    async def alone(self, compute: Callable[[], Any]) -> Any:
        """Compute something else between two batches."""
        async with self._computing:
            return await asyncio.to_thread(compute)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            task = asyncio.ensure_future(self._compute())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _compute(self) -> None:
        async with self._computing:
            batch = self._waiting[: self._config.max_batch]
            del self._waiting[: self._config.max_batch]
            if not batch:
                return
            try:
                chunks = await self._act_batch([request for request, _ in batch])
                answers = [(future, chunk) for (_, future), chunk in zip(batch, chunks, strict=True)]
            except Exception as error:  # goes back to those who asked
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                return
        for future, chunk in answers:
            if not future.done():
                future.set_result(chunk)


class InferenceServer:
    """Load a policy and answer batched requests; `InferenceActor` is this class as a Ray actor.

    One set of weights acts for all robots; in a batch the rows of each robot are computed together. The driver owns it
    and restarts it when it dies; sessions that it held are lost, and the episodes that were waiting for an answer run
    again.
    """

    def __init__(self, load: Callable[[], Policy], config: BatchConfig):
        self._policies = {"": load()}
        self._collector = BatchCollector(self._act_batch, config)

    def _policy(self, statistics_key: str) -> Policy:
        if statistics_key not in self._policies:
            self._policies[statistics_key] = acting_for(self._policies[""], statistics_key)
        return self._policies[statistics_key]

    async def spec(self, statistics_key: str = "") -> PolicySpec:
        """The policy's, as it acts with those statistics."""
        return self._policy(statistics_key).spec

    async def reset(self, session_id: str) -> None:
        """Forget the session."""
        for policy in list(self._policies.values()):
            policy.reset(session_id)

    async def act(
        self, observation: Observation, session_id: str, noise_key: tuple[int, int], statistics_key: str = ""
    ) -> ActionChunk:
        """Answer one observation, computed in a batch with whatever else has arrived."""
        return await self._collector.ask((observation, session_id, noise_key, statistics_key))

    async def read_out(self, images: Sequence[np.ndarray], instructions: Sequence[str]) -> list[Spatial]:
        """Ask its planner what it sees."""
        return await self._collector.alone(lambda: read_out_of(self._policy(""), images, instructions))

    async def _act_batch(self, requests: Sequence[Request]) -> Sequence[ActionChunk]:
        return await asyncio.to_thread(self._act, requests)

    def _act(self, requests: Sequence[Request]) -> Sequence[ActionChunk]:
        chunks: dict[int, ActionChunk] = {}
        for statistics_key in dict.fromkeys(key for *_, key in requests):
            rows = [row for row, (*_, key) in enumerate(requests) if key == statistics_key]
            observations, sessions, noise_keys, _ = zip(*(requests[row] for row in rows), strict=True)
            answers = self._policy(statistics_key).act(observations, sessions, noise_keys)
            chunks.update(zip(rows, answers, strict=True))
        return [chunks[row] for row in range(len(requests))]


class ActorClient:
    """Ask an inference actor; every wait is bounded.

    An episode that was waiting when the actor died is lost and runs again; the next one's `reset` waits for the
    actor to come back.

    Args:
        statistics_key: the statistics that the policy acts with here; "" for its own.
    """

    def __init__(self, actor: Any, timeout_s: float, statistics_key: str = ""):
        self._actor = actor
        self._timeout_s = timeout_s
        self._statistics_key = statistics_key
        self._spec: PolicySpec = self._get(actor.spec.remote(statistics_key))

    @property
    def spec(self) -> PolicySpec:
        """The policy's own, asked for once."""
        return self._spec

    def reset(self, session_id: str) -> None:
        """Forget the session, waiting for an actor that is being restarted.

        Raises:
            WorkerLost: it did not come back in time.
        """
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                return self._get(self._actor.reset.remote(session_id))
            except WorkerLost:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RESTART_POLL_S)

    def act(self, observation: Observation, session_id: str, noise_key: tuple[int, int]) -> ActionChunk:
        """Send one observation and wait for its chunk.

        Raises:
            PolicyError: no answer came in time.
            WorkerLost: the actor died before it answered.
        """
        return self._get(self._actor.act.remote(observation, session_id, noise_key, self._statistics_key))

    def read_out(self, images: Sequence[np.ndarray], instructions: Sequence[str]) -> list[Spatial]:
        """Send pictures and wait for what the planner sees in them; raises as `act` does."""
        return self._get(self._actor.read_out.remote(list(images), list(instructions)))

    def _get(self, reference: Any) -> Any:
        import ray
        from ray import exceptions

        try:
            return ray.get(reference, timeout=self._timeout_s)
        except exceptions.GetTimeoutError as error:
            raise PolicyError(
                f"the inference actor gave no answer within {self._timeout_s:g} s; raise inference.batch.timeout_s or "
                "use a smaller policy."
            ) from error
        except exceptions.RayActorError as error:
            raise WorkerLost("the inference actor died before it answered; the episode runs again.") from error
        except exceptions.RayTaskError:
            raise
        except exceptions.RayError as error:  # killed by the memory monitor, or its answer was lost with a node
            raise WorkerLost(
                f"the inference actor's answer was lost ({type(error).__name__}); the episode runs again."
            ) from error
