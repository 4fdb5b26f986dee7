"""Evaluate a policy: plan, run what has no row yet, summarise, film, report.

`st4vla eval` calls `main`; `evaluate` is the same without Hydra. The plan and the settings decide the run folder's
name, so that the same command goes on where it was stopped and another one never mixes with it.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import ConfigError
from st4vla.workers.actors import (
    InferenceConfig,
    WorkerSetup,
    default_workers,
    rollout_actor_factory,
    start_inference,
)
from st4vla.workers.films import film_chosen
from st4vla.workers.ledger import Ledger, plan_digest
from st4vla.workers.policies import PolicySource
from st4vla.workers.pool import Outcome, Pool, PoolConfig
from st4vla.workers.progress import EpisodeProgress
from st4vla.workers.recordings import save_recording
from st4vla.workers.report import ReportInput, failure_reasons, write_report
from st4vla.workers.rollout import Rollout, RolloutOptions, failed_result, time_budget
from st4vla.workers.summary import INFRASTRUCTURE, Summary, flat_metrics, summarise
from st4vla.workers.worlds import family

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate, and how.

    Attributes:
        policy: who acts.
        world: family of worlds, see `worlds.py`.
        suites, tasks: what is planned; a suite of its own tasks (long_horizon) ignores `tasks`.
        episodes: episodes per suite and task; a disturbed suite adds as many undisturbed twins.
        seed: shifts all scenes; the same seed gives the same episodes on any machine.
        options: how chunks are executed.
        inference, pool, workers: where the policy is computed, how patient the pool is, how many rollout actors.
        run_dir: folder of evaluations; this one gets a folder in it.
        name: that folder's name; "" derives it from the policy, the suites and the digest of plan and settings.
        films: films per suite, first failures and first successes.
    """

    policy: PolicySource
    world: str = "tabletop"
    suites: tuple[str, ...] = ("seen",)
    tasks: tuple[str, ...] = ("reach", "push")
    episodes: int = 20
    seed: int = 0
    options: RolloutOptions = RolloutOptions()
    inference: InferenceConfig = InferenceConfig()
    pool: PoolConfig = PoolConfig()
    workers: int | None = None
    run_dir: str = "runs/eval"
    name: str = ""
    films: int = 4

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"episodes is {self.episodes}; evaluate at least 1 episode per suite and task.")
        if not self.suites or not self.tasks:
            raise ConfigError("suite and tasks need at least one name each, e.g. suite=seen tasks=[reach].")
        if self.films < 0:
            raise ConfigError(f"films is {self.films}; give how many films per suite, 0 for none.")

    def settings(self) -> dict[str, Any]:
        """Give what decides the rows; where and by how many workers they are computed does not."""
        return {
            "policy": self.policy.digest(),
            "world": self.world,
            "suites": list(self.suites),
            "tasks": list(self.tasks),
            "episodes": self.episodes,
            "seed": self.seed,
            "execute": self.options.execute,
        }


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation left behind."""

    folder: Path
    summary: Summary
    rows: Sequence[Mapping[str, Any]] = field(repr=False)
    report: Path


def plan_episodes(config: EvalConfig) -> list[EpisodeSpec]:
    """Plan all suites; an episode planned twice is run once.

    Raises:
        ConfigError: a suite or a task is unknown.
    """
    plan = family(config.world).plan
    specs = [spec for suite in config.suites for spec in plan(suite, config.tasks, config.episodes, config.seed)]
    return list({spec.episode_id: spec for spec in specs}.values())


def run_folder(config: EvalConfig, plan: Sequence[EpisodeSpec]) -> Path:
    """Give the folder of this evaluation."""
    digest = plan_digest(plan, config.settings())
    return Path(config.run_dir) / (config.name or f"{config.policy.short_name}-{'-'.join(config.suites)}-{digest[:8]}")


def evaluate(config: EvalConfig) -> Evaluation:
    """Run an evaluation on the Ray that is connected.

    1. Plan the episodes.
    2. Open the ledger and run what has no row yet.
    3. Summarise the rows.
    4. Film the first failures and successes.
    5. Write the report.
    """
    plan = plan_episodes(config)
    folder = run_folder(config, plan)
    with Ledger(folder / "ledger.jsonl", plan, config.settings()) as ledger, _Workers(config) as workers:
        run_missing(workers, plan, ledger, folder)
        rows = ledger.rows()
        summary = summarise(rows, retries=len(ledger.events))
        films = film_chosen(workers.pool, plan, rows, folder, config.films)
    (folder / "results.json").write_text(json.dumps(summary.plain(), indent=1))
    given = ReportInput(
        f"{config.policy.short_name} on {', '.join(config.suites)}", facts(config, rows), summary, rows, films
    )
    return Evaluation(folder, summary, rows, write_report(folder, given))


class _Workers:
    """The rollout actors of one evaluation, started when first needed: a finished evaluation starts none."""

    def __init__(self, config: EvalConfig):
        self._config = config
        self._pool: Pool[EpisodeSpec] | None = None
        self._inference: list[Any] = []
        self.retried: list[tuple[EpisodeSpec, str]] = []

    def pool(self) -> Pool[EpisodeSpec]:
        if self._pool is None:
            config = self._config
            number = default_workers(config.workers)
            self._inference = start_inference(config.policy, config.inference, number)
            setup = WorkerSetup(
                config.policy,
                config.options,
                config.world,
                config.tasks[0],
                looks=config.films > 0 or config.policy.is_checkpoint,
            )
            make = rollout_actor_factory(setup, number, self._inference, config.inference.batch.timeout_s)
            self._pool = Pool(make, number, config.pool, on_retry=lambda spec, why: self.retried.append((spec, why)))
        return self._pool

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        if self._pool is not None:
            self._pool.close()
        for actor in self._inference:
            ray.kill(actor, no_restart=True)


def run_missing(workers: _Workers, plan: Sequence[EpisodeSpec], ledger: Ledger, folder: Path) -> None:
    """Run the episodes that have no row; each row is on disk before the next outcome is taken."""
    missing = ledger.missing(plan)
    if not missing:
        return
    if len(missing) < len(plan):
        log.info("%s holds %d of %d episodes; running the rest", ledger.path, len(plan) - len(missing), len(plan))
    left = iter(missing)
    with EpisodeProgress("evaluate", len(plan), done=ledger.rows()) as progress:
        for outcome in workers.pool().run(lambda: next(left, None), _submit, infrastructure_reason):
            for spec, reason in workers.retried:
                ledger.event("retry", episode_id=spec.episode_id, reason=reason)
            workers.retried.clear()
            progress.add(_keep(outcome, ledger, folder))


def _submit(actor: Any, spec: EpisodeSpec) -> Any:
    return actor.run.remote(spec)


def infrastructure_reason(rollout: Rollout) -> str:
    """Say why an episode deserves another try, "" if it does not."""
    return rollout.result.reason if rollout.result.failure in INFRASTRUCTURE else ""


def _keep(outcome: Outcome[EpisodeSpec], ledger: Ledger, folder: Path) -> Mapping[str, Any]:
    spec = outcome.item
    rollout = outcome.value or Rollout(failed_result(spec, outcome.failure, outcome.reason), None)
    if rollout.recording is not None:
        save_recording(recording_path(folder, spec.episode_id), rollout.recording)
    return ledger.append(spec, rollout.result)


def recording_path(folder: Path, episode_id: str) -> Path:
    """Say where an episode's recording lies."""
    return folder / "recordings" / f"{episode_id}.npz"


def facts(config: EvalConfig, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give what a reader of the report wants to know about how it came to be."""
    budget = time_budget(rows)
    named = {
        "policy": config.policy.name,
        "policy digest": config.policy.digest(),
        "episodes per suite and task": config.episodes,
        "seed": config.seed,
        "actions executed per look": config.options.execute or "the whole chunk",
        "worker seconds": ", ".join(f"{part} {seconds:.1f}" for part, seconds in budget.items()),
    }
    reasons = failure_reasons(rows)
    return named | ({"reasons": "; ".join(f"{why} ({count})" for why, count in reasons)} if reasons else {})


def main(cfg: Any) -> int:
    """Run `st4vla eval`."""
    from omegaconf import OmegaConf

    from st4vla.platform.tracking import Tracker, TrackingConfig
    from st4vla.workers.cluster import EngineConfig, connect
    from st4vla.workers.tables import print_evaluation

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    config = read_config(settings)
    tracking = TrackingConfig(**settings["tracking"])
    name = f"{config.policy.short_name} {'+'.join(config.suites)}"
    with Tracker.open(tracking, "eval", name, settings["parent_run"]) as tracker:
        tracker.config({key: value for key, value in settings.items() if key != "command"})
        with connect(EngineConfig(**settings["engine"])):
            done = evaluate(config)
        track(tracker, config, done)
    print_evaluation(done)
    return 0


def read_config(settings: Mapping[str, Any]) -> EvalConfig:
    """Make the checked config from composed settings."""
    from st4vla.platform.policy.random_policy import RandomPolicyConfig
    from st4vla.workers.inference import BatchConfig

    random = settings["random"]
    inference = settings["inference"]
    return EvalConfig(
        policy=PolicySource(
            settings["policy_from"], RandomPolicyConfig(**random | {"cameras": tuple(random["cameras"])})
        ),
        world=settings["world"],
        suites=as_names(settings["suite"]),
        tasks=as_names(settings["tasks"]),
        episodes=settings["episodes"],
        seed=settings["seed"],
        options=RolloutOptions(settings["execute"]),
        inference=InferenceConfig(**inference | {"batch": BatchConfig(**inference["batch"])}),
        pool=PoolConfig(**settings["pool"]),
        workers=settings["workers"],
        run_dir=settings["run_dir"],
        name=settings["name"] or "",
        films=settings["films"],
    )


def as_names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Read one name or a list of names."""
    return (value,) if isinstance(value, str) else tuple(value)


def track(tracker: Any, config: EvalConfig, done: Evaluation) -> None:
    """Record the numbers, the report, the films and the ledger."""
    tracker.tags({"policy": config.policy.name, "policy_digest": config.policy.digest()})
    tracker.metrics(flat_metrics(done.summary))
    tracker.metrics({f"time/{part}_s": seconds for part, seconds in time_budget(done.rows).items()})
    for path in (done.report, done.folder / "ledger.jsonl", done.folder / "results.json"):
        tracker.artifact(path)
    for name in ("films", "plots"):
        if (done.folder / name).is_dir():
            tracker.artifact(done.folder / name, name)
