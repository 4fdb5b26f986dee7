"""Do again what a recording of the original did, and record what happens here under the same keys."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from st4vla.envs.simpler.cases import case_from_meta
from st4vla.envs.simpler.recording import Recording
from st4vla.envs.simpler.scene_view import as_row
from st4vla.envs.simpler.stage import Frame
from st4vla.envs.simpler.world import SimplerWorld
from st4vla.platform.errors import DataError

ADVANCE_BEFORE_STEP = 20
GL_FROM_CV = np.diag([1.0, -1.0, -1.0, 1.0])
KEPT_META = ("case", "active_joints", "cabinet_joints")
DTYPES = {"drive_target": np.float64, "actions": np.float64}


def replay(world: SimplerWorld, recording: Recording) -> Recording:
    """Replay a recording in a world and give what was recorded here.

    Raises:
        EnvError: the case is not known here, or its assets are missing.
        DataError: the recording names joints or objects that its case does not have.
    """
    world.reset_case(case_from_meta(recording.case))
    recorder = _Recorder(world, recording.meta)
    for number, action in enumerate(recording.actions):
        if number == ADVANCE_BEFORE_STEP:
            world.advance_to_next_subtask()
        world.step(action)
        recorder.note()
    return recorder.finish(recording)


class _Recorder:
    """Write down, after the reset and after every control step, what a recording holds."""

    def __init__(self, world: SimplerWorld, meta: Mapping[str, Any]):
        self._world, self._meta = world, meta
        ours = list(world.robot.joints)
        joints = list(meta.get("active_joints") or ours)
        self.objects = list(meta.get("obj_names") or [thing.model for thing in world.setup.build.things])
        self._check(sorted(joints) == sorted(ours), "active_joints", joints, ours)
        known = sorted(world.view.entities)
        self._check(set(self.objects) <= set(known), "obj_names", self.objects, known)
        self._order = np.array([ours.index(name) for name in joints])
        self._drawers = [name.removesuffix("_drawer_joint") for name in meta.get("cabinet_joints") or ()]
        self._tracks: dict[str, list[Any]] = {}
        self._verdicts: list[dict[str, Any]] = []
        self._instruction, self._frame = world.instruction, self._photograph()
        self._start = self._still()
        self._note_tracks(np.zeros(len(ours)))

    def _check(self, holds: bool, key: str, seen: list[str], expected: list[str]) -> None:
        if not holds:
            raise DataError(f"meta.{key} is {seen}; the case has {expected}")

    def _photograph(self) -> Frame:
        return next(iter(self._world.render_snapshot(self._world.snapshot()).values()))

    def _still(self) -> dict[str, np.ndarray]:
        cabinet = self._world.view.cabinet
        return {
            "robot_base_pose": as_row(self._world.view.robot.pose),
            "cabinet_pose": np.zeros(0) if cabinet is None else as_row(cabinet.pose),
        }

    def note(self) -> None:
        """Write down one control step."""
        self._note_tracks(self._world.view.drive_targets())
        self._verdicts.append({"elapsed_steps": self._world.steps, **self._world.verdict})

    def _note_tracks(self, drive_target: np.ndarray) -> None:
        view = self._world.view
        rows = {
            "tcp_pose": as_row(view.tcp),
            "qpos": view.qpos()[self._order],
            "qvel": view.qvel()[self._order],
            "drive_target": drive_target[self._order],
            "obj_pose": np.reshape([view.pose(name) for name in self.objects], (-1, 7)),
            "obj_com_pose": np.reshape([view.mass_pose(name) for name in self.objects], (-1, 7)),
            "cabinet_qpos": np.array([view.drawer(name) for name in self._drawers]),
        }
        for key, row in rows.items():
            self._tracks.setdefault(key, []).append(row)

    def finish(self, recording: Recording) -> Recording:
        """Give the recording."""
        success = np.array([bool(verdict.get("success")) for verdict in self._verdicts])
        tracks = {key: np.stack(rows) for key, rows in self._tracks.items()}
        names, picture = _picture(self._frame, self._meta, self._world.segment_names())
        arrays = {**tracks, **self._start}
        arrays = {key: value.astype(DTYPES.get(key, np.float32)) for key, value in arrays.items()}
        arrays |= {"actions": recording.actions, "success": success, **picture}
        bodies = self._world.view.bodies
        meta = {
            **{key: recording.meta[key] for key in KEPT_META if key in recording.meta},
            "instruction": self._instruction,
            "instruction_last": self._world.instruction,
            "reset_info": _plain(self._world.setup.info),
            "step_info": _plain(self._verdicts),
            "seg_id_to_name": names,
            "obj_names": self.objects,
            "obj_mass": [float(bodies[name].mass) for name in self.objects],
            "sapien": version("sapien"),
        }
        return Recording(recording.name, meta, arrays)


def _picture(
    frame: Frame, meta: Mapping[str, Any], names: tuple[str, ...]
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Give the table of segments, the original's numbers kept, and the picture's arrays."""
    table = {name: int(number) for number, name in (meta.get("seg_id_to_name") or {}).items()}
    for name in names:
        table.setdefault(name, max(table.values(), default=0) + 1)
    numbers = np.array([table.get("arena", 0), *(table[name] for name in names)], dtype=np.int16)
    extrinsic = np.eye(4)
    extrinsic[:3] = frame.extrinsic
    arrays = {
        "rgb_first": frame.rgb,
        "seg_first": numbers[frame.segmentation],
        "cam_intrinsic_cv": frame.intrinsic.astype(np.float32),
        "cam_extrinsic_cv": extrinsic.astype(np.float32),
        "cam_cam2world_gl": (np.linalg.inv(extrinsic) @ GL_FROM_CV).astype(np.float32),
    }
    return {str(number): name for name, number in table.items()}, arrays


def _plain(value: Any) -> Any:
    """Turn what a judge reports into what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
