"""Run one episode: look, act, execute.

The simulated clock stands still while the policy thinks, unless a latency is set: then the embodiment's hold action
fills the control steps that the answer takes, as it would on a robot.

Nothing here knows Ray; `pooled.py` keeps worlds to run many episodes in, `actors.py` puts them into processes.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from st4vla.platform.contracts import ActionChunk, EpisodeResult, EpisodeSpec, Observation, PolicySpec, Spatial
from st4vla.platform.errors import ConfigError, PolicyError, WorkerLost
from st4vla.workers.rollout.execution import NO_CHANGES, Executor, PresetChanges, make_executor
from st4vla.workers.rollout.inference import PolicyClient


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
    from which a frame can be rendered later; `hold_action` is the action that keeps the robot where it is.
    `embodiment`, once it is reset, names the executor its actions need, "" for none.
    """

    @property
    def embodiment(self) -> str: ...
    @property
    def control_hz(self) -> float: ...

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
    def hold_action(self) -> np.ndarray: ...
    def progress(self) -> Progress: ...
    def snapshot(self) -> np.ndarray: ...
    def render_snapshot(self, snapshot: np.ndarray) -> Mapping[str, Any]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class RolloutOptions:
    """How a policy's chunks are executed.

    Attributes:
        execute: actions of each chunk that are executed before the next look; None for the whole chunk, or for what
            the preset of the world's robot says.
        latency: None stops the simulated clock while the policy thinks; a number of seconds lets it run for so long
            at each look; "measured" lets it run for as long as the answer really took, so rows vary with the machine.
        stop_on_success: end an episode when its success first holds. False runs it to its last step and scores
            that, as SimplerEnv does.
        idle_renders: render a frame at every step although nobody looks; only benchmarks want that.
        preset: what is changed of the preset of a world's robot.
    """

    execute: int | None = None
    latency: float | Literal["measured"] | None = None
    stop_on_success: bool = True
    idle_renders: bool = False
    preset: PresetChanges = NO_CHANGES

    def __post_init__(self) -> None:
        if self.execute is not None and self.execute < 1:
            raise ConfigError(f"execute is {self.execute}; at least 1 action of a chunk is executed, or null for all.")
        numeric = isinstance(self.latency, int | float) and not isinstance(self.latency, bool)
        if self.latency is not None and self.latency != "measured" and not (numeric and 0 <= float(self.latency) < 60):
            raise ConfigError(f"latency is {self.latency!r}; expected seconds from 0 to 60, measured, or null.")

    def ending(self, stop_on_success: bool) -> "RolloutOptions":
        """Give the same options with the way an episode ends."""
        return replace(self, stop_on_success=stop_on_success)


@dataclass(frozen=True)
class Look:
    """One look of the policy: at which control step, under which instruction, and what it grounded.

    `seen` is width and height of the picture in whose pixels the read-out is given; None if it is the world's own.
    """

    step: int
    instruction: str
    spatial: Spatial | None
    seen: tuple[int, int] | None = None


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
    """The result of an episode and the recording it can be watched from (None after a crash).

    `spent` says that the process it ran in hangs, or may be broken, and must be replaced.
    """

    result: EpisodeResult
    recording: Recording | None
    spent: bool = False


Beat = Callable[[str, str], None]


def no_beat(part: str, step: str) -> None:
    """Tell nobody what comes next."""


@dataclass
class _Running:
    """The moving parts of an episode while it runs."""

    beat: Beat
    clock: Callable[[], float]
    executor: Executor = field(init=False)
    instruction: str | None = None
    held_steps: int = 0
    looks: list[Look] = field(default_factory=list)
    snapshots: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"policy": 0.0, "render": 0.0, "physics": 0.0})

    @contextmanager
    def at(self, part: str, step: str) -> Iterator[None]:
        """Say what comes next, and count its seconds."""
        self.beat(part, step)
        started = self.clock()
        yield
        self.seconds[part] += self.clock() - started


def run_episode(
    world: World,
    client: PolicyClient,
    spec: EpisodeSpec,
    options: RolloutOptions,
    clock: Callable[[], float] = time.perf_counter,
    beat: Beat = no_beat,
) -> Rollout:
    """Run one episode and say what came of it.

    1. Reset the world to the spec and forget the policy's session.
    2. Look, if the chunk is spent or the instruction has changed: render the policy's cameras and ask it; hold
       still for as long as the answer takes, where a latency is set.
    3. Execute the chunk's next action.
    4. Record the state.
    5. Repeat 2-4 until the task's success holds or the time is out.
    6. Score.

    Raises:
        PolicyError: the policy failed, or its answer is unusable; whatever else the world raises is passed on.
    """
    started = clock()
    run = _Running(beat, clock)
    with run.at("physics", "reset"):
        world.reset(spec)
        run.snapshots.append(world.snapshot())
    run.executor = make_executor(world.embodiment, world.hold_action, client.spec, options.execute, options.preset)
    with run.at("policy", "reset"):
        client.reset(spec.episode_id)
    while not _over(world, options):
        if _must_look(run, world):
            _look(run, world, client, spec, options)
            continue  # the answer may have come too late: the time is out, or something else is asked for now
        _execute(run, world, run.executor.next_action())
        if options.idle_renders and not _must_look(run, world):
            with run.at("render", f"step {world.steps}"):
                world.observe(client.spec)
    return Rollout(_score(run, world, spec, clock() - started), _recording(run))


def _over(world: World, options: RolloutOptions) -> bool:
    return world.steps >= world.max_steps or (options.stop_on_success and world.progress().success)


def _must_look(run: _Running, world: World) -> bool:
    return run.executor.must_look() or world.instruction != run.instruction


def _look(run: _Running, world: World, client: PolicyClient, spec: EpisodeSpec, options: RolloutOptions) -> None:
    """Show the policy what it asks for, let the simulated clock run as long as it takes, and keep its answer."""
    where = f"look {len(run.looks)}, step {world.steps}" if run.looks else "first look"
    seen_at, instruction = world.steps, world.instruction
    if instruction != run.instruction:
        run.executor.forget_chunks()
    with run.at("render", where):
        observation = world.observe(client.spec)
    before = run.seconds["policy"]
    with run.at("policy", where):
        chunk = _ask(client, observation, spec.episode_id, (spec.seed, len(run.looks)))
        actions = check_chunk(chunk, client.spec)
    picture = next(iter(observation.images.values()), None)
    seen = None if picture is None else (picture.shape[1], picture.shape[0])
    run.looks.append(Look(seen_at, instruction, chunk.spatial, seen))
    for _ in range(steps_late(options.latency, run.seconds["policy"] - before, world.control_hz)):
        if _over(world, options):
            return
        _execute(run, world, run.executor.hold_action())
        run.held_steps += 1
    run.executor.take(actions)
    run.instruction = instruction


def steps_late(latency: float | str | None, thought_s: float, control_hz: float) -> int:
    """Count the control steps that begin before an answer is there."""
    if latency is None:
        return 0
    late_s = thought_s if latency == "measured" else float(latency)
    return math.ceil(late_s * control_hz - 1e-9)


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


def _execute(run: _Running, world: World, action: np.ndarray) -> None:
    with run.at("physics", f"step {world.steps}"):
        world.step(action)
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
        held_steps=run.held_steps,
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


def time_budget(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sum where the rollout workers' seconds went; "wait" is what none of the three accounts for."""
    total = {part: sum(row[f"{part}_s"] for row in rows) for part in ("physics", "render", "policy")}
    return {**total, "wait": max(0.0, sum(row["wall_s"] for row in rows) - sum(total.values()))}
