"""Train one stage: `st4vla train` calls `main`; the loop itself is `platform/train`, the Ray side `carrier.py`.

The driver checks everything that can be checked without a worker, starts the workers, shows and records their
progress, and publishes the last checkpoint as RUN_DIR/checkpoint.
"""

import logging
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from st4vla.platform.checkpoint import read_policy_yaml
from st4vla.platform.data.address import absolute, is_remote
from st4vla.platform.data.frame_cache import FrameCacheConfig
from st4vla.platform.data.grounding import GroundingConfig
from st4vla.platform.data.picture_formats import OPENERS
from st4vla.platform.data.remote import pinned
from st4vla.platform.errors import ConfigError
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.train.alone import KEPT_ALONE, run_alone
from st4vla.platform.train.config import TrainConfig, build
from st4vla.platform.train.folder import BEST, finished, publish, ranked, remember
from st4vla.platform.train.job import StageJob, check_job
from st4vla.platform.train.picture_sources import PATHS
from st4vla.platform.train.sources import ReadingConfig, SourceConfig
from st4vla.workers.training.progress import TrainProgress, print_outcome

log = logging.getLogger(__name__)

TRAIN_KEYS = tuple(item.name for item in fields(TrainConfig) if item.name != "engine")
# What may differ between two runs of the same command without changing what is learned.
FREE_KEYS = (
    *("command", "engine", "tracking", "run_dir", "max_failures", "parent_run", "name"),
    *("workers", "min_workers", "gpus_per_worker", "downloads", "drawn"),
)
CHECKPOINTS = "checkpoints"
# Ray Train's account of the checkpoints; it goes on from what is named there, and knows no other.
KEPT_BY_RAY = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class RunConfig:
    """How a stage is run.

    Attributes:
        folder: the run's own; checkpoints, settings and the published policy lie in it.
        workers: DeepSpeed workers, 0 for one in this process without Ray.
        min_workers: go on with as few as these while the cluster has no more, and grow again; None for exactly
            `workers`.
        gpus_per_worker: None for 1 where the cluster has enough, else 0.
        max_failures: how often the workers are started anew.
        name: name of the registered model.
    """

    folder: Path
    workers: int = 2
    min_workers: int | None = None
    gpus_per_worker: int | None = None
    max_failures: int = 3
    name: str = "policy"

    def __post_init__(self) -> None:
        for name in ("workers", "max_failures"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be >= 0")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ConfigError(f"min_workers is {self.min_workers}; it lies between 1 and workers={self.workers}")

    @property
    def sizes(self) -> range:
        """Give the numbers of workers the run may have."""
        return range(self.min_workers or self.workers, self.workers + 1)


def main(cfg: Any) -> int:
    """Run `st4vla train`."""
    from omegaconf import OmegaConf

    from st4vla.platform.tracking import Tracker, TrackingConfig
    from st4vla.workers.cluster import EngineConfig

    settings = with_pinned_data(with_parents_policy(OmegaConf.to_container(cfg, resolve=True)))
    run, job = read_run(settings), read_job(settings)
    going_on = remember(run.folder, {key: value for key, value in settings.items() if key not in FREE_KEYS})
    if going_on and (done := finished(run.folder)):
        log.info("%s is trained already; name another run_dir to train again", done)
        return 0
    check_carrier(run)
    for size in run.sizes:
        job.train.batch.check_divides(max(1, size))
    sources = check_job(job)
    with Tracker.open(TrackingConfig(**settings["tracking"]), "train", run.name, settings["parent_run"]) as tracker:
        tracker.config({key: value for key, value in settings.items() if key != "command"})
        for source in sources.every:
            tracker.dataset(source.name, source.digest, getattr(source, "path", source.name), "training")
        lineage = {
            "parent": job.parent,
            "data": sources.digests,
            "git_revision": git_revision(),
            "mlflow_run": tracker.run_id,
        }
        job = StageJob(**{**vars(job), "lineage": lineage, "folder": str(run.folder)})
        with TrainProgress(job.train, tracker, run.folder) as progress:
            last = train(job, run, EngineConfig(**settings["engine"]), progress.add)
        policy = publish(run.folder, last / "policy")
        if job.train.saving.best:
            best = ranked((run.folder / CHECKPOINTS).glob("step_*"), job.train.saving)[-1]
            log.info("the best checkpoint by %s is %s", job.train.saving.best, best.name)
            publish(run.folder, best / "policy", BEST)
        tracker.register(policy.resolve(), run.name, lineage)
    print_outcome(progress.newest, policy)
    return 0


def train(job: StageJob, run: RunConfig, engine: Any, tell: Any) -> Path:
    """Train a stage, or the rest of it; give the last checkpoint's folder."""
    if run.workers == 0:
        return run_alone(job, run.folder / CHECKPOINTS, tell)
    from st4vla.workers.cluster import connect
    from st4vla.workers.training.carrier import fit

    with connect(engine):
        return fit(job, run, tell)


def check_carrier(run: RunConfig) -> None:
    """Raise ConfigError where the run's checkpoints were left by the other way to run, with Ray or in one process.

    Ray would not see those of one process and begin anew; one process would remove some that Ray counts on.
    """
    place = run.folder / CHECKPOINTS
    alone, by_ray = (place / KEPT_ALONE).exists(), (place / KEPT_BY_RAY).exists()
    if alone and run.workers:
        raise ConfigError(
            f"{run.folder} was begun with workers=0, and workers is {run.workers}; Ray would not find its checkpoints "
            "and begin at step 0. Go on with workers=0, or give the new run its own folder with run_dir=..."
        )
    if by_ray and not run.workers:
        raise ConfigError(
            f"{run.folder} was begun on Ray, and workers is 0; go on with any other number of workers, workers=1 for "
            "one alone, or give the new run its own folder with run_dir=..."
        )


def with_parents_policy(settings: Any) -> dict[str, Any]:
    """Put the parent's own policy in the place of the preset, where `policy_of_parent` asks for it."""
    if not settings["policy_of_parent"]:
        return settings
    if not settings["parent"]:
        raise ConfigError("policy_of_parent is true, but there is no parent; name it with parent=FOLDER")
    return settings | {"policy": read_policy_yaml(Path(settings["parent"]), "st4vla")}


def with_pinned_data(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the revisions of datasets on the hub into commits, so that all workers and later starts read the same."""

    def pin(one: Any) -> Any:
        if isinstance(one, str):
            return pinned(one, settings["downloads"])
        if isinstance(one, Mapping):
            return with_places(one, lambda place: pinned(place, settings["downloads"]))
        return [pin(part) for part in one]

    keys = [key for key in ("data", "grounding_data") if settings[key] is not None]
    return {**settings, **{key: pin(settings[key]) for key in keys}}


def read_run(settings: Mapping[str, Any]) -> RunConfig:
    """Make the checked run config from composed settings.

    Raises:
        ConfigError: the run's folder is an address; checkpoints are written with a file system's renames and links.
    """
    if "://" in settings["run_dir"] or is_remote(settings["run_dir"]):
        raise ConfigError(
            f"run_dir is {settings['run_dir']!r}, an address; a run's folder lies on a file system that all workers "
            "share. Mount the bucket, or name a folder on NFS, and give its path as run_dir"
        )
    keys = ("workers", "min_workers", "gpus_per_worker", "max_failures", "name")
    return RunConfig(Path(settings["run_dir"]).absolute(), **{key: settings[key] for key in keys})


def read_job(settings: Mapping[str, Any]) -> StageJob:
    """Make the checked job from composed settings; paths become absolute, as workers stand elsewhere."""
    values = {key: settings[key] for key in TRAIN_KEYS} | {"engine": settings["deepspeed"]}
    policy = PolicyConfig.from_mapping(settings["policy"])
    cache = settings["frame_cache"]
    if cache:
        cache = FrameCacheConfig(**cache | {"folder": str(Path(cache["folder"]).absolute())})
    questions = settings["questions"]
    asked_cameras = policy.planner.cameras or policy.cameras if questions["cameras"] is None else questions["cameras"]
    reading = ReadingConfig(
        cameras=policy.cameras,
        chunk_length=policy.chunk_length,
        statistics_key=policy.statistics_key,
        held_out_share=settings["held_out_share"],
        frame_cache=cache,
        questions=GroundingConfig(questions["weights"], tuple(asked_cameras)),
        downloads=str(Path(settings["downloads"]).absolute()),
        rotation=policy.semantics.rotation,
        action_form=policy.action_form,
    )
    data = read_sources(settings["data"])
    asked = settings["grounding_data"]
    return StageJob(
        train=TrainConfig.from_mapping(values),
        policy=policy,
        reading=reading,
        robot=data,
        grounding=data if asked is None else read_sources(asked),
        parent=str(Path(settings["parent"]).absolute()) if settings["parent"] else "",
        drawn=settings["drawn"],
    )


def read_sources(value: Any) -> tuple[SourceConfig, ...]:
    """Read one folder, a list of folders, or a list of mappings."""
    listed = [value] if isinstance(value, str | Mapping) else list(value)
    found = []
    for one in listed:
        source = {"path": one} if isinstance(one, str) else one
        found.append(build(SourceConfig, with_places(source, absolute), "data"))
    return tuple(found)


def with_places(source: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Give a source with every folder, file or address it names changed: its path, and those in pictures' options."""
    changed = dict(source)
    if source.get("path"):
        changed["path"] = change(source["path"])
    options = source.get("options")
    if options and source.get("kind") in OPENERS:
        places = {name: change(str(options[name])) for name in PATHS & {*options}}
        changed["options"] = {**options, **places}
    return changed


def git_revision() -> str:
    """Give the revision of the checkout this code runs from, "" where it is none; "+" marks local changes."""
    here = Path(__file__).resolve().parent
    words = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
