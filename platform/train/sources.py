"""Where samples come from, by kind: LeRobot datasets on disk, or any iterable of scenes named by its import path."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from st4vla.platform.contracts import ActionSample, GroundingSample
from st4vla.platform.data.frame_cache import FrameCache, FrameCacheConfig
from st4vla.platform.data.grounding import GroundingConfig
from st4vla.platform.data.lerobot_reader import DatasetConfig, LeRobotDataset, open_dataset
from st4vla.platform.data.statistics import EmbodimentStatistics
from st4vla.platform.errors import ConfigError, DataError
from st4vla.platform.train.config import require

# Streams of random numbers, one for each use, so that no two uses share a draw.
STREAMS = {"robot": 1, "grounding": 2, "validation": 3}
QUESTION_TRIES = 64


@dataclass(frozen=True)
class SourceConfig:
    """One source of samples.

    Attributes:
        kind: "lerobot" for a dataset on disk at `path`; else the import path of a function, package.module.function,
            that is called with `options` and gives a `Source`.
        weight: how often it is drawn, against the others.
    """

    path: str = ""
    kind: str = "lerobot"
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.kind == "lerobot" or "." in self.kind, "data.kind", self.kind, "use lerobot or an import path")
        require(self.kind != "lerobot" or bool(self.path), "data.path", self.path, "give the dataset's folder")
        require(self.weight > 0, "data.weight", self.weight, "it must be > 0")


class Source(Protocol):
    """Samples by number; a source that makes them afresh has `num_items` 0 and takes any number."""

    name: str
    num_items: int

    @property
    def digest(self) -> str: ...

    def robot(self, item: int) -> ActionSample: ...

    def grounding(self, item: int, rng: np.random.Generator) -> GroundingSample | None: ...

    def held_out_robot(self, count: int) -> Sequence[ActionSample]: ...

    def held_out_grounding(self, count: int) -> Sequence[GroundingSample]: ...

    def statistics(self) -> EmbodimentStatistics | None: ...

    def texts(self) -> Iterable[str]: ...


@dataclass(frozen=True)
class ReadingConfig:
    """How datasets are read.

    Attributes:
        cameras: what the policy looks at; a dataset that lacks one is refused.
        chunk_length: actions per sample.
        statistics_key: the embodiment that scales actions and states.
        hold_out_every: every so many-th episode is kept from training and used for validation; 0 keeps none.
        frame_cache: where decoded frames lie; null reads the videos each time.
        questions: what grounding asks, and how often.
    """

    cameras: tuple[str, ...]
    chunk_length: int
    statistics_key: str
    hold_out_every: int = 20
    frame_cache: FrameCacheConfig | None = field(default_factory=FrameCacheConfig)
    questions: GroundingConfig = field(default_factory=GroundingConfig)


class LeRobotSource:
    """A dataset on disk, its episodes split into those to train on and those held out."""

    def __init__(self, config: SourceConfig, reading: ReadingConfig) -> None:
        dataset_config = DatasetConfig(
            config.path, cameras=reading.cameras, statistics_key=reading.statistics_key, **config.options
        )
        cache = FrameCache(reading.frame_cache) if reading.frame_cache else None
        self.dataset: LeRobotDataset = open_dataset(dataset_config, cache)
        self.name = Path(config.path).name
        self.reading = reading
        held_out = np.array([self._is_held_out(i) for i in range(self.dataset.num_episodes)], dtype=bool)
        lengths = np.array([entry.length for entry in self.dataset.meta.episodes], dtype=np.int64)
        frames = np.arange(self.dataset.num_frames)
        self._train = frames[~np.repeat(held_out, lengths)]
        self._held_out = frames[np.repeat(held_out, lengths)]
        if not len(self._train):
            raise DataError(f"{config.path} has no frames to train on; collect some, or lower hold_out_every")
        self.num_items = len(self._train)

    @property
    def digest(self) -> str:
        """Digest of the dataset's content."""
        return self.dataset.digest

    def robot(self, item: int) -> ActionSample:
        """Give one training frame with its chunk of actions."""
        return self.dataset.action_sample(int(self._train[item]), self.reading.chunk_length)

    def grounding(self, item: int, rng: np.random.Generator) -> GroundingSample | None:
        """Draw a question about one training frame; None where it can answer none."""
        return self.dataset.grounding_sample(int(self._train[item]), self.reading.questions, rng)

    def held_out_robot(self, count: int) -> list[ActionSample]:
        """Give up to `count` held-out moments, spread evenly."""
        return [self.dataset.action_sample(int(i), self.reading.chunk_length) for i in self._spread(count)]

    def held_out_grounding(self, count: int) -> list[GroundingSample]:
        """Give up to `count` questions about held-out frames, the same ones each time."""
        asked = []
        for frame in self._spread(count):
            rng = generator(0, "validation", int(frame))
            asked.append(self.dataset.grounding_sample(int(frame), self.reading.questions, rng))
        return [sample for sample in asked if sample is not None]

    def statistics(self) -> EmbodimentStatistics:
        """Statistics of actions and states over the whole dataset."""
        return self.dataset.statistics

    def texts(self) -> set[str]:
        """Words a tokenizer should know: instructions, and the names and sub-goals of each episode's first frame."""
        found = set(self.dataset.meta.tasks)
        for entry in self.dataset.meta.episodes:
            for camera in self.dataset.cameras:
                if note := self.dataset.annotation(entry.first_frame, camera):
                    found |= {*note.boxes, note.subgoal}
        return found - {""}

    def _is_held_out(self, episode: int) -> bool:
        every = self.reading.hold_out_every
        return every > 0 and episode % every == every - 1

    def _spread(self, count: int) -> np.ndarray:
        if not len(self._held_out) or not count:
            return self._held_out[:0]
        places = np.linspace(0, len(self._held_out) - 1, min(count, len(self._held_out)))
        return self._held_out[places.round().astype(int)]


def open_source(config: SourceConfig, reading: ReadingConfig) -> Source:
    """Open one source of any kind."""
    if config.kind == "lerobot":
        return LeRobotSource(config, reading)
    module, _, name = config.kind.rpartition(".")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"data.kind is {config.kind!r}, which cannot be imported: {error}") from error
    return make(reading=reading, **config.options)


def generator(seed: int, use: str, position: int) -> np.random.Generator:
    """Give the random numbers of one position of one stream, whatever was drawn before it."""
    return np.random.Generator(np.random.Philox(key=[seed, STREAMS[use]], counter=[position, 0, 0, 0]))


class Draws:
    """Draw samples of several sources by their weights; what lies at a position depends on seed and position alone."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], seed: int) -> None:
        self.sources = list(sources)
        self.weights = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self.seed = seed

    def robot(self, position: int) -> ActionSample:
        """Draw a moment of a demonstration."""
        source, item = self._pick(generator(self.seed, "robot", position))
        return source.robot(item)

    def grounding(self, position: int) -> GroundingSample:
        """Draw a question; frames that can answer none are passed over, a source full of them is an error."""
        rng = generator(self.seed, "grounding", position)
        for _ in range(QUESTION_TRIES):
            source, item = self._pick(rng)
            if (sample := source.grounding(item, rng)) is not None:
                return sample
        names = ", ".join(source.name for source in self.sources)
        raise DataError(
            f"{QUESTION_TRIES} frames of {names} in a row have no annotation to ask about; "
            "collect with annotations, or set batch.grounding=0"
        )

    def _pick(self, rng: np.random.Generator) -> tuple[Source, int]:
        source = self.sources[int(rng.choice(len(self.sources), p=self.weights))]
        return source, int(rng.integers(source.num_items or 2**62))


class Sources:
    """All sources of a run, opened once each, with the weights they are drawn by."""

    def __init__(
        self, robot: Sequence[SourceConfig], grounding: Sequence[SourceConfig], reading: ReadingConfig
    ) -> None:
        opened: list[tuple[SourceConfig, Source]] = []

        def once(config: SourceConfig) -> Source:
            for known, source in opened:
                if (known.kind, known.path, known.options) == (config.kind, config.path, config.options):
                    return source
            opened.append((config, open_source(config, reading)))
            return opened[-1][1]

        self.robot = [once(config) for config in robot]
        self.grounding = [once(config) for config in grounding]
        self.robot_weights = [config.weight for config in robot]
        self.grounding_weights = [config.weight for config in grounding]

    @property
    def every(self) -> list[Source]:
        """Every source once."""
        return list({id(source): source for source in [*self.robot, *self.grounding]}.values())

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digest of every source by its name."""
        return {source.name: source.digest for source in self.every}

    def statistics(self) -> list[EmbodimentStatistics]:
        """Statistics by embodiment over the robot sources, or over all where no robot data is trained on."""
        found: dict[str, list[EmbodimentStatistics]] = {}
        for source in self.robot or self.grounding:
            if (one := source.statistics()) is not None:
                found.setdefault(one.key, []).append(one)
        return [EmbodimentStatistics.merge(parts) for parts in found.values()]
