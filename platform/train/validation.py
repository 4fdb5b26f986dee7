"""Score a policy on held-out samples, shared out over the workers."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist

from st4vla.platform.contracts import ActionForm, ActionSample, GroundingSample, Observation, Spatial
from st4vla.platform.data.statistics import EmbodimentStatistics
from st4vla.platform.train.metrics import action_scores, grounding_scores

GROUNDING_METRICS = (
    "answer_rate",
    "box_iou",
    "box_iou50",
    "point_hit_rate",
    "target_hit_rate",
    "trace_error_px",
    "subgoal_match",
    "words_match",
)
# Taken over readable answers only, so that an untrained planner has none.
SOMETIMES = ("trace_error_px",)
ACTION_METRICS = ("action_translation_mm", "action_rotation_rad", "gripper_accuracy", "action_error")

Answer = Callable[[Sequence[GroundingSample]], Sequence[Spatial | None]]
# Observations of one embodiment, the keys of their noise, and that embodiment's statistics key -> chunks.
Act = Callable[[Sequence[Observation], Sequence[tuple[int, int]], str], Sequence[np.ndarray]]


class Tally:
    """Sum scores by name, over samples and then over workers."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.sums = np.zeros(len(self.names))
        self.counts = np.zeros(len(self.names))

    def add(self, scores: dict[str, float]) -> None:
        """Count one sample's scores; a name it lacks is not counted."""
        for name, value in scores.items():
            place = self.names.index(name)
            self.sums[place] += value
            self.counts[place] += 1

    def means(self, world_size: int, device: torch.device) -> dict[str, float]:
        """Give the means over all workers' samples; names nobody counted are left out."""
        both = torch.tensor(np.stack([self.sums, self.counts]), device=device)
        if world_size > 1:
            dist.all_reduce(both)
        sums, counts = both.cpu().numpy()
        return {name: float(sums[i] / counts[i]) for i, name in enumerate(self.names) if counts[i]}


def observation_of(sample: ActionSample) -> Observation:
    """Show the policy what the demonstrator saw."""
    return Observation(images=sample.images, state=sample.state, instruction=sample.instruction)


def places_by_key(samples: Sequence[ActionSample]) -> dict[str, list[int]]:
    """Give the places of the samples of every embodiment, by its statistics key."""
    places: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        places.setdefault(sample.statistics_key, []).append(place)
    return places


def score_actions(
    samples: Sequence[ActionSample],
    act: Act,
    tally: Tally,
    form: ActionForm,
    statistics: Mapping[str, EmbodimentStatistics],
    batch_size: int = 8,
) -> None:
    """Predict every sample's chunk open loop, in its own embodiment's scale, and count its errors.

    Noise is drawn by the sample's place among all.

    Args:
        form: what the policy's actions are.
        statistics: of every embodiment that a sample is of, by its key.
    """
    for embodiment, places in places_by_key(samples).items():
        spread = statistics[embodiment].action.std
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            chunks = act(
                [observation_of(samples[place]) for place in batch], [(place, 0) for place in batch], embodiment
            )
            for place, actions in zip(batch, chunks, strict=True):
                tally.add(action_scores(actions, samples[place].actions, samples[place].is_pad, form, spread))


def score_grounding(samples: Sequence[GroundingSample], answer: Answer, tally: Tally, batch_size: int = 16) -> None:
    """Ask every question and count how good the answers are."""
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        for sample, given in zip(batch, answer(batch), strict=True):
            tally.add(grounding_scores(sample, given))
