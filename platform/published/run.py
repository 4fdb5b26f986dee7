"""Read a published run: its configuration, its statistics and its one pickle of weights.

config.yaml                                  the training configuration
dataset_statistics.json                      {embodiment: {"action": {mean, std, min, max, q01, q99, mask}}}
checkpoints/steps_N_pytorch_model.pt         a flat state dict, by torch.save
"""

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from st4vla.platform.data.statistics import EmbodimentStatistics, ScalingMode, Slice
from st4vla.platform.errors import CheckpointError, DataError
from st4vla.platform.published.hub import download, list_files

CONFIG, STATISTICS = "config.yaml", "dataset_statistics.json"
HUB = "hf:"
STEP = re.compile(r"steps_(\d+)")
GRIPPER = 6


@dataclass(frozen=True)
class Run:
    """A published run, opened; `source` is where it came from, `step` -1 where the file's name tells none."""

    source: str
    config: dict[str, Any]
    statistics: dict[str, Any]
    weights: Path
    step: int


def open_run(source: str, weights: str = "") -> Run:
    """Open a run folder, one of its .pt files, or hf:REPO.

    Args:
        weights: name of the .pt file; "" takes the one with the most steps.

    Raises:
        CheckpointError: a file is missing or unreadable, or the hub cannot be reached.
    """
    if source.startswith(HUB):
        folder = fetch_run(source.removeprefix(HUB), weights)
    elif (path := Path(source)).is_file() and path.suffix == ".pt":
        folder, weights = path.parent.parent, path.name
    else:
        folder = path
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}; give the folder of a published run, a .pt in it, or hf:REPO.")
    chosen = choose(sorted((folder / "checkpoints").glob("*.pt")), folder, weights)
    step = STEP.search(chosen.name)
    statistics = read_statistics(folder)
    return Run(source, read_config(folder / CONFIG), statistics, chosen, int(step[1]) if step else -1)


def fetch_run(repo: str, weights: str) -> Path:
    """Fetch a run's small files and one of its weights."""
    instead = "the folder of a copy that is here"
    there = [Path(name) for name in list_files(repo, instead) if name.startswith("checkpoints/") and name[-3:] == ".pt"]
    chosen = choose(there, Path(repo), weights)
    return download(repo, (CONFIG, STATISTICS, str(chosen)), instead)


def choose(there: Sequence[Path], folder: Path, weights: str) -> Path:
    """Choose the weights by name, or those with the most steps."""
    names = ", ".join(path.name for path in there) or "no .pt file"
    if weights:
        fitting = [path for path in there if path.name == weights]
        if not fitting:
            raise CheckpointError(f"{folder}/checkpoints has no {weights}; it has {names}.")
        return fitting[0]
    if not there:
        raise CheckpointError(f"{folder}/checkpoints has {names}; expected steps_N_pytorch_model.pt.")
    return max(there, key=lambda path: int(match[1]) if (match := STEP.search(path.name)) else -1)


def read_config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path} is no YAML: {error}. Copy it again from where it came from.") from error
    if not isinstance(values, dict) or "framework" not in values:
        raise CheckpointError(f"{path} has no framework section; expected the configuration of a published run.")
    return values


def read_statistics(folder: Path) -> dict[str, Any]:
    path = folder / STATISTICS
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {STATISTICS}; without it no action can be scaled back. Copy it from the published run."
        )
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}. Copy it again from where it came from.") from error
    if not isinstance(values, dict) or not values:
        raise CheckpointError(f"{path} holds no embodiment; copy it again from where it came from.")
    return values


def choose_embodiment(statistics: Mapping[str, Any], wanted: str) -> str:
    """Give the embodiment whose statistics scale the policy's actions.

    Raises:
        CheckpointError: there is none of that name, or several and none was named; all are listed.
    """
    listed = ", ".join(statistics)
    if wanted and wanted not in statistics:
        raise CheckpointError(f"embodiment {wanted!r} is not in the checkpoint's statistics; there are: {listed}.")
    if not wanted and len(statistics) > 1:
        raise CheckpointError(f"The checkpoint has statistics of {listed}; choose one with embodiment=NAME.")
    return wanted or next(iter(statistics))


def to_statistics(values: Mapping[str, Any], where: str) -> dict[str, EmbodimentStatistics]:
    """Read published statistics, scaled as the public code scales back.

    Raises:
        CheckpointError: an embodiment's numbers are incomplete.
    """
    found = {}
    for key, content in values.items():
        try:
            read = EmbodimentStatistics.from_json(key, content, f"{where} [{key}]")
        except DataError as error:
            raise CheckpointError(str(error)) from error
        mask = content["action"].get("mask") or [True] * read.action.width
        slices = tuple(as_slices([mode_of(i, bool(scaled), len(mask)) for i, scaled in enumerate(mask)]))
        found[key] = EmbodimentStatistics(key, read.action, read.state, slices, read.state_slices)
    return found


def mode_of(column: int, scaled: bool, width: int) -> ScalingMode:
    """Give the scaling of a column: the gripper is 0 or 1, masked columns are left alone, the rest is by quantiles.

    The gripper is column 6; in wider actions, where the public code cuts a joint in two there, the last column.
    """
    if column == (GRIPPER if width == GRIPPER + 1 else width - 1) and (not scaled or width == GRIPPER + 1):
        return "zero_one"
    return "q99" if scaled else "identity"


def as_slices(modes: Sequence[ScalingMode]) -> list[Slice]:
    """Join neighbouring columns of one mode."""
    slices: list[Slice] = []
    for column, mode in enumerate(modes):
        if slices and slices[-1].mode == mode:
            slices[-1] = Slice(slices[-1].name, slices[-1].start, column + 1, mode)
        else:
            slices.append(Slice("gripper" if mode == "zero_one" else f"from_{column}", column, column + 1, mode))
    return slices


def from_statistics(ours: Mapping[str, EmbodimentStatistics], published: Mapping[str, Any]) -> dict[str, Any]:
    """Write statistics in the published layout, keeping what `published` had beside the numbers."""
    written: dict[str, Any] = {}
    for key, one in ours.items():
        numbers = one.action.to_json()
        count = numbers.pop("count")
        scaled = [
            part.mode not in ("zero_one", "binary", "identity")
            for part in one.action_slices
            for _ in range(part.start, part.end)
        ]
        before = published.get(key, {"action": {"mask": scaled}, "num_transitions": count})
        written[key] = {**before, "action": {**before["action"], **numbers}}
    return written


def read_weights(path: Path) -> dict[str, Tensor]:
    """Map a flat state dict into memory; nothing but tensors and plain containers is ever built.

    Raises:
        CheckpointError: it is damaged, of an old form, or holds anything else.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read as tensors alone: {reason} It is damaged, older than torch 1.6, or holds more than "
            "weights; copy it again, or save its state dict with a present torch."
        ) from error
    strange = [str(name) for name, value in values.items() if not isinstance(value, Tensor)] if values else []
    if not isinstance(values, dict) or strange or not values:
        seen = f"{', '.join(strange[:5])} are no tensors" if strange else "it is empty"
        raise CheckpointError(f"{path} is no flat state dict: {seen}. Expected names and tensors only.")
    return values
