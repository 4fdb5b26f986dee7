"""Summaries of actions and states, and the scaling of both to [-1, 1] that policies learn in.

The layout of `statistics.json` is the one InternVLA-M1 calls `dataset_statistics.json`: embodiment -> "action" and
"state" -> name of the number -> one value per dimension. Ours adds `count` and, under "slices", how parts are scaled.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from st4vla.platform.data.disk import read_json
from st4vla.platform.errors import ConfigError, DataError

ScalingMode = Literal["q99", "min_max", "mean_std", "binary", "zero_one", "identity"]
FIELDS = ("mean", "std", "min", "max", "q01", "q99")
ARM_WIDTH = 7


@dataclass(frozen=True)
class Statistics:
    """Summary of `count` rows, one value per dimension: float64 [D] each.

    `std` is of the population (divided by count); q01 and q99 are the 1 % and 99 % quantiles.
    """

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    count: int

    @classmethod
    def of(cls, rows: np.ndarray) -> "Statistics":
        """Summarise [N,D] rows, exactly."""
        rows = np.asarray(rows, np.float64)
        if rows.ndim != 2 or not len(rows):
            raise DataError(f"statistics need rows [N, width] with N >= 1; these have shape {rows.shape}.")
        q01, q99 = np.quantile(rows, (0.01, 0.99), axis=0)
        return cls(rows.mean(0), rows.std(0), rows.min(0), rows.max(0), q01, q99, len(rows))

    @classmethod
    def merge(cls, parts: Sequence["Statistics"]) -> "Statistics":
        """Join summaries of disjoint rows; all exact but the quantiles, which become the widest of the parts.

        The widest keeps every part inside [-1, 1]; InternVLA-M1's loader calls it percentile mixing "min_max".
        """
        widths = {part.width for part in parts}
        if len(widths) != 1:
            raise DataError(
                f"statistics of widths {sorted(widths)} cannot be merged; the datasets need one action form."
            )
        weights = np.array([[part.count] for part in parts], np.float64)
        total = weights.sum()
        mean = sum(w * part.mean for w, part in zip(weights, parts, strict=True)) / total
        square = (
            sum(w * (part.std**2 + (part.mean - mean) ** 2) for w, part in zip(weights, parts, strict=True)) / total
        )
        low = {name: np.min([getattr(part, name) for part in parts], axis=0) for name in ("min", "q01")}
        high = {name: np.max([getattr(part, name) for part in parts], axis=0) for name in ("max", "q99")}
        return cls(mean=mean, std=np.sqrt(square), count=int(total), **low, **high)

    @property
    def width(self) -> int:
        """Give the number of dimensions."""
        return len(self.mean)

    def to_json(self) -> dict[str, Any]:
        """Give plain lists."""
        return {name: getattr(self, name).tolist() for name in FIELDS} | {"count": self.count}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str) -> "Statistics":
        """Read `to_json` or a foreign summary that may lack q01 and q99, which then are min and max.

        Raises:
            DataError: a number is missing or the widths differ; `where` is named.
        """
        missing = [name for name in FIELDS[:4] if name not in content]
        if missing:
            raise DataError(f"{where} lacks {', '.join(missing)}; it has {', '.join(content)}. Compute it anew.")
        values = {name: np.atleast_1d(np.asarray(content[name], np.float64)) for name in FIELDS if name in content}
        values.setdefault("q01", values["min"])
        values.setdefault("q99", values["max"])
        widths = {name: len(value) for name, value in values.items()}
        if len(set(widths.values())) != 1:
            raise DataError(f"{where} has numbers of different widths, {widths}. Compute it anew.")
        count = int(np.asarray(content.get("count", content.get("num_transitions", 1))).ravel()[0])
        return cls(**values, count=count)


@dataclass(frozen=True)
class Slice:
    """Dimensions `start` .. `end - 1` of an action or a state, scaled one way.

    Modes: "q99" and "min_max" map their range to [-1, 1] and clip; "mean_std" gives (x - mean) / std; "binary" gives
    +1 for x >= 0.5 and -1 below, and back gives exactly 1 or 0; "zero_one" gives 1 for x >= 0.5 and 0 below, and back
    the same, as published InternVLA-M1 policies learned it; "identity" leaves the values alone.
    """

    name: str
    start: int
    end: int
    mode: ScalingMode

    def __post_init__(self) -> None:
        """Check the range and the mode."""
        if not 0 <= self.start < self.end:
            raise ConfigError(f"slice {self.name!r} runs from {self.start} to {self.end}; expected 0 <= start < end.")
        if self.mode not in get_args(ScalingMode):
            raise ConfigError(f"slice {self.name!r} has mode {self.mode!r}; use one of {get_args(ScalingMode)}.")


def arm_action_slices() -> tuple[Slice, ...]:
    """Give the scaling of the 7-D arm action: motion by quantiles, gripper binary, as InternVLA-M1 does for Bridge."""
    return (Slice("position", 0, 3, "q99"), Slice("rotation", 3, 6, "q99"), Slice("gripper", 6, 7, "binary"))


@dataclass(frozen=True)
class EmbodimentStatistics:
    """What scales the actions and the states of one embodiment.

    Attributes:
        key: name of the embodiment, e.g. "tabletop_panda"; the statistics key of policies and samples.
        action, state: the summaries; no state where the recordings have none.
        action_slices, state_slices: how each part is scaled; () takes the default, which is `arm_action_slices` for a
            7-D action and one "q99" slice over everything else. Who knows that a 7-D action ends in no gripper says so.
    """

    key: str
    action: Statistics
    state: Statistics | None = None
    action_slices: tuple[Slice, ...] = ()
    state_slices: tuple[Slice, ...] = ()

    def __post_init__(self) -> None:
        """Fill in the default slices and check that they cover every dimension once."""
        action = self.action_slices or _default_slices(self.action.width, arm=True)
        state = self.state_slices or (_default_slices(self.state.width, arm=False) if self.state is not None else ())
        object.__setattr__(self, "action_slices", action)
        object.__setattr__(self, "state_slices", state)
        _check_cover("action", action, self.action.width)
        _check_cover("state", state, self.state.width if self.state is not None else 0)

    @classmethod
    def merge(cls, parts: Sequence["EmbodimentStatistics"]) -> "EmbodimentStatistics":
        """Join the statistics of several datasets of one embodiment; the slices are the first one's."""
        states = [part.state for part in parts if part.state is not None]
        state = Statistics.merge(states) if len(states) == len(parts) else None
        action = Statistics.merge([part.action for part in parts])
        return cls(parts[0].key, action, state, parts[0].action_slices, parts[0].state_slices if state else ())

    def to_json(self) -> dict[str, Any]:
        """Give the plain form that `statistics.json` keeps under the embodiment's key."""
        slices = {
            "action": [asdict(part) for part in self.action_slices],
            "state": [asdict(s) for s in self.state_slices],
        }
        state = {"state": self.state.to_json()} if self.state is not None else {}
        return {"action": self.action.to_json()} | state | {"slices": slices}

    @classmethod
    def from_json(cls, key: str, content: Mapping[str, Any], where: str) -> "EmbodimentStatistics":
        """Read `to_json` or one embodiment of InternVLA-M1's `dataset_statistics.json`."""
        if "action" not in content:
            raise DataError(f"{where} has no 'action' statistics; it has {', '.join(content) or 'nothing'}.")
        action = Statistics.from_json(content["action"], f"{where}, action,")
        state = Statistics.from_json(content["state"], f"{where}, state,") if content.get("state") else None
        slices = content.get("slices", {})
        action_slices = tuple(Slice(**part) for part in slices.get("action", ()))
        return cls(key, action, state, action_slices, tuple(Slice(**part) for part in slices.get("state", ())))


def statistics_to_text(embodiments: Sequence[EmbodimentStatistics]) -> str:
    """Give the text of `statistics.json`."""
    return json.dumps({one.key: one.to_json() for one in embodiments}, indent=2) + "\n"


def read_statistics(path: Path) -> dict[str, EmbodimentStatistics]:
    """Read `statistics.json` or `dataset_statistics.json`: {embodiment: statistics}.

    Raises:
        DataError: the file is missing, damaged or incomplete.
    """
    content = read_json(path)
    return {key: EmbodimentStatistics.from_json(key, one, f"{path} [{key}]") for key, one in content.items()}


def check_openings(statistics: EmbodimentStatistics, where: str) -> None:
    """Raise DataError where what is told apart at 0.5 changes but stays on one side: it would become a constant."""
    summaries = {"action": (statistics.action, statistics.action_slices)}
    if statistics.state is not None:
        summaries["state"] = statistics.state, statistics.state_slices
    for what, (stats, slices) in summaries.items():
        for part in slices:
            for place in range(part.start, part.end) if part.mode in ("binary", "zero_one") else ():
                low, high = stats.min[place], stats.max[place]
                if low < high and not low < 0.5 <= high:
                    raise DataError(
                        f"{where}: number {place} of the {what} runs from {low:g} to {high:g} and is scaled as "
                        f"{part.mode}, open from 0.5 on, so it would never change; give its part its values "
                        f"[closed, open] with the option openings, or another form with the option scaling."
                    )


class Normalizer:
    """Scale actions and states of one embodiment to what a policy learns, and back.

    Any leading dimensions are kept: [..., D]. Dimensions whose range is zero give 0, and back give the constant.
    Inside the range the way back is the exact inverse, up to float32 rounding.

    Raises:
        DataError: an array's last dimension is not the statistics' width.
    """

    def __init__(self, statistics: EmbodimentStatistics) -> None:
        self.statistics = statistics

    def normalize_action(self, actions: np.ndarray) -> np.ndarray:
        """Scale physical actions [...,A] to [-1, 1], float32."""
        return _scale(actions, self.statistics.action, self.statistics.action_slices, "action", self.statistics.key)

    def unnormalize_action(self, actions: np.ndarray) -> np.ndarray:
        """Turn a policy's [-1, 1] outputs [...,A] into physical actions, float32; values outside are clipped."""
        return _unscale(actions, self.statistics.action, self.statistics.action_slices, "action", self.statistics.key)

    def normalize_state(self, states: np.ndarray) -> np.ndarray:
        """Scale states [...,S], float32."""
        return _scale(states, self._state(), self.statistics.state_slices, "state", self.statistics.key)

    def unnormalize_state(self, states: np.ndarray) -> np.ndarray:
        """Turn scaled states [...,S] back into physical ones, float32."""
        return _unscale(states, self._state(), self.statistics.state_slices, "state", self.statistics.key)

    def _state(self) -> Statistics:
        if self.statistics.state is None:
            raise DataError(f"the statistics of {self.statistics.key!r} have no state; train with state_dim=0.")
        return self.statistics.state


def _scale(values: np.ndarray, stats: Statistics, slices: Sequence[Slice], what: str, key: str) -> np.ndarray:
    values = _checked(values, stats, what, key)
    scaled = values.copy()
    for part in slices:
        own = np.s_[..., part.start : part.end]
        if part.mode == "binary":
            scaled[own] = np.where(values[own] >= 0.5, 1.0, -1.0)
        elif part.mode == "zero_one":
            scaled[own] = np.where(values[own] >= 0.5, 1.0, 0.0)
        elif part.mode != "identity":
            center, half = _center_and_half(stats, part)
            moved = np.where(half > 0, (values[own] - center) / np.where(half > 0, half, 1), 0.0)
            scaled[own] = moved if part.mode == "mean_std" else np.clip(moved, -1, 1)
    return scaled.astype(np.float32)


def _unscale(values: np.ndarray, stats: Statistics, slices: Sequence[Slice], what: str, key: str) -> np.ndarray:
    values = _checked(values, stats, what, key)
    physical = values.copy()
    for part in slices:
        own = np.s_[..., part.start : part.end]
        if part.mode == "binary":
            physical[own] = np.where(values[own] >= 0, 1.0, 0.0)
        elif part.mode == "zero_one":
            physical[own] = np.where(values[own] >= 0.5, 1.0, 0.0)
        elif part.mode != "identity":
            center, half = _center_and_half(stats, part)
            inside = values[own] if part.mode == "mean_std" else np.clip(values[own], -1, 1)
            physical[own] = center + half * inside
    return physical.astype(np.float32)


def _center_and_half(stats: Statistics, part: Slice) -> tuple[np.ndarray, np.ndarray]:
    if part.mode == "mean_std":
        return stats.mean[part.start : part.end], stats.std[part.start : part.end]
    low, high = (stats.q01, stats.q99) if part.mode == "q99" else (stats.min, stats.max)
    low, high = low[part.start : part.end], high[part.start : part.end]
    return (high + low) / 2, (high - low) / 2


def _checked(values: np.ndarray, stats: Statistics, what: str, key: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if not values.ndim or values.shape[-1] != stats.width:
        raise DataError(
            f"this {what} has shape {values.shape} and the statistics of {key!r} have width {stats.width}; "
            f"use the statistics the data was recorded with, or set policy.{what}_dim={stats.width}."
        )
    return values


def _default_slices(width: int, arm: bool) -> tuple[Slice, ...]:
    if arm and width == ARM_WIDTH:
        return arm_action_slices()
    return (Slice("all", 0, width, "q99"),) if width else ()


def _check_cover(what: str, slices: Sequence[Slice], width: int) -> None:
    covered = [index for part in slices for index in range(part.start, part.end)]
    if sorted(covered) != list(range(width)):
        raise ConfigError(f"the {what} slices cover dimensions {covered}; expected each of 0..{width - 1} once.")
