"""Collect expert demonstrations in parallel into a LeRobot dataset, and go on where a killed run stopped.

Rollout actors run experts and render what succeeded; this process is the single writer. `st4vla collect` calls
`main`; `collect` is the same without Hydra.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterConfig
from st4vla.platform.errors import ConfigError, DataError
from st4vla.platform.machine import prepare_process
from st4vla.workers.cluster import cpus_per_actor
from st4vla.workers.evaluation.ledger import Ledger
from st4vla.workers.results.intervals import Rate, wilson
from st4vla.workers.results.summary import INFRASTRUCTURE
from st4vla.workers.rollout.actors import default_workers
from st4vla.workers.rollout.demonstrate import Demonstration, NoiseConfig, Quota, demonstrate
from st4vla.workers.rollout.episode import failed_result, time_budget
from st4vla.workers.rollout.inference import LocalClient, PolicyClient
from st4vla.workers.rollout.pilot import Pilot
from st4vla.workers.rollout.policies import EXPERT, PolicySource
from st4vla.workers.rollout.pool import Outcome, Pool, PoolConfig
from st4vla.workers.rollout.progress import EpisodeProgress
from st4vla.workers.rollout.worlds import family, warm_up

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectConfig:
    """What to collect, and how.

    Attributes:
        world: family of worlds, see `rollout/worlds.py`.
        policy: who demonstrates: the scripted expert, or a policy, whose successes are kept.
        execute: actions of a policy's chunk executed before it looks again; None for the whole chunk.
        tasks: what is done.
        episodes: successful episodes per task; a larger number continues a smaller one.
        first: index of the first training scene of each task; another dataset of the same task starts elsewhere.
        noise: what is added to executed actions.
        linger: control steps a demonstration goes on after its first success, to show how to stay there.
        formats: LeRobot versions; with more than one, each gets a sub-folder of its name.
        out: the dataset's folder.
        workers, pool: how many rollout actors, and how patient the pool is.
    """

    policy: PolicySource = PolicySource(EXPERT)
    execute: int | None = None
    world: str = "tabletop"
    tasks: tuple[str, ...] = ("reach", "push")
    episodes: int = 100
    first: int = 0
    noise: NoiseConfig = NoiseConfig()
    linger: int = 3
    formats: tuple[str, ...] = ("v3.0",)
    out: str = "runs/collect/dataset"
    workers: int | None = None
    pool: PoolConfig = PoolConfig()

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.first < 0:
            raise ConfigError(
                f"episodes is {self.episodes} and first is {self.first}; expected at least 1 and 0 or more."
            )
        if self.linger < 0:
            raise ConfigError(f"linger is {self.linger}; give 0 or more control steps.")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ConfigError(f"tasks is {list(self.tasks)}; name at least one task, each once.")

    def settings(self) -> dict[str, Any]:
        """Give what decides an attempt's outcome; how many are wanted and who computes them does not."""
        demonstrator = {} if self.policy.is_expert else {"policy": self.policy.digest(), "execute": self.execute}
        return demonstrator | {
            "world": self.world,
            "tasks": list(self.tasks),
            "first": self.first,
            "noise": asdict(self.noise),
            "linger": self.linger,
            "formats": list(self.formats),
        }


@dataclass(frozen=True)
class Collection:
    """What a collection left behind.

    Attributes:
        folders: the dataset's folder by LeRobot version.
        kept: episodes in the dataset.
        frames: control steps in it, by the ledger.
        experts: success of the expert by task, over all attempts.
        new_episodes, seconds: what this run added and how long it took from the first attempt on.
        rows: the ledger's rows.
    """

    folders: dict[str, Path]
    kept: int
    frames: int
    experts: dict[str, Rate]
    new_episodes: int
    seconds: float
    rows: Sequence[Mapping[str, Any]] = field(repr=False)

    @property
    def rate(self) -> float:
        """Successful episodes per second of this run."""
        return self.new_episodes / self.seconds if self.seconds else 0.0


class CollectActor:
    """Demonstrate in this process, one attempt at a time, in one pooled world; `demonstrate` behind Ray.

    The pool owns it and replaces it when it dies; the attempt it was at is tried again.
    """

    def __init__(self, config: CollectConfig):
        prepare_process()
        self._config = config
        self._world: Any = None
        self._client: PolicyClient | None = None

    def ready(self) -> bool:
        """Build the world and its renderer, so that no attempt pays for them."""
        worlds = family(self._config.world)
        self._world = worlds.make_world("")
        warm_up(self._world, worlds.training(self._config.tasks[0], 0), pictures=True)
        if not self._config.policy.is_expert:
            self._client = LocalClient(self._config.policy.load())
        return True

    def run(self, spec: EpisodeSpec) -> Demonstration:
        """Try one episode; a crash becomes its result, and the world is built again."""
        worlds = family(self._config.world)
        try:
            if self._world is None:
                self._world = worlds.make_world("")
            config, client = self._config, self._client
            make = (
                worlds.expert() if client is None else partial(Pilot, client=client, spec=spec, execute=config.execute)
            )
            return demonstrate(self._world, make, spec, config.noise, worlds.control_hz, config.linger)
        except Exception as error:  # isolation boundary: one crashed attempt must not end the others
            log.exception("attempt %s of %s crashed", spec.episode_id, spec.task)
            self._world = None
            return Demonstration(failed_result(spec, "crash", f"{type(error).__name__}: {error}"), None)


def collect(config: CollectConfig) -> Collection:
    """Collect on the Ray that is connected.

    1. Open the ledger and the dataset, and count what they hold.
    2. Let the actors try the next training scenes until every task has its successes.
    3. Write each success to the dataset, then its row to the ledger, in the order of the scenes.

    Raises:
        ConfigError: who shall demonstrate cannot act in these worlds.
        EnvError: they know no such task.
    """
    worlds = family(config.world)
    worlds.check_policy(config.policy)
    for task in config.tasks:  # before the ledger is opened, whose header would keep a mistyped task
        worlds.training(task, config.first)
    out = Path(config.out)
    writer = LeRobotWriter(out, WriterConfig(formats=config.formats))
    with writer, Ledger(out / "collect.jsonl", None, config.settings()) as ledger:
        check_resume(writer.spec_ids, ledger.rows(), out)
        before = writer.num_episodes
        seconds = _fill_quota(config, writer, ledger)
        rows = ledger.rows()
        won = [row for row in rows if row["success"]]
        return Collection(
            folders=writer.folders(),
            kept=writer.num_episodes,
            frames=sum(row["steps"] for row in won),
            experts={task: _expert_rate(rows, task) for task in config.tasks},
            new_episodes=writer.num_episodes - before,
            seconds=seconds,
            rows=rows,
        )


def check_resume(spec_ids: frozenset[str], rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Refuse to go on if the ledger says that episodes were written which the dataset does not hold.

    Raises:
        DataError: so it is.
    """
    lost = [row["episode_id"] for row in rows if row["success"] and row["episode_id"] not in spec_ids]
    if lost:
        raise DataError(
            f"{out / 'collect.jsonl'} says that {len(lost)} episodes were written which the dataset does not hold "
            f"(the first is {lost[0]}); restore the dataset, or delete {out} and collect again."
        )


def _expert_rate(rows: Sequence[Mapping[str, Any]], task: str) -> Rate:
    scored = [row for row in rows if row["task"] == task and row["failure"] not in INFRASTRUCTURE]
    return wilson(sum(row["success"] for row in scored), len(scored))


class _Resumed:
    """A quota that answers from what a former run left before it hands out new specs."""

    def __init__(self, quota: Quota, writer: LeRobotWriter, ledger: Ledger):
        self.quota = quota
        self._kept = writer.spec_ids
        self._rows = ledger.rows_by_id

    def next_spec(self) -> EpisodeSpec | None:
        while (spec := self.quota.next_spec()) is not None:
            row = self._rows.get(spec.episode_id)
            if row is None and spec.episode_id not in self._kept:
                return spec
            self.quota.finish(spec, spec.episode_id in self._kept, None)
        return None


def _fill_quota(config: CollectConfig, writer: LeRobotWriter, ledger: Ledger) -> float:
    """Run attempts until every task has its successes and give the seconds from the first attempt to the last row.

    The pool starts only if something is missing.
    """
    specs = family(config.world).training
    quota = Quota(lambda task, index: specs(task, config.first + index), config.tasks, config.episodes)
    source = _Resumed(quota, writer, ledger)
    first = source.next_spec()
    if first is None:
        return 0.0
    head, started = [first], 0.0

    def next_spec(_: int) -> EpisodeSpec | None:
        nonlocal started
        started = started or time.perf_counter()
        return head.pop() if head else source.next_spec()

    number = default_workers(config.workers)
    retried: list[tuple[EpisodeSpec, str]] = []
    pool: Pool[EpisodeSpec] = Pool(
        _actor_factory(config, number),
        number,
        config.pool,
        on_retry=lambda spec, why: retried.append((spec, why)),
        spent=lambda demonstration: demonstration.result.failure == "crash",
    )
    done = [row for row in ledger.rows() if row["success"]]
    try:
        with EpisodeProgress("collect", config.episodes * len(config.tasks), done) as progress:
            for outcome in pool.run(next_spec, _submit, _retry_reason):
                demonstration = _of(outcome)
                quota.finish(outcome.item, demonstration.result.success, (outcome.item, demonstration))
                _write(quota.release(), writer, ledger)
                for spec, reason in retried:
                    ledger.event("retry", episode_id=spec.episode_id, reason=reason)
                retried.clear()
                if demonstration.result.success:
                    progress.add({"success": True})
    finally:
        pool.close()
    return time.perf_counter() - started


def _actor_factory(config: CollectConfig, number: int) -> Any:
    import ray

    actor = ray.remote(num_cpus=cpus_per_actor(number), max_restarts=0)(CollectActor)
    return lambda index: actor.remote(config)


def _submit(actor: Any, spec: EpisodeSpec) -> Any:
    return actor.run.remote(spec)


def _retry_reason(demonstration: Demonstration) -> str:
    return demonstration.result.reason if demonstration.result.failure in INFRASTRUCTURE else ""


def _of(outcome: Outcome[EpisodeSpec]) -> Demonstration:
    if outcome.value is not None:
        return outcome.value
    return Demonstration(failed_result(outcome.item, outcome.failure, outcome.reason), None)


def _write(finished: Sequence[tuple[EpisodeSpec, Demonstration] | None], writer: LeRobotWriter, ledger: Ledger) -> None:
    """Write episodes before their rows: a kill between the two leaves an episode that the next run finds."""
    for entry in finished:
        if entry is None:
            continue
        spec, demonstration = entry
        if demonstration.episode is not None:
            writer.add(demonstration.episode)
        ledger.append(spec, demonstration.result)


def main(cfg: Any) -> int:
    """Run `st4vla collect`."""
    from omegaconf import OmegaConf

    from st4vla.platform.tracking import Tracker, TrackingConfig
    from st4vla.workers.cluster import EngineConfig, connect
    from st4vla.workers.results.tables import print_collection

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    config = read_config(settings)
    tracking = TrackingConfig(**settings["tracking"])
    with Tracker.open(tracking, "collect", "+".join(config.tasks), settings["parent_run"]) as tracker:
        tracker.config({key: value for key, value in settings.items() if key != "command"})
        with connect(EngineConfig(**settings["engine"])):
            done = collect(config)
        track(tracker, done)
    print_collection(done)
    return 0


def read_config(settings: Mapping[str, Any]) -> CollectConfig:
    """Make the checked config from composed settings."""
    tasks = settings["tasks"]
    return CollectConfig(
        policy=PolicySource(settings["policy_from"]),
        execute=settings["execute"],
        world=settings["world"],
        tasks=(tasks,) if isinstance(tasks, str) else tuple(tasks),
        episodes=settings["episodes"],
        first=settings["first"],
        noise=NoiseConfig(**settings["noise"]),
        linger=settings["linger"],
        formats=tuple(settings["formats"]),
        out=settings["out"],
        workers=settings["workers"],
        pool=PoolConfig(**settings["pool"]),
    )


def track(tracker: Any, done: Collection) -> None:
    """Record the numbers, the ledger, and the dataset by its digest."""
    from st4vla.platform.data.lerobot_reader import open_dataset

    metrics = {"episodes": done.kept, "frames": done.frames, "episodes_per_s": done.rate, "seconds": done.seconds}
    metrics |= {f"expert/{task}": rate.value for task, rate in done.experts.items() if rate.total}
    tracker.metrics(metrics | {f"time/{part}_s": value for part, value in time_budget(done.rows).items()})
    for version, folder in done.folders.items():
        tracker.dataset(f"{folder.name} {version}", open_dataset(folder).digest, str(folder.resolve()), "collected")
