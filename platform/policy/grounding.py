"""Ask System 2 about images in words, and read the boxes, points and trajectories out of what it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from st4vla.platform.contracts import Point, Spatial
from st4vla.platform.errors import PolicyError
from st4vla.platform.policy.dense import place_of_peak
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.spatial import Shape, SpatialParseError, read_all

MOST_ANSWER_TOKENS = 96
# What the numbers of an answer mean to each kind of question, where they bear no tag.
SHAPES: dict[str, Shape] = {"box": "box", "point": "point", "target": "point", "trace": "trace"}


@dataclass(frozen=True)
class Answer:
    """What the planner said of one image, and the places it named, in pixels of that image.

    Attributes:
        text: its words.
        places: every box, list of points or trajectory that could be read, in order; possibly none.
        matched: the point with which a planner that was trained by the dense loss matches the question's end, a better
            guide in a small one than its words (docs/decisions/0004); None for others.
    """

    text: str
    places: tuple[Spatial, ...] = ()
    matched: Point | None = None

    @property
    def spatial(self) -> Spatial | None:
        """The first place, or None."""
        return self.places[0] if self.places else None


@torch.inference_mode()
def ground(
    model: St4vlaModel,
    processor: Processor,
    images: Sequence[np.ndarray],
    questions: str | Sequence[str],
    shape: Shape | None = None,
    most_tokens: int = MOST_ANSWER_TOKENS,
) -> list[Answer]:
    """Let a model answer questions about images greedily; the model must be in eval mode where it has dropout.

    Args:
        questions: one for each image, or one for all.
        shape: what the numbers of an answer without a tag or key mean.

    Raises:
        PolicyError: an image is not uint8 [H,W,3], a question is empty or missing, or the weights are not finite.
    """
    asked = [questions] * len(images) if isinstance(questions, str) else list(questions)
    if len(asked) != len(images):
        raise PolicyError(
            f"There are {len(images)} images and {len(asked)} questions; ask one for each, or one for all."
        )
    if not all(words.strip() for words in asked):
        raise PolicyError("A question is empty; say what to look for, e.g. 'Point to the red cube.'.")
    if not asked:
        return []
    device = next(model.parameters()).device
    batch = {name: part.to(device) for name, part in processor.encode_questions(images, asked).items()}
    rows = model.planner.answer(batch, processor.token_ids["end"], most_tokens)
    matched = match(model, batch, images)
    read = [read_answer(processor, row, image, shape) for row, image in zip(rows, images, strict=True)]
    return [replace(answer, matched=point) for answer, point in zip(read, matched, strict=True)]


def match(model: St4vlaModel, batch: Mapping[str, Tensor], images: Sequence[np.ndarray]) -> list[Point | None]:
    """Give the point of each image that matches the end of its question, in pixels; None without such a head."""
    if model.planner.where_head is None:
        return [None] * len(images)
    chances = model.planner.where(*model.planner.read(batch))
    assert chances is not None
    places = place_of_peak(chances.float()).tolist()
    return [(x * image.shape[1], y * image.shape[0]) for (x, y, _), image in zip(places, images, strict=True)]


def read_answer(processor: Processor, tokens: Sequence[int], image: np.ndarray, shape: Shape | None) -> Answer:
    """Read one answer; a text that names no place is an answer without places."""
    text = processor.decode(tokens)
    try:
        return Answer(text, read_all(text, processor.space(image), shape))
    except SpatialParseError:
        return Answer(text)
