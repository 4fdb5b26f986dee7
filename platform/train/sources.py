"""Where samples come from, by kind: LeRobot datasets on disk, or anything else named by its import path."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from st4vla.platform.contracts import ActionSample, GroundingSample
from st4vla.platform.data.frame_cache import FrameCache, FrameCacheConfig
from st4vla.platform.data.grounding import GroundingConfig
from st4vla.platform.data.lerobot_config import DatasetConfig
from st4vla.platform.data.lerobot_reader import LeRobotDataset, open_dataset
from st4vla.platform.data.mixture import Mixture, Source
from st4vla.platform.data.picture_formats import OPENERS, open_pictures
from st4vla.platform.data.pictures import PictureQuestions
from st4vla.platform.data.remote import DOWNLOADS, fetch, title_of
from st4vla.platform.data.sources import ActionSource, GroundingSource, split_episodes
from st4vla.platform.data.statistics import EmbodimentStatistics
from st4vla.platform.data.stills import StillQuestions, Stills
from st4vla.platform.errors import ConfigError, DataError
from st4vla.platform.train.config import build, require

# Which episodes are held out must not depend on a run's seed: stage 2 would validate on what stage 1 trained on.
SPLIT_SEED = 0
# Options of picture sets that name a folder or a file, which may be an address as well.
PATHS = {"images", "instances"}


@dataclass(frozen=True)
class SourceConfig:
    """One source of samples.

    Attributes:
        path: the dataset's folder or file, or its address (`platform/data/remote.py`), for all kinds but functions.
        kind: "lerobot", "stills", a form of pictures with questions ("llava", "points", "coco", "refcoco"), or the
            import path of a function, package.module.function, that is called with a `ReadingConfig` and the options,
            and gives a `TrainingSource`.
        weight: how often it is drawn, against the others.
        options: further settings, for "lerobot" those of `DatasetConfig`, for pictures those of
            `open_pictures`.
    """

    path: str = ""
    kind: str = "lerobot"
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        on_disk = self.kind in ("lerobot", "stills", *OPENERS)
        known = ", ".join(("lerobot", "stills", *OPENERS))
        require(on_disk or "." in self.kind, "data.kind", self.kind, f"use {known} or an import path")
        require(not on_disk or bool(self.path), "data.path", self.path, "give the dataset's folder, file or address")
        require(self.weight > 0, "data.weight", self.weight, "it must be > 0")


class TrainingSource(Protocol):
    """What training asks of a source; one that makes scenes afresh says it is very long and loads any item."""

    name: str

    @property
    def digest(self) -> str: ...

    def robot(self) -> Source:
        """Give the moments of demonstrations, each an `ActionSample`."""
        ...

    def grounding(self) -> Source:
        """Give the questions, each a `GroundingSample`."""
        ...

    def held_out_robot(self, count: int) -> Sequence[ActionSample]: ...

    def held_out_grounding(self, count: int) -> Sequence[GroundingSample]: ...

    def statistics(self) -> EmbodimentStatistics | None: ...

    def texts(self) -> Iterable[str]:
        """Give words that a home-made tokenizer should know."""
        ...


@dataclass(frozen=True)
class ReadingConfig:
    """How sources are read.

    Attributes:
        cameras: what the policy looks at; a dataset that lacks one is refused.
        chunk_length: actions per sample.
        statistics_key: the embodiment that scales actions and states.
        held_out_share: share of a dataset's episodes kept from training and used for validation.
        frame_cache: where decoded frames lie; None decodes the videos each time.
        questions: what grounding asks, and how often.
        downloads: folder that datasets with an address are fetched to.
    """

    cameras: tuple[str, ...]
    chunk_length: int
    statistics_key: str
    held_out_share: float = 0.05
    frame_cache: FrameCacheConfig | None = field(default_factory=FrameCacheConfig)
    questions: GroundingConfig = field(default_factory=GroundingConfig)
    downloads: str = DOWNLOADS


class LeRobotSource:
    """A dataset, its episodes split into those to train on and those held out."""

    def __init__(self, config: SourceConfig, reading: ReadingConfig) -> None:
        usual = {"cameras": reading.cameras, "statistics_key": reading.statistics_key, "downloads": reading.downloads}
        dataset_config: DatasetConfig = build(
            DatasetConfig, {"path": config.path} | usual | config.options, "data.options"
        )
        cache = FrameCache(reading.frame_cache) if reading.frame_cache else None
        self.dataset: LeRobotDataset = open_dataset(dataset_config, cache)
        self.name = title_of(config.path)
        self.reading = reading
        self.episodes, self.held_out = split_episodes(self.dataset.num_episodes, reading.held_out_share, SPLIT_SEED)

    @property
    def digest(self) -> str:
        """Digest of the dataset's content."""
        return self.dataset.digest

    def robot(self) -> ActionSource:
        """Moments of the episodes to train on."""
        return ActionSource(self.dataset, self.reading.chunk_length, self.episodes)

    def grounding(self) -> GroundingSource:
        """Questions about the episodes to train on.

        Raises:
            DataError: no frame is annotated.
        """
        source = GroundingSource(self.dataset, self.reading.questions, self.episodes)
        if not len(source):
            raise DataError(
                f"{self.dataset.folder} has no annotated frame to ask about; collect with annotations, "
                "name another grounding_data, or set batch.grounding=0"
            )
        return source

    def held_out_robot(self, count: int) -> list[ActionSample]:
        """Give up to `count` held-out moments, spread evenly."""
        return load_spread(ActionSource(self.dataset, self.reading.chunk_length, self.held_out), count)

    def held_out_grounding(self, count: int) -> list[GroundingSample]:
        """Give up to `count` questions about held-out frames, the same ones each time."""
        return load_spread(GroundingSource(self.dataset, self.reading.questions, self.held_out), count)

    def statistics(self) -> EmbodimentStatistics:
        """Statistics of actions and states over the whole dataset."""
        return self.dataset.statistics

    def texts(self) -> set[str]:
        """Instructions, and the names and sub-goals of each episode's first frame."""
        found = set(self.dataset.meta.tasks)
        for entry in self.dataset.meta.episodes:
            for camera in self.dataset.cameras:
                if note := self.dataset.annotation(entry.first_frame, camera):
                    found |= {*note.boxes, note.subgoal}
        return found - {""}


class WithoutActions:
    """What sources of pictures alone have in common: nothing moves in them.

    Attributes:
        place: what errors call the source.
    """

    place: str

    def robot(self) -> Source:
        """Refuse: pictures alone have no actions.

        Raises:
            DataError: always.
        """
        raise DataError(f"{self.place} holds pictures without actions; name it under grounding_data instead")

    def held_out_robot(self, count: int) -> list[ActionSample]:
        """Give none."""
        return []

    def statistics(self) -> EmbodimentStatistics | None:
        """Give none: nothing moves."""
        return None


class StillsSource(WithoutActions):
    """Annotated pictures without actions; the last share of them is held out, whole scenes together."""

    def __init__(self, config: SourceConfig, reading: ReadingConfig) -> None:
        self.stills = Stills(fetch(config.path, reading.downloads))
        self.name, self.place = title_of(config.path), str(self.stills.folder)
        self.questions = reading.questions
        total = len(self.stills)
        self.num_held_out = round(total * reading.held_out_share / len(reading.cameras)) * len(reading.cameras)
        self.num_training = total - self.num_held_out

    @property
    def digest(self) -> str:
        """Digest of the annotations."""
        return self.stills.digest

    def grounding(self) -> StillQuestions:
        """Questions about the pictures to train on."""
        return StillQuestions(self.stills, self.questions, range(self.num_training))

    def held_out_grounding(self, count: int) -> list[GroundingSample]:
        """Give up to `count` questions about held-out pictures, the same ones each time."""
        held_out = range(self.num_training, len(self.stills))
        return load_spread(StillQuestions(self.stills, self.questions, held_out), count)

    def texts(self) -> set[str]:
        """Instructions and names."""
        shown = [self.stills[place] for place in range(len(self.stills))]
        return {still.instruction for still in shown}.union(*(still.annotation.boxes for still in shown))


class PictureSource(WithoutActions):
    """Pictures with questions, as others keep them; the last share of the rows is held out."""

    def __init__(self, config: SourceConfig, reading: ReadingConfig) -> None:
        folders = {name: str(fetch(str(config.options[name]), reading.downloads)) for name in PATHS & {*config.options}}
        self.pictures = open_pictures(config.kind, fetch(config.path, reading.downloads), {**config.options, **folders})
        self.name = self.place = self.pictures.name
        self.num_held_out = round(len(self.pictures) * reading.held_out_share)
        self.num_training = len(self.pictures) - self.num_held_out

    @property
    def digest(self) -> str:
        """Digest of the files with the rows."""
        return self.pictures.digest

    def grounding(self) -> PictureQuestions:
        """Questions of the rows to train on."""
        return PictureQuestions(self.pictures, range(self.num_training))

    def held_out_grounding(self, count: int) -> list[GroundingSample]:
        """Give up to `count` questions of held-out rows, the same ones each time."""
        return load_spread(PictureQuestions(self.pictures, range(self.num_training, len(self.pictures))), count)

    def texts(self) -> set[str]:
        """Give none: a tokenizer made from the web's words would be none of ours."""
        return set()


def load_spread(source: Source, count: int) -> list[Any]:
    """Load up to `count` items of a source, evenly spread, the same ones each time."""
    length = len(source)
    places = np.linspace(0, length - 1, min(count, length)).round().astype(int) if length else []
    return [source.load(int(item), np.random.default_rng(int(item))) for item in places]


def open_source(config: SourceConfig, reading: ReadingConfig) -> TrainingSource:
    """Open one source of any kind."""
    if config.kind == "lerobot":
        return LeRobotSource(config, reading)
    if config.kind == "stills":
        return StillsSource(config, reading)
    if config.kind in OPENERS:
        return PictureSource(config, reading)
    module, _, name = config.kind.rpartition(".")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"data.kind is {config.kind!r}, which cannot be imported: {error}") from error
    return make(reading, **config.options)


class Sources:
    """All sources of a run, opened once each; a kind of batch that has none is None."""

    def __init__(
        self, robot: Sequence[SourceConfig], grounding: Sequence[SourceConfig], reading: ReadingConfig, seed: int
    ) -> None:
        opened: list[tuple[SourceConfig, TrainingSource]] = []

        def once(config: SourceConfig) -> TrainingSource:
            for known, source in opened:
                if (known.kind, known.path, known.options) == (config.kind, config.path, config.options):
                    return source
            opened.append((config, open_source(config, reading)))
            return opened[-1][1]

        self.robot = [once(config) for config in robot]
        self.grounding = [once(config) for config in grounding]
        self.every = [source for _, source in opened]
        self.mixtures: dict[str, Mixture] = {}
        if robot:
            weights = [config.weight for config in robot]
            self.mixtures["robot"] = Mixture([source.robot() for source in self.robot], weights, seed)
        if grounding:
            weights = [config.weight for config in grounding]
            # Another seed, or both batches of a step would come from the same frames.
            self.mixtures["grounding"] = Mixture([source.grounding() for source in self.grounding], weights, seed + 1)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digest of every source by its name."""
        return {source.name: source.digest for source in self.every}

    def statistics(self) -> list[EmbodimentStatistics]:
        """Statistics by embodiment, of what actions are learned from; grounding alone scales none."""
        found: dict[str, list[EmbodimentStatistics]] = {}
        for source in self.robot:
            if (one := source.statistics()) is not None:
                found.setdefault(one.key, []).append(one)
        return [EmbodimentStatistics.merge(parts) for parts in found.values()]
