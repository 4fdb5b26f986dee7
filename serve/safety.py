"""Stand between the policy and its robots: what leaves the server keeps the embodiment's limits, or does not leave.

Order of one request: `admit` before anything is computed (emergency stop), `check` on the chunk (stale plan, then
refusals and clamps of `motion`). Every intervention is written down.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from st4vla.platform.contracts import ActionChunk
from st4vla.platform.errors import WireError
from st4vla.platform.wire.stamps import RequestStamp
from st4vla.serve.embodiment import Embodiment
from st4vla.serve.interventions import Intervention, InterventionLog
from st4vla.serve.motion import Clamp, Motion, MotionLimits
from st4vla.serve.stops import EmergencyStops

MOST_SESSIONS = 4096


@dataclass(frozen=True)
class Sent:
    """What a session was sent last: the motion it began from, and the motion behind each of its rows."""

    motions: tuple[Motion, ...]

    def after(self, executed: int) -> Motion | None:
        """Give the motion behind that many rows; None behind all of them, when a robot brakes by itself."""
        return self.motions[executed] if executed < len(self.motions) - 1 else None


class SafetyFilter:
    """Limit what a server sends to the robots of one embodiment.

    The motion that a chunk continues is known from the last chunk of its session and the rows of it that the robot
    says it has executed. A robot that says nothing is taken to have executed all and to stand; its client, if it is
    ours, limits again by what it really did.

    Args:
        require_state: refuse a request that says not where the robot is, if limits need it. Without, the workspace is
            left to the client: for policies whose robots send no state.
        clock: seconds, for deadlines; the one that `deadline_s` is given by.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        stops: EmergencyStops | None = None,
        log: InterventionLog | None = None,
        require_state: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.embodiment = embodiment
        self.stops = stops or EmergencyStops()
        self._limits = MotionLimits(embodiment)
        self._log = log
        self._require_state = require_state
        self._clock = clock
        self._sent: OrderedDict[str, Sent] = OrderedDict()

    def admit(self, stamp: RequestStamp) -> None:
        """Refuse a request of a stopped robot.

        Raises:
            WireError: "stopped".
        """
        try:
            self.stops.check(stamp.robot)
        except WireError as error:
            self._sent.pop(stamp.session, None)
            raise self._refused(stamp, "emergency stop", error) from None

    def check(
        self,
        stamp: RequestStamp,
        chunk: ActionChunk,
        state: np.ndarray | None = None,
        deadline_s: float = float("inf"),
    ) -> tuple[ActionChunk, tuple[Intervention, ...]]:
        """Give the chunk as it may be sent, and what was changed of it.

        Args:
            state: as the robot reported it with the request.
            deadline_s: until when the chunk is of use, by the filter's clock.

        Raises:
            WireError: the chunk is refused: "stopped", "stale", "deadline", or "invalid" with the row; the robot holds.
        """
        self.admit(stamp)
        try:
            self._check_age(chunk, deadline_s)
            motion = self._continued(stamp, state)
            limited = self._limits.limit(motion, chunk.actions)
        except WireError as error:
            self._sent.pop(stamp.session, None)
            raise self._refused(stamp, error.kind, error) from None
        self._keep(stamp.session, Sent((motion, *limited.motions)))
        interventions = tuple(self._clamped(stamp, clamp) for clamp in limited.clamps)
        self._write(*interventions)
        return replace(chunk, actions=limited.actions.astype(np.float32)), interventions

    def forget(self, session: str) -> None:
        """Forget a session that is over."""
        self._sent.pop(session, None)

    def _check_age(self, chunk: ActionChunk, deadline_s: float) -> None:
        age_ms, oldest_ms = 1000 * chunk.plan_age_s, self.embodiment.max_plan_age_ms
        if oldest_ms and not age_ms <= oldest_ms:
            raise WireError("stale", "plan_age_ms", f"The plan is {age_ms:.0f} ms old; {oldest_ms:g} ms are allowed.")
        if (late_s := self._clock() - deadline_s) > 0:
            raise WireError("deadline", "st4vla.deadline_ms", f"The chunk is {1000 * late_s:.0f} ms late.")

    def _continued(self, stamp: RequestStamp, state: np.ndarray | None) -> Motion:
        sent = self._sent.get(stamp.session)
        motion = sent.after(stamp.executed_steps) if sent is not None else None
        if motion is not None:
            return self._limits.anchored(motion, state)
        return self._limits.standing(state) if state is not None or self._require_state else self._limits.somewhere()

    def _keep(self, session: str, sent: Sent) -> None:
        self._sent[session] = sent
        self._sent.move_to_end(session)
        while len(self._sent) > MOST_SESSIONS:
            self._sent.popitem(last=False)

    def _clamped(self, stamp: RequestStamp, clamp: Clamp) -> Intervention:
        return Intervention(
            "clamped",
            stamp.robot,
            clamp.limit,
            stamp.session,
            stamp.sequence,
            part=clamp.part,
            asked=clamp.asked,
            given=clamp.given,
            rows=(clamp.first, clamp.last),
        )

    def _refused(self, stamp: RequestStamp, rule: str, error: WireError) -> WireError:
        self._write(Intervention("refused", stamp.robot, rule, stamp.session, stamp.sequence, message=str(error)))
        return error

    def _write(self, *interventions: Intervention) -> None:
        if self._log is not None:
            self._log.write(*interventions)
