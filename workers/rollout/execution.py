"""Turn a policy's chunks into the actions a world executes, one a control step.

An executor is the piece between the two: it is told of each chunk, gives one action a step, says when it wants the
next chunk, and what the robot does while it waits. `ChunkExecutor` runs a chunk as it is; a world that names an
embodiment, whose controller needs more (ensembling, a sticky gripper, another sign), gets the executor of that name:
a packaged preset with what a command changes of it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from st4vla.platform.contracts import PolicySpec, RotationForm
from st4vla.platform.errors import ConfigError
from st4vla.platform.policy.embodiment import EmbodimentConfig
from st4vla.platform.policy.execution import Execution
from st4vla.platform.policy.rotation import as_rotation_vector


class Executor(Protocol):
    """What stands between chunks and control steps, for one episode at a time."""

    def reset(self) -> None: ...

    def forget_chunks(self) -> None:
        """Drop what is left of the chunks, as something else is asked for now."""
        ...

    def must_look(self) -> bool:
        """Say whether the policy has to look before the next action."""
        ...

    def take(self, actions: np.ndarray) -> None:
        """Take a chunk, float32 [T,A], for the step that comes next."""
        ...

    def next_action(self) -> np.ndarray:
        """Give the action of this step, as the world's `step` takes it."""
        ...

    def hold_action(self) -> np.ndarray:
        """Give the action of a step in which the policy's answer is still awaited."""
        ...


class ChunkExecutor:
    """Execute the first `execute` actions of each chunk, all of them if it is None; `hold` gives the hold action.

    Rotations in another form than the contracts' are turned into rotation vectors, all else is left as it is.
    """

    def __init__(
        self,
        hold: Callable[[], np.ndarray],
        execute: int | None = None,
        rotation_form: RotationForm = "rotation_vector",
    ):
        self.hold_action = hold
        self._execute = execute
        self._rotation_form: RotationForm = rotation_form
        self.reset()

    def reset(self) -> None:
        """Forget the last episode's chunk."""
        self._actions = np.zeros((0, 0), np.float32)
        self._cursor = 0

    forget_chunks = reset

    def must_look(self) -> bool:
        """Say whether the part of the chunk that is executed is used up."""
        return self._cursor >= len(self._actions)

    def take(self, actions: np.ndarray) -> None:
        """Go on with another chunk."""
        self._actions, self._cursor = actions[: self._execute], 0

    def next_action(self) -> np.ndarray:
        """Give the chunk's next action."""
        action = self._actions[self._cursor]
        self._cursor += 1
        return np.asarray(as_rotation_vector(action, self._rotation_form), np.float32)


@dataclass(frozen=True)
class PresetChanges:
    """What a command changes of its robots' presets (`configs/execution/`); None leaves what the preset says.

    Attributes:
        ensemble_horizon: newest chunks that are merged at every step; 1 merges nothing.
        ensemble_alpha: how much less a prediction unlike the newest counts.
        sticky_steps: steps for which a change of a relative gripper is repeated.
    """

    ensemble_horizon: int | None = None
    ensemble_alpha: float | None = None
    sticky_steps: int | None = None


NO_CHANGES = PresetChanges()
EMBODIMENTS = ("google_robot", "widowx")


def make_executor(
    embodiment: str,
    hold: Callable[[], np.ndarray],
    spec: PolicySpec,
    execute: int | None = None,
    changes: PresetChanges = NO_CHANGES,
) -> Executor:
    """Make the executor of an embodiment; "" takes a policy's actions as they are.

    Raises:
        ConfigError: nobody has said how that robot is driven, or a change of its preset is of no use to it.
    """
    if embodiment:
        return Execution(resolve_preset(embodiment, execute, changes), spec.rotation_form)
    refuse_changes(changes)
    return ChunkExecutor(hold, execute, spec.rotation_form)


def resolve_preset(
    embodiment: str, execute: int | None = None, changes: PresetChanges = NO_CHANGES
) -> EmbodimentConfig:
    """Give how a robot's chunks are carried out: its packaged preset, and what is asked for instead.

    Raises:
        ConfigError: the robot is unknown, or the result is not possible.
    """
    if embodiment not in EMBODIMENTS:
        raise ConfigError(
            f"The world's robot is {embodiment!r}, and nothing says how chunks drive it; add it to EMBODIMENTS in "
            "workers/rollout/execution.py."
        )
    asked = {"execute": execute, **asdict(changes)}
    return replace(EmbodimentConfig.preset(embodiment), **{k: v for k, v in asked.items() if v is not None})


def refuse_changes(changes: PresetChanges) -> None:
    """Refuse changes of a preset where robots have none.

    Raises:
        ConfigError: something was asked for.
    """
    if changes != NO_CHANGES:
        raise ConfigError(
            f"execution is {asdict(changes)}, but these robots take actions as they are, without a preset to change; "
            "leave it out."
        )


def plain_preset(config: EmbodimentConfig) -> dict[str, Any]:
    """Give what of a preset decides an episode."""
    return {key: value for key, value in asdict(config).items() if key not in ("name", "statistics_keys")}


def describe_preset(config: EmbodimentConfig) -> str:
    """Say in words how chunks are carried out, e.g. "1 action a look, 7 chunks merged (alpha 0.1)"."""
    executed = "the whole chunk" if config.execute is None else f"{config.execute} of each chunk's actions"
    merged = "the newest chunk alone"
    if config.ensemble_horizon > 1:
        merged = f"up to {config.ensemble_horizon} chunks merged (alpha {config.ensemble_alpha:g})"
    sticky = f", a change of the gripper told for {config.sticky_steps} steps"
    return f"{executed} a look, {merged}" + (sticky if config.gripper == "close_relative" else "")
