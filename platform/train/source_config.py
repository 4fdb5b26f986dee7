"""What every source of samples has in common: how it is named, how it is read, and what training asks of it."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from st4vla.platform.contracts import ActionSample, GroundingSample
from st4vla.platform.data.frame_cache import FrameCacheConfig
from st4vla.platform.data.grounding import GroundingConfig
from st4vla.platform.data.mixture import Source
from st4vla.platform.data.picture_formats import OPENERS
from st4vla.platform.data.remote import DOWNLOADS
from st4vla.platform.data.statistics import EmbodimentStatistics
from st4vla.platform.errors import DataError
from st4vla.platform.train.config import require

logger = logging.getLogger(__name__)

# Which episodes are held out must not depend on a run's seed: stage 2 would validate on what stage 1 trained on.
SPLIT_SEED = 0
ON_DISK = ("lerobot", "stills", "packed", *OPENERS)


@dataclass(frozen=True)
class SourceConfig:
    """One source of samples.

    Attributes:
        path: the dataset's folder or file, or its address (`platform/data/remote.py`), for all kinds but functions.
        kind: "lerobot", "stills", "packed" (`st4vla pack`), a form of pictures with questions ("llava", "points",
            "coco", "refcoco"), or the import path of a function, package.module.function, that is called with a
            `ReadingConfig` and the options, and gives a `TrainingSource`.
        weight: how often it is drawn, against the others.
        options: further settings, for "lerobot" those of `DatasetConfig`, for pictures those of
            `open_pictures`.
    """

    path: str = ""
    kind: str = "lerobot"
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        on_disk = self.kind in ON_DISK
        known = ", ".join(ON_DISK)
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
        rotation: what the policy means by columns 3 to 5 of an arm's action, "vector" or "euler"; "" checks nothing.
        action_form: what the policy means by an action, an `ActionForm`; "" checks nothing.
    """

    cameras: tuple[str, ...]
    chunk_length: int
    statistics_key: str
    held_out_share: float = 0.05
    frame_cache: FrameCacheConfig | None = field(default_factory=FrameCacheConfig)
    questions: GroundingConfig = field(default_factory=GroundingConfig)
    downloads: str = DOWNLOADS
    rotation: str = ""
    action_form: str = ""


def load_spread(source: Source, count: int) -> list[Any]:
    """Load up to `count` items of a source, evenly spread, the same ones each time; unreadable ones are left out.

    Raises:
        DataError: none of them can be read.
    """
    length = len(source)
    places = np.linspace(0, length - 1, min(count, length)).round().astype(int) if length else []
    found, last = [], None
    for item in map(int, places):
        try:
            found.append(source.load(item, np.random.default_rng(item)))
        except DataError as error:
            logger.warning("held-out sample %d of %s is left out: %s", item, source.name, error)
            last = error
    if last is not None and not found:
        raise DataError(f"none of {len(places)} samples of {source.name} could be read. The last one: {last}") from last
    return found


def load_first(source: Source, tries: int = 4) -> Any:
    """Load one item of a source, the first that can be read of a few evenly spread ones.

    Raises:
        DataError: none of them can be read.
    """
    for item in np.linspace(0, len(source) - 1, min(tries, len(source))).round().astype(int)[:-1].tolist():
        try:
            return source.load(item, np.random.default_rng(item))
        except DataError as error:
            logger.warning("sample %d of %s cannot be read: %s", item, source.name, error)
    return source.load(len(source) - 1, np.random.default_rng(0))
