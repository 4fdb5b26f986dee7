"""Read out of System 2 what it sees in a picture under an instruction: which object, in which box, and the way there.

It is asked as stage 1 taught it, three questions a picture: the next step in words, the box of the object which that
step, or else the instruction, names, and the trace of the end-effector. That costs many times a plan: it is for people
who watch.
"""

import re
from collections.abc import Sequence

import numpy as np

from st4vla.platform.contracts import GroundingKind, Spatial
from st4vla.platform.policy.grounding import SHAPES, Answer, ground
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor

AFTERWARDS = "to|towards?|on|onto|in|into|at|from|off|over|under|beside|near|next|with|and|left|right|away|a|an"
NAMED = re.compile(rf"\bthe (?!left\b|right\b)(.+?)(?= (?:{AFTERWARDS})\b|[.,;:]|$)", re.IGNORECASE)


def named_object(step: str) -> str:
    """Give the object that a step in words is about: "red cube" of "push the red cube to the left"; "" for none."""
    found = NAMED.search(step.strip())
    return found[1] if found else ""


def read_out(
    model: St4vlaModel, processor: Processor, images: Sequence[np.ndarray], instructions: Sequence[str]
) -> list[Spatial]:
    """Give what the planner sees in each picture: the object's name and box, and a trace, in pixels of that picture.

    What it does not answer in a form that can be read is missing.

    Args:
        images: uint8 [H,W,3] each.
        instructions: one for each.

    Raises:
        PolicyError: an image is of another form, or an instruction is empty or missing.
    """

    def ask(kind: GroundingKind, pictures: Sequence[np.ndarray], labels: Sequence[str]) -> list[Answer]:
        questions = [processor.question(kind, label) for label in labels]
        return ground(model, processor, pictures, questions, SHAPES.get(kind))

    steps = ask("subgoal", images, instructions)
    names = [named_object(step.text) or named_object(said) for step, said in zip(steps, instructions, strict=True)]
    named = [row for row, name in enumerate(names) if name]
    answers = ask("box", [images[row] for row in named], [names[row] for row in named])
    boxed = [next((place.box for place in answer.places if place.box), None) for answer in answers]
    boxes = dict(zip(named, boxed, strict=True))
    answers = ask("trace", images, instructions)
    traces = [next((place.trajectory for place in answer.places if place.trajectory), ()) for answer in answers]
    return [
        Spatial(label=name, box=boxes.get(row), trajectory=trace)
        for row, (name, trace) in enumerate(zip(names, traces, strict=True))
    ]
