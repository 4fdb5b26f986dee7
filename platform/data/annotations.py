"""Keep frame annotations in typed parquet columns beside a dataset, one row per frame and camera.

They lie in `annotations/`, outside `data/`, so that other people's LeRobot readers never meet them. Nothing is pickled:

    index int64 (frame of the dataset), episode_index int64, frame_index int64, camera string,
    box_names list<string>, boxes list<float32[4]> (x1, y1, x2, y2), point_names list<string>, points list<float32[2]>,
    target string, destination string, trace list<float32[2]>, subgoal string,
    mask binary (int8, row by row), mask_height int16, mask_width int16 (null where there is no mask)

Coordinates are pixels of the frame.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from st4vla.platform.contracts import FrameAnnotation
from st4vla.platform.data.pictures import Size, checked_box, checked_point
from st4vla.platform.errors import DataError

SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("episode_index", pa.int64()),
        ("frame_index", pa.int64()),
        ("camera", pa.string()),
        ("box_names", pa.list_(pa.string())),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("point_names", pa.list_(pa.string())),
        ("points", pa.list_(pa.list_(pa.float32(), 2))),
        ("target", pa.string()),
        ("destination", pa.string()),
        ("trace", pa.list_(pa.list_(pa.float32(), 2))),
        ("subgoal", pa.string()),
        ("mask", pa.binary()),
        ("mask_height", pa.int16()),
        ("mask_width", pa.int16()),
    ]
)

CONTENT = SCHEMA.names[4:]


def to_table(annotations: Mapping[str, Sequence[FrameAnnotation]], episode: int, first_index: int) -> pa.Table:
    """Lay one episode's annotations out as rows, frame by frame, cameras in their order."""
    length = max((len(rows) for rows in annotations.values()), default=0)
    rows = [
        {"index": first_index + frame, "episode_index": episode, "frame_index": frame, "camera": camera}
        | _to_row(annotations[camera][frame])
        for frame in range(length)
        for camera in annotations
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def checked(row: Mapping[str, object], size: Size, where: str) -> FrameAnnotation:
    """Read one row of a picture of that width and height.

    Raises:
        DataError: its lists do not match, or a box or point lies outside; naming `where` and the key.
    """
    try:
        note = from_row(row)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: names and places do not match: {error}; mend or leave out the row.") from error
    for name, box in note.boxes.items():
        checked_box(box, size, f"{where}: 'boxes', {name!r}")
    for name, point in note.points.items():
        checked_point(point, size, f"{where}: 'points', {name!r}")
    return note


def from_row(row: Mapping[str, object]) -> FrameAnnotation:
    """Read one row, as `pyarrow` gives it in plain Python, back into the annotation."""
    get = row.__getitem__
    mask: np.ndarray | None = None
    if get("mask") is not None:
        mask = np.frombuffer(get("mask"), np.int8).reshape(get("mask_height"), get("mask_width")).copy()  # type: ignore[arg-type]
    return FrameAnnotation(
        boxes={name: tuple(box) for name, box in zip(get("box_names"), get("boxes"), strict=True)},  # type: ignore[arg-type]
        points={name: tuple(point) for name, point in zip(get("point_names"), get("points"), strict=True)},  # type: ignore[arg-type]
        target=str(get("target")),
        destination=str(get("destination")),
        trace=tuple(tuple(point) for point in get("trace")),  # type: ignore[attr-defined]
        subgoal=str(get("subgoal")),
        mask=mask,
    )


def _to_row(annotation: FrameAnnotation) -> dict[str, object]:
    mask = None if annotation.mask is None else np.ascontiguousarray(annotation.mask, np.int8)
    return {
        "box_names": list(annotation.boxes),
        "boxes": [list(box) for box in annotation.boxes.values()],
        "point_names": list(annotation.points),
        "points": [list(point) for point in annotation.points.values()],
        "target": annotation.target,
        "destination": annotation.destination,
        "trace": [list(point) for point in annotation.trace],
        "subgoal": annotation.subgoal,
        "mask": None if mask is None else mask.tobytes(),
        "mask_height": None if mask is None else mask.shape[0],
        "mask_width": None if mask is None else mask.shape[1],
    }
