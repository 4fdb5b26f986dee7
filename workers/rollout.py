"""Run one episode: look, act, execute; and keep pooled worlds to run many in.

Nothing here knows Ray; `actors.py` puts `RolloutWorker` into a process of its own.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from st4vla.platform.contracts import ActionChunk, EpisodeResult, EpisodeSpec, Observation, PolicySpec, Spatial
from st4vla.platform.errors import ConfigError, PolicyError, WorkerLost
from st4vla.workers.inference import PolicyClient

log = logging.getLogger(__name__)


class Progress(Protocol):
    """How far a task has come."""

    @property
    def success(self) -> bool: ...
    @property
    def partial_credit(self) -> float: ...
    @property
    def stages(self) -> tuple[str, ...]: ...


class World(Protocol):
    """One simulated world, as the loop uses it; `st4vla.envs.world.TabletopWorld` is one.

    `step` moves physics and never renders; `observe` renders what the policy asks for; `snapshot` gives the state
    from which a frame can be rendered later.
    """

    @property
    def instruction(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def perturbed_at(self) -> int | None: ...

    def reset(self, spec: EpisodeSpec) -> None: ...
    def step(self, action: np.ndarray) -> None: ...
    def observe(self, spec: PolicySpec) -> Observation: ...
    def progress(self) -> Progress: ...
    def snapshot(self) -> np.ndarray: ...
    def render_snapshot(self, snapshot: np.ndarray) -> Mapping[str, Any]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class RolloutOptions:
    """How a policy's chunks are executed.

    Attributes:
        execute: actions of each chunk that are executed before the next look; None for the whole chunk.
        idle_renders: render a frame at every step although nobody looks; only benchmarks want that.
    """

    execute: int | None = None
    idle_renders: bool = False

    def __post_init__(self) -> None:
        if self.execute is not None and self.execute < 1:
            raise ConfigError(f"execute is {self.execute}; at least 1 action of a chunk is executed, or null for all.")


@dataclass(frozen=True)
class Look:
    """One look of the policy: at which control step, under which instruction, and what it grounded."""

    step: int
    instruction: str
    spatial: Spatial | None


@dataclass(frozen=True)
class Recording:
    """What happened in an episode, small enough to keep every time; frames are rendered from it later.

    Attributes:
        snapshots: float32 [N+1,P], the world's state before the first action and after each.
        actions: float32 [N,A], what was executed.
        looks: the looks, in order.
    """

    snapshots: np.ndarray
    actions: np.ndarray
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Rollout:
    """The result of an episode and the recording it can be watched from (None after a crash)."""

    result: EpisodeResult
    recording: Recording | None


@dataclass
class _Running:
    """The moving parts of an episode while it runs."""

    chunk: np.ndarray | None = None
    cursor: int = 0
    instruction: str = ""
    looks: list[Look] = field(default_factory=list)
    snapshots: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"policy": 0.0, "render": 0.0, "physics": 0.0})


def run_episode(
    world: World,
    client: PolicyClient,
    spec: EpisodeSpec,
    options: RolloutOptions,
    clock: Callable[[], float] = time.perf_counter,
) -> Rollout:
    """Run one episode and say what came of it.

    1. Reset the world to the spec and forget the policy's session.
    2. Look, if the chunk is spent or the instruction has changed: render the policy's cameras and ask it.
    3. Execute the chunk's next action.
    4. Record the state.
    5. Repeat 2-4 until the task's success holds or the time is out.
    6. Score.

    Raises:
        PolicyError: the policy failed, or its answer is unusable; whatever else the world raises is passed on.
    """
    started = clock()
    run = _Running()
    with _timed(run, "physics", clock):
        world.reset(spec)
        run.snapshots.append(world.snapshot())
    client.reset(spec.episode_id)
    while not world.progress().success and world.steps < world.max_steps:
        if _must_look(run, world, options):
            _look(run, world, client, spec, clock)
        with _timed(run, "physics", clock):
            _execute(run, world)
        if options.idle_renders and not _must_look(run, world, options):
            with _timed(run, "render", clock):
                world.observe(client.spec)
    return Rollout(_score(run, world, spec, clock() - started), _recording(run))


@contextmanager
def _timed(run: _Running, part: str, clock: Callable[[], float]) -> Iterator[None]:
    started = clock()
    yield
    run.seconds[part] += clock() - started


def _must_look(run: _Running, world: World, options: RolloutOptions) -> bool:
    if run.chunk is None or world.instruction != run.instruction:
        return True
    length = len(run.chunk) if options.execute is None else min(options.execute, len(run.chunk))
    return run.cursor >= length


def _look(run: _Running, world: World, client: PolicyClient, spec: EpisodeSpec, clock: Callable[[], float]) -> None:
    """Show the policy what it asks for, and keep its chunk and what it grounded."""
    with _timed(run, "render", clock):
        observation = world.observe(client.spec)
    with _timed(run, "policy", clock):
        chunk = _ask(client, observation, spec.episode_id, (spec.seed, len(run.looks)))
    run.chunk, run.cursor, run.instruction = check_chunk(chunk, client.spec), 0, world.instruction
    run.looks.append(Look(world.steps, world.instruction, chunk.spatial))


def _ask(client: PolicyClient, observation: Observation, session_id: str, noise_key: tuple[int, int]) -> ActionChunk:
    try:
        return client.act(observation, session_id, noise_key)
    except (PolicyError, WorkerLost):
        raise
    except Exception as error:  # whatever a policy raises is its own failure, not the world's
        raise PolicyError(f"the policy raised {type(error).__name__}: {error}") from error


def check_chunk(chunk: ActionChunk, spec: PolicySpec) -> np.ndarray:
    """Give the chunk's actions as float32 [T,A].

    Raises:
        PolicyError: the shape is wrong, or a value is not finite.
    """
    actions = np.asarray(chunk.actions, dtype=np.float32)
    if actions.ndim != 2 or actions.shape[1] != spec.action_dim or not len(actions):
        raise PolicyError(
            f"the policy answered actions of shape {list(actions.shape)}; expected [T, {spec.action_dim}] with T >= 1."
        )
    if not np.isfinite(actions).all():
        row = int(np.argwhere(~np.isfinite(actions))[0][0])
        raise PolicyError(f"row {row} of the policy's chunk is {actions[row].tolist()}; expected finite numbers.")
    return actions


def _execute(run: _Running, world: World) -> None:
    assert run.chunk is not None
    action = run.chunk[run.cursor]
    world.step(action)
    run.cursor += 1
    run.actions.append(action)
    run.snapshots.append(world.snapshot())


def _score(run: _Running, world: World, spec: EpisodeSpec, wall_s: float) -> EpisodeResult:
    progress = world.progress()
    recovered = progress.success and world.perturbed_at is not None
    return EpisodeResult(
        episode_id=spec.episode_id,
        success=bool(progress.success),
        partial_credit=float(progress.partial_credit),
        stages=tuple(progress.stages),
        steps=world.steps,
        looks=len(run.looks),
        recovery_steps=world.steps - (world.perturbed_at or 0) if recovered else None,
        failure="" if progress.success else "task",
        wall_s=wall_s,
        policy_s=run.seconds["policy"],
        render_s=run.seconds["render"],
        physics_s=run.seconds["physics"],
    )


def _recording(run: _Running) -> Recording:
    actions = np.stack(run.actions) if run.actions else np.zeros((0, 7), np.float32)
    return Recording(np.stack(run.snapshots), actions, tuple(run.looks))


def failed_result(spec: EpisodeSpec, failure: Any, reason: str) -> EpisodeResult:
    """Give the result of an episode that its environment or its policy's answer ended."""
    return EpisodeResult(spec.episode_id, False, 0.0, (), 0, 0, failure=failure, reason=reason)


class RolloutWorker:
    """Run episodes in one pooled world: reset for each episode, built once.

    A world that raised is closed and built again for the next episode, as its state is unknown.
    """

    def __init__(
        self,
        make_world: Callable[[], World],
        make_client: Callable[[World], PolicyClient],
        options: RolloutOptions,
    ):
        self._make_world = make_world
        self._make_client = make_client
        self._options = options
        self._pooled: tuple[World, PolicyClient] | None = None

    def run(self, spec: EpisodeSpec) -> Rollout:
        """Run one episode; what goes wrong in it becomes its result, except the loss of another worker."""
        try:
            world, client = self.pooled()
            return run_episode(world, client, spec, self._options)
        except WorkerLost:
            self.close()
            raise
        except PolicyError as error:
            return Rollout(failed_result(spec, "policy", str(error)), None)
        except Exception as error:  # isolation boundary: one crashed episode must not end the others
            log.exception("episode %s of %s crashed", spec.episode_id, spec.task)
            self.close()
            return Rollout(failed_result(spec, "crash", f"{type(error).__name__}: {error}"), None)

    def pooled(self) -> tuple[World, PolicyClient]:
        """Give the world and its client, built at first use."""
        if self._pooled is None:
            world = self._make_world()
            self._pooled = (world, self._make_client(world))
        return self._pooled

    def close(self) -> None:
        """Drop the world, if there is one."""
        pooled, self._pooled = self._pooled, None
        try:
            if pooled is not None:
                pooled[0].close()
        except Exception:  # it has already failed; what matters is that it is not used again
            log.exception("closing a crashed world failed")


def time_budget(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sum where the rollout workers' seconds went; "wait" is what none of the three accounts for."""
    total = {part: sum(row[f"{part}_s"] for row in rows) for part in ("physics", "render", "policy")}
    return {**total, "wait": max(0.0, sum(row["wall_s"] for row in rows) - sum(total.values()))}
