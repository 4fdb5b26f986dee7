"""Score answers and actions against the truth; pure functions of numbers.

Coordinates are pixels of the source image, translations metres, rotation vectors radians (see `contracts.py`).
"""

from collections.abc import Sequence

import numpy as np

from st4vla.platform.contracts import ActionForm, Box, GroundingSample, Point, Spatial

IOU_THRESHOLD = 0.5
TRACE_POINTS = 8
GRIPPER_OPEN = 0.5
ARM = 7  # columns of a tool's motion: translation, rotation, gripper


def box_iou(one: Box, other: Box) -> float:
    """Give the intersection over the union of two boxes, 0 where either is empty."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = box_area(one) + box_area(other) - width * height
    return width * height / union


def box_area(box: Box) -> float:
    """Give the area in square pixels, 0 for a box whose corners are swapped."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def point_in_box(point: Point, box: Box) -> bool:
    """Say whether a point lies in a box, its edges included."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def resample_trace(trace: Sequence[Point], num_points: int = TRACE_POINTS) -> np.ndarray:
    """Lay `num_points` points at equal arc lengths along a trace; float [num_points, 2]."""
    points = np.asarray(trace, dtype=np.float64).reshape(-1, 2)
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    places = np.linspace(0.0, lengths[-1], num_points)
    return np.stack([np.interp(places, lengths, points[:, axis]) for axis in (0, 1)], axis=1)


def trace_error(one: Sequence[Point], other: Sequence[Point]) -> float:
    """Give the mean distance in pixels of two traces, walked at the same share of their lengths."""
    return float(np.linalg.norm(resample_trace(one) - resample_trace(other), axis=1).mean())


def rotation_angle(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Give the angle in rad between rotations given as rotation vectors [..., 3]."""
    turned = quaternion(one) * quaternion(other)
    return 2.0 * np.arccos(np.clip(np.abs(turned.sum(axis=-1)), 0.0, 1.0))


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Turn rotation vectors [..., 3] in rad into unit quaternions [..., 4], real part first."""
    rotation = np.asarray(rotation, dtype=np.float64)
    half = np.linalg.norm(rotation, axis=-1, keepdims=True) / 2.0
    # sin(a)/a, with its limit at 0: np.sinc(x) is sin(pi x) / (pi x).
    return np.concatenate([np.cos(half), rotation / 2.0 * np.sinc(half / np.pi)], axis=-1)


def moves_tool(form: ActionForm, width: int) -> bool:
    """Say whether actions of this form and width are a tool's motion in m and rad, and its gripper."""
    return form == "delta_end_effector" and width == ARM


def action_scores(
    predicted: np.ndarray, truth: np.ndarray, is_pad: np.ndarray, form: ActionForm, spread: np.ndarray
) -> dict[str, float]:
    """Score one chunk [T,A] open loop as its form allows: by `action_errors` for a tool's motion, else `spread_error`.

    Args:
        spread: standard deviation of each column over the data, [A].
    """
    if moves_tool(form, np.asarray(truth).shape[-1]):
        return action_errors(predicted, truth, is_pad)
    return spread_error(predicted, truth, is_pad, spread)


def spread_error(predicted: np.ndarray, truth: np.ndarray, is_pad: np.ndarray, spread: np.ndarray) -> dict[str, float]:
    """Give "action_error": the mean absolute error of a chunk [T,A], each column over its spread [A].

    Rows after the episode's end are left out; empty if there is no other. A column that never moves is not divided.
    """
    rows = ~np.asarray(is_pad, dtype=bool)
    if not rows.any():
        return {}
    errors = np.abs(np.asarray(predicted)[rows] - np.asarray(truth)[rows])
    return {"action_error": float((errors / np.where(spread > 0, spread, 1.0)).mean())}


def action_errors(predicted: np.ndarray, truth: np.ndarray, is_pad: np.ndarray) -> dict[str, float]:
    """Score one chunk [T,7] of a tool's motion open loop, rows after the episode's end left out.

    Returns:
        means over the rows: translation error in mm, rotation error in rad, share of rows whose gripper is on the
        right side of half open. Empty if every row is padding.
    """
    rows = ~np.asarray(is_pad, dtype=bool)
    if not rows.any():
        return {}
    guess, wanted = np.asarray(predicted)[rows], np.asarray(truth)[rows]
    same_side = (guess[:, 6] > GRIPPER_OPEN) == (wanted[:, 6] > GRIPPER_OPEN)
    return {
        "action_translation_mm": 1000.0 * float(np.linalg.norm(guess[:, :3] - wanted[:, :3], axis=1).mean()),
        "action_rotation_rad": float(rotation_angle(guess[:, 3:6], wanted[:, 3:6]).mean()),
        "gripper_accuracy": float(same_side.mean()),
    }


def grounding_scores(sample: GroundingSample, answer: Spatial | None) -> dict[str, float]:
    """Score one answer; None means that the model's text could not be read, which misses every hit.

    A trace's error is taken over readable answers only, so read it beside `answer_rate`.
    """
    usable = answer is not None and has_answer(sample.kind, answer)
    scores = {"answer_rate": float(usable)}
    if sample.kind == "box" and sample.answer.box is not None:
        overlap = box_iou(answer.box, sample.answer.box) if usable and answer and answer.box else 0.0
        scores |= {"box_iou": overlap, "box_iou50": float(overlap >= IOU_THRESHOLD)}
    if sample.kind in ("point", "target") and sample.region is not None:
        hit = usable and answer is not None and point_in_box(answer.points[0], sample.region)
        scores[f"{sample.kind}_hit_rate"] = float(hit)
    if sample.kind == "trace" and usable and answer:
        scores["trace_error_px"] = trace_error(answer.trajectory, sample.answer.trajectory)
    if sample.kind in ("subgoal", "words"):
        scores[f"{sample.kind}_match"] = float(bool(usable and answer and answer.label == sample.answer.label))
    return scores


def has_answer(kind: str, answer: Spatial) -> bool:
    """Say whether an answer holds what a question of this kind asks for."""
    held = {
        "box": answer.box is not None,
        "point": bool(answer.points),
        "target": bool(answer.points),
        "trace": bool(answer.trajectory),
        "subgoal": bool(answer.label),
        "words": bool(answer.label),
    }
    return held[kind]
