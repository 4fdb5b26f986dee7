"""Word what the planner is told and asked, and what it should answer.

The action prompt is the unified spatial prompt of ST4VLA (figure 2); the questions follow the kinds of stage 1
(InternVLA-M1, section 3.1): boxes, points, end-effector traces and next sub-goals, and the target of an instruction.
"""

from st4vla.platform.contracts import GroundingKind, GroundingSample
from st4vla.platform.errors import DataError
from st4vla.platform.policy.config import PlannerConfig, PromptConfig, SemanticsConfig
from st4vla.platform.policy.spatial import CoordinateSpace, map_coordinates, thin, write_box, write_points

QUESTIONS: dict[GroundingKind, str] = {
    "box": "Give the bounding box of the {label}.",
    "point": "Point to the {label}.",
    "trace": "Your task is {label}. Give the trace of the end-effector.",
    "subgoal": "Your task is {label}. What is the next step?",
}


def coordinate_space(planner: PlannerConfig, image_size: int, width: int, height: int) -> CoordinateSpace:
    """Give the planner's convention for an image of `width` x `height`.

    Qwen2.5-VL speaks pixels of the image as it was resized; Qwen3-VL speaks thousandths of either side.
    """
    spoken = image_size if planner.kind == "qwen2_5_vl" else 1000
    return CoordinateSpace(width, height, spoken, spoken)


def action_prompt(instruction: str, prompt: PromptConfig, semantics: SemanticsConfig, acting: bool = False) -> str:
    """Wrap an instruction in the spatial prompt, as `semantics` says; `acting` when it is not for training."""
    words = instruction if semantics.verbatim else " ".join(instruction.split()).rstrip(".")
    return prompt.action.replace("{instruction}", words.lower() if acting and semantics.lowercase else words)


def question(kind: GroundingKind, label: str, prompt: PromptConfig, semantics: SemanticsConfig) -> str:
    """Ask for a box, a point, the target, a trace or the next sub-goal.

    The target is asked for in the words of the action prompt, so that stage 1 teaches the planner to hold, at the
    place where the action expert reads its plan, where the key object is.
    """
    if kind == "target":
        return action_prompt(label, prompt, semantics)
    if kind == "words":
        return label
    return QUESTIONS[kind].format(label=" ".join(label.split()).rstrip("."))


def answer(sample: GroundingSample, space: CoordinateSpace, prompt: PromptConfig) -> str:
    """Write the answer that a sample teaches.

    Raises:
        DataError: the sample lacks the answer of its kind.
    """
    given = sample.answer
    if sample.kind == "box" and given.box is not None:
        return write_box(given.box, space)
    if sample.kind in ("point", "target") and given.points:
        return write_points(given.points, space)
    if sample.kind == "trace" and given.trajectory:
        return write_points(thin(given.trajectory, prompt.max_waypoints), space, "trace")
    if sample.kind == "subgoal" and given.label:
        return given.label
    if sample.kind == "words" and given.label:
        return map_coordinates(given.label, space.speak)
    raise DataError(f"A {sample.kind} sample about {sample.label!r} has no such answer; leave it out of the data.")


def template_texts(prompt: PromptConfig) -> list[str]:
    """List the wordings a home-made tokenizer must know well."""
    shapes = ["<box>[[1, 2, 3, 4]]</box>", "<point>[[1, 2]]</point>", "<trace>[[1, 2], [3, 4]]</trace>"]
    roles = ["user\n", "assistant\n"]
    return [
        prompt.action.replace("{instruction}", ""),
        *(q.format(label="") for q in QUESTIONS.values()),
        *shapes,
        *roles,
    ]
