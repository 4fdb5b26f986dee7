"""What the serving application tells those who watch it: one frozen record for each thing that happened.

    Served            a request was answered: what was seen, what was sent back, how long it took
    Opened, Ended     a session began; its episode, or the session itself, came to an end
    Refused           a request or a connection was turned away
    Stopped           an emergency stop was set or released
    Admin             somebody with the admin scope changed something
    Trouble           something beside the answers does not work as it should: the recorder drops, a disk is full

The application calls `Observers.tell` behind the answer. An observer returns at once and does its work elsewhere; one
that raises is counted, logged and kept, so that nobody who watches can harm a robot.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from st4vla.platform.contracts import Observation, Spatial

log = logging.getLogger(__name__)
# An observer that raises is reported the first time and then each so many times.
REPORT_EVERY = 1000

EndKind = Literal["episode", "closed", "lost"]


@dataclass(frozen=True)
class Served:
    """One answered request.

    Attributes:
        robot, session: who asked; the names are the robot's own words and may hold anything.
        sequence: number of the request in its session.
        observation: what was seen, as the policy was shown it; its arrays must not be written to afterwards.
        actions: float32 [T,A] as they were sent, in the robot's units and behind the safety limits.
        embodiment: name of the robot's form: its cameras, state and action.
        control_hz: control steps per second that one row of `actions` stands for.
        model, model_version: what answered, e.g. "st4vla" and "7".
        canary: whether a canary answered.
        plan_age_ms: how old the plan was.
        timing_ms: milliseconds by stage; "total" is from the request's arrival to its answer.
        batch_size: requests answered in the same forward pass.
        interventions: what safety changed, each with at least "kind" and "limit", and "rows", the first and last row of
            the chunk concerned, where it is about some.
        spatial: what System 2 grounded, in pixels of the first camera's image; None if it says nothing.
        executed_steps: rows of the chunk before this one that the robot had executed when the frame was taken; None if
            it did not say, which plain openpi clients do not.
        executed_of: number of the request whose chunk they are of, where that is an older one; None if it did not say.
        is_passing: whether the session has no name and lives for this request alone; it is told of by nothing else.
        recording: False if the robot asked not to be recorded, True if it asked for it, None if it said nothing.
        at: Unix time of the request's arrival, in seconds.
    """

    robot: str
    session: str
    sequence: int
    observation: Observation
    actions: np.ndarray
    embodiment: str = "default"
    control_hz: float = 5.0
    model: str = ""
    model_version: str = ""
    canary: bool = False
    plan_age_ms: float = 0.0
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    batch_size: int = 1
    interventions: Sequence[Mapping[str, Any]] = ()
    spatial: Spatial | None = None
    executed_steps: int | None = None
    executed_of: int | None = None
    recording: bool | None = None
    is_passing: bool = False
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Opened:
    """A session began, or was taken up again by its robot after a broken connection."""

    robot: str
    session: str
    protocol: str = ""
    key_id: str = ""
    address: str = ""
    resumed: bool = False
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Ended:
    """A session came to an end.

    Attributes:
        kind: "episode": the robot said that one attempt is over, and goes on; "closed": the session is over;
            "lost": the connection broke and nobody took the session up again.
        success: what the robot said of the episode, None if nothing.
    """

    robot: str
    session: str
    kind: EndKind = "closed"
    success: bool | None = None
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Refused:
    """A request or a connection was turned away; `kind` is the refusal's type and `where` the field at fault."""

    kind: str
    where: str = ""
    reason: str = ""
    robot: str = ""
    session: str = ""
    key_id: str = ""
    address: str = ""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Stopped:
    """An emergency stop was set or released, for one robot or, where `robot` is "", for the whole fleet."""

    engaged: bool
    robot: str = ""
    reason: str = ""
    key_id: str = ""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Admin:
    """Somebody changed something: `action` names what, e.g. "rollback" or "rotate_key", `details` to what."""

    action: str
    details: Mapping[str, Any] = field(default_factory=dict)
    key_id: str = ""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Trouble:
    """Something beside the answers fails while robots are still served; `kind` is one word, `reason` a sentence."""

    kind: str
    reason: str
    robot: str = ""
    session: str = ""
    at: float = field(default_factory=time.time)


Event = Served | Opened | Ended | Refused | Stopped | Admin | Trouble
Observer = Callable[[Event], None]


class Observers:
    """Hand every event to every observer, in their order; safe to call from any thread."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)
        self._lock = threading.Lock()
        self.failures: Counter[str] = Counter()

    def tell(self, event: Event) -> None:
        """Tell everybody; whatever one of them raises is logged and counted in `failures` by its name."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception as error:
                # A boundary: an observer must not turn an answered request into a failed one.
                self._note(getattr(observer, "__qualname__", type(observer).__name__), event, error)

    def _note(self, name: str, event: Event, error: Exception) -> None:
        with self._lock:
            self.failures[name] += 1
            count = self.failures[name]
        if count % REPORT_EVERY == 1:
            log.error("%s failed at a %s event, %d times so far: %r", name, type(event).__name__, count, error)
