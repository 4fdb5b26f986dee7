"""One recorded demonstration, as collectors hand it over and readers give it back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from st4vla.platform.contracts import FrameAnnotation
from st4vla.platform.errors import DataError


@dataclass(frozen=True)
class Episode:
    """N control steps of one robot; row i of every field belongs to the same moment.

    Attributes:
        instruction: what the robot was told; LeRobot calls it the task.
        task: name of the task, e.g. "reach"; "" where a foreign recording does not say.
        actions: float32 [N,A] in physical units; `actions[i]` was commanded after frame i was seen.
        states: float32 [N,S], or None where the recording has none.
        frames: {camera: uint8 [N,H,W,3]}, RGB.
        annotations: {camera: one FrameAnnotation per frame}; cameras without annotations are left out.
        fps: control steps per second, a whole number as LeRobot wants it.
        seed: seed of the scene, for the record.
        spec_id: `EpisodeSpec.episode_id` of the episode that was run, "" if there was none.
        columns: further numbers of every step, {name: float32 or int64 [N]}; kept as the features "st4vla.NAME".
        facts: further facts of the whole episode, anything JSON can say.
    """

    instruction: str
    task: str
    actions: np.ndarray
    states: np.ndarray | None
    frames: Mapping[str, np.ndarray]
    annotations: Mapping[str, Sequence[FrameAnnotation]] = field(default_factory=dict)
    fps: int = 5
    seed: int = 0
    spec_id: str = ""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise DataError, naming the field, if the rows do not belong together."""
        _check_matrix("actions", self.actions)
        if self.states is not None:
            _check_matrix("states", self.states)
        if self.fps < 1 or int(self.fps) != self.fps:
            raise DataError(f"fps is {self.fps}; LeRobot datasets need a whole number of frames per second, 1 or more.")
        if not self.instruction:
            raise DataError("instruction is empty; an episode without words cannot teach a language-guided policy.")
        for name, length in self._lengths():
            if length != len(self.actions):
                raise DataError(
                    f"{name} has {length} rows and actions has {len(self.actions)}; cut them to one length."
                )
        for camera, frames in self.frames.items():
            _check_frames(camera, frames)
        for name, values in self.columns.items():
            _check_column(name, values)

    def __len__(self) -> int:
        """Give the number of control steps."""
        return len(self.actions)

    def _lengths(self) -> list[tuple[str, int]]:
        named = [(f"frames[{camera!r}]", len(frames)) for camera, frames in self.frames.items()]
        named += [(f"annotations[{camera!r}]", len(rows)) for camera, rows in self.annotations.items()]
        named += [(f"columns[{name!r}]", len(values)) for name, values in self.columns.items()]
        return named + ([("states", len(self.states))] if self.states is not None else [])


def _check_matrix(name: str, rows: np.ndarray) -> None:
    if rows.ndim != 2 or not len(rows):
        raise DataError(f"{name} has shape {rows.shape}; expected [N, width] with N >= 1.")
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        raise DataError(
            f"{name} row {bad[0][0]} column {bad[0][1]} is {rows[tuple(bad[0])]}; every value must be finite."
        )


def _check_column(name: str, values: np.ndarray) -> None:
    if values.dtype not in (np.float32, np.int64) or values.ndim != 1 or not np.isfinite(values).all():
        raise DataError(f"columns[{name!r}] is {values.dtype} {values.shape}; expected finite float32 or int64 [N].")


def _check_frames(camera: str, frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise DataError(f"frames[{camera!r}] is {frames.dtype} {frames.shape}; expected uint8 [N, H, W, 3].")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise DataError(
            f"frames[{camera!r}] are {frames.shape[1]}x{frames.shape[2]} pixels; "
            "H.264 needs even sides, so crop or pad them."
        )
