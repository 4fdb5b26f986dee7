"""Measure a policy under training on held-out samples: answers, open-loop actions, and how the two losses pull."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from st4vla.platform.contracts import ActionSample, GroundingSample
from st4vla.platform.errors import ConfigError, DataError
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.train.drawings import DRAWINGS, Gallery, chosen
from st4vla.platform.train.job import StageJob
from st4vla.platform.train.loop import Inspection, Row, Worker
from st4vla.platform.train.predict import Predictor, placed
from st4vla.platform.train.similarity import compare_objectives, shared_weight
from st4vla.platform.train.sources import LeRobotSource, Sources, TrainingSource
from st4vla.platform.train.validation import (
    ACTION_METRICS,
    GROUNDING_METRICS,
    SOMETIMES,
    Tally,
    score_actions,
    score_grounding,
)

logger = logging.getLogger(__name__)
MOST_CHUNKS = 32
Sample = TypeVar("Sample")


def inspections(
    job: StageJob, sources: Sources, model: St4vlaModel, processor: Processor, worker: Worker, device: torch.device
) -> list[Inspection]:
    """List what is measured on the policy now and then; `model` says by now which of its weights are trained."""
    validate = validator(job, sources, processor, worker, device)
    found = [Inspection("validation", job.train.validation.every, validate, SOMETIMES)]
    if every := job.train.similarity.every:
        found.append(Inspection("similarity", every, prober(job, model, processor, worker)))
    return found


def prober(
    job: StageJob, model: St4vlaModel, processor: Processor, worker: Worker
) -> Callable[[torch.nn.Module, int], Row]:
    """Give the function that compares the objectives' gradients on this worker's share of a probe, read once.

    The probe's questions are asked also where training asks none, so that a run on actions alone can be watched.

    Raises:
        ConfigError: too few held-out samples for every worker to have its share, or the weight that the gradients are
            compared on is not trained.
    """
    if not shared_weight(model).requires_grad:
        raise ConfigError(
            "similarity.every compares gradients on the planner's last query projection, which is frozen here; "
            "give optimiser.learning_rates.planner a rate above 0, or set similarity.every=0"
        )
    config, share = job.train.similarity, slice(worker.rank, None, worker.world_size)
    sources = Sources(job.robot, job.grounding, job.reading, job.train.seed)
    robot = spread([s for one in sources.robot for s in one.held_out_robot(config.samples)], config.samples)[share]
    asked = [s for one in sources.grounding for s in one.held_out_grounding(config.samples)]
    asked = spread(asked, config.samples)[share]
    if not robot or not asked:
        raise ConfigError(
            "similarity.every compares gradients on held-out actions and questions, and there are too few of them; "
            "raise held_out_share, name grounding_data, or set similarity.every=0"
        )
    batches = processor.encode_grounding(asked), processor.encode_actions(robot)

    def compare(model: torch.nn.Module, _: int) -> Row:
        assert isinstance(model, St4vlaModel)
        grounding, actions = (placed(batch, model) for batch in batches)
        return compare_objectives(model, grounding, actions, config.energy, worker.world_size)

    return compare


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Choose up to `count` samples, evenly spread, so that each of several datasets has its part."""
    places = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    return [samples[place] for place in places]


def validator(
    job: StageJob, sources: Sources, processor: Processor, worker: Worker, device: torch.device
) -> Callable[[torch.nn.Module, int], Row]:
    """Give the function that scores this worker's share of the held-out samples, read once, and draws a few of all."""
    config = job.train.validation
    share = slice(worker.rank, None, worker.world_size)
    robot = [s for source in sources.robot for s in source.held_out_robot(config.robot_samples)][share]
    asked = [s for source in sources.grounding for s in source.held_out_grounding(config.grounding_samples)]
    questions, drawn = asked[share], gallery(job, sources, asked, worker)

    def validate(model: torch.nn.Module, step: int) -> Row:
        assert isinstance(model, St4vlaModel)
        tally = Tally([*ACTION_METRICS, *GROUNDING_METRICS])
        predictor = Predictor(model, processor)
        score_actions(robot, predictor.act, tally, job.policy.action_form, processor.statistics)
        score_grounding(questions, predictor.answer, tally)
        if drawn is not None:
            drawn.draw(step, predictor.answer, predictor.act)
        return tally.means(worker.world_size, device)

    return validate


def gallery(job: StageJob, sources: Sources, asked: Sequence[GroundingSample], worker: Worker) -> Gallery | None:
    """Give what draws a few held-out questions and one held-out episode; None where nothing is to be drawn."""
    if not job.drawn or not job.folder:
        return None
    episode, name = held_out_episode(sources.robot)
    folder = Path(job.folder) / DRAWINGS if worker.rank == 0 else None
    return Gallery(folder, chosen(asked, job.drawn), episode, name, job.policy.action_form)


def held_out_episode(sources: Sequence[TrainingSource]) -> tuple[list[ActionSample], str]:
    """Give the chunks of the first held-out episode that can be read, one after the other, and what to call it.

    There are none where no source is a recording with an episode held out.
    """
    for source in (one for one in sources if isinstance(one, LeRobotSource)):
        for index in source.held_out:
            entry, chunk = source.dataset.meta.episodes[index], source.reading.chunk_length
            frames = range(entry.first_frame, entry.first_frame + entry.length, chunk)[:MOST_CHUNKS]
            try:
                chunks = [source.dataset.action_sample(frame, chunk) for frame in frames]
            except DataError as error:
                logger.warning("held-out episode %d of %s is not drawn: %s", entry.index, source.name, error)
                continue
            return chunks, f"{source.name}, episode {entry.index}"
    return [], ""
