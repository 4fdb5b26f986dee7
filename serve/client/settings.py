"""What a robot's client is told, and what it tells: its settings, the robot it drives, its commands and its counts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from st4vla.platform.contracts import Observation
from st4vla.platform.errors import ConfigError
from st4vla.platform.wire.stamps import KEY
from st4vla.serve.client.link import LinkConfig
from st4vla.serve.keymap import KeyMap
from st4vla.serve.safety.embodiment import Embodiment

Chunking = Literal["realtime", "wait"]


class Robot(Protocol):
    """A robot as `RobotClient.run` uses it.

    `observe` gives pictures, state and the instruction; `apply` begins to execute one action [A] and returns at once;
    `hold` keeps the robot where it is, and is called at every control step in which there is nothing to apply.
    """

    def observe(self) -> Observation: ...

    def apply(self, action: np.ndarray) -> None: ...

    def hold(self) -> None: ...


@dataclass(frozen=True)
class ClientConfig:
    """How a robot asks.

    Attributes:
        url, api_key, ca_file, timeout_s: of `LinkConfig`.
        robot: the robot's name, by which the server knows it.
        chunking: "realtime" asks while the old chunk is executed, and the server makes the new one continue it; "wait"
            executes `execute_steps`, then holds until the answer is there.
        execute_steps: actions of a chunk that are executed before the next is asked for, as far as the delay allows.
        deadline_ms: an answer later than that is of no use; 0 for none.
        delay_window, delay_warmup, first_delay_steps: of `DelayEstimate`.
        pause_s: before asking again after a refusal.
        spatial: ask what System 2 grounded.
        recording: whether the session may be recorded; None leaves it to the server.
        keys: where pictures, state and prompt go in the message; the native form unless given.
    """

    url: str = "ws://127.0.0.1:8000"
    robot: str = "robot"
    api_key: str = field(default="", repr=False)
    ca_file: str = ""
    timeout_s: float = 5.0
    chunking: Chunking = "realtime"
    execute_steps: int = 4
    deadline_ms: float = 2000.0
    delay_window: int = 8
    delay_warmup: int = 1
    first_delay_steps: int = 1
    pause_s: float = 0.3
    spatial: bool = False
    recording: bool | None = None
    keys: KeyMap = KeyMap()

    def __post_init__(self) -> None:
        if self.chunking not in ("realtime", "wait"):
            raise ConfigError(f"chunking is {self.chunking!r}; expected realtime or wait.")
        for name in ("execute_steps", "delay_window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("deadline_ms", "delay_warmup", "first_delay_steps", "pause_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative.")

    def link(self) -> LinkConfig:
        """Give the connection's part."""
        return LinkConfig(self.url, self.api_key, self.ca_file, self.timeout_s)


@dataclass(frozen=True)
class Command:
    """What the robot does in one control step: an action float32 [A], or None to hold; and why."""

    action: np.ndarray | None
    why: Literal["chunk", "braking", "waiting", "stopped"]


@dataclass
class ClientStats:
    """What has happened so far, in counts; `latency_ms` holds the last hundred answers."""

    steps: int = 0
    executed: int = 0
    held: int = 0
    late: int = 0
    replies: int = 0
    dropped_replies: int = 0
    clamps: int = 0
    connections: int = 0
    losses: int = 0
    overruns: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    latency_ms: list[float] = field(default_factory=list)


class Pace:
    """Keep a steady rate; a step that took too long is not made up for."""

    def __init__(self, period_s: float, clock: Callable[[], float]) -> None:
        self._period_s = period_s
        self._clock = clock
        self._due_s = clock()

    def next(self) -> float:
        """Give the seconds until the next step; negative where it is overdue."""
        now = self._clock()
        self._due_s += self._period_s
        left = self._due_s - now
        self._due_s = max(self._due_s, now)
        return left


def check_fit(metadata: Mapping[str, Any], embodiment: Embodiment) -> None:
    """Check what a server of ours says of its actions before anything moves; others say nothing.

    Raises:
        ConfigError: width or rate of the actions are not the embodiment's.
    """
    width = metadata.get("action_dim", embodiment.action_dim)
    actions = (metadata.get(KEY) or {}).get("actions") or {}
    hz = actions.get("control_hz", embodiment.control_hz)
    if width != embodiment.action_dim or hz != embodiment.control_hz:
        raise ConfigError(
            f"the server's policy gives {width} numbers at {hz} Hz, and {embodiment.name} takes "
            f"{embodiment.action_dim} at {embodiment.control_hz} Hz; serve its own policy or name its embodiment."
        )


def too_old(message: Mapping[str, Any], oldest_ms: float) -> str:
    """Say that the plan of an answer is older than allowed; "" where it is not, or nobody says how old it is.

    Args:
        oldest_ms: 0 allows any age.
    """
    stamp = message.get(KEY)
    if not oldest_ms or not isinstance(stamp, Mapping) or "plan_age_ms" not in stamp:
        return ""
    age_ms = stamp["plan_age_ms"]
    if isinstance(age_ms, int | float | np.number) and age_ms <= oldest_ms:
        return ""
    return f"its plan is {str(age_ms)[:20]} ms old; {oldest_ms:g} ms are allowed"
