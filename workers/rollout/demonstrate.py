"""Record one expert demonstration: physics first, and pictures afterwards if it was worth keeping.

A share of the executed actions is perturbed so that the states spread around the expert's own path, while the
recorded action stays the expert's clean one (the idea of DART, Laskey et al. 2017, with fixed noise).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from st4vla.platform.contracts import EpisodeResult, EpisodeSpec, FrameAnnotation, PolicySpec
from st4vla.platform.data.episode import Episode
from st4vla.platform.errors import ConfigError
from st4vla.workers.rollout.episode import World

# What the recording asks the world for while physics runs: its state and no picture.
BLIND = PolicySpec((), 128, 7, 7, 1, 5.0, "tabletop_panda")
NOISE_STREAM = 0x0DA7


class Expert(Protocol):
    """Gives the next clean action, float32 [7], from the world's true state."""

    def act(self) -> np.ndarray: ...


class RecordableWorld(World, Protocol):
    """A world whose recorded states can be rendered and annotated."""

    def annotate_all(self, snapshots: list[np.ndarray], frames: list[Any]) -> list[dict[str, FrameAnnotation]]: ...


@dataclass(frozen=True)
class NoiseConfig:
    """What is added to some of the executed actions; the gripper is left alone.

    Attributes:
        share: share of the actions that are perturbed, each drawn on its own.
        metres, radians: standard deviation per axis of the added translation and rotation.
    """

    share: float = 0.3
    metres: float = 0.02
    radians: float = 0.08

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"noise.share is {self.share}; give a share from 0 to 1.")
        if self.metres < 0 or self.radians < 0:
            raise ConfigError(f"noise is {self.metres} m and {self.radians} rad; neither may be negative.")


def perturbed(action: np.ndarray, noise: NoiseConfig, generator: np.random.Generator) -> np.ndarray:
    """Give the action [7] that is executed in place of the clean one; the same draws are used up either way."""
    hit = generator.random() < noise.share
    offset = generator.standard_normal(6)
    if not hit:
        return action
    scale = np.array([noise.metres] * 3 + [noise.radians] * 3)
    executed = action.copy()
    executed[:6] += (offset * scale).astype(np.float32)
    return executed


@dataclass
class _Track:
    """What is written down while physics runs; row i of each belongs to the moment before action i."""

    snapshots: list[np.ndarray] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Demonstration:
    """What came of one attempt; `episode` is None unless it succeeded."""

    result: EpisodeResult
    episode: Episode | None


def demonstrate(
    world: RecordableWorld,
    make_expert: Callable[[Any], Expert],
    spec: EpisodeSpec,
    noise: NoiseConfig,
    fps: int,
    linger: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Demonstration:
    """Let the expert try once; `linger` is how many control steps it goes on after its first success.

    What it does there, settling at the goal, is what a policy that comes near must know; it must end in success, too.

    1. Reset the world and start a fresh expert.
    2. Run physics alone, writing down the state and the clean action of each step.
    3. Score the attempt.
    4. If it succeeded, render its frames and annotate them.
    """
    started = clock()
    world.reset(spec)
    generator = np.random.default_rng([NOISE_STREAM, spec.seed])
    track = _run_physics(world, make_expert(world), noise, generator, linger)
    acted = clock()
    progress = world.progress()
    episode = _picture(world, spec, track, fps) if progress.success else None
    done = clock()
    result = EpisodeResult(
        episode_id=spec.episode_id,
        success=bool(progress.success),
        partial_credit=float(progress.partial_credit),
        stages=tuple(progress.stages),
        steps=world.steps,
        looks=len(track.actions) if episode is not None else 0,
        failure="" if progress.success else "task",
        wall_s=done - started,
        render_s=done - acted,
        physics_s=acted - started,
    )
    return Demonstration(result, episode)


def _run_physics(
    world: World, expert: Expert, noise: NoiseConfig, generator: np.random.Generator, linger: int
) -> _Track:
    track, left = _Track(), linger
    while world.steps < world.max_steps:
        if world.progress().success:
            if not left or not track.actions:
                break
            left -= 1
        action = np.asarray(expert.act(), np.float32)
        state = world.observe(BLIND).state
        assert state is not None
        track.snapshots.append(world.snapshot())
        track.states.append(state)
        track.actions.append(action)
        world.step(perturbed(action, noise, generator))
    return track


def _picture(world: RecordableWorld, spec: EpisodeSpec, track: _Track, fps: int) -> Episode | None:
    """Render and annotate what was recorded; None for a scene that was solved before anybody acted."""
    if not track.actions:
        return None
    frames = [world.render_snapshot(snapshot) for snapshot in track.snapshots]
    annotations = world.annotate_all(track.snapshots, frames)
    cameras = list(frames[0])
    return Episode(
        instruction=spec.instruction,
        task=spec.task,
        actions=np.stack(track.actions),
        states=np.stack(track.states),
        frames={camera: np.stack([views[camera].rgb for views in frames]) for camera in cameras},
        annotations={camera: [views[camera] for views in annotations] for camera in cameras},
        fps=fps,
        seed=spec.seed,
        spec_id=spec.episode_id,
    )


class Quota:
    """Decide which specs to try next, so that what is kept does not depend on who finished first.

    Each task has an endless list of specs and a wanted number of successes. The next spec of a task is handed out
    only while its successes and its open attempts are fewer than wanted; then what is tried is exactly the shortest
    prefix of the list that holds enough successes, however many actors work. `release` gives finished attempts in
    the order of the list, tasks interleaved, so that a dataset is written in the same order every time.
    """

    def __init__(self, specs: Callable[[str, int], EpisodeSpec], tasks: Sequence[str], wanted: int):
        self._specs = specs
        self._wanted = wanted
        self._tasks = list(tasks)
        self._next = dict.fromkeys(tasks, 0)
        self._won = dict.fromkeys(tasks, 0)
        self._open: dict[str, set[int]] = {task: set() for task in tasks}
        self._place: dict[str, tuple[int, int]] = {}
        self._held: dict[tuple[int, int], Any] = {}

    def next_spec(self) -> EpisodeSpec | None:
        """Hand out the next spec, tasks in turn; None if nothing may be tried now."""
        ready = [task for task in self._tasks if self._won[task] + len(self._open[task]) < self._wanted]
        if not ready:
            return None
        task = min(ready, key=lambda name: self._next[name])
        index = self._next[task]
        self._next[task] += 1
        self._open[task].add(index)
        spec = self._specs(task, index)
        self._place[spec.episode_id] = (index, self._tasks.index(task))
        return spec

    def finish(self, spec: EpisodeSpec, success: bool, value: Any) -> None:
        """Say what came of a spec; `value` is kept until its turn."""
        place = self._place[spec.episode_id]
        self._open[spec.task].discard(place[0])
        self._won[spec.task] += success
        self._held[place] = value

    def release(self) -> list[Any]:
        """Give the finished values before which nothing can come any more, in order."""
        bound = min((self._bound(number) for number in range(len(self._tasks))), default=(0, 0))
        ready = sorted(place for place in self._held if place < bound)
        return [self._held.pop(place) for place in ready]

    def _bound(self, number: int) -> tuple[float, int]:
        """Give the first place of a task that is not finished; infinity once its quota is met."""
        task = self._tasks[number]
        if self._open[task]:
            return min(self._open[task]), number
        return (float("inf"), number) if self._won[task] >= self._wanted else (self._next[task], number)
