"""Write the LeRobot v3.0 layout: many episodes per parquet and MP4 file, parquet tables in meta/.

The newest files of each kind grow together: an episode is added by writing each file again with the episode at its end
and moving it over the old one, the table meta/episodes last, which is what makes the episode count. Videos grow by
copying packets. A file is closed at `episodes_per_file` or `file_mb`, so that adding stays cheap.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from st4vla.platform.data import annotations, video
from st4vla.platform.data.disk import write_file, write_json
from st4vla.platform.data.episode import Episode
from st4vla.platform.data.lerobot_features import (
    IMAGE_PREFIX,
    Recording,
    data_table,
    episode_statistics,
    merge_statistics,
)
from st4vla.platform.data.lerobot_meta import (
    FACTS_KEY,
    DatasetMeta,
    annotation_path,
    extra_row,
    number_of,
    read_table,
)
from st4vla.platform.data.parquet import parquet_bytes

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
CHUNK_SIZE = 1000


class LayoutV30:
    """Append episodes to a v3.0 dataset."""

    version = "v3.0"

    def __init__(
        self,
        folder: Path,
        recording: Recording,
        robot_type: str,
        meta: DatasetMeta | None,
        episodes_per_file: int = 50,
        file_mb: int = 16,
    ) -> None:
        self.folder, self.recording, self.robot_type = folder, recording, robot_type
        self.episodes_per_file, self.file_mb = episodes_per_file, file_mb
        self.num_frames = sum(entry.length for entry in meta.episodes) if meta else 0
        self.tasks = dict(meta.tasks) if meta else {}
        self.spec_ids = [entry.spec_id for entry in meta.episodes] if meta else []
        self._stats = merge_statistics([entry.stats for entry in meta.episodes]) if meta else {}
        self._chunk, self._file = 0, 0
        self._rows: list[dict[str, Any]] = []
        self._data: pa.Table | None = None
        self._annotations: pa.Table | None = None
        if meta is None:
            write_json(self.folder / "meta" / "modality.json", recording.modality())
        elif meta.episodes:
            self._reopen(meta)
        self._write_info()

    def add(self, episode: Episode, videos: Mapping[str, bytes]) -> None:
        """Write one episode; `videos` are its frames as MP4."""
        if self._is_full():
            self._start_next_file()
        index, task_index = len(self.spec_ids), self._task_index(episode.instruction)
        rows = data_table(episode, index, self.num_frames, task_index)
        stats = episode_statistics(rows, episode.frames)
        old_frames = sum(row["length"] for row in self._rows)
        for camera, content in videos.items():
            path = self._path(VIDEO_PATH, IMAGE_PREFIX + camera)
            joined = video.join(path, old_frames, content, self.recording.fps) if old_frames else content
            write_file(path, joined)
        data = pa.concat_tables([self._data, rows]) if self._data is not None else rows
        write_file(self._path(DATA_PATH), parquet_bytes(data))
        notes = self._write_annotations(episode, index)
        row = self._episode_row(episode, index, old_frames) | _flat_stats(stats)
        write_file(self._path(EPISODES_PATH), parquet_bytes(pa.Table.from_pylist([*self._rows, row])))
        self._data, self._annotations = data, notes
        self._rows.append(row)
        self.num_frames += len(episode)
        self.spec_ids.append(episode.spec_id)
        self._stats = merge_statistics([self._stats, stats] if self._stats else [stats])
        self._write_info()

    def _write_annotations(self, episode: Episode, index: int) -> pa.Table | None:
        if not episode.annotations:
            return self._annotations
        notes = annotations.to_table(episode.annotations, index, self.num_frames)
        if self._annotations is not None:
            notes = pa.concat_tables([self._annotations, notes])
        write_file(annotation_path(self.folder, self.version, self._chunk, self._file), parquet_bytes(notes))
        return notes

    def _episode_row(self, episode: Episode, index: int, old_frames: int) -> dict[str, Any]:
        place = {"chunk_index": self._chunk, "file_index": self._file}
        row: dict[str, Any] = {"episode_index": index, "tasks": [episode.instruction], "length": len(episode)}
        row |= {f"data/{name}": value for name, value in place.items()}
        row |= {"dataset_from_index": self.num_frames, "dataset_to_index": self.num_frames + len(episode)}
        for camera in self.recording.cameras:
            prefix = f"videos/{IMAGE_PREFIX}{camera}"
            row |= {f"{prefix}/{name}": value for name, value in place.items()}
            row[f"{prefix}/from_timestamp"] = old_frames / self.recording.fps
            row[f"{prefix}/to_timestamp"] = (old_frames + len(episode)) / self.recording.fps
        row |= {f"meta/episodes/{name}": value for name, value in place.items()}
        return row | extra_row(episode)

    def _task_index(self, instruction: str) -> int:
        if (number := number_of(self.tasks, instruction)) is not None:
            return number
        number = max(self.tasks, default=-1) + 1
        tasks = {**self.tasks, number: instruction}
        table = pd.DataFrame({"task_index": list(tasks)}, index=pd.Index(list(tasks.values()), name="task"))
        write_file(self.folder / "meta" / "tasks.parquet", table.to_parquet())
        self.tasks = tasks
        return number

    def _is_full(self) -> bool:
        paths = [self._path(DATA_PATH)] + [
            self._path(VIDEO_PATH, IMAGE_PREFIX + name) for name in self.recording.cameras
        ]
        size = max((path.stat().st_size for path in paths if path.exists()), default=0)
        return len(self._rows) >= self.episodes_per_file or (bool(self._rows) and size > self.file_mb * 2**20)

    def _start_next_file(self) -> None:
        self._file += 1
        if self._file == CHUNK_SIZE:
            self._chunk, self._file = self._chunk + 1, 0
        self._rows, self._data, self._annotations = [], None, None

    def _path(self, pattern: str, video_key: str = "") -> Path:
        return self.folder / pattern.format(video_key=video_key, chunk_index=self._chunk, file_index=self._file)

    def _reopen(self, meta: DatasetMeta) -> None:
        """Take up the newest files again, without what a killed writer left beyond the last episode that counts."""
        self._chunk, self._file = meta.episodes[-1].file
        entries = [entry for entry in meta.episodes if entry.file == (self._chunk, self._file)]
        # Arrow takes the columns from the first row, which an earlier version may have written without facts.
        self._rows = [{FACTS_KEY: "{}"} | row for row in read_table(self._path(EPISODES_PATH)).to_pylist()]
        self._data = read_table(entries[0].data_path).slice(0, sum(entry.length for entry in entries))
        # Other people's readers take every row there is, so an unfinished episode's must go now.
        write_file(entries[0].data_path, parquet_bytes(self._data))
        if entries[0].annotation_path.exists():
            notes = read_table(entries[0].annotation_path)
            self._annotations = notes.filter(pc.field("episode_index") < len(meta.episodes))
        self._drop_later_files(meta)

    def _drop_later_files(self, meta: DatasetMeta) -> None:
        kept = {path for entry in meta.episodes for path in (entry.data_path, entry.annotation_path)}
        kept |= {span.path for entry in meta.episodes for span in entry.videos.values()}
        for root in ("data", "videos", "annotations"):
            for path in (self.folder / root).rglob("file-*"):
                if path not in kept:
                    path.unlink()

    def _write_info(self) -> None:
        if self._stats:
            write_json(self.folder / "meta" / "stats.json", self._stats)
        info = {
            "codebase_version": self.version,
            "robot_type": self.robot_type,
            "total_episodes": len(self.spec_ids),
            "total_frames": self.num_frames,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_SIZE,
            "data_files_size_in_mb": self.file_mb,
            "video_files_size_in_mb": self.file_mb,
            "fps": self.recording.fps,
            "splits": {"train": f"0:{len(self.spec_ids)}"} if self.spec_ids else {},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.recording.cameras else None,
            "features": self.recording.features(),
        }
        write_json(self.folder / "meta" / "info.json", info)


def _flat_stats(stats: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"stats/{key}/{name}": value for key, summary in stats.items() for name, value in summary.items()}
