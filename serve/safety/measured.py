"""Write an embodiment from recordings: the rates and the workspace that demonstrations kept, with a margin.

What nobody demonstrated the policy has not learned, so a limit a little above the demonstrations costs it nothing and
stops what is not like them. The numbers are a first draft: read them, and lower what your robot cannot take.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from st4vla.platform.contracts import ActionForm
from st4vla.platform.data.lerobot_config import DatasetConfig
from st4vla.platform.data.lerobot_reader import LeRobotDataset, open_dataset
from st4vla.platform.errors import ConfigError
from st4vla.serve.safety.course import Course, at, follow
from st4vla.serve.safety.embodiment import RATES, Embodiment, Part
from st4vla.serve.safety.motion import MotionLimits


@dataclass(frozen=True)
class MeasureConfig:
    """What is measured, and how it becomes limits.

    Attributes:
        dataset: folder of the recordings.
        out: YAML file that is written.
        name: of the embodiment; "" takes the dataset's robot type.
        form: what an action is. An arm by its hand has seven columns: position, rotation, gripper.
        gripper: the last column of joint actions is a gripper.
        joint_unit: of joints, "rad", "deg" or "1".
        margin: limits are so many times the largest rate that was demonstrated.
        reach: the workspace reaches so far beyond what was visited, as a share of its width.
    """

    dataset: str
    out: str
    name: str = ""
    form: ActionForm = "delta_end_effector"
    gripper: bool = True
    joint_unit: str = "rad"
    margin: float = 1.25
    reach: float = 0.1

    def __post_init__(self) -> None:
        if not self.dataset:
            raise ConfigError("no dataset is named; write: st4vla limits FOLDER")
        if self.margin < 1 or self.reach < 0:
            raise ConfigError(f"margin is {self.margin} and reach {self.reach}; use 1 or more, and 0 or more.")


def main(cfg: Any) -> None:
    """Run `st4vla limits`: measure, write the file, and say what the recordings look like under it."""
    from rich.console import Console

    config = MeasureConfig(**{name: cfg[name] for name in MeasureConfig.__dataclass_fields__})
    dataset = open_dataset(DatasetConfig(config.dataset))
    robot = measure(dataset, config)
    write(robot, config)
    share = clamped_share(robot, episodes_of(dataset))
    Console().print(table_of(robot))
    Console().print(f"{config.out}: would clamp {100 * share:.2f} % of the {dataset.num_frames} demonstrated actions")


def measure(dataset: LeRobotDataset, config: MeasureConfig) -> Embodiment:
    """Give the embodiment that a dataset's recordings describe.

    Raises:
        ConfigError: the actions' width does not fit the form.
        DataError: the dataset cannot be read.
    """
    episodes = episodes_of(dataset)
    width = episodes[0][0].shape[1]
    states = episodes[0][1]
    state_dim = 0 if states is None else states.shape[1]
    parts = [measured_part(part, episodes, dataset.fps, config) for part in parts_of(config, width, state_dim)]
    return Embodiment(config.name or dataset.statistics_key, float(dataset.fps), tuple(parts), state_dim)


def episodes_of(dataset: LeRobotDataset) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Give the actions [N,A] and the states [N,S] of every episode."""
    ends = np.cumsum([entry.length for entry in dataset.meta.episodes])[:-1]
    actions = np.split(dataset.columns.actions.astype(np.float64), ends)
    states = dataset.columns.states
    return list(zip(actions, [None] * len(actions) if states is None else np.split(states, ends), strict=True))


def parts_of(config: MeasureConfig, width: int, state_dim: int) -> list[Part]:
    """Say which columns move together.

    Raises:
        ConfigError: an arm's action has not seven columns.
    """
    if config.form == "delta_end_effector":
        if width != 7:
            raise ConfigError(f"the actions have {width} columns, an arm's by its hand 7; set form=absolute_joints.")
        placed = 0 if state_dim >= 3 else None
        return [
            Part("position", 0, 3, "m", "delta", placed),
            Part("rotation", 3, 6, "rad", "delta"),
            Part("gripper", 6, 7, "1", "absolute"),
        ]
    joints, unit = width - config.gripper, config.joint_unit
    placed = 0 if state_dim >= joints else None
    form = "absolute" if config.form == "absolute_joints" else "delta"
    parts = [Part("joints", 0, joints, unit, form, placed)]  # pyright: ignore[reportArgumentType]
    return parts + ([Part("gripper", joints, width, "1", "absolute")] if config.gripper else [])


def measured_part(
    part: Part, episodes: Sequence[tuple[np.ndarray, np.ndarray | None]], hz: float, config: MeasureConfig
) -> Part:
    """Fill in a part's limits: one number for a vector in space, one for each joint."""
    each = part.name == "joints"
    courses = [
        follow(part, 1 / hz, at(part.measured(None if states is None else states[0])), rows[:, part.start : part.end])
        for rows, states in episodes
    ]
    limits: dict[str, Any] = {}
    if part.name != "gripper":
        for rate in RATES:
            values = np.concatenate([getattr(course, rate) for course in courses])
            sizes = np.abs(values).max(0) if each else np.array([np.linalg.norm(values, axis=1).max()])
            limits[rate] = tuple(rounded(config.margin * max(size, 1e-6)) for size in sizes)
    visited = np.concatenate([places(part, *both) for both in zip(courses, episodes, strict=True)])
    if not np.isnan(visited).any() and part.name != "rotation":
        low, high = visited.min(0), visited.max(0)
        room = config.reach * np.maximum(high - low, 1e-3)
        if part.name == "gripper":  # closed is 0 and open at least 1, whether or not it was shown
            low, high, room = np.minimum(low, 0), np.maximum(high, 1), 0.0
        limits |= {"low": tuple(map(rounded, low - room)), "high": tuple(map(rounded, high + room))}
    return replace(part, **limits)


def places(part: Part, course: Course, episode: tuple[np.ndarray, np.ndarray | None]) -> np.ndarray:
    """Give where a part was and was sent: from where it was measured for deltas, whose sum drifts from that."""
    rows, states = episode
    told = rows[:, part.start : part.end]
    if part.form == "absolute" or states is None:
        return course.position
    measured = np.stack([part.measured(state) for state in states])
    return np.concatenate([measured, measured + told])


def rounded(value: float) -> float:
    """Round to four figures, as a person would write it."""
    return float(f"{value:.4g}")


def clamped_share(robot: Embodiment, episodes: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> float:
    """Give the share of demonstrated actions that the limits would change, looking after every action."""
    limits, clamped, total = MotionLimits(robot), 0, 0
    for rows, states in episodes:
        motion = limits.somewhere()
        for row, state in zip(rows, [None] * len(rows) if states is None else states, strict=True):
            limited = limits.limit(limits.anchored(motion, state), row[None])
            motion, clamped = limited.motions[-1], clamped + bool(limited.clamps)
        total += len(rows)
    return clamped / max(total, 1)


def write(robot: Embodiment, config: MeasureConfig) -> None:
    """Write an embodiment as YAML, with where it came from on top.

    Raises:
        ConfigError: the file cannot be written.
    """
    import yaml

    head = f"# Measured by `st4vla limits {config.dataset}`: read it, and lower what the robot cannot take.\n"
    plain, path = asdict(robot), Path(config.out)
    plain["parts"] = [{name: value for name, value in p.items() if value not in ((), None)} for p in plain["parts"]]
    text = yaml.safe_dump(lists(plain), sort_keys=False, width=110, default_flow_style=None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + text)
    except OSError as error:
        raise ConfigError(f"out={path} cannot be written: {error.strerror}; name another file.") from error


def lists(value: Any) -> Any:
    """Turn tuples into lists all the way down."""
    if isinstance(value, Mapping):
        return {name: lists(entry) for name, entry in value.items()}
    return [lists(entry) for entry in value] if isinstance(value, list | tuple) else value


def table_of(robot: Embodiment) -> Any:
    """Show the limits."""
    from rich.table import Table

    table = Table("part", "unit", "range", *RATES, title=f"{robot.name}, {robot.control_hz:g} Hz")
    for part in robot.parts:
        span = ", ".join(f"{a:.3g}..{b:.3g}" for a, b in zip(part.low, part.high, strict=True))
        rates = [", ".join(f"{value:.3g}" for value in getattr(part, rate)) for rate in RATES]
        table.add_row(part.name, part.unit, span, *rates)
    return table
