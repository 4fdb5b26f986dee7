"""Read the metadata of a LeRobot dataset, v2.0, v2.1 or v3.0, into one form.

v2.x keeps one parquet and one MP4 file per episode and JSON-lines tables (episodes.jsonl, tasks.jsonl);
v3.0 keeps many episodes per file and parquet tables that say where each episode lies.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from st4vla.platform.data.disk import read_json, read_json_lines
from st4vla.platform.data.episode import Episode
from st4vla.platform.errors import DataError

READABLE_VERSIONS = ("v2.0", "v2.1", "v3.0")
# Our own facts about an episode, in a namespace of their own beside LeRobot's.
EXTRA_KEYS = {"task": "st4vla.task", "seed": "st4vla.seed", "spec_id": "st4vla.spec_id"}
FACTS_KEY = "st4vla.facts"


@dataclass(frozen=True)
class VideoSpan:
    """Where one camera's frames of one episode lie: from `first_frame` of the MP4 at `path`."""

    path: Path
    first_frame: int


@dataclass(frozen=True)
class EpisodeEntry:
    """Where one episode lies.

    Attributes:
        index: its place in the dataset, from 0.
        first_frame: its first frame's index in the whole dataset.
        length: its number of frames.
        instruction: the (first) task text.
        task, seed, spec_id, facts: our own facts, "", 0 and {} in foreign datasets.
        data_path, data_row: its parquet file and its first row there.
        videos: {feature key: where its frames lie}.
        annotation_path: our annotations of it; the file may not exist.
        file: (chunk, file) of the files it lies in; (chunk, episode) in v2.x.
        stats: LeRobot's statistics of it, {} if not kept there.
    """

    index: int
    first_frame: int
    length: int
    instruction: str
    task: str
    seed: int
    spec_id: str
    data_path: Path
    data_row: int
    videos: Mapping[str, VideoSpan]
    annotation_path: Path
    file: tuple[int, int]
    stats: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetMeta:
    """The metadata of a dataset: `info` is info.json as it stands, `tasks` {task_index: text}, gaps and all."""

    folder: Path
    version: str
    info: Mapping[str, Any]
    tasks: Mapping[int, str]
    episodes: Sequence[EpisodeEntry]

    @property
    def features(self) -> Mapping[str, Any]:
        """Give LeRobot's feature table."""
        return self.info["features"]

    @property
    def fps(self) -> int:
        """Give the frames per second."""
        return self.info["fps"]

    @property
    def tasks_path(self) -> Path:
        """Give the file of the task texts."""
        return self.folder / "meta" / ("tasks.parquet" if self.version == "v3.0" else "tasks.jsonl")

    @property
    def video_keys(self) -> tuple[str, ...]:
        """Give the keys of the features kept as MP4."""
        return tuple(key for key, feature in self.features.items() if feature["dtype"] == "video")


def read_meta(folder: Path) -> DatasetMeta:
    """Read the metadata of the dataset in `folder`.

    Raises:
        DataError: a file, a key or an episode is missing, or the version is unknown.
    """
    info = read_json(folder / "meta" / "info.json")
    missing = [key for key in ("codebase_version", "fps", "features", "data_path") if key not in info]
    if missing:
        raise DataError(
            f"{folder / 'meta' / 'info.json'} lacks {', '.join(missing)}; it is no LeRobot v2 or v3 dataset."
        )
    version = info["codebase_version"]
    if version not in READABLE_VERSIONS:
        raise DataError(f"{folder} is LeRobot {version}; {', '.join(READABLE_VERSIONS)} can be read. Convert it first.")
    tasks, episodes = (_read_v30 if version == "v3.0" else _read_v2)(folder, info)
    total = info.get("total_episodes", len(episodes))
    if len(episodes) < total:
        raise DataError(f"{folder}: info.json tells of {total} episodes and the table in meta/ has {len(episodes)}.")
    return DatasetMeta(folder, version, info, tasks, episodes)


def extra_row(episode: Episode) -> dict[str, Any]:
    """Give what an episode's row keeps of our own beside LeRobot's."""
    return {key: getattr(episode, name) for name, key in EXTRA_KEYS.items()} | {FACTS_KEY: json.dumps(episode.facts)}


def read_table(path: Path) -> pa.Table:
    """Read a parquet file.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; copy the dataset again.") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}; copy the file again.") from error


def annotation_path(folder: Path, version: str, chunk: int, file: int) -> Path:
    """Say where our annotations of an episode (v2.x) or of a file of episodes (v3.0) lie."""
    name = f"file-{file:03d}" if version == "v3.0" else f"episode_{file:06d}"
    return folder / "annotations" / f"chunk-{chunk:03d}" / f"{name}.parquet"


def number_of(tasks: Mapping[int, str], text: str) -> int | None:
    """Give the task_index of a text, None if it has none."""
    return next((number for number, task in tasks.items() if task == text), None)


def _read_v2(folder: Path, info: Mapping[str, Any]) -> tuple[dict[int, str], list[EpisodeEntry]]:
    tasks = {row["task_index"]: row["task"] for row in read_json_lines(folder / "meta/tasks.jsonl")}
    stats_path = folder / "meta" / "episodes_stats.jsonl"
    stats = {row["episode_index"]: row["stats"] for row in read_json_lines(stats_path)} if stats_path.exists() else {}
    entries: list[EpisodeEntry] = []
    for row in sorted(read_json_lines(folder / "meta/episodes.jsonl"), key=lambda row: row["episode_index"]):
        index = row["episode_index"]
        chunk = index // info.get("chunks_size", 1000)
        place = {"episode_chunk": chunk, "episode_index": index}
        spans = {
            key: VideoSpan(folder / info["video_path"].format(video_key=key, **place), 0)
            for key, feature in info["features"].items()
            if feature["dtype"] == "video"
        }
        first = entries[-1].first_frame + entries[-1].length if entries else 0
        where = (folder / info["data_path"].format(**place), 0, spans, annotation_path(folder, "v2", chunk, index))
        entries.append(_entry(row, first, where, (chunk, index), stats.get(index, {})))
    return tasks, entries


def _read_v30(folder: Path, info: Mapping[str, Any]) -> tuple[dict[int, str], list[EpisodeEntry]]:
    paths = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    rows = sorted((row for path in paths for row in read_table(path).to_pylist()), key=lambda row: row["episode_index"])
    tasks = _read_v30_tasks(folder) if rows else {}
    entries: list[EpisodeEntry] = []
    first_of_file: dict[tuple[int, int], int] = {}
    for row in rows:
        file = (row["data/chunk_index"], row["data/file_index"])
        start = first_of_file.setdefault(file, row["dataset_from_index"])
        spans = {
            key: _v30_span(folder, info, row, key) for key, ft in info["features"].items() if ft["dtype"] == "video"
        }
        path = folder / info["data_path"].format(chunk_index=file[0], file_index=file[1])
        first = entries[-1].first_frame + entries[-1].length if entries else 0
        where = (path, row["dataset_from_index"] - start, spans, annotation_path(folder, "v3.0", *file))
        entries.append(_entry(row, first, where, file, _nested_stats(row)))
    return tasks, entries


def _read_v30_tasks(folder: Path) -> dict[int, str]:
    rows = read_table(folder / "meta" / "tasks.parquet").to_pylist()
    # lerobot keeps the text as the pandas index, whose column is "task" or, in older files, unnamed.
    name = next((key for key in ("task", "__index_level_0__") if rows and key in rows[0]), None)
    if name is None:
        raise DataError(
            f"{folder / 'meta/tasks.parquet'} has no column of task texts; it has {list(rows[0]) if rows else []}."
        )
    return {row["task_index"]: row[name] for row in rows}


def _v30_span(folder: Path, info: Mapping[str, Any], row: Mapping[str, Any], key: str) -> VideoSpan:
    prefix = f"videos/{key}"
    if f"{prefix}/from_timestamp" not in row:
        raise DataError(
            f"{folder}/meta/episodes: episode {row['episode_index']} does not say where its {key} video lies."
        )
    place = {"chunk_index": row[f"{prefix}/chunk_index"], "file_index": row[f"{prefix}/file_index"]}
    path = folder / info["video_path"].format(video_key=key, **place)
    return VideoSpan(path, round(row[f"{prefix}/from_timestamp"] * info["fps"]))


def _entry(
    row: Mapping[str, Any],
    first_frame: int,
    where: tuple[Path, int, dict[str, VideoSpan], Path],
    file: tuple[int, int],
    stats: Mapping[str, Any],
) -> EpisodeEntry:
    data_path, data_row, videos, annotations = where
    return EpisodeEntry(
        index=row["episode_index"],
        first_frame=first_frame,
        length=row["length"],
        instruction=row["tasks"][0] if row.get("tasks") else "",
        task=row.get(EXTRA_KEYS["task"]) or "",
        seed=row.get(EXTRA_KEYS["seed"]) or 0,
        spec_id=row.get(EXTRA_KEYS["spec_id"]) or "",
        data_path=data_path,
        data_row=data_row,
        videos=videos,
        annotation_path=annotations,
        file=file,
        stats=stats,
        facts=json.loads(row.get(FACTS_KEY) or "{}"),
    )


def _nested_stats(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for name, value in row.items():
        if name.startswith("stats/"):
            _, key, number = name.split("/", 2)
            nested.setdefault(key, {})[number] = value
    return nested
