"""Read and write recordings of SimplerEnv: what a robot was told, and what the world and the picture then were.

    actions [T,7]  success [T]  tcp_pose [T+1,7]  qpos, qvel, drive_target [T+1,D]  (joints: meta.active_joints)
    obj_pose, obj_com_pose [T+1,K,7]  (meta.obj_names)  cabinet_qpos [T+1,C]  (meta.cabinet_joints)
    robot_base_pose [7]  cabinet_pose [7] or [0]  rgb_first uint8 [H,W,3]  seg_first int16 [H,W]  (meta.seg_id_to_name)
    cam_intrinsic_cv [3,3]  cam_extrinsic_cv [4,4] or [3,4]  cam_cam2world_gl [4,4]

Poses are position in m and quaternion w, x, y, z in the world frame; index 0 of a track is right after the reset.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from st4vla.platform.errors import DataError

MAX_BYTES = 1 << 29
MAX_STEPS = 10_000
TRACKS = ("tcp_pose", "qpos", "qvel", "drive_target", "obj_pose", "obj_com_pose", "cabinet_qpos")
KEYS = (
    "actions",
    "success",
    *TRACKS,
    "robot_base_pose",
    "cabinet_pose",
    "rgb_first",
    "seg_first",
    "cam_intrinsic_cv",
    "cam_extrinsic_cv",
    "cam_cam2world_gl",
)


@dataclass(frozen=True)
class Recording:
    """One recording: the description, and the arrays by the names the module lists; some may be absent.

    Attributes:
        name: the file's name without its ending.
        meta: environment id and options (`case`), instruction, names of joints, objects and segments.
        arrays: by key.
    """

    name: str
    meta: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @property
    def case(self) -> Mapping[str, Any]:
        """Which environment this was, in the original's words."""
        return self.meta["case"]

    @property
    def actions(self) -> np.ndarray:
        """float64 [T,7], raw controller input."""
        return self.arrays["actions"]


def read_recording(path: str | Path) -> Recording:
    """Read a recording; nothing in it is ever executed.

    Raises:
        DataError: the file is not there, too large, no recording, or its parts do not fit each other.
    """
    path = Path(path)
    arrays = dict(_read_arrays(path))
    try:
        meta = json.loads(str(arrays.pop("meta")))
    except KeyError:
        raise DataError(f"{path} has no `meta`; expected a recording with a JSON description") from None
    except ValueError as error:
        raise DataError(f"{path}: `meta` is no JSON ({error})") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("case"), dict) or "env_id" not in meta["case"]:
        raise DataError(f"{path}: `meta` names no case; expected meta.case.env_id, the original's environment")
    _check(path, arrays)
    return Recording(path.stem, meta, arrays)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path} is not there; expected a recording (.npz)")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise DataError(f"{path} unpacks to {size >> 20} MiB; recordings have at most {MAX_BYTES >> 20}")
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in (*KEYS, "meta") if key in file.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a recording: {error}") from error
    strange = [key for key, value in found.items() if not isinstance(value, np.ndarray)]
    if strange:
        raise DataError(f"{path} cannot be read as a recording: {strange[0]} is no array")
    return found


def _check(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    actions = arrays.get("actions")
    if actions is None or actions.ndim != 2 or actions.shape[1] != 7 or not 0 < len(actions) <= MAX_STEPS:
        seen = "no actions" if actions is None else f"actions {list(actions.shape)}"
        raise DataError(f"{path} has {seen}; expected [T,7] with T from 1 to {MAX_STEPS}")
    if not np.issubdtype(actions.dtype, np.number) or not np.isfinite(actions).all():
        raise DataError(f"{path} has actions that are no finite numbers")
    for key in TRACKS:
        if key in arrays and len(arrays[key]) != len(actions) + 1:
            raise DataError(
                f"{path}: {key} has {len(arrays[key])} rows; {len(actions)} actions make {len(actions) + 1}"
            )
    if "success" in arrays and len(arrays["success"]) != len(actions):
        raise DataError(
            f"{path}: success has {len(arrays['success'])} rows; expected one for each of {len(actions)} actions"
        )


def write_recording(path: str | Path, recording: Recording) -> None:
    """Write a recording; the file appears whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                np.savez_compressed(file, meta=np.array(json.dumps(recording.meta)), **recording.arrays)  # pyright: ignore[reportArgumentType]
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error


def read_states(path: str | Path) -> list[dict[str, Any]]:
    """Read a list of states to judge, each with its `case` and either `poses` or `cabinet_qpos`.

    Raises:
        DataError: the file is not there, too large, or no such list.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not there; expected a list of states (.json)")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path} has {path.stat().st_size >> 20} MiB; a list of states has at most {MAX_BYTES >> 20}")
    try:
        states = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(states, list) or not all(isinstance(state, dict) for state in states):
        raise DataError(f"{path} holds no list of states; expected a JSON list of objects")
    return states
