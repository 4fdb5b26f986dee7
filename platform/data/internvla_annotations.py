"""Read the boxes that InternVLA-M1's simulator keeps, pickled, in columns of its LeRobot datasets.

Read here: `annotation.CAMERA.bbox2d_tight` (records of semanticId, x_min, y_min, x_max, y_max in pixels) with its
`_id2labels` (id -> object uid), and the uids `annotation.pick_obj_uid` and `annotation.place_obj_uid`. Objects have no
names there, so the two that the instruction names, "Move the A to the top of the B.", are kept and the others left out.

`annotation.CAMERA.tcp_2d_trace` holds no path but points of one moment, [11,2] in pixels: one that stands still in the
world, then five on each finger. Their middle, followed from frame to frame until the gripper's command changes or the
episode ends, is the end-effector's trace. In a camera that moves, as its first point tells, places seen later are no
places of this picture, so it has no traces. Not read: the 3-D boxes, whose frame the dataset does not state.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from st4vla.platform.contracts import Box, FrameAnnotation, Point
from st4vla.platform.data.lerobot_meta import EpisodeEntry, read_table
from st4vla.platform.data.plain_pickle import read_plain
from st4vla.platform.errors import DataError

INSTRUCTION = re.compile(r"move the (?P<target>.+?) to the top of the (?P<destination>.+?)\.?$", re.IGNORECASE)
BOXES = "annotation.{camera}.bbox2d_tight"
POINTS = "annotation.{camera}.tcp_2d_trace"
GRIPPER = "action.gripper_close"
# A camera moves if the point that stands still moves by more than this in its pictures.
STILL_PX = 0.5
MOST_WAYPOINTS = 8
UIDS = {"target": "annotation.pick_obj_uid", "destination": "annotation.place_obj_uid"}


def is_annotated(features: Mapping[str, Any], cameras: Sequence[str]) -> bool:
    """Say whether the dataset has these columns for any of the cameras."""
    return all(key in features for key in UIDS.values()) and any(_boxes_key(name) in features for name in cameras)


def read_annotations(
    entry: EpisodeEntry, cameras: Sequence[str], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, list[FrameAnnotation]]:
    """Give {camera: one annotation per frame} of one episode; none if its instruction is of another form.

    Args:
        entry: where the episode lies.
        cameras: short camera names.
        sizes: {camera: (height, width)} in pixels.

    Raises:
        DataError: a cell cannot be read, or a box lies outside the image; file, row and column are named.
    """
    words = INSTRUCTION.match(entry.instruction.strip())
    if words is None:
        return {}
    table = read_table(entry.data_path).slice(entry.data_row, entry.length)
    found = [camera for camera in cameras if _boxes_key(camera) in table.column_names]
    notes = {}
    for camera in found:
        traces = _traces(table, entry, camera, sizes[camera])
        notes[camera] = [
            _annotation(table, row, entry, camera, words.groupdict(), sizes[camera], traces[row])
            for row in range(len(table))
        ]
    return notes


def _annotation(
    table: pa.Table,
    row: int,
    entry: EpisodeEntry,
    camera: str,
    words: Mapping[str, str],
    size: tuple[int, int],
    trace: tuple[Point, ...],
) -> FrameAnnotation:
    where = f"{entry.data_path} row {entry.data_row + row}"
    key = _boxes_key(camera)
    by_uid = {_cell(table, row, column, where): words[role] for role, column in UIDS.items()}
    uid_of = {int(number): label["class"] for number, label in _cell(table, row, f"{key}_id2labels", where).items()}
    boxes: dict[str, Box] = {}
    for record in _cell(table, row, key, where):
        name = by_uid.get(uid_of.get(int(record["semanticId"]), ""))
        if name is not None:
            boxes[name] = _box(record, size, f"{where}: {key!r}")
    shown = {role: name if name in boxes else "" for role, name in words.items()}
    return FrameAnnotation(boxes, {}, shown["target"], words["destination"], trace, "")


def _traces(table: pa.Table, entry: EpisodeEntry, camera: str, size: tuple[int, int]) -> list[tuple[Point, ...]]:
    """Give each frame's trace, () where it has none."""
    key = POINTS.format(camera=camera)
    if key not in table.column_names:
        return [()] * len(table)
    points = []
    for row in range(len(table)):
        where = f"{entry.data_path} row {entry.data_row + row}"
        cell = np.asarray(_cell(table, row, key, where), np.float64)
        if cell.ndim != 2 or cell.shape[0] < 2 or cell.shape[1] != 2 or not np.isfinite(cell).all():
            raise DataError(f"{where}: {key!r} has shape {cell.shape}; expected finite points [11,2].")
        points.append(cell)
    still = np.stack([cell[0] for cell in points])
    if np.abs(still - still[0]).max() > STILL_PX:
        return [()] * len(table)
    path = np.stack([cell[1:].mean(0) for cell in points])
    return [_trace(path[row:end], size) for row, end in enumerate(_stage_ends(table))]


def _stage_ends(table: pa.Table) -> list[int]:
    """Give, for each frame, the frame at which the gripper's command changes next, or behind the last one."""
    if GRIPPER not in table.column_names:
        return [len(table)] * len(table)
    command = np.array(table[GRIPPER].to_pylist(), np.float64).reshape(len(table), -1)[:, 0]
    changes = [*(np.flatnonzero(np.diff(command)) + 1).tolist(), len(table)]
    return [next(change for change in changes if change > row) for row in range(len(table))]


def _trace(path: np.ndarray, size: tuple[int, int]) -> tuple[Point, ...]:
    """Give at most MOST_WAYPOINTS points of a path [N,2], evenly, up to where it leaves the image."""
    height, width = size
    chosen = path[np.unique(np.linspace(0, len(path) - 1, min(MOST_WAYPOINTS, len(path))).round().astype(int))]
    inside = ((chosen >= 0) & (chosen <= (width, height))).all(1)
    chosen = chosen[: len(chosen) if inside.all() else int(inside.argmin())]
    return tuple((float(x), float(y)) for x, y in chosen) if len(chosen) > 1 else ()


def _box(record: Any, size: tuple[int, int], where: str) -> Box:
    box = (float(record["x_min"]), float(record["y_min"]), float(record["x_max"]), float(record["y_max"]))
    height, width = size
    if not (0 <= box[0] <= box[2] <= width and 0 <= box[1] <= box[3] <= height):
        raise DataError(f"{where} has the box {box} in an image of {width}x{height} pixels; annotate it anew.")
    return box


def _cell(table: pa.Table, row: int, column: str, where: str) -> Any:
    if column not in table.column_names:
        raise DataError(f"{where} has no column {column!r}; the dataset's annotations are incomplete.")
    return read_plain(table[column][row].as_py(), f"{where}: {column!r}")


def _boxes_key(camera: str) -> str:
    return BOXES.format(camera=camera)
