"""Read the boxes that InternVLA-M1's simulator keeps, pickled, in columns of its LeRobot datasets.

Read here: `annotation.CAMERA.bbox2d_tight` (records of semanticId, x_min, y_min, x_max, y_max in pixels) with its
`_id2labels` (id -> object uid), and the uids `annotation.pick_obj_uid` and `annotation.place_obj_uid`. Objects have no
names there, so the two that the instruction names, "Move the A to the top of the B.", are kept and the others left out.
Not read: the 2-D traces, which are the gripper's corner points at one moment, not its path, and the 3-D boxes, whose
frame the dataset does not state.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from st4vla.platform.contracts import Box, FrameAnnotation
from st4vla.platform.data.lerobot_meta import EpisodeEntry, read_table
from st4vla.platform.data.plain_pickle import read_plain
from st4vla.platform.errors import DataError

INSTRUCTION = re.compile(r"move the (?P<target>.+?) to the top of the (?P<destination>.+?)\.?$", re.IGNORECASE)
BOXES = "annotation.{camera}.bbox2d_tight"
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
    return {
        camera: [_annotation(table, row, entry, camera, words.groupdict(), sizes[camera]) for row in range(len(table))]
        for camera in found
    }


def _annotation(
    table: pa.Table, row: int, entry: EpisodeEntry, camera: str, words: Mapping[str, str], size: tuple[int, int]
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
    return FrameAnnotation(boxes, {}, shown["target"], words["destination"], (), "")


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
