"""What LeRobot v2.1 and v3.0 say alike of a recording: its features, rows, statistics and modality table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from st4vla.platform.data import video
from st4vla.platform.data.episode import Episode
from st4vla.platform.errors import DataError

ACTION, STATE, IMAGE_PREFIX = "action", "observation.state", "observation.images."
# Our own columns, in a namespace of their own beside LeRobot's.
COLUMN_PREFIX = "st4vla."
ARM_NAMES = ("x", "y", "z", "rx", "ry", "rz", "gripper")
ARM_PARTS = {"position": (0, 3), "rotation": (3, 6), "gripper": (6, 7)}
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
# Pixels for the image statistics: every 4th row and column of at most 16 frames spread over the episode.
STATS_FRAMES, STATS_STRIDE = 16, 4


@dataclass(frozen=True)
class Recording:
    """The form that every episode of one dataset shares: what `info.json` declares; `columns` are {name: dtype}."""

    cameras: Mapping[str, tuple[int, int]]
    action_width: int
    state_width: int
    fps: int
    columns: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, episode: Episode) -> "Recording":
        """Read the form off an episode."""
        cameras = {camera: (frames.shape[1], frames.shape[2]) for camera, frames in episode.frames.items()}
        state_width = 0 if episode.states is None else episode.states.shape[1]
        columns = {name: str(values.dtype) for name, values in episode.columns.items()}
        return cls(cameras, episode.actions.shape[1], state_width, int(episode.fps), columns)

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> "Recording":
        """Read the form off an `info.json` of ours."""
        features = info["features"]
        cameras = {
            key.removeprefix(IMAGE_PREFIX): (ft["shape"][0], ft["shape"][1])
            for key, ft in features.items()
            if ft["dtype"] == "video"
        }
        state_width = features[STATE]["shape"][0] if STATE in features else 0
        columns = {
            key.removeprefix(COLUMN_PREFIX): ft["dtype"]
            for key, ft in features.items()
            if key.startswith(COLUMN_PREFIX)
        }
        return cls(cameras, features[ACTION]["shape"][0], state_width, info["fps"], columns)

    def check(self, episode: Episode) -> None:
        """Raise DataError, naming both sides, if `episode` has another form."""
        other = Recording.of(episode)
        for name in ("cameras", "action_width", "state_width", "fps", "columns"):
            mine, seen = getattr(self, name), getattr(other, name)
            if mine != seen:
                raise DataError(
                    f"the episode has {name} {seen} and the dataset {mine}; "
                    "write it to another folder, or record it as the others were."
                )

    def features(self) -> dict[str, dict[str, Any]]:
        """Give LeRobot's feature table."""
        table: dict[str, dict[str, Any]] = {ACTION: _vector(self.action_width, ACTION)}
        if self.state_width:
            table[STATE] = _vector(self.state_width, "state")
        for camera, (height, width) in self.cameras.items():
            table[IMAGE_PREFIX + camera] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": video.describe(height, width, self.fps),
            }
        table["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        for key in ("frame_index", "episode_index", "index", "task_index"):
            table[key] = {"dtype": "int64", "shape": [1], "names": None}
        for name, dtype in self.columns.items():
            table[COLUMN_PREFIX + name] = {"dtype": dtype, "shape": [1], "names": None}
        return table

    def modality(self) -> dict[str, Any]:
        """Give `modality.json`, which GR00T-style readers slice actions and states by."""
        groups: dict[str, Any] = {}
        for group, key, width in (("state", STATE, self.state_width), ("action", ACTION, self.action_width)):
            parts = ARM_PARTS if width == len(ARM_NAMES) else {"all": (0, width)} if width else {}
            groups[group] = {n: {"start": s, "end": e, "original_key": key} for n, (s, e) in parts.items()}
        groups["video"] = {camera: {"original_key": IMAGE_PREFIX + camera} for camera in self.cameras}
        groups["annotation"] = {"human.task_description": {"original_key": "task_index"}}
        return groups


def data_table(episode: Episode, index: int, first_frame: int, task_index: int) -> pa.Table:
    """Lay the episode's numbers out as LeRobot's parquet rows."""
    length = len(episode)
    columns: dict[str, Any] = {ACTION: _list_column(episode.actions)}
    if episode.states is not None:
        columns[STATE] = _list_column(episode.states)
    frames = np.arange(length)
    columns["timestamp"] = pa.array((frames / episode.fps).astype(np.float32))
    columns["frame_index"] = pa.array(frames, pa.int64())
    columns["episode_index"] = pa.array(np.full(length, index), pa.int64())
    columns["index"] = pa.array(first_frame + frames, pa.int64())
    columns["task_index"] = pa.array(np.full(length, task_index), pa.int64())
    columns |= {COLUMN_PREFIX + name: pa.array(values) for name, values in episode.columns.items()}
    return pa.table(columns)


def episode_statistics(table: pa.Table, frames: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Summarise every feature as LeRobot does; pixels are of 0..1 and shaped [3][1][1]."""
    stats = {}
    for name in table.column_names:
        rows = np.array(table[name].to_pylist(), np.float64).reshape(len(table), -1)
        stats[name] = {key: value.tolist() for key, value in _summary(rows).items()} | {"count": [len(table)]}
    for camera, pictures in frames.items():
        chosen = np.unique(np.linspace(0, len(pictures) - 1, STATS_FRAMES).round().astype(int))
        pixels = pictures[chosen, ::STATS_STRIDE, ::STATS_STRIDE].reshape(-1, 3) / 255.0
        summary = {key: value.reshape(3, 1, 1).tolist() for key, value in _summary(pixels).items()}
        stats[IMAGE_PREFIX + camera] = summary | {"count": [len(chosen)]}
    return stats


def merge_statistics(parts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Join episodes' statistics into the dataset's, weighted by count, as LeRobot does.

    Mean, std, min and max are exact; the quantiles are weighted means of the episodes' quantiles, an approximation.
    What trains a policy is therefore computed from the rows (`LeRobotDataset.statistics`), not taken from here.
    """
    return {key: _merge_feature([part[key] for part in parts]) for key in parts[0]} if parts else {}


def _merge_feature(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = np.array([part["count"][0] for part in parts], np.float64)
    weights = counts / counts.sum()
    stacked = {name: np.array([part[name] for part in parts], np.float64) for name in parts[0] if name != "count"}
    mean = np.tensordot(weights, stacked["mean"], 1)
    variance = np.tensordot(weights, stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2, 1)
    merged = {"min": stacked["min"].min(0), "max": stacked["max"].max(0), "mean": mean, "std": np.sqrt(variance)}
    merged |= {name: np.tensordot(weights, stacked[name], 1) for name in QUANTILES if name in stacked}
    return {name: value.tolist() for name, value in merged.items()} | {"count": [int(counts.sum())]}


def _summary(rows: np.ndarray) -> dict[str, np.ndarray]:
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    summary = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    return summary | dict(zip(QUANTILES, quantiles, strict=True))


def _list_column(rows: np.ndarray) -> pa.Array:
    values = np.ascontiguousarray(rows, np.float32)
    if values.shape[1] == 1:
        # LeRobot keeps features of shape (1,) as plain numbers.
        return pa.array(values[:, 0])
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _vector(width: int, name: str) -> dict[str, Any]:
    names = list(ARM_NAMES) if width == len(ARM_NAMES) else [f"{name}_{index}" for index in range(width)]
    return {"dtype": "float32", "shape": [width], "names": names}
