"""Say what a stage is to do, and check before any worker starts that it can be done."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from st4vla.platform.checkpoint import read_policy_yaml
from st4vla.platform.errors import CheckpointError, ConfigError, DataError
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.train.config import TrainConfig
from st4vla.platform.train.source_config import load_first
from st4vla.platform.train.sources import LeRobotSource, ReadingConfig, SourceConfig, Sources

logger = logging.getLogger(__name__)

# Settings that a stage may change without any weight losing its place.
FREE_SETTINGS = (
    "prompt.",
    "semantics.",
    "statistics_key",
    "control_hz",
    "query.dropout",
    "query.grad_scale",
    "expert.condition_dropout",
    "expert.noise_draws",
    "expert.ddim_steps",
    "expert.guidance",
    "expert.temperature",
)


@dataclass(frozen=True)
class StageJob:
    """Everything a worker must know to run its part; crosses to other processes as it is.

    Attributes:
        parent: checkpoint folder to start from, "" for random weights.
        robot, grounding: where samples come from.
        lineage: what the driver knows of where the weights come from; the step is added when they are saved.
        folder: the run's own, where a batch that breaks the loss is kept and pictures of validation lie; "" for none.
        drawn: held-out questions drawn at every validation, beside the actions of one held-out episode; 0 for neither.
    """

    train: TrainConfig
    policy: PolicyConfig
    reading: ReadingConfig
    robot: tuple[SourceConfig, ...] = ()
    grounding: tuple[SourceConfig, ...] = ()
    parent: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""
    drawn: int = 6


def open_sources(job: StageJob) -> Sources:
    """Open what the job's batches need; raise what is wrong with it."""
    batch = job.train.batch
    robot = job.robot if batch.robot else ()
    grounding = job.grounding if batch.grounding else ()
    if batch.robot and not robot:
        raise ConfigError("data is empty; name at least one dataset, data=FOLDER")
    if batch.grounding and not grounding:
        raise ConfigError("grounding_data is empty; name at least one source, or set batch.grounding=0")
    return Sources(robot, grounding, job.reading, job.train.seed)


def check_job(job: StageJob) -> Sources:
    """Find in the driver what would stop every worker: data, statistics, parent; give the open sources.

    Raises:
        ConfigError, DataError, CheckpointError: naming what was seen, what was expected and the next step.
    """
    sources = open_sources(job)
    check_rates([source for source in sources.robot if isinstance(source, LeRobotSource)], job.policy.control_hz)
    sources.statistics()
    for source in sources.robot:
        sample = load_first(source.robot())
        check_width(source.name, "action", sample.actions.shape[-1], job.policy.action_dim)
        if job.policy.state_dim:
            check_width(source.name, "state", 0 if sample.state is None else len(sample.state), job.policy.state_dim)
    if job.parent:
        parent_kinship(job.parent, job.policy)
    return sources


def check_rates(recordings: Sequence[LeRobotSource], meant: float) -> None:
    """Hold the recordings' frames a second against the control rate that the policy will be served at.

    Raises:
        ConfigError: no dataset has that rate.
    """
    apart = [one for one in recordings if not math.isclose(one.dataset.fps, meant, rel_tol=1e-3)]
    listed = ", ".join(f"{one.name} at {one.dataset.fps:g} Hz" for one in apart)
    if apart and len(apart) == len(recordings):
        raise ConfigError(
            f"policy.control_hz is {meant:g} and the data was recorded otherwise: {listed}; an action would be held "
            f"for another time than the demonstrated one. Set policy.control_hz={apart[0].dataset.fps:g} (of an "
            "imported policy when it is imported, with settings={control_hz: ...}), or name other data."
        )
    if apart:
        logger.warning(
            "policy.control_hz is %g, and actions of %s are learned as they are: they mean another time there",
            meant,
            listed,
        )


def check_width(name: str, what: str, seen: int, expected: int) -> None:
    """Raise DataError unless a dataset's rows are as wide as the policy's."""
    if seen != expected:
        raise DataError(
            f"{name} has {what} rows of width {seen}, the policy reads {expected}; "
            f"choose other columns with the source's options, or set policy.{what}_dim={seen}"
        )


def parent_kinship(parent: str, policy: PolicyConfig) -> str:
    """Say what of a parent fits the policy: "all" of it, or its "planner" only.

    Raises:
        CheckpointError: not even the planner fits; the settings that differ are listed.
    """
    known = PolicyConfig.from_mapping(read_policy_yaml(Path(parent), "st4vla"))
    lines = differences(known, policy)
    if not (apart := [line for line in lines if not line.startswith(FREE_SETTINGS)]):
        if lines:
            logger.warning("policy %s changes settings of parent %s:\n  %s", policy.name, parent, "\n  ".join(lines))
        return "all"
    planner = [line for line in apart if line.startswith(("planner.", "image_size"))]
    if planner:
        listed = "\n  ".join(planner)
        raise CheckpointError(
            f"parent {parent} ({known.name}) has another planner than policy {policy.name}:\n  {listed}\n"
            f"choose policy={known.name}, or a parent of the same planner"
        )
    logger.warning("parent %s gives its planner only; these settings differ:\n  %s", parent, "\n  ".join(apart))
    return "planner"


def differences(one: Any, other: Any, prefix: str = "") -> list[str]:
    """List the settings in which two configs of one class differ: "planner.text.width: 128 there, 256 here"."""
    found: list[str] = []
    for item in fields(one):
        there, here, name = getattr(one, item.name), getattr(other, item.name), prefix + item.name
        if is_dataclass(there) and type(there) is type(here):
            found += differences(there, here, f"{name}.")
        elif there != here and item.name != "name":
            found.append(f"{name}: {there} there, {here} here")
    return found
