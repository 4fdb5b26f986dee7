"""Reinforce: learn a task from privileged state with PPO, and keep the actor as a policy that eval and collect take.

    runs/rl/NAME/learner/      RLlib's own checkpoint, for going on
    runs/rl/NAME/progress.json settings, steps, seconds and the last numbers
    runs/rl/NAME/checkpoint/   the policy folder, kind state_mlp

`st4vla rl` calls `main`; run again, the same command goes on where it stopped, and a finished one is only evaluated.
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from st4vla.envs.vector import VectorConfig
from st4vla.platform.data.disk import write_file
from st4vla.platform.errors import ConfigError, EnvError
from st4vla.platform.machine import program
from st4vla.platform.policy.folder import Lineage, replace_folder
from st4vla.platform.policy.state_policy import load_state_policy, save_state_policy
from st4vla.platform.tracking import Tracker, TrackingConfig
from st4vla.workers.reinforcement.algorithm import Iteration, PpoConfig, build_algorithm, cpu_seconds
from st4vla.workers.results.intervals import Rate, wilson
from st4vla.workers.rollout.progress import counting_bar

log = logging.getLogger(__name__)
EPISODES_JUDGED = 100  # so many of the last training episodes say how good the policy is


@dataclass(frozen=True)
class RlConfig:
    """What to learn and for how long.

    Attributes:
        env: task, scenes and seed.
        ppo: how.
        steps: budget of control steps.
        minutes: stop earlier, after so many of sampling and learning; None never.
        stop_at: stop earlier, once this share of the last 100 training episodes was solved; None never.
        save_every: iterations between two saves.
        episodes: of the closing evaluation, suite "seen"; 0 for none.
        run_dir: folder of such runs; this one gets a folder in it.
        name: that folder's name; "" derives it from task and seed.
    """

    env: VectorConfig
    ppo: PpoConfig = PpoConfig()
    steps: int = 60_000
    minutes: float | None = None
    stop_at: float | None = None
    save_every: int = 10
    episodes: int = 100
    run_dir: str = "runs/rl"
    name: str = ""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.save_every < 1:
            raise ConfigError(f"steps is {self.steps} and save_every {self.save_every}; give at least 1 of each.")
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"minutes is {self.minutes}; give more than 0, or null for no limit.")
        if self.stop_at is not None and not 0.0 < self.stop_at <= 1.0:
            raise ConfigError(f"stop_at is {self.stop_at}; give a share of episodes in 0..1, or null.")
        if self.episodes < 0:
            raise ConfigError(f"episodes is {self.episodes}; evaluate 0 or more.")

    @property
    def folder(self) -> Path:
        """This run's own folder."""
        return Path(self.run_dir) / (self.name or f"{self.env.task}-seed{self.env.seed}")

    def settings(self) -> dict[str, Any]:
        """Give what must be the same for a run to be gone on with; a larger budget may follow a smaller one."""
        return json.loads(json.dumps({"env": asdict(self.env), "ppo": asdict(self.ppo)}))


@dataclass
class Standing:
    """How far a run has come; kept on disk beside RLlib's checkpoint.

    Attributes:
        steps, iterations: so far.
        rounds: of the last iterations, episodes and how many of them were solved; just enough to judge by.
        wall_s, cpu_s: spent on sampling and learning so far, over all processes; starting up is not counted.
        success: share of those episodes solved, exploration included.
        episode_return: mean return of the last iteration's.
    """

    steps: int = 0
    iterations: int = 0
    rounds: list[list[int]] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    success: float = 0.0
    episode_return: float = 0.0

    def add(self, now: Iteration, wall_s: float, cpu_s: float) -> None:
        """Count one iteration."""
        self.iterations += 1
        self.steps, self.wall_s, self.cpu_s = now.steps, self.wall_s + wall_s, self.cpu_s + cpu_s
        self.rounds.append([now.episodes, now.solved])
        while self.episodes - self.rounds[0][0] >= EPISODES_JUDGED:
            self.rounds.pop(0)
        self.success = sum(solved for _, solved in self.rounds) / max(self.episodes, 1)
        self.episode_return = now.episode_return

    @property
    def episodes(self) -> int:
        """How many training episodes `success` is the share of: 100 or a few more, once there are so many."""
        return sum(episodes for episodes, _ in self.rounds)


@dataclass(frozen=True)
class Learned:
    """What a run left behind: its folder, the policy's, how it came there, and the closing evaluation."""

    folder: Path
    checkpoint: Path
    standing: Standing
    evaluated: Rate


def reinforce(config: RlConfig, tracker: Tracker) -> Learned:
    """Run reinforcement on the Ray that is connected.

    1. Read how far an earlier run of the same command came.
    2. Sample and learn on from there until it is `over`, and keep the actor as a policy folder.
    3. Evaluate it in the worlds that eval uses.
    """
    standing = read_standing(config)
    checkpoint = config.folder / "checkpoint"
    if not over(config, standing):
        learn(config, standing, tracker)
    rate = evaluate_policy(checkpoint, config)
    log.info("%s: %s of %d episodes", config.env.task, rate, rate.total)
    return Learned(config.folder, checkpoint, standing, rate)


def over(config: RlConfig, standing: Standing) -> bool:
    """Tell whether a run has used up its steps or its minutes, or solves the share of episodes that is asked for."""
    judged = standing.episodes >= EPISODES_JUDGED
    good = config.stop_at is not None and judged and standing.success >= config.stop_at
    late = config.minutes is not None and standing.wall_s >= 60 * config.minutes
    return standing.steps >= config.steps or (good or late) and standing.iterations > 0


def read_standing(config: RlConfig) -> Standing:
    """Read how far this run has come.

    Raises:
        ConfigError: the folder holds a run of other settings.
    """
    path = config.folder / "progress.json"
    if not path.is_file():
        return Standing()
    kept = json.loads(path.read_text())
    if kept["settings"] != config.settings():
        earlier = _flat(kept["settings"])
        differing = [key for key, value in _flat(config.settings()).items() if earlier.get(key) != value]
        raise ConfigError(
            f"{config.folder} holds a run that differs in {', '.join(differing)}; give this one a name=, another "
            "seed=, or delete that folder."
        )
    return Standing(**kept["standing"])


def _flat(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{group}.{key}": value for group, values in settings.items() for key, value in values.items()}


def learn(config: RlConfig, standing: Standing, tracker: Tracker) -> None:
    """Sample and learn until it is `over`; the last state is saved then, and every so many iterations before."""
    # A run that goes on draws other scenes than those it began with.
    seed = config.env.seed + standing.steps
    algorithm = build_algorithm(config.ppo, config.env, config.steps, config.folder.name, seed)
    try:
        if standing.iterations:
            algorithm.restore_from_path(str((config.folder / "learner").resolve()))
        with LearningProgress(config, standing) as bar:
            while not over(config, standing):
                now = _iterate(algorithm, standing)
                bar.show(standing)
                tracker.metrics(metrics_of(now, standing), step=now.steps)
                if standing.iterations % config.save_every == 0:
                    save(config, algorithm, standing, tracker)
        save(config, algorithm, standing, tracker)
    finally:
        algorithm.stop()


def _iterate(algorithm: Any, standing: Standing) -> Iteration:
    wall, cpu = time.perf_counter(), cpu_seconds(algorithm)
    now = Iteration.of_result(algorithm.train())
    standing.add(now, time.perf_counter() - wall, cpu_seconds(algorithm) - cpu)
    return now


def metrics_of(now: Iteration, standing: Standing) -> dict[str, float]:
    """Give what is tracked of one iteration; means over no episode yet are left out."""
    values = {
        "train/success": standing.success,
        "train/return": now.episode_return,
        "train/episode_steps": now.episode_steps,
        "speed/steps_per_s": standing.steps / max(standing.wall_s, 1e-9),
        "speed/cpu_ms_per_step": 1000.0 * standing.cpu_s / max(standing.steps, 1),
    }
    values |= {f"learner/{name}": value for name, value in now.learner.items()}
    return {name: value for name, value in values.items() if value == value}


def save(config: RlConfig, algorithm: Any, standing: Standing, tracker: Tracker) -> None:
    """Write RLlib's state, the policy folder and, last, the standing that refers to them."""
    folder, fresh = config.folder.resolve(), config.folder.resolve() / "learner.new"
    shutil.rmtree(fresh, ignore_errors=True)
    algorithm.save_to_path(str(fresh))
    replace_folder(fresh, folder / "learner")
    notes = {"task": config.env.task, "seed": config.env.seed, **asdict(standing)}
    lineage = Lineage(mlflow_run=tracker.run_id, notes=notes)
    save_state_policy(folder / "checkpoint", algorithm.get_module().actor, lineage)
    text = json.dumps({"settings": config.settings(), "standing": asdict(standing)}, indent=1)
    write_file(folder / "progress.json", text.encode())


class LearningProgress:
    """A progress bar over control steps that also says the share of solved episodes and the speed."""

    def __init__(self, config: RlConfig, standing: Standing):
        self._bar = counting_bar()
        self._task = self._bar.add_task(f"rl {config.env.task}", total=config.steps, completed=standing.steps, rate="")

    def show(self, standing: Standing) -> None:
        """Show how far it has come."""
        solved = f"{100 * standing.success:.0f} % solved, return {standing.episode_return:.1f}"
        rate = f"{solved}, {standing.steps / standing.wall_s:.0f} steps/s"
        self._bar.update(self._task, completed=standing.steps, rate=rate)

    def __enter__(self) -> "LearningProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def evaluate_policy(checkpoint: Path, config: RlConfig) -> Rate:
    """Run the saved policy, without exploration, over the "seen" suite in this process: success with its interval.

    Raises:
        EnvError: an episode ended by anything but success or the time.
    """
    from st4vla.workers.rollout.episode import RolloutOptions
    from st4vla.workers.rollout.inference import LocalClient
    from st4vla.workers.rollout.pooled import RolloutWorker
    from st4vla.workers.rollout.worlds import family

    tabletop = family("tabletop")
    policy = load_state_policy(checkpoint)
    worker = RolloutWorker(
        lambda key: tabletop.make_world(config.env.task), lambda world: LocalClient(policy), RolloutOptions()
    )
    plan = tabletop.plan("seen", [config.env.task], config.episodes, 0) if config.episodes else []
    results = [worker.run(spec).result for spec in plan]
    worker.close()
    broken = [result for result in results if result.failure not in ("", "task")]
    if broken:
        raise EnvError(f"{len(broken)} evaluation episodes broke off; the first: {broken[0].reason}")
    return wilson(sum(result.success for result in results), len(results))


def main(cfg: Any) -> int:
    """Run `st4vla rl`."""
    from omegaconf import OmegaConf

    from st4vla.workers.cluster import EngineConfig, connect

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    config = read_config(settings)
    with Tracker.open(TrackingConfig(**settings["tracking"]), "rl", config.folder.name) as tracker:
        tracker.config({key: value for key, value in settings.items() if key != "command"})
        with connect(EngineConfig(**settings["engine"])):
            learned = reinforce(config, tracker)
        track(tracker, config, learned)
    print_learned(config, learned)
    return 0


def read_config(settings: Mapping[str, Any]) -> RlConfig:
    """Make the checked config from composed settings; a task's own entry stands over the common `ppo`.

    Raises:
        ConfigError: the task has no budget, neither its own nor given.
    """
    env = VectorConfig(settings["task"], settings["variant"], settings["seed"], settings["device"])
    own = settings["tasks"].get(env.task, {})
    if not (steps := settings["steps"] or own.get("steps")):
        raise ConfigError(
            f"task is {env.task!r}, for which configs/rl.yaml has no budget under tasks; give it one there, or steps=N."
        )
    ppo: dict[str, Any] = {**settings["ppo"], **own.get("ppo", {})}
    ppo["hidden"] = tuple(ppo["hidden"])
    return RlConfig(
        env=env,
        ppo=PpoConfig(**ppo),
        steps=steps,
        minutes=settings["minutes"],
        stop_at=settings["stop_at"],
        save_every=settings["save_every"],
        episodes=settings["episodes"],
        run_dir=settings["run_dir"],
        name=settings["name"] or "",
    )


def track(tracker: Tracker, config: RlConfig, learned: Learned) -> None:
    """Record the closing evaluation and register the policy."""
    rate, standing = learned.evaluated, learned.standing
    if rate.total:
        tracker.metrics({"eval/success": rate.value, "eval/success_low": rate.low, "eval/success_high": rate.high})
    tracker.metrics({"time/wall_s": standing.wall_s, "time/cpu_s": standing.cpu_s, "time/steps": standing.steps})
    tracker.artifact(learned.folder / "progress.json")
    tracker.register(learned.checkpoint, f"rl-{config.env.task}", {"task": config.env.task, "steps": standing.steps})


def print_learned(config: RlConfig, learned: Learned) -> None:
    """Print what was reached, at what price, and what to do next."""
    from rich.console import Console
    from rich.table import Table

    standing = learned.standing
    table = Table(title=f"Reinforced: {config.env.task}")
    for column in ("success (95 %)", "episodes", "control steps", "wall s", "CPU s"):
        table.add_column(column, justify="right")
    row = [str(learned.evaluated), f"{learned.evaluated.total}", f"{standing.steps}"]
    table.add_row(*row, f"{standing.wall_s:.0f}", f"{standing.cpu_s:.0f}")
    console = Console()
    console.print(table)
    console.print(f"policy: {learned.checkpoint}", soft_wrap=True)
    again = f"{program('st4vla')} eval {learned.checkpoint} tasks=[{config.env.task}]"
    console.print(f"next:   {again}", soft_wrap=True, markup=False)
