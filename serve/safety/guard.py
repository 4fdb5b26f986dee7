"""Stand between the policy and its robots: what leaves the server keeps the embodiment's limits, or does not leave.

A chunk is checked in this order: an old plan, a passed deadline, then the refusals and clamps of `motion`. Every
intervention is written down. Emergency stops are the desk's, before and after the model has acted; that they were set
and released is written down here, too.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from st4vla.platform.contracts import ActionChunk, PolicySpec
from st4vla.platform.errors import ConfigError, WireError
from st4vla.platform.wire.stamps import RequestStamp
from st4vla.serve.events import Event, Stopped, Trouble
from st4vla.serve.safety.embodiment import Embodiment, Part, packaged_for
from st4vla.serve.safety.interventions import Intervention, InterventionLog
from st4vla.serve.safety.motion import Clamp, Motion, MotionLimits

log = logging.getLogger(__name__)
Checked = tuple[ActionChunk, tuple[Intervention, ...]]
EVERYBODY = "*"


class HasMotions(Protocol):
    """A session: it remembers whose chunk it sent last, the motion which that began from, and that behind each row."""

    motions: Sequence[Motion]
    motions_of: int


@dataclass(frozen=True)
class SafetyConfig:
    """Which limits hold for which robots.

    Attributes:
        embodiments: by statistics key, a YAML file or a packaged embodiment; a packaged one of the key's own name
            needs no entry.
        require: refuse to act for an embodiment whose limits are not known; else only what no robot can execute is
            refused, and a warning says so.
        interventions: file the interventions are appended to; "" for none.
    """

    embodiments: Mapping[str, str] = field(default_factory=dict)
    require: bool = False
    interventions: str = ""


class Safety:
    """The limits of every embodiment that a server's models act for.

    Args:
        clock: seconds, for deadlines.
        report: is told, from a thread, when the log of interventions cannot be written.
    """

    def __init__(
        self,
        config: SafetyConfig,
        clock: Callable[[], float] = time.monotonic,
        report: Callable[[Trouble], None] = lambda trouble: None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._log = self._log_of(config.interventions, report) if config.interventions else None
        self._filters: dict[str, SafetyFilter] = {}

    def note(self, event: Event) -> None:
        """Write down, as an observer, that an emergency stop was set or released here; "*" is the whole fleet."""
        if self._log is not None and isinstance(event, Stopped):
            kind = "stopped" if event.engaged else "released"
            robot = event.robot or EVERYBODY
            self._log.write(Intervention(kind, robot, "emergency stop", message=event.reason))

    def close(self) -> None:
        """Finish the log."""
        if self._log is not None:
            self._log.close()

    def check(
        self,
        spec: PolicySpec,
        session: HasMotions,
        stamp: RequestStamp,
        chunk: ActionChunk,
        state: np.ndarray | None,
        deadline_s: float,
    ) -> Checked:
        """Check a chunk by the limits of its policy's embodiment.

        Raises:
            WireError: as `SafetyFilter.check`, or "unavailable": there are no limits and they are required.
        """
        key = spec.statistics_key
        if key not in self._filters:
            self._filters[key] = self._filter_for(spec)
        return self._filters[key].check(session, stamp, chunk, state, deadline_s)

    @staticmethod
    def _log_of(path: str, report: Callable[[Trouble], None]) -> InterventionLog:
        return InterventionLog(path, report=lambda reason: report(Trouble("interventions_log", reason)))

    def _filter_for(self, spec: PolicySpec) -> "SafetyFilter":
        key = spec.statistics_key
        name = self._config.embodiments.get(key) or packaged_for(key)
        if name is not None:
            embodiment = fitting(name, spec)
        elif self._config.require:
            raise WireError("unavailable", "", f"There are no limits for the embodiment {key}; see docs/your-robot.md.")
        else:
            log.warning(
                "no limits are known for the embodiment %s: only shapes and finite numbers are checked; write some and "
                "set safety.embodiments.%s=FILE",
                key,
                key,
            )
            embodiment = unlimited(spec)
        if not spec.state_dim:
            log.warning("policies of %s read no state: workspaces are left to the robots' clients", key)
        return SafetyFilter(embodiment, self._log, bool(spec.state_dim), self._clock)


class SafetyFilter:
    """Limit what is sent to the robots of one embodiment; what must be remembered lies in their sessions.

    The motion that a chunk continues is known from the session's last chunk and the rows of it that the robot says it
    has executed. A robot that says nothing is taken to stand where it is; its client, if it is ours, limits again by
    what it really did.

    Args:
        require_state: refuse a request that says not where the robot is, if limits need it. Without, the workspace is
            left to the client: for policies whose robots send no state.
        clock: seconds; the one that `deadline_s` is given by.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        log: InterventionLog | None = None,
        require_state: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.embodiment = embodiment
        self._limits = MotionLimits(embodiment)
        self._log = log
        self._require_state = require_state
        self._clock = clock

    def check(
        self,
        session: HasMotions,
        stamp: RequestStamp,
        chunk: ActionChunk,
        state: np.ndarray | None = None,
        deadline_s: float = float("inf"),
    ) -> Checked:
        """Give the chunk as it may be sent, and what was changed of it.

        Args:
            state: as the robot reported it with the request.
            deadline_s: until when the chunk is of use, by the filter's clock.

        Raises:
            WireError: the chunk is refused: "stale", "deadline", or "invalid" with the row; the robot holds.
        """
        try:
            self._check_age(chunk, deadline_s)
            motion = self._continued(session, stamp, state)
            limited = self._limits.limit(motion, chunk.actions)
        except WireError as error:
            session.motions = ()
            self._write(refusal_of(stamp, error))
            raise
        session.motions, session.motions_of = limited.motions.behind(motion), stamp.sequence
        interventions = tuple(clamping_of(stamp, clamp) for clamp in limited.clamps)
        self._write(*interventions)
        return replace(chunk, actions=limited.actions.astype(np.float32)), interventions

    def _check_age(self, chunk: ActionChunk, deadline_s: float) -> None:
        age_ms, oldest_ms = 1000 * chunk.plan_age_s, self.embodiment.max_plan_age_ms
        if oldest_ms and not age_ms <= oldest_ms:
            raise WireError("stale", "plan_age_ms", f"The plan is {age_ms:.0f} ms old; {oldest_ms:g} ms are allowed.")
        if (late_s := self._clock() - deadline_s) > 0:
            raise WireError("deadline", "st4vla.deadline_ms", f"The chunk is {1000 * late_s:.0f} ms late.")

    def _continued(self, session: HasMotions, stamp: RequestStamp, state: np.ndarray | None) -> Motion:
        """Say how the robot moves where the chunk begins; behind a whole chunk it brakes by itself, and stands.

        So it is taken to where it executes an older chunk than the session's last: that one's motions are forgotten.
        """
        executed, is_last = stamp.executed_steps, stamp.executed_of in (None, session.motions_of)
        if is_last and not stamp.at_rest and executed is not None and executed < len(session.motions) - 1:
            return self._limits.anchored(session.motions[executed], state)
        return self._limits.standing(state) if state is not None or self._require_state else self._limits.somewhere()

    def _write(self, *interventions: Intervention) -> None:
        if self._log is not None:
            self._log.write(*interventions)


def clamping_of(stamp: RequestStamp, clamp: Clamp) -> Intervention:
    """Write a clamp of a request's chunk as an intervention."""
    rows = (clamp.first, clamp.last)
    about = {"part": clamp.part, "asked": clamp.asked, "given": clamp.given, "rows": rows}
    return Intervention("clamped", stamp.robot, clamp.limit, stamp.session, stamp.sequence, **about)


def refusal_of(stamp: RequestStamp, error: WireError) -> Intervention:
    """Write a refused chunk as an intervention."""
    return Intervention("refused", stamp.robot, error.kind, stamp.session, stamp.sequence, message=str(error))


def unlimited(spec: PolicySpec) -> Embodiment:
    """Describe a robot of which nothing is known but the shape of its actions."""
    return Embodiment(spec.statistics_key, spec.control_hz, (Part("actions", 0, spec.action_dim, "1", "delta"),))


def fitting(name: str, spec: PolicySpec) -> Embodiment:
    """Read an embodiment and check it against the policy that is to act for it.

    Raises:
        WireError: "unavailable": it cannot be read, or width or rate of the actions differ.
    """
    try:
        robot = Embodiment.load(name)
    except ConfigError as error:
        raise WireError("unavailable", "", str(error)) from error
    if (robot.action_dim, robot.control_hz) != (spec.action_dim, spec.control_hz):
        raise WireError(
            "unavailable",
            "",
            f"The embodiment {robot.name} takes {robot.action_dim} numbers at {robot.control_hz:g} Hz; the policy "
            f"gives {spec.action_dim} at {spec.control_hz:g} Hz. Mend one, or name another embodiment.",
        )
    return robot
