"""Run `st4vla eval`: read the composed settings, evaluate, record, print."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError
from st4vla.platform.policy.settings import build_config
from st4vla.workers.evaluation.evaluate import Evaluation, evaluate
from st4vla.workers.evaluation.settings import EvalConfig
from st4vla.workers.results.sequential import StopConfig
from st4vla.workers.results.summary import flat_metrics
from st4vla.workers.rollout.actors import GpuWorkers, InferenceConfig
from st4vla.workers.rollout.episode import RolloutOptions, time_budget
from st4vla.workers.rollout.execution import PresetChanges
from st4vla.workers.rollout.inference import BatchConfig
from st4vla.workers.rollout.policies import REMOTE, PolicySource
from st4vla.workers.rollout.pool import PoolConfig
from st4vla.workers.rollout.watchdog import WatchConfig


def main(cfg: Any) -> int:
    """Run the command."""
    from omegaconf import OmegaConf

    from st4vla.platform.tracking import Tracker, TrackingConfig
    from st4vla.workers.cluster import EngineConfig, connect
    from st4vla.workers.results.tables import print_evaluation

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    if settings["dataset"]:
        return score_recordings(settings)
    tracking = TrackingConfig(**settings["tracking"])
    config = read_config(settings)
    name = f"{config.policy.short_name} {'+'.join(config.suites)}"
    with Tracker.open(tracking, "eval", name, settings["parent_run"]) as tracker:
        tracker.config({key: value for key, value in settings.items() if key != "command"})
        with connect(EngineConfig(**settings["engine"])):
            done = evaluate(config)
        track(tracker, config, done)
    print_evaluation(done)
    return 0


def score_recordings(settings: Mapping[str, Any]) -> int:
    """Score the policy open loop on a dataset."""
    from st4vla.platform.data.address import title_of
    from st4vla.platform.data.remote import pinned
    from st4vla.platform.tracking import Tracker, TrackingConfig
    from st4vla.workers.evaluation.open_loop import OpenLoopConfig, print_result, run

    policy = read_policy(settings)
    path = pinned(settings["dataset"], settings["downloads"])
    options = {**settings["open_loop"], "downloads": settings["downloads"]}
    asked = {name: value for name, value in settings["dataset_options"].items() if value is not None}
    config = OpenLoopConfig(policy, path, asked, **options)
    name = settings["name"] or f"{policy.short_name}-on-{title_of(path)}"
    folder = Path(settings["run_dir"]) / name
    with Tracker.open(TrackingConfig(**settings["tracking"]), "eval", name, settings["parent_run"]) as tracker:
        tracker.config({key: value for key, value in settings.items() if key != "command"})
        result = run(config, folder, tracker)
    print_result(result, folder)
    return 0


def read_config(settings: Mapping[str, Any]) -> EvalConfig:
    """Make the checked config from composed settings."""
    inference = settings["inference"]
    preset = build_config(PresetChanges, settings["execution"], "execution.")
    return EvalConfig(
        policy=read_policy(settings),
        world=settings["world"] or "",
        suites=as_names(settings["suite"]),
        tasks=as_names(settings["tasks"] or ()),
        variants=as_names(settings["variants"] or ()),
        episodes=settings["episodes"],
        seed=settings["seed"],
        options=RolloutOptions(settings["execute"], settings["latency"], preset=preset),
        stop=read_stop(settings["stop"]),
        inference=InferenceConfig(**inference | {"batch": BatchConfig(**inference["batch"])}),
        pool=PoolConfig(**settings["pool"]),
        workers=settings["workers"],
        gpu_workers=GpuWorkers(**settings["gpu_workers"]),
        watch=WatchConfig(**settings["watch"]),
        max_worlds=settings["max_worlds"],
        give_up_after=settings["give_up_after"],
        retry_failed=settings["retry_failed"],
        run_dir=settings["run_dir"],
        name=settings["name"] or "",
        films=settings["films"],
    )


def read_policy(settings: Mapping[str, Any]) -> PolicySource:
    """Find the policy that `policy=` names; a registered model is fetched."""
    from st4vla.platform.models import SCHEME, fetch_model
    from st4vla.platform.policy.random_policy import RandomPolicyConfig
    from st4vla.platform.policy.remote import RemoteConfig

    name = str(settings["policy_from"])
    random = settings["random"]
    random = RandomPolicyConfig(**random | {"cameras": tuple(random["cameras"])})
    if name == REMOTE:
        return PolicySource(name, random, RemoteConfig(url=settings["url"] or "", **settings["remote"]))
    if settings["url"]:
        raise ConfigError(f"url={settings['url']} belongs to policy=remote, but policy is {name}.")
    if name.startswith(SCHEME):
        uri = settings["tracking"]["uri"]
        if not uri:
            raise ConfigError(f"policy={name} is looked up in MLflow; give tracking=sqlite or tracking=server.")
        return PolicySource(str(fetch_model(name, uri, settings["model_cache"])), random, label=name)
    return PolicySource(name, random)


def read_stop(settings: Mapping[str, Any]) -> StopConfig | None:
    """Make the sequential test's config; None where neither rate is given."""
    given = {key: value for key, value in settings.items() if value is not None}
    if not {"low", "high"} & given.keys():
        return None
    if not {"low", "high"} <= given.keys():
        raise ConfigError("stop needs both rates between which to decide, e.g. stop.low=0.5 stop.high=0.7.")
    return StopConfig(**given)


def as_names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Read one name or a list of names."""
    return (value,) if isinstance(value, str) else tuple(value)


def track(tracker: Any, config: EvalConfig, done: Evaluation) -> None:
    """Record the numbers, the report, the films and the ledger."""
    tracker.tags({"policy": config.policy.title, "policy_digest": config.policy.digest()})
    tracker.metrics(flat_metrics(done.summary))
    tracker.metrics({f"time/{part}_s": seconds for part, seconds in time_budget(done.rows).items()})
    for table in done.official:
        values = {column.name: column.value for column in table.columns if column.whole} | {"average": table.average}
        known = {name: value for name, value in values.items() if value == value}
        tracker.metrics({f"{table.suite}/official/{name}": value for name, value in known.items()})
    if done.decision is not None:
        tracker.tags({"decision": done.decision.verdict})
        tracker.metrics({"decision/episodes": done.decision.episodes})
    for path in (done.report, Path(done.folder) / "ledger.jsonl", Path(done.folder) / "results.json"):
        tracker.artifact(path)
    for name in ("films", "plots"):
        if (done.folder / name).is_dir():
            tracker.artifact(done.folder / name, name)
