"""Say what one evaluation is: whose policy, on what, executed how, by which workers."""

from dataclasses import dataclass
from typing import Any

from st4vla.platform.errors import ConfigError
from st4vla.platform.policy.embodiment import EmbodimentConfig
from st4vla.workers.results.sequential import StopConfig
from st4vla.workers.rollout.actors import GpuWorkers, InferenceConfig
from st4vla.workers.rollout.episode import RolloutOptions
from st4vla.workers.rollout.execution import plain_preset, refuse_changes, resolve_preset
from st4vla.workers.rollout.policies import PolicySource
from st4vla.workers.rollout.pool import PoolConfig
from st4vla.workers.rollout.watchdog import WatchConfig
from st4vla.workers.rollout.worlds import family, family_of


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate, and how.

    Attributes:
        policy: who acts.
        world: family of worlds, see `rollout/worlds.py`; "" finds the one that has the suites.
        suites, tasks: what is planned; a suite of its own tasks (long_horizon) ignores `tasks`, and none means the
            suite's usual ones.
        variants: variants of the tasks that are planned, by name or by a part of it; none means all.
        episodes: episodes per suite and task, None for the suite's usual number; a disturbed suite adds as many
            undisturbed twins.
        seed: shifts all scenes; the same seed gives the same episodes on any machine.
        options: how chunks are executed; when an episode ends is the family's.
        stop: stop as soon as a sequential test has decided; None runs the whole plan.
        inference, pool, workers: where the policy is computed, how patient the pool is, how many rollout actors.
        gpu_workers: further rollout actors that render on a GPU.
        watch: how long one step, one answer and one reset may take.
        max_worlds: worlds that an actor keeps at once.
        give_up_after: infrastructure failures in a row after which the run stops with an error; 0 for never.
        retry_failed: run episodes again whose row says that infrastructure ended them.
        run_dir: folder of evaluations; this one gets a folder in it.
        name: that folder's name; "" derives it from the policy, the suites and the digest of plan and settings.
        films: films per suite, failures and successes.
    """

    policy: PolicySource
    world: str = ""
    suites: tuple[str, ...] = ("seen",)
    tasks: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    episodes: int | None = None
    seed: int = 0
    options: RolloutOptions = RolloutOptions()
    stop: StopConfig | None = None
    inference: InferenceConfig = InferenceConfig()
    pool: PoolConfig = PoolConfig()
    workers: int | None = None
    gpu_workers: GpuWorkers = GpuWorkers()
    watch: WatchConfig = WatchConfig()
    max_worlds: int = 4
    give_up_after: int = 20
    retry_failed: bool = False
    run_dir: str = "runs/eval"
    name: str = ""
    films: int = 4

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 1:
            raise ConfigError(f"episodes is {self.episodes}; evaluate at least 1 episode per suite and task.")
        if not self.suites:
            raise ConfigError("suite needs at least one name, e.g. suite=seen.")
        if self.films < 0 or self.give_up_after < 0:
            raise ConfigError(f"films is {self.films} and give_up_after {self.give_up_after}; expected 0 or more.")
        if "://" in self.run_dir:
            raise ConfigError(
                f"run_dir is {self.run_dir}; a ledger grows line by line, which object stores cannot do. Name a folder "
                "on local or shared storage."
            )
        if self.max_worlds < 1:
            raise ConfigError(f"max_worlds is {self.max_worlds}; an actor needs at least 1 world.")

    @property
    def family_name(self) -> str:
        """The family of worlds, found by the suites where none is named."""
        return self.world or family_of(self.suites)

    @property
    def statistics(self) -> dict[str, str]:
        """By the name of each robot of the suites, the statistics that a checkpoint acts with; {} for its own.

        Raises:
            PolicyError: the checkpoint has no statistics of a robot.
            ConfigError: the key that was chosen is none of its.
        """
        robots = [family(self.family_name).robot_of(suite) for suite in self.suites]
        return self.policy.statistics_keys(dict.fromkeys(robots), self.inference.statistics_key)

    def presets(self) -> dict[str, EmbodimentConfig]:
        """Give how the chunks of each of the suites' robots are carried out; {} where they take actions as they are.

        Raises:
            ConfigError: a change of a preset is not possible, or of no use to any of the robots.
        """
        worlds, changes = family(self.family_name), self.options.preset
        robots = dict.fromkeys(robot for suite in self.suites if (robot := worlds.robot_of(suite)))
        if not robots:
            refuse_changes(changes)
        found = {robot: resolve_preset(robot, self.options.execute, changes) for robot in robots}
        if changes.sticky_steps is not None and all(one.gripper != "close_relative" for one in found.values()):
            raise ConfigError(
                f"execution.sticky_steps is {changes.sticky_steps}, but the gripper of {', '.join(found)} is told its "
                "opening, which is never repeated; leave it out."
            )
        return found

    def settings(self) -> dict[str, Any]:
        """Give what decides the rows; where and by how many workers they are computed does not."""
        told = {
            "statistics": self.statistics,
            "dtype": "" if self.inference.dtype == "float32" else self.inference.dtype,
            "variants": list(self.variants),
            "execution": {robot: plain_preset(config) for robot, config in self.presets().items()},
        }
        return {
            "policy": self.policy.digest(),
            "world": self.family_name,
            "suites": list(self.suites),
            "tasks": list(self.tasks),
            "episodes": self.episodes,
            "seed": self.seed,
            "execute": self.options.execute,
            "latency": self.options.latency,
            **{name: value for name, value in told.items() if value},
        }
