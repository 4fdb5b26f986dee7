"""Where samples come from, by kind: LeRobot datasets, pictures, or anything else named by its import path."""

import importlib
from collections.abc import Sequence
from functools import cached_property

from st4vla.platform.contracts import ActionSample, GroundingSample
from st4vla.platform.data.address import title_of
from st4vla.platform.data.frame_cache import FrameCache
from st4vla.platform.data.lerobot_config import DatasetConfig
from st4vla.platform.data.lerobot_reader import LeRobotDataset, open_dataset
from st4vla.platform.data.mixture import Mixture
from st4vla.platform.data.picture_formats import OPENERS
from st4vla.platform.data.sources import ActionSource, GroundingSource, split_episodes
from st4vla.platform.data.statistics import EmbodimentStatistics
from st4vla.platform.errors import ConfigError, DataError
from st4vla.platform.train.config import build
from st4vla.platform.train.picture_sources import StillsSource, packed_source, picture_source
from st4vla.platform.train.source_config import SPLIT_SEED, ReadingConfig, SourceConfig, TrainingSource, load_spread


class LeRobotSource:
    """A dataset, its episodes split into those to train on and those held out."""

    def __init__(self, config: SourceConfig, reading: ReadingConfig) -> None:
        usual = {"cameras": reading.cameras, "statistics_key": reading.statistics_key, "downloads": reading.downloads}
        dataset_config: DatasetConfig = build(
            DatasetConfig, {"path": config.path} | usual | dict(config.options), "data.options"
        )
        check_forms(dataset_config, reading.action_form, reading.rotation)
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
        found = set(self.dataset.meta.tasks.values())
        for entry in self.dataset.meta.episodes:
            for camera in self.dataset.cameras:
                if note := self.dataset.annotation(entry.first_frame, camera):
                    found |= {*note.boxes, note.subgoal}
        return found - {""}


def open_source(config: SourceConfig, reading: ReadingConfig) -> TrainingSource:
    """Open one source of any kind."""
    if config.kind == "lerobot":
        return LeRobotSource(config, reading)
    if config.kind == "stills":
        return StillsSource(config, reading)
    if config.kind == "packed":
        return packed_source(config, reading)
    if config.kind in OPENERS:
        return picture_source(config, reading)
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
        check_widths(self.robot)
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


def check_forms(
    config: DatasetConfig,
    action_form: str,
    rotation: str,
    remedy: str = "set ++{setting}={stated}, or leave the dataset out.",
) -> None:
    """Raise DataError where a dataset states another form of actions or rotations than the policy means.

    Args:
        action_form, rotation: the policy's, as in `ReadingConfig`; "" checks nothing.
        remedy: what to do, for the message; {setting} names the policy's setting, {stated} what the dataset says.
    """
    compared = {
        "action_form": (config.action_form, action_form, "policy.action_form"),
        "rotation": (config.rotation, rotation, "policy.semantics.rotation"),
    }
    for name, (stated, meant, setting) in compared.items():
        if stated and meant and stated != meant:
            raise DataError(
                f"{config.path}: options.{name} says {stated!r} of its actions, the policy means {meant!r}; "
                + remedy.format(setting=setting, stated=stated)
            )


def check_widths(sources: Sequence[TrainingSource]) -> None:
    """Raise DataError where datasets that are to be mixed have actions of different widths."""
    found: dict[int, list[str]] = {}
    for source in sources:
        if isinstance(source, LeRobotSource):
            parts = source.dataset.action_parts
            columns = " + ".join(f"{part.key}[{part.start}:{part.end}]" for part in parts)
            found.setdefault(sum(part.width for part in parts), []).append(f"{source.name}: {columns}")
    if len(found) > 1:
        listed = "\n  ".join(f"{width} wide, {name}" for width, names in sorted(found.items()) for name in names)
        raise DataError(
            f"the actions of the mixture have different widths:\n  {listed}\n"
            "choose columns that agree with each dataset's options.action, or train on datasets of one width."
        )
