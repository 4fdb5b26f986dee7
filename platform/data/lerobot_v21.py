"""Write the LeRobot v2.1 layout: one parquet and one MP4 per episode, JSON-lines tables in meta/."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from st4vla.platform.data import annotations
from st4vla.platform.data.disk import append_line, write_file, write_json
from st4vla.platform.data.episode import Episode
from st4vla.platform.data.lerobot_features import (
    IMAGE_PREFIX,
    Recording,
    data_table,
    episode_statistics,
    merge_statistics,
)
from st4vla.platform.data.lerobot_meta import DatasetMeta, annotation_path, extra_row, number_of
from st4vla.platform.data.parquet import parquet_bytes

DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
CHUNK_SIZE = 1000


class LayoutV21:
    """Append episodes to a v2.1 dataset; the line in episodes.jsonl, written last, is what makes one count."""

    version = "v2.1"

    def __init__(self, folder: Path, recording: Recording, robot_type: str, meta: DatasetMeta | None) -> None:
        self.folder, self.recording, self.robot_type = folder, recording, robot_type
        self.num_frames = sum(entry.length for entry in meta.episodes) if meta else 0
        self.tasks = dict(meta.tasks) if meta else {}
        self.spec_ids = [entry.spec_id for entry in meta.episodes] if meta else []
        self._stats = merge_statistics([entry.stats for entry in meta.episodes]) if meta else {}
        self._unfinished = False
        if meta is None:
            self._write_info()
        else:
            self._drop_unfinished()

    def add(self, episode: Episode, videos: Mapping[str, bytes]) -> None:
        """Write one episode; `videos` are its frames as MP4."""
        if self._unfinished:
            self._drop_unfinished()
        index, self._unfinished = len(self.spec_ids), True
        place = {"episode_chunk": index // CHUNK_SIZE, "episode_index": index}
        task_index = self._task_index(episode.instruction)
        table = data_table(episode, index, self.num_frames, task_index)
        stats = episode_statistics(table, episode.frames)
        for camera, content in videos.items():
            write_file(self.folder / VIDEO_PATH.format(video_key=IMAGE_PREFIX + camera, **place), content)
        write_file(self.folder / DATA_PATH.format(**place), parquet_bytes(table))
        if episode.annotations:
            rows = annotations.to_table(episode.annotations, index, self.num_frames)
            write_file(annotation_path(self.folder, "v2.1", index // CHUNK_SIZE, index), parquet_bytes(rows))
        self._append("episodes_stats.jsonl", {"episode_index": index, "stats": stats})
        self._append("episodes.jsonl", _episode_row(index, episode))
        self.num_frames += len(episode)
        self.spec_ids.append(episode.spec_id)
        self._stats = merge_statistics([self._stats, stats] if self._stats else [stats])
        self._write_info()
        self._unfinished = False

    def _task_index(self, instruction: str) -> int:
        if (number := number_of(self.tasks, instruction)) is not None:
            return number
        number = max(self.tasks, default=-1) + 1
        self._append("tasks.jsonl", {"task_index": number, "task": instruction})
        self.tasks[number] = instruction
        return number

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        append_line(self.folder / "meta" / name, json.dumps(row))

    def _write_info(self) -> None:
        episodes = len(self.spec_ids)
        info = {
            "codebase_version": self.version,
            "robot_type": self.robot_type,
            "total_episodes": episodes,
            "total_frames": self.num_frames,
            "total_tasks": len(self.tasks),
            "total_videos": episodes * len(self.recording.cameras),
            "total_chunks": -(-episodes // CHUNK_SIZE),
            "chunks_size": CHUNK_SIZE,
            "fps": self.recording.fps,
            "splits": {"train": f"0:{episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.recording.cameras else None,
            "features": self.recording.features(),
        }
        if not episodes:
            for name in ("episodes", "tasks", "episodes_stats"):
                write_file(self.folder / "meta" / f"{name}.jsonl", b"")
            write_json(self.folder / "meta" / "modality.json", self.recording.modality())
        else:
            write_json(self.folder / "meta" / "stats.json", self._stats)
        write_json(self.folder / "meta" / "info.json", info)

    def _drop_unfinished(self) -> None:
        """Remove what a killed or failed `add` left of an episode that never counted; bring info.json up to date."""
        episodes = len(self.spec_ids)
        for name, number in (("tasks", len(self.tasks)), ("episodes", episodes), ("episodes_stats", episodes)):
            _keep_lines(self.folder / "meta" / f"{name}.jsonl", number)
        kept = {f"episode_{index:06d}" for index in range(episodes)}
        for root in ("data", "videos", "annotations"):
            for path in (self.folder / root).rglob("episode_*"):
                if path.stem not in kept:
                    path.unlink()
        self._write_info()


def _keep_lines(path: Path, number: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)[:number]
    write_file(path, b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines))


def _episode_row(index: int, episode: Episode) -> dict[str, Any]:
    return {"episode_index": index, "tasks": [episode.instruction], "length": len(episode)} | extra_row(episode)
