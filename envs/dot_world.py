"""Give the rollout machinery a world without a simulator: a dot that moves to another dot, and faults on demand.

The engine's tests and benchmarks run on it, as it starts in no time and steps exactly as long as asked. The variant
of an episode may name a fault of its third step: "crashes" raises, "hangs" never comes back, and "dies:FOLDER" ends
the whole process, once, leaving a note in that folder.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from st4vla.platform.contracts import EpisodeSpec, Observation, PolicySpec
from st4vla.platform.errors import ConfigError, EnvError

GOAL_M = 0.12
REACHED_M = 0.02
FAULT_STEP = 3
OWN_SIZE = 64  # pixels
PERTURBED_STEP = 4
EVALUATION_SEEDS = 1_000_000  # training seeds lie below


@dataclass(frozen=True)
class DotProgress:
    """How near the dot is: success within 2 cm, credit by the share of the way."""

    success: bool
    partial_credit: float
    stages: tuple[str, ...]


@dataclass(frozen=True)
class DotFrame:
    """One rendered frame: uint8 [H,W,3]."""

    rgb: np.ndarray


@dataclass(frozen=True)
class DotConfig:
    """A dot world.

    Attributes:
        step_s: seconds that a step sleeps.
        max_steps: control steps of an episode.
    """

    step_s: float = 0.0
    max_steps: int = 12


class DotWorld:
    """A dot at the origin and two goals 12 cm away, drawn from the seed; actions [0:3] move it, in m."""

    def __init__(self, config: DotConfig | None = None):
        self.config = config or DotConfig()
        self.steps = 0
        self.perturbed_at: int | None = None

    embodiment = ""
    control_hz = 5.0

    @property
    def max_steps(self) -> int:
        """Control steps of an episode."""
        return self.config.max_steps

    @staticmethod
    def hold_action() -> np.ndarray:
        """Give the action [7] that moves nothing."""
        return np.zeros(7, np.float32)

    @property
    def instruction(self) -> str:
        """What is asked for now."""
        return self._instruction

    def reset(self, spec: EpisodeSpec) -> None:
        """Start the episode of that spec."""
        generator = np.random.default_rng(spec.seed)
        self._spec = spec
        self._instruction = spec.instruction
        directions = generator.uniform(0.2, 1.0, (2, 3))
        self._goals = (GOAL_M * directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
        self._goal = 0
        self._dot = np.zeros(3, np.float32)
        self.steps = 0
        self.perturbed_at = None

    def step(self, action: np.ndarray) -> None:
        """Move the dot, then apply what is due."""
        time.sleep(self.config.step_s)
        self._dot = self._dot + np.asarray(action, np.float32)[:3]
        self.steps += 1
        if self.steps == FAULT_STEP:
            self._fault()
        if self.steps == PERTURBED_STEP and self._spec.perturbations:
            self._perturb()

    def _fault(self) -> None:
        if self._spec.variant == "crashes":
            raise EnvError("the dot left its world")
        if self._spec.variant == "hangs":
            time.sleep(3600)
        fault, _, folder = self._spec.variant.partition(":")
        if fault == "dies" and not (note := Path(folder) / self._spec.episode_id).exists():
            note.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def _perturb(self) -> None:
        self.perturbed_at = self.steps
        if "instruction_changed" in self._spec.perturbations:
            self._goal = 1
            self._instruction = "move the dot to the other goal"
        if "object_moved" in self._spec.perturbations:
            self._goals = self._goals + np.float32(0.05)

    def observe(self, spec: PolicySpec) -> Observation:
        """Show the dot and its goal on black; the state is [dot, goal, gripper 0]."""
        images = {camera: self.draw(self.snapshot(), spec.image_size or OWN_SIZE) for camera in spec.cameras}
        state = np.concatenate([self._dot, self._goals[self._goal], [0]]).astype(np.float32)
        return Observation(images, state, self._instruction)

    def progress(self) -> DotProgress:
        """Judge the distance to the current goal."""
        distance = float(np.linalg.norm(self._goals[self._goal] - self._dot))
        whole = float(np.linalg.norm(self._goals[self._goal]))
        success = distance < REACHED_M
        credit = 1.0 if success else max(0.0, 1 - distance / whole)
        return DotProgress(success, credit, ("reached",) if success else ())

    def snapshot(self) -> np.ndarray:
        """Give float32 [6]: the dot and its goal."""
        return np.concatenate([self._dot, self._goals[self._goal]])

    @staticmethod
    def draw(snapshot: np.ndarray, size: int) -> np.ndarray:
        """Draw a snapshot: uint8 [size,size,3], the dot red, the goal green."""
        image = np.zeros((size, size, 3), np.uint8)
        for channel, (x, y) in enumerate((snapshot[0:2], snapshot[3:5])):
            column, row = (np.clip([x, y], -0.2, 0.2) * 2.4 * size + size / 2).astype(int).clip(1, size - 2)
            image[row - 1 : row + 2, column - 1 : column + 2, channel] = 255
        return image

    def render_snapshot(self, snapshot: np.ndarray) -> Mapping[str, DotFrame]:
        """Draw a recorded state as one camera saw it."""
        return {"third_person": DotFrame(self.draw(snapshot, OWN_SIZE))}

    def close(self) -> None:
        """Let go of nothing."""


class DotExpert:
    """Walk straight to the goal, 15 mm a step."""

    def __init__(self, world: DotWorld):
        self._world = world

    def act(self) -> np.ndarray:
        """Give the next action, float32 [7]."""
        dot, goal = np.split(self._world.snapshot(), 2)
        way = goal - dot
        return np.concatenate([0.015 * way / np.linalg.norm(way), np.zeros(4)]).astype(np.float32)


def training_spec(task: str, index: int) -> EpisodeSpec:
    """Give training episode number `index`."""
    return EpisodeSpec("training", task, "default", index, "move the dot to the goal")


def plan(suite: str, tasks: Sequence[str], episodes: int, seed: int) -> list[EpisodeSpec]:
    """Plan episodes of the suites seen, moved_object and changed_instruction, the latter two with their twins.

    Raises:
        ConfigError: the suite is unknown.
    """
    disturbances = {"seen": (), "moved_object": ("object_moved",), "changed_instruction": ("instruction_changed",)}
    if suite not in disturbances:
        raise ConfigError(f"suite {suite!r} is unknown to the dot world; expected one of {', '.join(disturbances)}.")
    arms = {(), disturbances[suite]}
    return [
        EpisodeSpec(suite, task, "default", EVALUATION_SEEDS + seed + index, "move the dot to the goal", arm)
        for task in tasks
        for index in range(episodes)
        for arm in sorted(arms)
    ]
