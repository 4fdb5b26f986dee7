"""Score a policy open loop on anybody's recordings: what would it have done where the demonstrator acted?

`st4vla eval POLICY dataset=FOLDER` calls `main`. Every `stride`-th frame is shown to the policy, and its chunk is held
against the actions recorded from there on. Open-loop errors say whether a policy reads the data rightly (units, frames,
statistics key); only closed-loop evaluation says whether it works.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from st4vla.platform.contracts import ActionForm, ActionSample, Policy
from st4vla.platform.data.lerobot_config import DatasetConfig
from st4vla.platform.data.lerobot_reader import LeRobotDataset, open_dataset
from st4vla.platform.data.remote import DOWNLOADS
from st4vla.platform.errors import ConfigError, DataError
from st4vla.platform.train.config import build
from st4vla.platform.train.metrics import action_scores
from st4vla.platform.train.sources import check_forms
from st4vla.platform.train.validation import observation_of
from st4vla.workers.rollout.policies import PolicySource

log = logging.getLogger(__name__)
ROTATIONS = {"rotation_vector": "vector", "euler_xyz": "euler"}


@dataclass(frozen=True)
class OpenLoopConfig:
    """What is scored.

    Attributes:
        policy: who acts; it must not be the expert, who needs a world.
        path: the dataset's folder or address.
        options: further settings of `DatasetConfig`, e.g. which columns make up the action.
        stride: frames between two looks.
        most_frames: looks at most, evenly over the dataset; 0 for all.
        batch: looks computed at once.
        downloads: folder that a dataset with an address is fetched to.
    """

    policy: PolicySource
    path: str
    options: Mapping[str, Any]
    stride: int = 5
    most_frames: int = 500
    batch: int = 8
    downloads: str = DOWNLOADS

    def __post_init__(self) -> None:
        if self.stride < 1 or self.batch < 1:
            raise ConfigError(f"open_loop.stride is {self.stride} and open_loop.batch {self.batch}; both must be >= 1.")
        if self.most_frames < 0:
            raise ConfigError(f"open_loop.most_frames is {self.most_frames}; it must be >= 0, 0 for all.")


@dataclass(frozen=True)
class OpenLoopResult:
    """What came of it.

    Attributes:
        frames: looks.
        by_dimension: mean absolute error of each action dimension, in its own unit, [A].
        by_step: the same mean over dimensions by place in the chunk, each dimension over its standard deviation, [T].
        figures: for a tool's motion, translation in mm, rotation in rad and gripper side, else the mean error over the
            spread (`action_scores`); means over looks.
        traces: a few episodes to draw: recorded and predicted first actions, each [N,A].
    """

    frames: int
    by_dimension: tuple[float, ...]
    by_step: tuple[float, ...]
    figures: Mapping[str, float]
    traces: Sequence[tuple[int, np.ndarray, np.ndarray]]

    def plain(self) -> dict[str, Any]:
        """Give the JSON-ready form, without the traces."""
        return {
            "frames": self.frames,
            "by_dimension": list(self.by_dimension),
            "by_step": list(self.by_step),
            "figures": dict(self.figures),
        }


def load_for(config: OpenLoopConfig) -> Policy:
    """Load the policy, acting for the embodiment that the options name.

    Raises:
        ConfigError: it has no statistics to choose among.
        PolicyError: the checkpoint has no statistics of that embodiment.
    """
    from st4vla.platform.policy.inference import InferenceConfig

    key = config.options.get("statistics_key")
    policy = config.policy.load(InferenceConfig(statistics_key=key) if key else None)
    if key and policy.spec.statistics_key != key:
        raise ConfigError(
            f"dataset_options.statistics_key is {key!r}, but policy={config.policy.title} keeps no statistics by which "
            "it could act for another embodiment; leave the key out, or name a checkpoint of `st4vla train`."
        )
    return policy


def open_for(policy: Policy, config: OpenLoopConfig) -> LeRobotDataset:
    """Open the dataset as the policy needs it.

    Raises:
        DataError: its actions have another width than the policy's, or are stated to be of another form.
    """
    spec = policy.spec
    usual = {"cameras": spec.cameras, "statistics_key": spec.statistics_key, "downloads": config.downloads}
    settings = {"path": config.path} | usual | dict(config.options)
    asked: DatasetConfig = build(DatasetConfig, settings, "dataset_options")
    remedy = "score it on recordings of its own form, or correct dataset_options."
    check_forms(asked, spec.action_form, ROTATIONS[spec.rotation_form], remedy)
    dataset = open_dataset(asked)
    width = dataset.columns.actions.shape[1]
    if width != spec.action_dim:
        raise DataError(
            f"{config.path} has actions of width {width}, the policy gives {spec.action_dim}; choose other columns "
            "with dataset_options.action=[...]"
        )
    return dataset


def looks(dataset: LeRobotDataset, config: OpenLoopConfig) -> list[tuple[int, int]]:
    """Give (episode, frame number) of every look."""
    found = [
        (entry.index, entry.first_frame + place)
        for entry in dataset.meta.episodes
        for place in range(0, entry.length, config.stride)
    ]
    if config.most_frames and len(found) > config.most_frames:
        places = np.linspace(0, len(found) - 1, config.most_frames).round().astype(int)
        found = [found[place] for place in places]
    return found


def score(policy: Policy, dataset: LeRobotDataset, config: OpenLoopConfig) -> OpenLoopResult:
    """Show the policy every look and hold its chunks against what was recorded."""
    from rich.progress import track

    shown = looks(dataset, config)
    groups = [shown[start : start + config.batch] for start in range(0, len(shown), config.batch)]
    samples: list[ActionSample] = []
    chunks: list[np.ndarray] = []
    for group in track(groups, "open loop"):
        part = [dataset.action_sample(frame, policy.spec.chunk_length) for _, frame in group]
        keys = [(frame, 0) for _, frame in group]
        acted = policy.act([observation_of(sample) for sample in part], [str(key[0]) for key in keys], keys)
        samples += part
        chunks += [chunk.actions for chunk in acted]
    return summarise(shown, samples, chunks, dataset.columns.actions.std(0), policy.spec.action_form)


def summarise(
    shown: Sequence[tuple[int, int]],
    samples: Sequence[ActionSample],
    chunks: Sequence[np.ndarray],
    spread: np.ndarray,
    form: ActionForm,
) -> OpenLoopResult:
    """Turn chunks and recorded actions into errors; rows after an episode's end count nowhere."""
    truth_NTA, guess_NTA = np.stack([sample.actions for sample in samples]), np.stack(list(chunks))
    counts_NT = ~np.stack([sample.is_pad for sample in samples])
    errors_NTA = np.abs(guess_NTA - truth_NTA) * counts_NT[..., None]
    by_dimension = errors_NTA.sum((0, 1)) / counts_NT.sum()
    scaled_NT = (errors_NTA / np.where(spread > 0, spread, 1)).mean(-1)
    by_step = scaled_NT.sum(0) / np.maximum(counts_NT.sum(0), 1)
    scores = [
        action_scores(chunk, sample.actions, sample.is_pad, form, spread)
        for sample, chunk in zip(samples, chunks, strict=True)
    ]
    figures = {name: float(np.mean([one[name] for one in scores if name in one])) for name in scores[0]}
    traces = []
    for episode in list(dict.fromkeys(number for number, _ in shown))[:3]:
        rows = [place for place, (number, _) in enumerate(shown) if number == episode]
        traces.append((episode, truth_NTA[rows, 0], guess_NTA[rows, 0]))
    return OpenLoopResult(len(shown), tuple(by_dimension.tolist()), tuple(by_step.tolist()), figures, traces)


def plot_traces(result: OpenLoopResult, path: Path) -> None:
    """Draw recorded and predicted first actions of a few episodes, a panel for each dimension."""
    from matplotlib.figure import Figure

    width = len(result.by_dimension)
    figure = Figure(figsize=(3.2 * len(result.traces) + 0.5, 1.3 * width), dpi=110, layout="constrained")
    panels = figure.subplots(width, len(result.traces), squeeze=False, sharex="col")
    for column, (episode, truth, guess) in enumerate(result.traces):
        panels[0, column].set_title(f"episode {episode}", fontsize=9)
        for row in range(width):
            panels[row, column].plot(truth[:, row], color="#222222", label="recorded")
            panels[row, column].plot(guess[:, row], color="#d98032", label="policy")
            panels[row, column].tick_params(labelsize=7)
            panels[row, 0].set_ylabel(f"action {row}", fontsize=8)
    panels[0, 0].legend(fontsize=7, frameon=False)
    figure.savefig(path)


def run(config: OpenLoopConfig, folder: Path, tracker: Any) -> OpenLoopResult:
    """Score, write `open_loop.json` and `open_loop.png`, and record both."""
    if config.policy.is_expert:
        raise ConfigError("policy=expert acts inside a simulated world; recordings have none. Name another policy.")
    policy = load_for(config)
    dataset = open_for(policy, config)
    result = score(policy, dataset, config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_loop.json").write_text(json.dumps(result.plain(), indent=1))
    plot_traces(result, folder / "open_loop.png")
    tracker.dataset(dataset.name, dataset.digest, str(dataset.folder), "evaluation")
    tracker.metrics({f"open_loop/{name}": value for name, value in result.figures.items()})
    tracker.metrics({f"open_loop/action_{place}": value for place, value in enumerate(result.by_dimension)})
    tracker.artifact(folder / "open_loop.json")
    tracker.artifact(folder / "open_loop.png")
    return result


def print_result(result: OpenLoopResult, folder: Path) -> None:
    """Print the errors and where the plot lies."""
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "mean", title=f"open loop over {result.frames} frames")
    for name, value in result.figures.items():
        table.add_row(name, f"{value:.4g}")
    for place, value in enumerate(result.by_dimension):
        table.add_row(f"absolute error of action {place}", f"{value:.4g}")
    first, last = result.by_step[0], result.by_step[-1]
    table.add_row("error over spread, first and last step of the chunk", f"{first:.3g}, {last:.3g}")
    console = Console()
    console.print(table)
    console.print(f"plot: {folder / 'open_loop.png'}", soft_wrap=True, highlight=False)
