"""Build one stage from its settings and run it in this process, alone or as one worker of many.

sources (data) + parent checkpoint or random weights -> model and processor
-> DeepSpeed engine, batches, validation -> the loop
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from st4vla.platform.checkpoint import Lineage, load_checkpoint, load_planner, prepare_checkpoint
from st4vla.platform.data.statistics import EmbodimentStatistics
from st4vla.platform.errors import DataError
from st4vla.platform.policy.folder import own_tensors
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.packing import allow_packing, places
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.prompt import template_texts
from st4vla.platform.policy.tokenizer import build_tokenizer
from st4vla.platform.train.adapters import add_adapters, plain_tensors
from st4vla.platform.train.background import Finish, Snapshot
from st4vla.platform.train.batches import Encode, StepBatches
from st4vla.platform.train.engine import TrainEngine
from st4vla.platform.train.flops import FlopCount, peak_flops
from st4vla.platform.train.guard import LossGuard
from st4vla.platform.train.inspections import inspections
from st4vla.platform.train.job import StageJob, open_sources, parent_kinship
from st4vla.platform.train.loop import Reporter, Row, Speed, Trainer, Worker
from st4vla.platform.train.sources import Sources

logger = logging.getLogger(__name__)


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
    encoders = {"robot": processor.encode_actions, "grounding": processor.encode_grounding}
    if job.train.packing:
        allow_packing(model.planner.vlm)
        encoders = {name: without_padding(encode) for name, encode in encoders.items()}
    state = resume / "engine" if resume else None
    engine = TrainEngine(model, job.train, device, worker.world_size, state)
    counters = engine.load(state) if state else {"step": 0, "cursor": {}}
    batch = job.train.batch
    with StepBatches(sources.mixtures, encoders, batch, worker.rank, worker.world_size, counters["cursor"]) as batches:
        trainer = Trainer(
            job.train,
            engine,
            batches,
            reporter,
            worker,
            writer(job, processor, engine.snapshot),
            inspections(job, sources, model, processor, worker, device),
            LossGuard(Path(job.folder) if job.folder else None, worker.rank),
            speed=Speed(FlopCount(job.policy, model), device_peak(device)),  # the engine has frozen what is not trained
        )
        return trainer.run(counters["step"])


def without_padding(encode: Callable[[Sequence[Any]], Mapping[str, Any]]) -> Encode:
    """Let an encoder also say where the tokens of its batches are."""

    def encode_packed(samples: Sequence[Any]) -> Mapping[str, Any]:
        batch = encode(samples)
        return {**batch, **places(batch["attention_mask"])}

    return encode_packed


def device_peak(device: torch.device) -> float | None:
    """Give a device's bf16 peak in FLOP/s; None, and a word about it, where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    if (peak := peak_flops(name)) is None:
        logger.info("the bf16 peak of %s is not known, so its rows tell FLOP/s and no MFU", name)
    return peak


def writer(job: StageJob, processor: Processor, snapshot: Snapshot) -> Callable[[Path, torch.nn.Module, int], Finish]:
    """Give the function that copies the weights and gives the one that writes the policy's folder of a checkpoint."""

    def keep(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return snapshot.take(tensors, "policy")

    def begin(folder: Path, model: torch.nn.Module, step: int) -> Finish:
        notes = {**job.lineage.get("notes", {}), "stage": job.train.stage, "step": step, "seed": job.train.seed}
        assert isinstance(model, St4vlaModel)
        lineage = Lineage(**{**job.lineage, "notes": notes})
        tensors = plain_tensors(model, own_tensors(model))
        write = prepare_checkpoint(model, processor, lineage, tensors=tensors, keep=keep)
        return lambda: write(folder)

    return begin
