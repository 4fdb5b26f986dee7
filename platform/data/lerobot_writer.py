"""Append episodes to LeRobot datasets, v2.1, v3.0 or both in one pass."""

import fcntl
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from st4vla.platform.data.disk import refused_by_disk
from st4vla.platform.data.episode import Episode
from st4vla.platform.data.lerobot_features import Recording
from st4vla.platform.data.lerobot_meta import read_meta
from st4vla.platform.data.lerobot_v21 import LayoutV21
from st4vla.platform.data.lerobot_v30 import LayoutV30
from st4vla.platform.data.video import VideoConfig, encode
from st4vla.platform.errors import ConfigError, DataError

log = logging.getLogger(__name__)
WRITABLE_VERSIONS = ("v2.1", "v3.0")


class WriterBusy(DataError):
    """Another process is writing the dataset."""


@dataclass(frozen=True)
class WriterConfig:
    """How datasets are written.

    Attributes:
        formats: LeRobot versions to write; with more than one, each gets a sub-folder of its name.
        robot_type: the embodiment, which is also the key of its statistics.
        episodes_per_file, file_mb: when a v3.0 file is full.
        video: how frames are compressed.
    """

    formats: tuple[str, ...] = ("v3.0",)
    robot_type: str = "tabletop_panda"
    episodes_per_file: int = 50
    file_mb: int = 16
    video: VideoConfig = field(default_factory=VideoConfig)

    def __post_init__(self) -> None:
        """Check the formats and the limits."""
        object.__setattr__(self, "formats", tuple(self.formats))
        unknown = [name for name in self.formats if name not in WRITABLE_VERSIONS]
        if unknown or not self.formats:
            raise ConfigError(f"formats is {list(self.formats)}; choose from {', '.join(WRITABLE_VERSIONS)}.")
        for name in ("episodes_per_file", "file_mb"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more.")


class LeRobotWriter:
    """The single writer of the dataset in `folder`; an existing dataset of ours is appended to.

    When `add` returns, the episode is in the dataset for any reader. When it raises, or the process is killed in it,
    the episode is wholly in or wholly out; rows or frames of an unfinished one lie behind the last that counts, where
    no metadata points, until the next episode takes their place. A second writer on the same folder is refused.

    Raises:
        WriterBusy: another writer holds the folder.
        DataError: the disk is full, or an episode has another form than the dataset.
    """

    def __init__(self, folder: Path | str, config: WriterConfig = WriterConfig()) -> None:
        self.folder, self.config = Path(folder), config
        self._layouts: list[LayoutV21 | LayoutV30] = []
        self._lock = _lock(self.folder)
        for version, place in self.folders().items():
            if (place / "meta" / "info.json").exists():
                self._layouts.append(self._reopen(version, place))

    def __enter__(self) -> "LeRobotWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def folders(self) -> dict[str, Path]:
        """Say where the dataset of each version lies."""
        one = len(self.config.formats) == 1
        return {version: self.folder if one else self.folder / version for version in self.config.formats}

    @property
    def num_episodes(self) -> int:
        """Give the number of episodes that every version holds."""
        return min((len(layout.spec_ids) for layout in self._layouts), default=0)

    @property
    def spec_ids(self) -> frozenset[str]:
        """Give the ids of the episodes that every version holds, so that a re-run can leave them out."""
        held = [frozenset(layout.spec_ids) - {""} for layout in self._layouts]
        return frozenset.intersection(*held) if held else frozenset()

    def add(self, episode: Episode) -> bool:
        """Write one episode to every version that does not hold its spec_id yet; say whether any did not."""
        if not self._layouts:
            self._start(Recording.of(episode))
        for layout in self._layouts:
            layout.recording.check(episode)
        wanting = [one for one in self._layouts if not episode.spec_id or episode.spec_id not in one.spec_ids]
        videos: Mapping[str, bytes] = {}
        if wanting:
            videos = {
                name: encode(frames, int(episode.fps), self.config.video) for name, frames in episode.frames.items()
            }
        for layout in wanting:
            layout.add(episode, videos)
        return bool(wanting)

    def close(self) -> None:
        """Let another writer have the folder; everything is on disk already."""
        self._lock.close()

    def _start(self, recording: Recording) -> None:
        self._layouts = [self._layout(version, place, recording, None) for version, place in self.folders().items()]

    def _reopen(self, version: str, place: Path) -> LayoutV21 | LayoutV30:
        meta = read_meta(place)
        if meta.version != version:
            raise DataError(
                f"{place} holds a {meta.version} dataset and {version} was asked for; choose another folder."
            )
        recording = Recording.from_info(meta.info)
        if recording.features().keys() != meta.features.keys():
            raise DataError(f"{place} has features {list(meta.features)}, not ours; choose another folder.")
        log.info("%s holds %d episodes; new ones are appended", place, len(meta.episodes))
        return self._layout(version, place, recording, meta)

    def _layout(self, version: str, place: Path, recording: Recording, meta: object) -> LayoutV21 | LayoutV30:
        if version == "v2.1":
            return LayoutV21(place, recording, self.config.robot_type, meta)  # type: ignore[arg-type]
        sizes = (self.config.episodes_per_file, self.config.file_mb)
        return LayoutV30(place, recording, self.config.robot_type, meta, *sizes)  # type: ignore[arg-type]


def _lock(folder: Path) -> IO[bytes]:
    with refused_by_disk(folder / ".writer"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".writer").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise WriterBusy(
            f"{folder} is being written by another process; wait for it or choose another folder."
        ) from None
    return lock
