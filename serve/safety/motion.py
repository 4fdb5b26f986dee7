"""Keep a whole robot's actions within its embodiment's limits, part by part; what both ends of the wire run.

The policy of intervention, stated once:

    refused   what no limit can make sense of: another shape, a number that is not finite, an action that asks for
              `refuse_beyond` times a velocity limit. Nothing of the chunk is executed; the robot holds.
    clamped   what asks for more than a limit allows. The nearest allowed action is executed instead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from st4vla.platform.errors import WireError
from st4vla.serve.safety.course import PartMotion, at, exceeds, velocity_of
from st4vla.serve.safety.embodiment import Embodiment, Part
from st4vla.serve.safety.limits import bend, brake

ACTIONS = "actions"


@dataclass(frozen=True)
class Motion:
    """How the robot moves after an action, one entry for each part of its embodiment."""

    parts: tuple[PartMotion, ...]

    @property
    def is_at_rest(self) -> bool:
        """Whether holding changes nothing."""
        return all(part.is_at_rest for part in self.parts)


class Motions(Sequence[Motion]):
    """How a robot moves after each row of a chunk, put together when it is asked for; and before it, where `begin` is.

    Args:
        parts: the motions of every part, of one length.
        begin: a motion that comes before them all.
    """

    def __init__(self, parts: Sequence[Sequence[PartMotion]], begin: Motion | None = None) -> None:
        self._parts = parts
        self._begin = begin

    def __len__(self) -> int:
        return len(self._parts[0]) + (self._begin is not None)

    @overload
    def __getitem__(self, index: int) -> Motion: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Motion, ...]: ...

    def __getitem__(self, index: int | slice) -> Motion | tuple[Motion, ...]:
        if isinstance(index, slice):
            return tuple(self[one] for one in range(*index.indices(len(self))))
        row = range(len(self))[index] - (self._begin is not None)
        if self._begin is not None and row < 0:
            return self._begin
        return Motion(tuple(part[row] for part in self._parts))

    def behind(self, begin: Motion) -> "Motions":
        """Put a motion before them."""
        return Motions(self._parts, begin)


@dataclass(frozen=True)
class Clamp:
    """One limit of one part that rows of a chunk broke: the first and the last of them, and the worst.

    `asked` and `given` are the worst row's columns of that part, before and after.
    """

    part: str
    limit: str
    first: int
    last: int
    asked: tuple[float, ...]
    given: tuple[float, ...]


@dataclass(frozen=True)
class Limited:
    """What became of a chunk: the actions [T,A] float64, the motion after each row, and every clamp."""

    actions: np.ndarray
    motions: "Motions"
    clamps: tuple[Clamp, ...]


class MotionLimits:
    """Limit one embodiment's actions; holds nothing that changes, the motion goes in and comes out."""

    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment = embodiment

    def standing(self, state: np.ndarray | None) -> Motion:
        """Stand where a state vector says.

        Raises:
            WireError: "missing": a limit needs the measured position and there is no state, or "invalid".
        """
        self._check_state(state)
        return Motion(tuple(at(part.measured(state)) for part in self.embodiment.parts))

    def somewhere(self) -> Motion:
        """Stand at a place that nobody has measured: ranges of positions are not checked then."""
        return Motion(tuple(at(part.measured(None)) for part in self.embodiment.parts))

    def anchored(self, motion: Motion, state: np.ndarray | None) -> Motion:
        """Go on from the measured position where it is further than the leash from the commanded one."""
        if state is None:
            return motion
        self._check_state(state)
        return Motion(
            tuple(self._anchored(*one, state) for one in zip(self.embodiment.parts, motion.parts, strict=True))
        )

    def limit(self, motion: Motion, actions: np.ndarray) -> Limited:
        """Clamp a chunk [T,A] that follows a motion.

        Raises:
            WireError: "invalid": the chunk is refused as a whole.
        """
        rows = self.usable(motion, actions)
        given, period = rows.copy(), self.embodiment.period_s
        clamps: list[Clamp] = []
        motions: list[Sequence[PartMotion]] = []
        for part, before in zip(self.embodiment.parts, motion.parts, strict=True):
            own = np.s_[:, part.start : part.end]
            bent = bend(part, period, before, rows[own])
            given[own] = bent.actions
            motions.append(bent.motions)
            if any(bent.broken):
                clamps += clamps_of(part, rows[own], bent.actions, bent.broken)
        return Limited(given, Motions(motions), tuple(clamps))

    def brake(self, motion: Motion, last: np.ndarray | None) -> tuple[Motion, np.ndarray]:
        """Take one step of a stop within the limits: give the motion behind it and the action [A].

        Args:
            last: the last action applied; absolute parts without limits of rate, a gripper mostly, keep its value.
        """
        action, after = np.zeros(self.embodiment.action_dim), []
        for part, moving in zip(self.embodiment.parts, motion.parts, strict=True):
            own = np.s_[part.start : part.end]
            if part.form == "absolute" and moving.is_at_rest:
                stopped, values = moving, moving.position if last is None else last[own]
            else:
                stopped, values = brake(part, self.embodiment.period_s, moving)
            action[own] = values
            after.append(stopped)
        return Motion(tuple(after)), action

    def usable(self, motion: Motion, actions: np.ndarray) -> np.ndarray:
        """Give a chunk as float64 [T,A], T >= 1.

        Raises:
            WireError: "invalid".
        """
        rows, width = np.asarray(actions), self.embodiment.action_dim
        if rows.ndim != 2 or rows.shape[1] != width or not len(rows) or rows.dtype.kind not in "fiu":
            seen = f"{rows.dtype} {list(rows.shape)}"
            raise WireError(
                "invalid", ACTIONS, f"Actions are {seen}; {self.embodiment.name} needs numbers [T,{width}]."
            )
        rows = rows.astype(np.float64)
        if not np.isfinite(rows).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(rows))[0])
            raise WireError("invalid", f"{ACTIONS}[{row}][{column}]", f"It is {rows[row, column]}; expected a number.")
        self._refuse_absurd(motion, rows)
        return rows

    def _refuse_absurd(self, motion: Motion, rows: np.ndarray) -> None:
        times = self.embodiment.refuse_beyond
        for part, before in zip(self.embodiment.parts, motion.parts, strict=True):
            if not times or not part.velocity:
                continue
            velocity = velocity_of(part, self.embodiment.period_s, before, rows[:, part.start : part.end])
            wild = exceeds(velocity, tuple(times * limit for limit in part.velocity))
            if wild.any():
                row = int(wild.argmax())
                raise WireError(
                    "invalid",
                    f"{ACTIONS}[{row}]",
                    f"{part.name} would move at {np.linalg.norm(velocity[row]):.3g} {part.unit}/s, more than "
                    f"{times:g} times its limit; check units and action form, or move to the start pose first.",
                )

    def _anchored(self, part: Part, motion: PartMotion, state: np.ndarray) -> PartMotion:
        measured = part.measured(state)
        if np.isnan(measured).any():
            return motion
        if np.linalg.norm(measured - motion.position) <= self.embodiment.leash:
            return motion
        return PartMotion(measured, motion.velocity, motion.acceleration)

    def _check_state(self, state: np.ndarray | None) -> None:
        robot = self.embodiment
        if state is None and any(part.state_start is not None for part in robot.parts):
            raise WireError(
                "missing", "state", f"The limits of {robot.name} need its state of {robot.state_dim} numbers."
            )
        if state is not None and robot.state_dim:
            if np.shape(state) != (robot.state_dim,) or not np.isfinite(state).all():
                raise WireError(
                    "invalid", "state", f"Expected {robot.state_dim} finite numbers, not {np.shape(state)}."
                )


def clamps_of(part: Part, asked: np.ndarray, given: np.ndarray, broken: tuple[tuple[str, ...], ...]) -> Iterator[Clamp]:
    """Sum up what was clamped of one part, a Clamp for each limit."""
    change = np.abs(asked - given).max(axis=1)
    for limit in dict.fromkeys(name for names in broken for name in names):
        rows = [row for row, names in enumerate(broken) if limit in names]
        worst = max(rows, key=lambda row: change[row])
        yield Clamp(part.name, limit, rows[0], rows[-1], tuple(asked[worst].tolist()), tuple(given[worst].tolist()))
