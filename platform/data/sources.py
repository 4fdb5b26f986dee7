"""Sources of a mixture: the action samples and the grounding questions of a dataset."""

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from st4vla.platform.contracts import ActionSample, GroundingSample
from st4vla.platform.data.grounding import KINDS, GroundingConfig, choose
from st4vla.platform.data.lerobot_reader import LeRobotDataset
from st4vla.platform.data.pauses import moving_frames
from st4vla.platform.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class ActionSource:
    """Every freshly seen frame of the chosen episodes (None: all), with the chunk of actions that follows it."""

    def __init__(self, dataset: LeRobotDataset, chunk_length: int, episodes: Sequence[int] | None = None) -> None:
        if chunk_length < 1:
            raise ConfigError(f"chunk_length is {chunk_length}; expected 1 or more control steps.")
        self.name, self.dataset, self.chunk_length = f"{dataset.name}/action", dataset, chunk_length
        self._frames = frames_of(dataset, episodes)

    def __len__(self) -> int:
        """Give the number of frames."""
        return len(self._frames)

    def load(self, item: int, rng: np.random.Generator) -> ActionSample:
        """Read one sample; nothing is drawn."""
        return self.dataset.action_sample(int(self._frames[item]), self.chunk_length)


class GroundingSource:
    """Every annotated frame of every camera that can answer a question of the wanted kinds; the question is drawn."""

    def __init__(
        self,
        dataset: LeRobotDataset,
        config: GroundingConfig | None = None,
        episodes: Sequence[int] | None = None,
    ) -> None:
        self.name, self.dataset = f"{dataset.name}/grounding", dataset
        self.config = config or GroundingConfig()
        wanted = set(range(dataset.num_episodes) if episodes is None else episodes)
        self._items = [item for index in sorted(wanted) for item in self._answerable(index)]

    def __len__(self) -> int:
        """Give the number of pairs of a frame and a camera."""
        return len(self._items)

    def load(self, item: int, rng: np.random.Generator) -> GroundingSample:
        """Read one frame and draw one question about it."""
        frame, camera = self._items[item]
        sample = choose(self.dataset.grounding_samples(frame, [camera]), self.config, rng)
        if sample is None:
            raise DataError(f"frame {frame} of {camera} in {self.dataset.folder} has no question of the wanted kinds.")
        return sample

    def _answerable(self, episode: int) -> list[tuple[int, str]]:
        entry = self.dataset.meta.episodes[episode]
        table = self.dataset.annotation_table(entry)
        if not len(table):
            return []
        points = table["point_names"].to_pylist()
        can = {
            "box": _lengths(table, "box_names") >= 1,
            "point": _lengths(table, "point_names") >= 1,
            "target": np.array(
                [name in found for name, found in zip(table["target"].to_pylist(), points, strict=True)]
            ),
            "trace": _lengths(table, "trace") >= 2,
            "subgoal": np.array([text != "" for text in table["subgoal"].to_pylist()]),
        }
        asked = [can[kind] for kind in KINDS if self.config.weight(kind) > 0]
        cameras = self.config.cameras or tuple(self.dataset.cameras)
        ours = {self.dataset.recorded_cameras.get(camera, camera): camera for camera in cameras}
        rows = zip(np.any(asked, axis=0), table["frame_index"].to_pylist(), table["camera"].to_pylist(), strict=True)
        return [(entry.first_frame + frame, ours[camera]) for able, frame, camera in rows if able and camera in ours]


def frames_of(dataset: LeRobotDataset, episodes: Sequence[int] | None = None) -> np.ndarray:
    """Give the frame numbers of the chosen episodes, int64, in order.

    A frame that only repeats the one before it (`fresh` 0 in a recording of served actions) is left out: what
    was done in it did not follow from what it shows. So are pauses, where the dataset's settings ask for it.
    """
    chosen = dataset.meta.episodes if episodes is None else [dataset.meta.episodes[index] for index in episodes]
    spans = [np.arange(entry.first_frame, entry.first_frame + entry.length) for entry in chosen]
    if (pauses := dataset.config.drop_pauses) is not None:
        actions, parts, form = dataset.columns.actions, dataset.action_parts, dataset.config.action_form
        moving = [span[moving_frames(actions[span], parts, form, pauses)] for span in spans]
        log.info("%s: %d of %d frames are pauses", dataset.name, *_dropped(spans, moving))
        spans = moving
    frames = np.concatenate(spans) if spans else np.zeros(0, np.int64)
    fresh = dataset.own_columns.get("fresh")
    return frames if fresh is None else frames[fresh[frames] > 0]


def _dropped(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> tuple[int, int]:
    total = sum(map(len, before))
    return total - sum(map(len, after)), total


def split_episodes(num_episodes: int, held_out_share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split episode numbers into training and held-out ones, at least one held out if the share is above 0."""
    if not 0 <= held_out_share < 1:
        raise ConfigError(f"held_out_share is {held_out_share}; expected 0 <= share < 1.")
    order = np.random.default_rng(seed).permutation(num_episodes).tolist()
    held = max(1, round(held_out_share * num_episodes)) if held_out_share > 0 and num_episodes > 1 else 0
    return sorted(order[held:]), sorted(order[:held])


def _lengths(table: pa.Table, name: str) -> np.ndarray:
    return np.concatenate([chunk.value_lengths().to_numpy() for chunk in table[name].chunks])
