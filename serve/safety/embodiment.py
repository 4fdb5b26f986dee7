"""Say what a robot's actions mean, and what it may be told: units, forms and limits, part by part.

An embodiment is written in YAML once and read by both ends: the server limits what it sends, the robot's client limits
what it applies. Packaged ones lie in `configs/embodiment/`; docs/your-robot.md makes a new one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from st4vla.platform.errors import ConfigError
from st4vla.platform.policy.settings import build_config, plain, require, require_positive

RATES = ("velocity", "acceleration", "jerk")


@dataclass(frozen=True)
class Part:
    """Columns `start` .. `end - 1` of an action that move together: a position, a rotation, a joint, a gripper.

    Every limit is () for none, one number for the length of the part's vector, or one number for each column. Rates
    are finite differences at the control rate, in `unit` per s, s^2 and s^3.

    Attributes:
        form: "delta" is added to what was commanded before, "absolute" is the new command.
        state_start: where the state vector holds this part as measured, in the same unit; None where it does not.
        low, high: bounds of the commanded position, one number for each column (the workspace, a joint's range).
    """

    name: str
    start: int
    end: int
    unit: Literal["m", "rad", "deg", "1"]
    form: Literal["delta", "absolute"]
    state_start: int | None = None
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    velocity: tuple[float, ...] = ()
    acceleration: tuple[float, ...] = ()
    jerk: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(0 <= self.start < self.end, self, "end", "it must lie behind start, which must not be negative")
        require(self.form in ("delta", "absolute"), self, "form", "choose delta or absolute")
        for name in RATES:
            limit = getattr(self, name)
            require(len(limit) in (0, 1, self.width), self, name, f"give none, one or {self.width} numbers")
            require(all(value > 0 for value in limit), self, name, "limits must be above 0; leave it out for none")
        for name in ("low", "high"):
            require(len(getattr(self, name)) in (0, self.width), self, name, f"give none or {self.width} numbers")
        require(len(self.low) == len(self.high), self, "high", "give both low and high, or neither")
        require(all(a < b for a, b in zip(self.low, self.high, strict=True)), self, "high", "it must lie above low")
        needs_state = bool(self.low) if self.form == "delta" else self.has_rates
        known = self.state_start is not None or not needs_state
        require(known, self, "state_start", "this part's limits need its measured position; say where the state has it")

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.end - self.start

    @cached_property
    def has_rates(self) -> bool:
        """Whether any rate is limited."""
        return any(getattr(self, name) for name in RATES)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Give the lowest and the highest position float64 [W], infinite where there is no range."""
        edges = (self.low, self.high) if self.low else ((-math.inf,) * self.width, (math.inf,) * self.width)
        low, high = (np.array(edge, np.float64) for edge in edges)
        low.flags.writeable = high.flags.writeable = False
        return low, high

    def measured(self, state: np.ndarray | None) -> np.ndarray:
        """Give the part's position float64 [W] from a state vector; NaN where nothing measures it."""
        if state is None or self.state_start is None:
            return np.full(self.width, np.nan)
        return np.asarray(state, np.float64)[self.state_start : self.state_start + self.width]


@dataclass(frozen=True)
class Embodiment:
    """One kind of robot.

    Attributes:
        name: the key of its statistics and of its limits, e.g. "tabletop_panda".
        control_hz: how often an action is executed.
        parts: cover every column of the action once.
        state_dim: width of the state vector; 0 where the robot reports none.
        leash: how far the measured position may be from the commanded one before the measured one counts, in the unit
            of each part. Arms lag behind what they are told; a robot that was moved by hand does not.
        refuse_beyond: an action that asks for so many times a velocity limit is refused, not clamped: its unit is wrong
            or the policy broken. 0 never refuses.
        max_plan_age_ms: chunks under an older plan are refused; 0 accepts any age.
        statistics_keys: further names under which recordings of the robot have their statistics.
    """

    name: str
    control_hz: float
    parts: tuple[Part, ...]
    state_dim: int = 0
    leash: float = 0.05
    refuse_beyond: float = 5.0
    max_plan_age_ms: float = 2000.0
    statistics_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_positive(self, "control_hz", "leash")
        require(self.refuse_beyond == 0 or self.refuse_beyond > 1, self, "refuse_beyond", "use 0 or more than 1")
        require(self.max_plan_age_ms >= 0, self, "max_plan_age_ms", "it must not be negative")
        columns = sorted(column for part in self.parts for column in range(part.start, part.end))
        if not columns or columns != list(range(len(columns))):
            raise ConfigError(f"the parts of {self.name} cover columns {columns}; expected each of 0, 1, ... once.")
        for part in self.parts:
            if part.state_start is not None and part.state_start + part.width > self.state_dim:
                raise ConfigError(
                    f"{self.name}.{part.name}.state_start is {part.state_start}, which with {part.width} columns lies "
                    f"outside a state of {self.state_dim}; set state_dim or mend state_start."
                )

    @property
    def action_dim(self) -> int:
        """Width of an action."""
        return sum(part.width for part in self.parts)

    @property
    def period_s(self) -> float:
        """Seconds between two actions."""
        return 1 / self.control_hz

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Embodiment":
        """Build from nested mappings, as YAML gives them.

        Raises:
            ConfigError: naming the setting.
        """
        return build_config(cls, values)

    @classmethod
    def load(cls, name: str | Path) -> "Embodiment":
        """Read a YAML file, or a packaged embodiment by its name.

        Raises:
            ConfigError: there is neither, or the file describes no embodiment.
        """
        import yaml  # late, as a client that is given its embodiment needs no YAML

        values = yaml.safe_load(find(str(name)))
        if not isinstance(values, Mapping):
            raise ConfigError(f"{name} holds {type(values).__name__}; expected the settings of an embodiment.")
        return cls.from_mapping(values)

    def as_plain(self) -> dict[str, Any]:
        """Give mappings, lists and numbers, ready for YAML or a handshake."""
        return plain(self)


def packaged() -> dict[str, Any]:
    """Give the embodiments that ship with the package, by name."""
    folder = files("st4vla.configs") / "embodiment"
    return {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}


def packaged_for(key: str) -> str | None:
    """Give the name of the packaged embodiment whose recordings have their statistics under a key; None for none."""
    known = packaged()
    return key if key in known else next((name for name in known if key in Embodiment.load(name).statistics_keys), None)


def find(name: str) -> str:
    if (path := Path(name)).is_file():
        return path.read_text()
    known = packaged()
    if name not in known:
        raise ConfigError(f"embodiment is {name!r}; expected a YAML file or one of {', '.join(sorted(known))}.")
    return known[name].read_text()
