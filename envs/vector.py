"""Offer the tabletop tasks from privileged state as one natively batched gymnasium environment.

    observation float32 [N,32]   as `TabletopWorld.privileged_state`
    action      float32 [N,D]    in -1..1, spread over the range of the D numbers of the 7-D action that the task needs
    reward      float32 [N]      `reward.py`
    info        success, credit [N]

An episode ends when its task is solved, and is cut when its time is up; the next step of that row then begins a new
one and ignores the action (gymnasium's NEXT_STEP autoreset).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from st4vla.envs import geometry, layout, reward, states, tasks
from st4vla.envs.batch import Moment, make_batch
from st4vla.envs.control import MAX_STEP_M, MAX_TURN_RAD
from st4vla.envs.suites import EVALUATION_SEEDS
from st4vla.platform.errors import ConfigError, EnvError

VECTOR_ENV_ID = "St4vlaTabletopVector-v1"
ACTION_LIMITS = np.array([MAX_STEP_M] * 3 + [MAX_TURN_RAD] * 3, dtype=np.float32)
# The gripper of a task that does not learn it: open to reach, closed to push.
FIXED_GRIPPER: Mapping[str, float] = {"reach": 1.0, "push": 0.0}
MOVED, MOVED_AND_GRASPED = (0, 1, 2), (0, 1, 2, 5, 6)


@dataclass(frozen=True)
class ActionRange:
    """Which numbers of the 7-D action a task learns, and the physical range of all seven.

    Attributes:
        learned: their indices; the others are fixed, with `low` equal to `high`.
        low, high: float32 [7], m, rad and gripper opening.
    """

    learned: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of_task(cls, task: str) -> "ActionRange":
        """Give a task's range: three shifts, and where things are grasped the turn about z and the gripper."""
        learned = MOVED if task in FIXED_GRIPPER else MOVED_AND_GRASPED
        gripper = FIXED_GRIPPER.get(task)
        high = np.zeros(7, dtype=np.float32)
        high[[index for index in learned if index < 6]] = ACTION_LIMITS[[index for index in learned if index < 6]]
        low = -high
        low[6], high[6] = (0.0, 1.0) if gripper is None else (gripper, gripper)
        return cls(learned, low, high)

    def physical(self, actions: np.ndarray) -> np.ndarray:
        """Spread actions [N,D] in -1..1 over the range: float32 [N,7]."""
        whole = np.zeros((len(actions), 7), dtype=np.float32)
        whole[:, self.learned] = np.clip(actions, -1.0, 1.0)
        return self.low + (whole + 1.0) / 2.0 * (self.high - self.low)


@dataclass(frozen=True)
class VectorConfig:
    """What a `TabletopVectorEnv` runs.

    Attributes:
        task: one task for all rows.
        variant: which scenes.
        seed: of the first episodes, where `reset` is given none.
        device: "cpu", or "cuda" for a GPU batch (not yet run).
    """

    task: str = "reach"
    variant: str = "default"
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        if self.task not in layout.TASKS:
            raise ConfigError(f"task is {self.task!r}; choose one of {', '.join(layout.TASKS)}.")
        if self.variant not in layout.VARIANTS:
            raise ConfigError(f"variant is {self.variant!r}; choose one of {', '.join(layout.VARIANTS)}.")
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device is {self.device!r}; choose cpu or cuda.")


class TabletopVectorEnv(VectorEnv):
    """N worlds of one task in one process."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}

    def __init__(self, config: VectorConfig, num_envs: int = 1):
        if num_envs < 1:
            raise ConfigError(f"num_envs is {num_envs}; give at least 1.")
        self.config, self.num_envs = config, num_envs
        self.range = ActionRange.of_task(config.task)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (states.PRIVILEGED_DIM,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (len(self.range.learned),), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._batch = make_batch(config.task, num_envs, config.device)
        self._max_steps = tasks.MAX_STEPS[config.task]  # type: ignore[index]
        self._seeds = np.random.default_rng(config.seed)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._done = np.ones(num_envs, dtype=bool)
        self._potentials = np.zeros(num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every row; `options={"seeds": [N]}` sets the scenes' seeds themselves."""
        if isinstance(seed, int):
            self._seeds = np.random.default_rng(seed)
        self._begin(np.arange(self.num_envs), (options or {}).get("seeds"))
        return self._look()[0], {}

    def _begin(self, rows: np.ndarray, seeds: Any = None) -> None:
        chosen = self._seeds.integers(EVALUATION_SEEDS, size=len(rows)) if seeds is None else seeds
        config = self.config
        self._batch.set_out(rows.tolist(), [layout.draw_scene(config.task, config.variant, int(s)) for s in chosen])
        self._steps[rows], self._done[rows] = 0, False
        situation = self._batch.moment().situation
        self._potentials[rows] = reward.POTENTIALS[config.task](situation)[rows]  # type: ignore[index]

    def _look(self) -> tuple[np.ndarray, tasks.Situation]:
        moment = self._batch.moment()
        time_left = 1.0 - self._steps / self._max_steps
        return privileged_state(self.config.task, moment, time_left), moment.situation

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step the rows that run and begin an episode in those that had ended.

        Raises:
            EnvError: the actions have another shape or are not finite.
        """
        actions = np.asarray(actions, dtype=np.float32)
        if actions.shape != self.action_space.shape or not np.isfinite(actions).all():
            expected = [self.num_envs, len(self.range.learned)]
            raise EnvError(f"The actions are {list(actions.shape)}; expected finite {expected}.")
        fresh, running = np.flatnonzero(self._done), np.flatnonzero(~self._done)
        self._batch.step(self.range.physical(actions), running.tolist())
        if len(fresh):
            self._begin(fresh)
        self._steps[running] += 1
        state, situation = self._look()
        return state, *self._judge(situation, running)

    def _judge(
        self, situation: tasks.Situation, running: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        ran = np.zeros(self.num_envs, dtype=bool)
        ran[running] = True
        outcome = tasks.JUDGES[self.config.task](situation)  # type: ignore[index]
        potentials = reward.POTENTIALS[self.config.task](situation)  # type: ignore[index]
        solved = outcome.success & ran
        paid = np.where(ran, reward.reward(self._potentials, potentials, solved), 0.0).astype(np.float32)
        cut = ran & ~solved & (self._steps >= self._max_steps)
        self._potentials, self._done = potentials, solved | cut
        ended = {"_success": self._done, "_credit": self._done}
        return paid, solved, cut, {"success": solved, "credit": outcome.credit, **ended}

    def close_extras(self, **kwargs: Any) -> None:
        """Give the scenes back."""
        self._batch.close()


def current_target(task: str, situation: tasks.Situation) -> np.ndarray:
    """Say which target comes next: [N] indices, 0 unless the task has three; what is held comes first."""
    if task != "sort_three":
        return np.zeros(len(situation.tcp), dtype=np.int64)
    waiting = ~np.stack([tasks.is_placed(situation, index) for index in range(3)], axis=-1)
    held = tasks.is_held(situation.tcp[:, None], situation.opening[:, None], situation.targets)
    order = 2.0 * (waiting & held) + waiting
    return np.where(waiting.any(-1), order.argmax(-1), 2)


def privileged_state(task: str, moment: Moment, time_left: np.ndarray) -> np.ndarray:
    """Give float32 [N,32] (`states.privileged`); `time_left` [N] is the share of control steps left."""
    situation = moment.situation
    which = current_target(task, situation)
    yaw = geometry.yaws_of(moment.target_turns[np.arange(len(which)), which])
    own = states.proprioception(situation.tcp, moment.tcp_turn, situation.opening)
    return states.privileged(task, situation, which, yaw, own, time_left)  # type: ignore[arg-type]


def make_vector_env(num_envs: int = 1, **settings: Any) -> TabletopVectorEnv:
    """Make the environment from plain settings, those of `VectorConfig`."""
    return TabletopVectorEnv(VectorConfig(**settings), num_envs)


def register() -> None:
    """Let `gymnasium.make_vec(VECTOR_ENV_ID, vectorization_mode="vector_entry_point", task=...)` find it."""
    if VECTOR_ENV_ID not in gymnasium.registry:
        gymnasium.register(VECTOR_ENV_ID, vector_entry_point=make_vector_env)
