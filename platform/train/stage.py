"""Build one stage from its settings and run it in this process, alone or as one worker of many.

sources (data) + parent checkpoint or random weights -> model and processor
-> DeepSpeed engine, batches, validation -> the loop
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from st4vla.platform.checkpoint import Lineage, load_checkpoint, load_planner, prepare_checkpoint, read_policy_yaml
from st4vla.platform.data.statistics import EmbodimentStatistics
from st4vla.platform.errors import CheckpointError, ConfigError, DataError
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.folder import own_tensors
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.prompt import template_texts
from st4vla.platform.policy.tokenizer import build_tokenizer
from st4vla.platform.train.adapters import add_adapters, plain_tensors
from st4vla.platform.train.background import Finish, Snapshot
from st4vla.platform.train.batches import StepBatches
from st4vla.platform.train.config import TrainConfig
from st4vla.platform.train.engine import TrainEngine
from st4vla.platform.train.guard import LossGuard
from st4vla.platform.train.loop import Inspection, Reporter, Row, Trainer, Worker
from st4vla.platform.train.predict import Predictor, placed
from st4vla.platform.train.similarity import compare_objectives
from st4vla.platform.train.sources import ReadingConfig, SourceConfig, Sources
from st4vla.platform.train.validation import ACTION_METRICS, GROUNDING_METRICS, Tally, score_actions, score_grounding

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
)


@dataclass(frozen=True)
class StageJob:
    """Everything a worker must know to run its part; crosses to other processes as it is.

    Attributes:
        parent: checkpoint folder to start from, "" for random weights.
        robot, grounding: where samples come from.
        lineage: what the driver knows of where the weights come from; the step is added when they are saved.
        folder: where a batch that breaks the loss is kept, "" for nowhere.
    """

    train: TrainConfig
    policy: PolicyConfig
    reading: ReadingConfig
    robot: tuple[SourceConfig, ...] = ()
    grounding: tuple[SourceConfig, ...] = ()
    parent: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""


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
    for source in sources.robot:
        sample = source.robot().load(0, np.random.default_rng(0))
        check_width(source.name, "action", sample.actions.shape[-1], job.policy.action_dim)
        if job.policy.state_dim:
            check_width(source.name, "state", 0 if sample.state is None else len(sample.state), job.policy.state_dim)
    if job.parent:
        parent_kinship(job.parent, job.policy)
    return sources


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


def build_policy(job: StageJob, sources: Sources) -> tuple[St4vlaModel, Processor]:
    """Make the model from the parent, or from the seed alone, with the statistics its data needs."""
    torch.manual_seed(job.train.seed)
    statistics = {one.key: one for one in sources.statistics()}
    if not job.parent:
        texts = [text for source in sources.every for text in source.texts()] + template_texts(job.policy.prompt)
        tokenizer = build_tokenizer(texts, job.policy.planner.text.vocab_size)
        processor = Processor(job.policy, tokenizer, statistics)
        return St4vlaModel(job.policy, processor.token_ids), processor
    whole = parent_kinship(job.parent, job.policy) == "all"
    parent = load_checkpoint(job.parent, parts_ok=True, config=job.policy if whole else None)
    statistics |= kept_statistics(parent.processor.statistics, statistics, job.parent)
    processor = Processor(job.policy, parent.processor.tokenizer, statistics)
    if whole:
        return parent.model, processor
    model = St4vlaModel(job.policy, processor.token_ids)
    load_planner(model, job.parent)
    return model, processor


def kept_statistics(
    parent: Mapping[str, EmbodimentStatistics], data: Mapping[str, EmbodimentStatistics], where: str
) -> dict[str, EmbodimentStatistics]:
    """Keep the parent's statistics: its weights speak in their scale. Raise DataError where the widths clash."""
    for key in parent.keys() & data.keys():
        seen, expected = data[key].action.width, parent[key].action.width
        if seen != expected:
            raise DataError(
                f"the data's actions of {key!r} are {seen} wide, the statistics in {where} {expected}; "
                "train on data of the parent's action form, or start from another parent"
            )
    return dict(parent)


def run_stage(
    job: StageJob,
    worker: Worker,
    reporter: Reporter,
    resume: Path | None = None,
    device: torch.device | None = None,
) -> Row:
    """Run one worker's part of a stage; a torch process group must be up.

    Args:
        resume: a checkpoint that an earlier try of the same job reported.
    """
    device = device or torch.device("cpu")
    sources = open_sources(job)
    model, processor = build_policy(job, sources)
    add_adapters(model, job.train.adapters)
    if job.train.engine.recompute:
        model.planner.vlm.activation_checkpointing_enable()
    state = resume / "engine" if resume else None
    engine = TrainEngine(model, job.train, device, worker.world_size, state)
    counters = engine.load(state) if state else {"step": 0, "cursor": {}}
    encoders = {"robot": processor.encode_actions, "grounding": processor.encode_grounding}
    batch = job.train.batch
    with StepBatches(sources.mixtures, encoders, batch, worker.rank, worker.world_size, counters["cursor"]) as batches:
        trainer = Trainer(
            job.train,
            engine,
            batches,
            reporter,
            worker,
            writer(job, processor),
            inspections(job, sources, processor, worker, device),
            LossGuard(Path(job.folder) if job.folder else None, worker.rank),
        )
        return trainer.run(counters["step"])


def writer(job: StageJob, processor: Processor) -> Callable[[Path, torch.nn.Module, int], Finish]:
    """Give the function that copies the weights and gives the one that writes the policy's folder of a checkpoint."""
    snapshot = Snapshot()

    def keep(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = snapshot.take(tensors)
        snapshot.settle()
        return kept

    def begin(folder: Path, model: torch.nn.Module, step: int) -> Finish:
        notes = {**job.lineage.get("notes", {}), "stage": job.train.stage, "step": step, "seed": job.train.seed}
        assert isinstance(model, St4vlaModel)
        lineage = Lineage(**{**job.lineage, "notes": notes})
        tensors = plain_tensors(model, own_tensors(model))
        write = prepare_checkpoint(model, processor, lineage, tensors=tensors, keep=keep)
        return lambda: write(folder)

    return begin


def inspections(
    job: StageJob, sources: Sources, processor: Processor, worker: Worker, device: torch.device
) -> list[Inspection]:
    """List what is measured on the policy now and then."""
    found = [Inspection("validation", job.train.validation.every, validator(job, sources, processor, worker, device))]
    if every := job.train.similarity.every:
        found.append(Inspection("similarity", every, prober(job, processor, worker)))
    return found


def prober(job: StageJob, processor: Processor, worker: Worker) -> Callable[[torch.nn.Module], Row]:
    """Give the function that compares the objectives' gradients on this worker's share of a probe, read once.

    The probe's questions are asked also where training asks none, so that a run on actions alone can be watched.

    Raises:
        ConfigError: too few held-out samples for every worker to have its share.
    """
    config, share = job.train.similarity, slice(worker.rank, None, worker.world_size)
    sources = Sources(job.robot, job.grounding, job.reading, job.train.seed)
    robot = [sample for one in sources.robot for sample in one.held_out_robot(config.samples)][: config.samples][share]
    asked = [sample for one in sources.grounding for sample in one.held_out_grounding(config.samples)]
    asked = asked[:: max(1, len(asked) // config.samples)][: config.samples][share]
    if not robot or not asked:
        raise ConfigError(
            "similarity.every compares gradients on held-out actions and questions, and there are too few of them; "
            "raise held_out_share, name grounding_data, or set similarity.every=0"
        )
    batches = processor.encode_grounding(asked), processor.encode_actions(robot)

    def compare(model: torch.nn.Module) -> Row:
        assert isinstance(model, St4vlaModel)
        grounding, actions = (placed(batch, model) for batch in batches)
        return compare_objectives(model, grounding, actions, config.energy, worker.world_size)

    return compare


def validator(
    job: StageJob, sources: Sources, processor: Processor, worker: Worker, device: torch.device
) -> Callable[[torch.nn.Module], Row]:
    """Give the function that scores this worker's share of the held-out samples, read once."""
    config = job.train.validation
    share = slice(worker.rank, None, worker.world_size)
    robot = [s for source in sources.robot for s in source.held_out_robot(config.robot_samples)][share]
    questions = [s for source in sources.grounding for s in source.held_out_grounding(config.grounding_samples)][share]

    def validate(model: torch.nn.Module) -> Row:
        assert isinstance(model, St4vlaModel)
        tally = Tally([*ACTION_METRICS, *GROUNDING_METRICS])
        predictor = Predictor(model, processor)
        score_actions(robot, predictor.act, tally)
        score_grounding(questions, predictor.answer, tally)
        return tally.means(worker.world_size, device)

    return validate
