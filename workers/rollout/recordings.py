"""Keep an episode's recording in one small file, from which it can be watched later."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from st4vla.platform.contracts import Spatial
from st4vla.platform.data.disk import write_file
from st4vla.platform.errors import DataError
from st4vla.workers.rollout.episode import Look, Recording


def save_recording(path: Path, recording: Recording) -> None:
    """Write the file; it is there wholly or not at all.

    Raises:
        DataError: the disk refuses.
    """
    looks = json.dumps([asdict(look) for look in recording.looks])
    packed = io.BytesIO()
    np.savez_compressed(packed, snapshots=recording.snapshots, actions=recording.actions, looks=np.array(looks))
    write_file(path, packed.getvalue(), sync=True)


def load_recording(path: Path) -> Recording:
    """Read what `save_recording` wrote.

    Raises:
        DataError: the file is missing or not a recording.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            looks = tuple(_look(entry) for entry in json.loads(str(arrays["looks"])))
            return Recording(arrays["snapshots"], arrays["actions"], looks)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{path} is not a recording: {error}; delete it, and the film of that episode is skipped."
        ) from error


def _look(entry: dict) -> Look:
    spatial, seen = entry["spatial"], entry.get("seen")
    return Look(
        entry["step"],
        entry["instruction"],
        None if spatial is None else _spatial(spatial),
        None if seen is None else (seen[0], seen[1]),
    )


def _spatial(entry: dict) -> Spatial:
    return Spatial(
        label=entry["label"],
        box=None if entry["box"] is None else tuple(entry["box"]),
        points=tuple((x, y) for x, y in entry["points"]),
        trajectory=tuple((x, y) for x, y in entry["trajectory"]),
    )
