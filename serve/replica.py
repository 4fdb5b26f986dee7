"""Hold one policy and answer many robots: sessions, batches, and the two systems each at its own rate.

A request is answered in four steps: its session is found; where the session has no plan for these words, or too old a
one, System 2 makes it within the request; System 1 acts on the newest frame under the plan; and where the plan has
passed its period, System 2 makes the next one meanwhile, from this frame, for the requests to come.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from st4vla.platform.contracts import ActionChunk, Observation, PolicySpec, Spatial
from st4vla.platform.errors import ConfigError, WireError
from st4vla.platform.wire.stamps import RequestStamp
from st4vla.serve.batching import BatchConfig, Batcher
from st4vla.serve.session import Session, SessionConfig, Sessions
from st4vla.serve.systems import Continue, Systems

log = logging.getLogger(__name__)
# The fleet page leaves out a process that has told nothing of its robots for ten seconds.
READ_OUT_PATIENCE_S = 5.0
Question = tuple[Callable[[np.ndarray, str], tuple[str, Spatial | None]], np.ndarray, str]


@dataclass(frozen=True)
class ReplicaConfig:
    """How one replica answers.

    Attributes:
        plan_period_s: System 2 makes a session's next plan when the last is this old; 0 makes one for every request.
        max_plan_age_s: no request is answered under an older plan: it waits for a new one.
        deadline_ms: of requests that bring none; 0 for none.
        ground_queue: questions about images that may wait for the planner; more are refused as "overloaded" at once.
        ground_deadline_ms: a question that the planner has not begun by then is refused as "deadline".
    """

    plan_period_s: float = 0.0
    max_plan_age_s: float = 2.0
    deadline_ms: float = 0.0
    ground_queue: int = 16
    ground_deadline_ms: float = 10_000.0
    batch: BatchConfig = BatchConfig()
    session: SessionConfig = SessionConfig()

    def __post_init__(self) -> None:
        if not 0 <= self.plan_period_s <= self.max_plan_age_s:
            raise ConfigError(
                f"replica.plan_period_s is {self.plan_period_s} and replica.max_plan_age_s {self.max_plan_age_s}; the "
                "period must be at least 0 and at most the greatest age."
            )
        if self.deadline_ms < 0:
            raise ConfigError(f"replica.deadline_ms is {self.deadline_ms}; give milliseconds, or 0 for no deadline.")
        if self.ground_queue < 1 or not self.ground_deadline_ms > 0:
            raise ConfigError(
                f"replica.ground_queue is {self.ground_queue} and replica.ground_deadline_ms is "
                f"{self.ground_deadline_ms}; both must be positive."
            )


@dataclass(frozen=True)
class Ask:
    """One request on its way through the systems."""

    observation: Observation
    session: Session
    stamp: RequestStamp
    seen_s: float
    continued: Continue | None


@dataclass(frozen=True)
class Acted:
    """What the systems gave for one request.

    Attributes:
        plan_age_s: age of the frame that the plan was made from, when System 1 began.
        system2_s: what System 2 took within this request, 0 where the plan was there.
    """

    chunk: ActionChunk
    spatial: Spatial | None
    plan_age_s: float
    system2_s: float
    system1_s: float


@dataclass(frozen=True)
class Outcome:
    """The answer to one request, with its times in milliseconds."""

    actions: np.ndarray
    spatial: Spatial | None
    plan_age_ms: float
    batch_size: int
    timing_ms: dict[str, float] = field(default_factory=dict)


class Replica:
    """The plain class behind a served replica; made and used on one event loop.

    Its sessions live and die with it: a robot that reconnects to another replica gets a fresh plan there and the same
    noise, and brings what remains of its old chunk itself.
    """

    def __init__(
        self,
        systems: Systems,
        config: ReplicaConfig,
        model_version: str = "",
        clock: Callable[[], float] = time.monotonic,
        sessions: Sessions | None = None,
    ):
        self.systems = systems
        self.model_version = model_version
        self.sessions = sessions or Sessions(config.session, clock)
        self._config = config
        self._clock = clock
        self._threads = {name: ThreadPoolExecutor(1, f"st4vla-{name}") for name in ("act", "plan", "ground")}
        self._acting: Batcher[Ask, Acted] = Batcher(self._act_in_thread, config.batch, "act")
        self._planning: Batcher[Ask, Any] = Batcher(self._plan_in_thread, config.batch, "plan")
        one_by_one = BatchConfig(max_batch=1, max_queue=config.ground_queue)
        self._grounding: Batcher[Question, tuple[str, Spatial | None]] = Batcher(
            self._ground_in_thread, one_by_one, "ground"
        )
        self._refreshes: set[asyncio.Task[None]] = set()

    @property
    def spec(self) -> PolicySpec:
        """The policy's own."""
        return self.systems.spec

    @property
    def waiting(self) -> int:
        """Count the requests that wait for a batch."""
        return len(self._acting)

    def report(self) -> dict[str, Any]:
        """Say what was answered, in batches of which sizes, and what was too late or too much."""
        counts = self._acting.counts
        return {
            "batches": counts.batches,
            "answered": counts.answered,
            "expired": counts.expired,
            "overloaded": counts.overloaded,
            "sizes": {str(size): count for size, count in sorted(counts.sizes.items())},
        }

    def warm_up(self) -> float:
        """Answer an empty scene once, so that no robot pays for the first call; give the seconds it took."""
        began = time.perf_counter()
        spec = self.spec
        blank = np.zeros((spec.image_size, spec.image_size, 3), np.uint8)
        state = np.zeros(spec.state_dim, np.float32) if spec.state_dim else None
        seen = Observation(dict.fromkeys(spec.cameras, blank), state, "wait")
        self.systems.actions([seen], self.systems.plan([seen]), [(0, 0)], [None])
        return time.perf_counter() - began

    def deadline_s(self, stamp: RequestStamp, received_s: float) -> float:
        """Give the time, by the replica's clock, until which an answer is of use: the request's own, else ours."""
        budget_ms = stamp.deadline_ms or self._config.deadline_ms
        return received_s + budget_ms / 1000 if budget_ms else float("inf")

    async def act(
        self, observation: Observation, session: Session, stamp: RequestStamp, received_s: float | None = None
    ) -> Outcome:
        """Answer one request of a session.

        Args:
            received_s: when its frame arrived, by the replica's clock.

        Raises:
            WireError: "stale", "deadline", "overloaded", "unavailable", or the numbers of steps do not fit the chunk.
        """
        received_s = self._clock() if received_s is None else received_s
        session.check_sequence(stamp.sequence)
        self._check_steps(stamp)
        ask = Ask(observation, session, stamp, received_s, self._continued(session, stamp))
        self._plan_ahead(ask)
        answered = await self._acting.ask(ask, session.name, self.deadline_s(stamp, received_s))
        acted, actions = answered.value, answered.value.chunk.actions
        session.sequence, session.actions = max(session.sequence, stamp.sequence), actions
        timing = {
            "queue": 1000 * answered.queue_s,
            "system2": 1000 * acted.system2_s,
            "system1": 1000 * acted.system1_s,
            "total": 1000 * (self._clock() - received_s),
        }
        return Outcome(actions, acted.spatial, 1000 * acted.plan_age_s, answered.batch_size, timing)

    async def ground(
        self, image: np.ndarray, question: str, received_s: float | None = None
    ) -> tuple[str, Spatial | None]:
        """Let System 2 answer a question about an image, one at a time.

        Args:
            received_s: when the question arrived, by `time.monotonic`.

        Raises:
            WireError: "unavailable": the policy has no planner that answers; "overloaded" or "deadline": too many
                others wait, or the turn came too late.
        """
        answer = getattr(self.systems, "ground", None)
        if answer is None:
            raise WireError("unavailable", "", "The served policy has no planner that answers questions.")
        arrived_s = time.monotonic() if received_s is None else received_s
        deadline_s = arrived_s + self._config.ground_deadline_ms / 1000
        return (await self._grounding.ask((answer, image, question), "", deadline_s)).value

    def read_out(self, image: np.ndarray, instruction: str) -> Spatial | None:
        """Let System 2 say what it sees, never beside a question; None from a policy that cannot. Blocks its thread.

        Raises:
            TimeoutError: questions, or this one, take the planner too long.
        """
        ask = getattr(self.systems, "read_out", None)
        if ask is None:
            return None
        answer = self._threads["ground"].submit(ask, image, instruction)
        try:
            return answer.result(READ_OUT_PATIENCE_S)
        finally:
            answer.cancel()

    async def close(self) -> None:
        """Answer what waits and stop."""
        await self._acting.close()
        await self._planning.close()
        await self._grounding.close()
        for task in self._refreshes:
            task.cancel()
        for pool in self._threads.values():
            pool.shutdown(wait=False)

    def _check_steps(self, stamp: RequestStamp) -> None:
        length = self.spec.chunk_length
        executed = stamp.executed_steps or 0
        if stamp.delay_steps and stamp.delay_steps + executed > length:
            raise WireError(
                "invalid",
                "st4vla.delay_steps",
                f"{executed} executed and {stamp.delay_steps} delayed steps pass the chunk's {length}.",
            )
        if stamp.remaining is not None and stamp.remaining.shape[1] != self.spec.action_dim:
            width = stamp.remaining.shape[1]
            raise WireError(
                "invalid", "st4vla.remaining", f"Its rows have {width} numbers, not {self.spec.action_dim}."
            )

    def _needs_plan(self, ask: Ask, now: float) -> bool:
        """Say whether the request has to wait for System 2."""
        session = ask.session
        made_for = (self.model_version, ask.observation.instruction)
        if not self.systems.dual or session.plan is None or session.plan_for != made_for:
            return True
        return not self._config.plan_period_s or now - session.plan_seen_s > self._config.max_plan_age_s

    def _plan_ahead(self, ask: Ask) -> None:
        """Let System 2 make the session's next plan beside the request, where the last has passed its period."""
        session, now = ask.session, self._clock()
        if session.planning or self._needs_plan(ask, now) or now - session.plan_seen_s < self._config.plan_period_s:
            return
        session.planning = True
        task = asyncio.create_task(self._refresh(ask))
        self._refreshes.add(task)
        task.add_done_callback(self._refreshes.discard)

    async def _refresh(self, ask: Ask) -> None:
        try:
            answered = await self._planning.ask(ask, ask.session.name)
            ask.session.keep_plan(answered.value, (self.model_version, ask.observation.instruction), ask.seen_s)
        except Exception:  # the request itself is answered under the old plan, and waits for a new one in the end
            log.exception("System 2 failed for session %s", ask.session.name)
        finally:
            ask.session.planning = False

    async def _act_in_thread(self, asks: Sequence[Ask]) -> list[Acted]:
        return await asyncio.get_running_loop().run_in_executor(self._threads["act"], self._act, asks)

    async def _plan_in_thread(self, asks: Sequence[Ask]) -> Sequence[Any]:
        observations = [ask.observation for ask in asks]
        return await asyncio.get_running_loop().run_in_executor(self._threads["plan"], self.systems.plan, observations)

    async def _ground_in_thread(self, questions: Sequence[Question]) -> list[tuple[str, Spatial | None]]:
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(self._threads["ground"], *question) for question in questions]

    def _act(self, asks: Sequence[Ask]) -> list[Acted]:
        """Run a batch: plans for those who need one, then actions for all."""
        began, now = time.perf_counter(), self._clock()
        lacking = [ask for ask in asks if self._needs_plan(ask, now)]
        made = dict(zip(map(id, lacking), self._plan(lacking), strict=True))
        planned, acts_at = time.perf_counter(), self._clock()
        ages = [max(acts_at - ask.session.plan_seen_s, 0.0) for ask in asks]
        plans = [made.get(id(ask), ask.session.plan) for ask in asks]
        chunks = self.systems.actions(
            [ask.observation for ask in asks],
            plans,
            [ask.session.noise_key(ask.stamp.sequence) for ask in asks],
            [ask.continued for ask in asks],
        )
        took = time.perf_counter() - planned
        return [
            Acted(
                chunk=chunk,
                spatial=getattr(plan, "spatial", chunk.spatial),
                plan_age_s=age if self.systems.dual else chunk.plan_age_s,
                system2_s=(planned - began) if id(ask) in made else 0.0,
                system1_s=took,
            )
            for ask, plan, age, chunk in zip(asks, plans, ages, chunks, strict=True)
        ]

    def _plan(self, asks: Sequence[Ask]) -> Sequence[Any]:
        """Make plans for requests and let their sessions keep them."""
        if not asks:
            return []
        made = self.systems.plan([ask.observation for ask in asks])
        for ask, plan in zip(asks, made, strict=True):
            ask.session.keep_plan(plan, (self.model_version, ask.observation.instruction), ask.seen_s)
        return made

    def _continued(self, session: Session, stamp: RequestStamp) -> Continue | None:
        """Say what the new chunk goes on from; nothing from standstill, or where no delay was announced.

        Raises:
            WireError: the numbers of steps do not fit the chunk.
        """
        if not stamp.delay_steps:
            return None
        remaining = stamp.remaining
        if remaining is None and stamp.executed_of in (None, session.sequence):
            remaining = session.remaining(stamp.executed_steps or 0)
        if remaining is None or not len(remaining):
            return None
        continued = Continue(remaining, stamp.delay_steps)
        self.systems.check(continued)
        return continued
