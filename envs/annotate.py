"""Make what grounding learns from out of what the simulator knows: segmentation and kinematics, no human."""

from collections.abc import Mapping, Sequence

import numpy as np

from st4vla.envs import focus
from st4vla.envs.layout import Scene
from st4vla.envs.recording import View
from st4vla.envs.stage import Frame
from st4vla.platform.contracts import Box, FrameAnnotation, Point

MIN_PIXELS = 6  # an object that shows less than this is not there
WAY_POINTS = 8
MASK_STEP = 4


def box_of(mask: np.ndarray) -> Box:
    """Give the tight box of a non-empty mask [H,W]: its right and lower edges lie beyond the last pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def point_on(mask: np.ndarray) -> Point:
    """Give the middle of the mask's own pixel that lies nearest to its centroid."""
    pixels = np.argwhere(mask)
    nearest = pixels[np.argmin(((pixels - pixels.mean(axis=0)) ** 2).sum(axis=1))]
    return float(nearest[1]) + 0.5, float(nearest[0]) + 0.5


def way_points(path: np.ndarray, frame: Frame) -> tuple[Point, ...]:
    """Project at most eight evenly spaced points of a path [N,3] that lie in the picture."""
    if len(path) == 0:
        return ()
    chosen = path[np.unique(np.linspace(0, len(path) - 1, WAY_POINTS).round().astype(int))]
    height, width = frame.segmentation.shape
    pixels = frame.project(chosen)
    return tuple((float(x), float(y)) for x, y in pixels if 0 <= x < width and 0 <= y < height)


def annotate(
    scene: Scene, view: View, frames: Mapping[str, Frame], future_tcp: np.ndarray
) -> dict[str, FrameAnnotation]:
    """Annotate one moment's pictures.

    Args:
        scene: what is on the table.
        view: the recorded moment.
        frames: its pictures by camera.
        future_tcp: [N,3] world positions of the TCP from this moment to the end of its stage (`stage_path`).
    """
    return {camera: annotate_frame(scene, view, frame, future_tcp) for camera, frame in frames.items()}


def annotate_frame(scene: Scene, view: View, frame: Frame, future_tcp: np.ndarray) -> FrameAnnotation:
    """Annotate one picture; see `annotate`."""
    masks = {thing.name: frame.segmentation == number for number, thing in enumerate(scene.things, start=1)}
    visible = {name: mask for name, mask in masks.items() if mask.sum() >= MIN_PIXELS}
    target = scene.things[view.target].name
    destination = scene.things[view.destination].name if view.destination >= 0 else ""
    return FrameAnnotation(
        boxes={name: box_of(mask) for name, mask in visible.items()},
        points={name: point_on(mask) for name, mask in visible.items()},
        target=target if target in visible else "",
        destination=destination,
        trace=way_points(future_tcp, frame),
        subgoal=focus.describe(view.sub_goal, target, destination, scene.side),
        mask=_coarse_mask(list(visible.values()), frame.segmentation.shape),
    )


def _coarse_mask(masks: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    labels = np.zeros(shape, dtype=np.int8)
    for number, mask in enumerate(masks, start=1):
        labels[mask] = number
    return np.ascontiguousarray(labels[MASK_STEP // 2 :: MASK_STEP, MASK_STEP // 2 :: MASK_STEP])


def stage_path(views: Sequence[View], now: int) -> np.ndarray:
    """Give the TCP's path [N,3] from moment `now` to the end of its stage, or of the recording."""
    key = (views[now].target, views[now].sub_goal)
    path = [views[now].tcp]
    for view in views[now + 1 :]:
        path.append(view.tcp)
        if (view.target, view.sub_goal) != key:
            break
    return np.array(path)
