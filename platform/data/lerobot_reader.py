"""Read LeRobot datasets, v2.0, v2.1 and v3.0, ours and other people's, as episodes and training samples."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from st4vla.platform.contracts import ActionSample, FrameAnnotation, GroundingSample
from st4vla.platform.data import annotations, grounding, internvla_annotations, video
from st4vla.platform.data.address import title_of
from st4vla.platform.data.columns import Columns, load_columns, load_own_columns, stated_statistics_widths
from st4vla.platform.data.episode import Episode
from st4vla.platform.data.frame_cache import CachedFrames, FrameCache, Gap
from st4vla.platform.data.lerobot_config import DatasetConfig, choose_cameras, local_folder, short_name
from st4vla.platform.data.lerobot_meta import DatasetMeta, EpisodeEntry, read_meta, read_table
from st4vla.platform.data.parts import Part, choose_parts, layout, may_end_in_gripper
from st4vla.platform.data.statistics import ARM_WIDTH, EmbodimentStatistics, Slice, Statistics, check_openings
from st4vla.platform.errors import ConfigError, DataError

log = logging.getLogger(__name__)


def open_dataset(
    path: Path | str | DatasetConfig, cache: FrameCache | None = None, config: DatasetConfig | None = None
) -> "LeRobotDataset":
    """Open a dataset; with a `cache`, frames are decoded once and then read from memory-mapped files.

    Raises:
        DataError: it is no dataset, or files, columns, cameras or statistics are missing or do not fit together.
    """
    settings = path if isinstance(path, DatasetConfig) else config or DatasetConfig(str(path))
    return LeRobotDataset(settings, cache)


class LeRobotDataset:
    """A dataset on disk; frames of all episodes are numbered through from 0.

    Actions and states are held in memory (14 numbers a frame); frames are decoded on demand or mapped from the cache.
    """

    def __init__(self, config: DatasetConfig, cache: FrameCache | None = None) -> None:
        self.config, self.folder, self._cache = config, local_folder(config), cache
        self.meta: DatasetMeta = read_meta(self.folder)
        self.cameras: dict[str, str] = choose_cameras(self.meta, config)
        # The names that the frame cache and the annotations know are the recording's own, whatever a user calls them.
        self.recorded_cameras = {name: short_name(key) for name, key in self.cameras.items()}
        self.statistics_key = config.statistics_key or str(self.meta.info.get("robot_type") or "default")
        self._kept_frames: Mapping[str, CachedFrames] | DataError | None = None
        self._ends = np.cumsum([entry.length for entry in self.meta.episodes])
        self._annotation_tables: dict[tuple[Path, int], tuple[pa.Table, dict[tuple[int, int, str], int]]] = {}

    def __len__(self) -> int:
        """Give the number of frames."""
        return self.num_frames

    @property
    def name(self) -> str:
        """Give the short name for logs and lineage."""
        return title_of(self.config.path)

    @property
    def num_episodes(self) -> int:
        """Give the number of episodes."""
        return len(self.meta.episodes)

    @property
    def num_frames(self) -> int:
        """Give the number of frames of all episodes."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def fps(self) -> int:
        """Give the frames per second."""
        return self.meta.fps

    @cached_property
    def digest(self) -> str:
        """Give the SHA-256 of the dataset's metadata, rows and annotations: two equal digests are the same data."""
        digest = hashlib.sha256()
        for path in sorted(
            path for root in ("meta", "data", "annotations") for path in (self.folder / root).rglob("*")
        ):
            if path.is_file() and not path.name.startswith("."):
                digest.update(path.relative_to(self.folder).as_posix().encode())
                digest.update(path.read_bytes())
        return digest.hexdigest()

    @cached_property
    def columns(self) -> Columns:
        """Give the actions, states and task numbers of all frames, read at first use."""
        self._check_named("openings", self.config.openings)
        return load_columns(self.meta, self.action_parts, self.state_parts, self.config.openings)

    @cached_property
    def action_parts(self) -> list[Part]:
        """Give the parts that the action is joined from, in order."""
        return choose_parts(self.meta, "action", self.config.action, self.config.parts)

    @cached_property
    def state_parts(self) -> list[Part]:
        """Give the parts that the state is joined from, in order; none without a state."""
        return choose_parts(self.meta, "state", self.config.state, self.config.parts)

    @cached_property
    def own_columns(self) -> dict[str, np.ndarray]:
        """Give our own columns of all frames, {name: float32 or int64 [F]}, read at first use."""
        return load_own_columns(self.meta)

    @cached_property
    def statistics(self) -> EmbodimentStatistics:
        """Give the exact statistics of the actions and states, computed from the rows.

        What the dataset says of itself must be there and have the right widths; its quantiles may be approximations.

        Raises:
            DataError: the dataset's own statistics are missing or have other widths than its columns, or a gripper
                that is told open from closed at 0.5 stays on one side of it.
        """
        stated_statistics_widths(self.meta)
        state = Statistics.of(self.columns.states) if self.columns.states is not None else None
        action, (action_slices, state_slices) = Statistics.of(self.columns.actions), self._slices()
        found = EmbodimentStatistics(self.statistics_key, action, state, action_slices, state_slices)
        check_openings(found, str(self.folder))
        return found

    def _slices(self) -> tuple[tuple[Slice, ...], tuple[Slice, ...]]:
        """Give how the parts of action and state are scaled; () takes the default of `EmbodimentStatistics`."""
        self._check_named("scaling", self.config.scaling)
        # Seven joints are no arm with a gripper: the seventh would become open or closed.
        width = sum(part.width for part in self.action_parts)
        usual = width != ARM_WIDTH or may_end_in_gripper(self.action_parts)
        return self._slices_of(self.action_parts, usual), self._slices_of(self.state_parts, True)

    def _slices_of(self, parts: Sequence[Part], usual: bool) -> tuple[Slice, ...]:
        scaling = self.config.scaling
        if usual and not any(part.name in scaling for part in parts):
            return ()
        return tuple(Slice(part.name, start, end, scaling.get(part.name, "q99")) for part, start, end in layout(parts))

    def _check_named(self, setting: str, names: Iterable[str]) -> None:
        known = {part.name for part in (*self.action_parts, *self.state_parts)}
        if unknown := sorted(set(names) - known):
            raise ConfigError(
                f"{setting} names {', '.join(unknown)}; {self.folder} is read as {', '.join(sorted(known))}."
            )

    def entry(self, index: int) -> tuple[EpisodeEntry, int]:
        """Give the episode that frame `index` belongs to, and the frame's place in it."""
        if not 0 <= index < self.num_frames:
            raise DataError(f"frame {index} was asked for and {self.folder} has frames 0..{self.num_frames - 1}.")
        entry = self.meta.episodes[int(np.searchsorted(self._ends, index, side="right"))]
        return entry, index - entry.first_frame

    def instruction(self, index: int) -> str:
        """Give what the robot was told at frame `index`.

        Raises:
            DataError: neither the table of tasks nor the episode has a text.
        """
        entry, _ = self.entry(index)
        number = int(self.columns.task_index[index])
        if not (text := self.meta.tasks.get(number) or entry.instruction):
            raise DataError(
                f"{self.meta.tasks_path} has no text of task_index {number}, and episode {entry.index} names none; "
                "an episode without words cannot teach a language-guided policy: add its task."
            )
        return text

    def images(self, index: int) -> dict[str, np.ndarray]:
        """Give {camera: uint8 [H,W,3]} of one frame."""
        return {camera: self.image(index, camera) for camera in self.cameras}

    def image(self, index: int, camera: str) -> np.ndarray:
        """Give uint8 [H,W,3] of one frame of one camera."""
        if self._cache is not None:
            frames = self._cached_frames[self.recorded_cameras[camera]]
            if frames.holds(index):
                return np.array(frames.pictures[index])
        entry, place = self.entry(index)
        return self._decode(self.cameras[camera], entry, place, 1)[0]

    def action_sample(self, index: int, chunk_length: int) -> ActionSample:
        """Give frame `index` with its next `chunk_length` actions; after the episode's end the last one is repeated."""
        entry, place = self.entry(index)
        steps = np.arange(place, place + chunk_length)
        rows = entry.first_frame + np.minimum(steps, entry.length - 1)
        states = self.columns.states
        return ActionSample(
            images=self.images(index),
            state=None if states is None else states[index].copy(),
            instruction=self.instruction(index),
            actions=self.columns.actions[rows],
            is_pad=steps >= entry.length,
            statistics_key=self.statistics_key,
        )

    def annotation(self, index: int, camera: str) -> FrameAnnotation | None:
        """Give our annotation of one frame of one camera, None if it has none.

        Raises:
            DataError: it is broken, or a box or point of it lies outside the picture; file and row are named.
        """
        entry, place = self.entry(index)
        table, rows = self._annotation_rows(entry)
        row = rows.get((entry.index, place, self.recorded_cameras.get(camera, camera)))
        if row is None:
            return None
        content = {name: table[name][row].as_py() for name in annotations.CONTENT}
        height, width = self._size(self.cameras[camera])
        return annotations.checked(content, (width, height), f"{entry.annotation_path} row {row}")

    def annotation_table(self, entry: EpisodeEntry) -> pa.Table:
        """Give the annotation rows of the episode, empty if there are none."""
        return self._annotation_rows(entry)[0].filter(pc.field("episode_index") == entry.index)

    def grounding_samples(self, index: int, cameras: Sequence[str] = ()) -> list[GroundingSample]:
        """Give every question that frame `index` can answer, in the order of the cameras (all, unless named)."""
        asked: list[GroundingSample] = []
        for camera in cameras or self.cameras:
            note = self.annotation(index, camera)
            if note is not None:
                asked += grounding.questions(self.image(index, camera), note, self.instruction(index))
        return asked

    def episode(self, index: int) -> Episode:
        """Read one whole episode, frames decoded, annotations where there are any."""
        if not 0 <= index < self.num_episodes:
            raise DataError(f"episode {index} was asked for and {self.folder} has episodes 0..{self.num_episodes - 1}.")
        entry = self.meta.episodes[index]
        rows = slice(entry.first_frame, entry.first_frame + entry.length)
        notes = {
            camera: [self.annotation(frame, camera) for frame in range(rows.start, rows.stop)]
            for camera in self.cameras
        }
        return Episode(
            instruction=self.instruction(entry.first_frame),
            task=entry.task,
            actions=self.columns.actions[rows],
            states=None if self.columns.states is None else self.columns.states[rows],
            frames={name: self._decode(key, entry, 0, entry.length) for name, key in self.cameras.items()},
            annotations={name: [n for n in own if n is not None] for name, own in notes.items() if None not in own},
            fps=self.fps,
            seed=entry.seed,
            spec_id=entry.spec_id,
            columns={name: values[rows] for name, values in self.own_columns.items()},
            facts=entry.facts,
        )

    def _annotation_rows(self, entry: EpisodeEntry) -> tuple[pa.Table, dict[tuple[int, int, str], int]]:
        # A file of ours holds the rows of all its episodes; foreign ones are gathered an episode at a time.
        whole, own = (entry.annotation_path, -1), (entry.annotation_path, entry.index)
        known = self._annotation_tables
        if whole not in known and own not in known:
            foreign = self._foreign_annotations(entry)
            table = _load_annotations(entry.annotation_path) if foreign is None else foreign
            rows = tuple(table[name].to_pylist() for name in ("episode_index", "frame_index", "camera"))
            places = {key: row for row, key in enumerate(zip(*rows, strict=True))}
            known[whole if foreign is None else own] = table, places
        return known[whole] if whole in known else known[own]

    def _foreign_annotations(self, entry: EpisodeEntry) -> pa.Table | None:
        recorded = self.recorded_cameras.values()
        if entry.annotation_path.exists() or not internvla_annotations.is_annotated(self.meta.features, [*recorded]):
            return None
        sizes = {theirs: self._size(self.cameras[ours]) for ours, theirs in self.recorded_cameras.items()}
        notes = internvla_annotations.read_annotations(entry, [*recorded], sizes)
        return annotations.to_table(notes, entry.index, entry.first_frame)

    @property
    def _cached_frames(self) -> Mapping[str, CachedFrames]:
        if isinstance(self._kept_frames, DataError):
            # Asking anew would decode the whole camera for every sample.
            raise DataError(str(self._kept_frames)) from self._kept_frames
        if self._kept_frames is None:
            try:
                self._kept_frames = self._open_cache()
            except DataError as error:
                self._kept_frames = error
                raise
        return self._kept_frames

    def _open_cache(self) -> Mapping[str, CachedFrames]:
        assert self._cache is not None
        keys = {theirs: self.cameras[ours] for ours, theirs in self.recorded_cameras.items()}
        shapes = {theirs: (self.num_frames, *self._size(key), 3) for theirs, key in keys.items()}
        return self._cache.open(self.digest, shapes, lambda theirs: self._all_frames(keys[theirs]))

    def _all_frames(self, key: str) -> Iterator[np.ndarray | Gap]:
        size = self._size(key)
        for entry in self.meta.episodes:
            try:
                frames = self._decode(key, entry, 0, entry.length)
            except DataError as error:
                log.warning("episode %d is left out of the frame cache: %s", entry.index, error)
                yield Gap(entry.length)
                continue
            if frames.shape[1:3] != size:
                raise DataError(
                    f"{entry.videos[key].path} has frames of {frames.shape[1]}x{frames.shape[2]} pixels (height x "
                    f"width) and meta/info.json says {size[0]}x{size[1]} of {key!r}; mend info.json, record the "
                    "episode anew, or read the videos themselves with frame_cache=null."
                )
            yield frames

    def _decode(self, key: str, entry: EpisodeEntry, start: int, count: int) -> np.ndarray:
        span = entry.videos[key]
        return video.decode(span.path, span.first_frame + start, count, self.fps)

    def _size(self, key: str) -> tuple[int, int]:
        return video.stated_size(self.meta.features[key], f"{self.folder / 'meta' / 'info.json'}: {key!r}")


def _load_annotations(path: Path) -> pa.Table:
    if not path.exists():
        return annotations.SCHEMA.empty_table()
    table = read_table(path).combine_chunks()
    missing = [name for name in annotations.SCHEMA.names if name not in table.column_names]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; write the annotations anew.")
    return table
