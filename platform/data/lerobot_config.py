"""Say which LeRobot dataset is read, and what of it; find its folder and its cameras."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from st4vla.platform.data.address import is_remote
from st4vla.platform.data.lerobot_meta import DatasetMeta, read_meta
from st4vla.platform.data.pauses import PauseConfig, RecordedForm
from st4vla.platform.data.remote import DOWNLOADS, fetch, pinned
from st4vla.platform.data.statistics import ScalingMode
from st4vla.platform.errors import ConfigError, DataError


@dataclass(frozen=True)
class DatasetConfig:
    """Which dataset, and what of it.

    Attributes:
        path: its folder, the one that holds meta/, or an address: hf:owner/name[@revision], s3://bucket/prefix.
        action, state: columns, or named parts of them (`platform/data/parts.py`), to join into the action and the
            state; () takes the columns "action" and "observation.state". ("none",) as the state reads no state.
        cameras: cameras to read, by their short names or ours; () for all.
        camera_names: {our name: the dataset's short name} of cameras that are called otherwise here.
        parts: named parts as modality.json keeps them, in its place.
        scaling: {part of the action or the state: how it is scaled}; parts not named take "q99", but without any the
            usual scaling of `EmbodimentStatistics` is taken, for seven numbers if the last may be a gripper.
        openings: {gripper's part: [its value when closed, its value when open]}, which become 0 and 1.
        action_form: what the actions are; "" where it is not stated, and pauses are looked for as in deltas.
        rotation: what an arm's rotations are, "vector" or "euler"; "" where it is not stated.
        drop_pauses: which frames start no training sample because nothing moves; None keeps all.
        statistics_key: embodiment the statistics are kept under; "" takes the dataset's robot_type.
        downloads: folder that a dataset with an address is fetched to.
    """

    path: str
    action: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    statistics_key: str = ""
    downloads: str = DOWNLOADS
    camera_names: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)
    scaling: Mapping[str, ScalingMode] = field(default_factory=dict)
    openings: Mapping[str, Sequence[float]] = field(default_factory=dict)
    action_form: RecordedForm | Literal[""] = ""
    rotation: Literal["", "vector", "euler"] = ""
    drop_pauses: PauseConfig | None = None

    def __post_init__(self) -> None:
        """Turn what YAML gives into tuples and configs, and check it."""
        for name in ("action", "state", "cameras"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.drop_pauses, Mapping):
            object.__setattr__(self, "drop_pauses", PauseConfig(**self.drop_pauses))
        for name, ends in self.openings.items():
            if len(ends) != 2 or ends[0] == ends[1]:
                raise ConfigError(f"openings.{name} is {list(ends)}; give two different numbers, [closed, open].")
        for name, allowed in (("action_form", ("", *get_args(RecordedForm))), ("rotation", ("", "vector", "euler"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(map(repr, allowed))}.")


def local_folder(config: DatasetConfig) -> Path:
    """Give the dataset's folder; of one with an address, its tables and the videos of the chosen cameras are fetched.

    Raises:
        DataError: it cannot be read, or lacks a camera.
    """
    if not is_remote(config.path):
        return Path(config.path)
    address = pinned(config.path, config.downloads)
    meta = read_meta(fetch(address, config.downloads, ["meta/*"]))
    keys = [glob.escape(key) for key in choose_cameras(meta, config).values()]
    videos = [f"videos/{place}" for key in keys for place in (f"{key}/*", f"*/{key}/*")]
    return fetch(address, config.downloads, ["meta/*", "data/*", "annotations/*", *videos])


def choose_cameras(meta: DatasetMeta, config: DatasetConfig) -> dict[str, str]:
    """Map camera names, ours where they have one, to feature keys, "observation.images." or "video." and their name."""
    ours = {theirs: name for name, theirs in config.camera_names.items()}
    found: dict[str, str] = {}
    for key in meta.video_keys:
        found[ours.get(short_name(key), short_name(key))] = key
    wanted = config.cameras or tuple(found)
    missing = [config.camera_names.get(name, name) for name in (*wanted, *config.camera_names) if name not in found]
    if missing:
        has = ", ".join(map(short_name, found.values())) or "none"
        raise DataError(f"{meta.folder} has no camera {', '.join(dict.fromkeys(missing))}; it has {has}.")
    return {name: found[name] for name in wanted}


def short_name(key: str) -> str:
    """Give a camera's name from its feature's key."""
    return key.removeprefix("observation.images.").removeprefix("video.")
