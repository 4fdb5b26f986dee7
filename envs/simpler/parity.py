"""Measure how far one recording is from another: poses, cameras, the tool's path, verdicts and the picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from st4vla.envs.simpler.recording import Recording
from st4vla.platform.errors import DataError

SMOOTH_STEPS = 40
BEHIND = ("", "0", "arena", "ground", "goal_site", "sink", "dummy_sink_target_plane")


@dataclass(frozen=True)
class Figure:
    """One deviation: its key, what it is and in which unit, and the most it may be (the least, for a share)."""

    key: str
    about: str
    limit: float | None = None
    at_least: bool = False

    def holds(self, value: float | None) -> bool | None:
        """Say whether a value is within the limit; None if there is no value or no limit."""
        if value is None or self.limit is None:
            return None
        return value >= self.limit if self.at_least else value <= self.limit


FIGURES = (
    Figure("robot_mm", "robot base and tool at the start, mm", 0.1),
    Figure("robot_deg", "robot base and tool at the start, degrees", 0.1),
    Figure("camera_mm", "camera at the start, mm", 0.1),
    Figure("camera_deg", "camera at the start, degrees", 0.1),
    Figure("camera_px", "camera intrinsics, pixels", 0.1),
    Figure("objects_mm", "settled objects, farthest, mm", 2.0),
    Figure("objects_deg", "settled objects, most turned, degrees", 5.0),
    Figure("cabinet_mm", "cabinet and its drawers at the start, mm", 0.1),
    Figure("tcp_mean_mm", f"tool over the first {SMOOTH_STEPS} actions, mean, mm", 1.0),
    Figure("tcp_max_mm", f"tool over the first {SMOOTH_STEPS} actions, most, mm", 3.0),
    Figure("objects_path_mm", "objects over all actions, most, mm"),
    Figure("cabinet_path_mm", "drawers over all actions, most, mm"),
    Figure("success_differs", "steps with another verdict", 0.0),
    Figure("last_success_differs", "another verdict at the last step", 0.0),
    Figure("foreground_iou", "foreground at the start, share of overlap", 0.97, at_least=True),
    Figure("foreground_error", "foreground at the start, mean error of 255", 3.0),
)


def deviations(original: Recording, ours: Recording) -> dict[str, float | None]:
    """Measure every figure; None where one of the two has nothing to compare.

    Raises:
        DataError: the recordings are of different cases or lengths.
    """
    if len(original.actions) != len(ours.actions) or not np.allclose(original.actions, ours.actions):
        raise DataError(
            f"{original.name} and {ours.name} were told different actions; compare replays of one recording"
        )
    found = {**_at_start(original, ours), **_on_the_way(original, ours), **_verdicts(original, ours)}
    found |= _picture(original, ours)
    return {figure.key: found.get(figure.key) for figure in FIGURES}


def _at_start(original: Recording, ours: Recording) -> dict[str, float]:
    found = {}
    robot = [_pair(original, ours, "robot_base_pose"), _first(_pair(original, ours, "tcp_pose"))]
    found |= _poses("robot", [pair for pair in robot if pair is not None])
    camera = _pair(original, ours, "cam_cam2world_gl")
    if camera is not None:
        found |= _matrices("camera", *camera)
    intrinsic = _pair(original, ours, "cam_intrinsic_cv")
    if intrinsic is not None:
        found["camera_px"] = float(np.abs(intrinsic[0] - intrinsic[1]).max())
    objects = _first(_pair(original, ours, "obj_pose"))
    if objects is not None:
        found |= _poses("objects", list(zip(*objects, strict=True)))
    drawers = _first(_pair(original, ours, "cabinet_qpos"))
    if drawers is not None:
        apart = 1e3 * float(np.abs(drawers[0] - drawers[1]).max())
        cabinet = _pair(original, ours, "cabinet_pose")
        found["cabinet_mm"] = max(apart, _apart_mm(*cabinet)) if cabinet is not None else apart
    return found


def _on_the_way(original: Recording, ours: Recording) -> dict[str, float]:
    found = {}
    tool = _pair(original, ours, "tcp_pose")
    if tool is not None:
        apart = 1e3 * np.linalg.norm(tool[0][1:, :3] - tool[1][1:, :3], axis=-1)[:SMOOTH_STEPS]
        found |= {"tcp_mean_mm": float(apart.mean()), "tcp_max_mm": float(apart.max())}
    objects = _pair(original, ours, "obj_pose")
    if objects is not None:
        found["objects_path_mm"] = 1e3 * float(np.linalg.norm((objects[0] - objects[1])[..., :3], axis=-1).max())
    drawers = _pair(original, ours, "cabinet_qpos")
    if drawers is not None:
        found["cabinet_path_mm"] = 1e3 * float(np.abs(drawers[0] - drawers[1]).max())
    return found


def _verdicts(original: Recording, ours: Recording) -> dict[str, float]:
    pair = _pair(original, ours, "success")
    if pair is None:
        return {}
    differs = pair[0].astype(bool) != pair[1].astype(bool)
    return {"success_differs": float(differs.sum()), "last_success_differs": float(differs[-1])}


def _picture(original: Recording, ours: Recording) -> dict[str, float]:
    masks, pictures = _pair(original, ours, "seg_first"), _pair(original, ours, "rgb_first")
    if masks is None:
        return {}
    theirs, mine = foreground(masks[0], original.meta), foreground(masks[1], ours.meta)
    union = (theirs | mine).sum()
    found = {"foreground_iou": float((theirs & mine).sum() / union) if union else 1.0}
    if pictures is not None and theirs.any():
        error = np.abs(pictures[0].astype(np.float64) - pictures[1].astype(np.float64))
        found["foreground_error"] = float(error[theirs].mean())
    return found


def foreground(segments: np.ndarray, meta: Mapping[str, Any]) -> np.ndarray:
    """Give bool [H,W]: the pixels of the robot, of objects and of a cabinet, which no photograph covers."""
    names = {int(number): name for number, name in meta.get("seg_id_to_name", {}).items()}
    kept = [number for number, name in names.items() if name not in BEHIND]
    return np.isin(segments, kept)


def _pair(original: Recording, ours: Recording, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Give an array of both, None where one lacks it or it is empty.

    Raises:
        DataError: their shapes differ.
    """
    first, second = original.arrays.get(key), ours.arrays.get(key)
    if first is None or second is None or (first.size == 0 and second.size == 0):
        return None
    if first.shape != second.shape:
        raise DataError(f"{original.name}: {key} is {list(first.shape)} in one and {list(second.shape)} in the other")
    return first, second


def _first(pair: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray] | None:
    return None if pair is None else (pair[0][0], pair[1][0])


def _poses(name: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    if not pairs:
        return {}
    return {
        f"{name}_mm": max(_apart_mm(*pair) for pair in pairs),
        f"{name}_deg": max(_turned_deg(*pair) for pair in pairs),
    }


def _apart_mm(first: np.ndarray, second: np.ndarray) -> float:
    return 1e3 * float(np.linalg.norm(np.subtract(first[:3], second[:3], dtype=np.float64)))


def _turned_deg(first: np.ndarray, second: np.ndarray) -> float:
    one, other = (Rotation.from_quat(pose[[4, 5, 6, 3]].astype(np.float64)) for pose in (first, second))
    return float(np.degrees((one.inv() * other).magnitude()))


def _matrices(name: str, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    one, other = (Rotation.from_matrix(matrix[:3, :3].astype(np.float64)) for matrix in (first, second))
    return {
        f"{name}_mm": _apart_mm(first[:3, 3], second[:3, 3]),
        f"{name}_deg": float(np.degrees((one.inv() * other).magnitude())),
    }
