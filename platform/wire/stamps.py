"""What we add to an openpi message under the key "st4vla"; a message without it is plain openpi.

    request   robot, session, sequence, deadline_ms, delay_steps, executed_steps, spatial, recording, remaining,
              end, success, executed_of, at_rest
    reply     session, sequence, plan_age_ms, model_version, timing_ms, interventions [, spatial]
    metadata  protocol, model_version, actions, cameras, image_size, state_dim, ...  (sent once, by the server, first)
    refusal   {"error": {"kind", "field", "message"}} in the place of a reply

The reply's part holds plain values only: openpi's ActionChunkBroker slices every array of a reply along its first axis.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from st4vla.platform.contracts import PolicySpec, Spatial
from st4vla.platform.errors import WireError

KEY = "st4vla"
PROTOCOL = 1
LONGEST_NAME = 128
ARM_NAMES = ("dx", "dy", "dz", "rx", "ry", "rz", "gripper")
ARM_UNITS = ("m", "m", "m", "rad", "rad", "rad", "0 closed .. 1 open")


@dataclass(frozen=True)
class RequestStamp:
    """Who asks, for which moment, and by when.

    Attributes:
        robot: the robot's name, by which canaries, limits and metrics know it; "" for the connection's own.
        session: names one run of the robot; a client that reconnects goes on with the same one. "" for a new one.
        sequence: number of the request within the session, rising; one that is sent again after a lost connection
            keeps its number, and its noise. Noise is drawn from session and sequence alone.
        deadline_ms: milliseconds after the server received the frame until which an answer is of use; 0 for none.
        delay_steps: control steps the robot expects to execute before the answer arrives: they are frozen.
        executed_steps: actions of a chunk of this session that were executed when this frame was taken; None from a
            client that does not count them.
        spatial: whether the reply shall say what System 2 grounded.
        recording: whether the session may be recorded; None says nothing, and the server's own setting holds.
        remaining: float32 [K,A], the rows of the chunk being executed from this frame's on, in physical units; None
            takes them from the last chunk that this server sent in the session.
        end: "episode" or "session" says that it is over; such a message needs no observation and is answered without
            actions.
        success: what the robot says of the episode that ended; None if nothing.
        executed_of: number of the request whose chunk `executed_steps` counts; None for the last that was answered. It
            is an older one where an answer was lost, came too late or could not be used.
        at_rest: whether the robot stood still when this frame was taken, whatever it had been sent: it was stopped, or
            had nothing left to execute.
    """

    robot: str = ""
    session: str = ""
    sequence: int = 0
    deadline_ms: float = 0.0
    delay_steps: int = 0
    executed_steps: int | None = None
    spatial: bool = False
    recording: bool | None = None
    remaining: np.ndarray | None = None
    end: str = ""
    success: bool | None = None
    executed_of: int | None = None
    at_rest: bool = False

    def as_plain(self) -> dict[str, Any]:
        """Give the form that goes under the key "st4vla"; what is None is left out."""
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in entries.items() if value is not None}

    @classmethod
    def read(cls, entries: Any) -> "RequestStamp":
        """Read the map under the key "st4vla"; what it leaves out keeps its default.

        Raises:
            WireError: an entry is unknown, of another type, or out of range.
        """
        if not isinstance(entries, Mapping):
            raise WireError("invalid", KEY, f"It is {type(entries).__name__}; expected a map.")
        known = {entry.name: entry for entry in fields(cls)}
        for name in entries:
            if name not in known:
                raise WireError("invalid", f"{KEY}.{str(name)[:40]}", f"Unknown; expected {', '.join(known)}.")
        return cls(
            **{name: READERS[name](value, f"{KEY}.{name}") for name, value in entries.items() if value is not None}
        )


@dataclass(frozen=True)
class ReplyStamp:
    """What the server says of a chunk.

    Attributes:
        plan_age_ms: how old the plan was when System 1 used it.
        timing_ms: "queue", "system2", "system1" and "total", from receiving the frame to sending the reply.
        spatial: label, box, points, trajectory in pixels of the planner's view, where asked for and there is one.
        interventions: what the safety limits changed or refused, one text each.
    """

    session: str
    sequence: int
    plan_age_ms: float
    model_version: str
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    spatial: Mapping[str, Any] | None = None
    interventions: Sequence[str] = ()

    def as_plain(self) -> dict[str, Any]:
        """Give plain values; the spatial read-out only where there is one."""
        plain: dict[str, Any] = {
            "session": self.session,
            "sequence": self.sequence,
            "plan_age_ms": self.plan_age_ms,
            "model_version": self.model_version,
            "timing_ms": dict(self.timing_ms),
            "interventions": list(self.interventions),
        }
        return plain if self.spatial is None else {**plain, "spatial": dict(self.spatial)}

    @classmethod
    def read(cls, entries: Any) -> "ReplyStamp":
        """Read a reply's map; entries that a newer server adds are ignored.

        Raises:
            WireError: one that is needed is missing.
        """
        if not isinstance(entries, Mapping):
            raise WireError("invalid", KEY, "The reply's stamp is not a map.")
        needed = {"session": str, "sequence": int, "plan_age_ms": float | int, "model_version": str}
        for name, kind in needed.items():
            if not isinstance(entries.get(name), kind):
                raise WireError("missing", f"{KEY}.{name}", "The reply's stamp lacks it.")
        known = {entry.name for entry in fields(cls)}
        return cls(**{name: value for name, value in entries.items() if name in known})


@dataclass(frozen=True)
class ActionSchema:
    """What one row of actions means: names, units and limits of its columns, and how often a row is executed.

    `low` and `high` are what the embodiment may be told; None where nothing is known.
    """

    form: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    control_hz: float
    chunk_length: int
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    @classmethod
    def of(cls, spec: PolicySpec) -> "ActionSchema":
        """Name the columns of a policy's actions: an arm's seven by what they are, others by number."""
        if spec.action_form == "delta_end_effector" and spec.action_dim == len(ARM_NAMES):
            names, units = ARM_NAMES, ARM_UNITS
        else:
            names = tuple(f"joint_{i}" for i in range(spec.action_dim))
            units = ("rad",) * spec.action_dim
        return cls(spec.action_form, names, units, spec.control_hz, spec.chunk_length)

    def as_plain(self) -> dict[str, Any]:
        """Give lists and texts; a missing limit is left out."""
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in entries.items() if v is not None}

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> "ActionSchema":
        """Read what `as_plain` gave.

        Raises:
            WireError: an entry is missing.
        """
        known = {entry.name for entry in fields(cls)}
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entries.items() if k in known}
        try:
            return cls(**given)
        except TypeError:
            raise WireError(
                "missing", f"{KEY}.actions", f"The action schema needs {', '.join(sorted(known))}."
            ) from None


def metadata(spec: PolicySpec, model_version: str, actions: ActionSchema | None = None) -> dict[str, Any]:
    """Give the handshake an openpi server sends first."""
    schema = actions or ActionSchema.of(spec)
    ours = {
        "protocol": PROTOCOL,
        "model_version": model_version,
        "actions": schema.as_plain(),
        "cameras": list(spec.cameras),
        "image_size": spec.image_size,
        "state_dim": spec.state_dim,
        "statistics_key": spec.statistics_key,
    }
    return {KEY: ours, "action_horizon": spec.chunk_length, "action_dim": spec.action_dim}


def plain_spatial(spatial: Spatial) -> dict[str, Any]:
    """Give what was grounded as lists of numbers, in pixels of the source image."""
    return {
        "label": spatial.label,
        "box": None if spatial.box is None else [float(value) for value in spatial.box],
        "points": [[float(x), float(y)] for x, y in spatial.points],
        "trajectory": [[float(x), float(y)] for x, y in spatial.trajectory],
    }


def read_refusal(message: Any) -> WireError | None:
    """Give the refusal a decoded message is, or None if it is none."""
    error = message.get("error") if isinstance(message, Mapping) else None
    if not isinstance(error, Mapping) or not isinstance(error.get("kind"), str):
        return None
    return WireError(error["kind"], str(error.get("field", "")), str(error.get("message", "")))


def _name(value: Any, path: str) -> str:
    if isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable():
        return value
    raise WireError("invalid", path, f"Expected a printable text of at most {LONGEST_NAME} characters.")


def _count(value: Any, path: str) -> int:
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value < 1 << 53:
        return int(value)
    raise WireError("invalid", path, "Expected a natural number.")


def _milliseconds(value: Any, path: str) -> float:
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        if math.isfinite(value) and 0 <= value <= 3_600_000:
            return float(value)
    raise WireError("invalid", path, "Expected milliseconds from 0 to an hour.")


def _truth(value: Any, path: str) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise WireError("invalid", path, "Expected true or false.")


def _end(value: Any, path: str) -> str:
    if value in ("", "episode", "session"):
        return value
    raise WireError("invalid", path, 'Expected "episode" or "session".')


def _rows(value: Any, path: str) -> np.ndarray:
    rows = np.asarray(value) if isinstance(value, np.ndarray) else None
    if rows is not None and rows.ndim == 2 and rows.dtype.kind in "iuf" and np.isfinite(rows).all():
        return rows.astype(np.float32)
    raise WireError("invalid", path, "Expected a finite array of actions, one row a control step.")


READERS = {
    "robot": _name,
    "session": _name,
    "sequence": _count,
    "deadline_ms": _milliseconds,
    "delay_steps": _count,
    "executed_steps": _count,
    "executed_of": _count,
    "at_rest": _truth,
    "spatial": _truth,
    "recording": _truth,
    "remaining": _rows,
    "end": _end,
    "success": _truth,
}
