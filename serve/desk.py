"""What every door does with a request between decoding it and encoding its answer.

1. The caller was let in by its key; the robot's rate and an emergency stop are checked.
2. The robot's session and the model that answers it are found, and the message is read as that model needs it.
3. The model acts; the safety limits have the last word over what it says.
4. The answer is stamped, and whoever watches is told, behind the answer.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from st4vla.platform.contracts import ActionChunk, Observation, PolicySpec, Spatial
from st4vla.platform.errors import WireError
from st4vla.platform.wire.limits import DEFAULT_LIMITS, WireLimits
from st4vla.platform.wire.stamps import ReplyStamp, RequestStamp, metadata, plain_spatial
from st4vla.serve.access import Caller, Lock, RateConfig, Rates
from st4vla.serve.events import Ended, Event, Observers, Opened, Refused, Served
from st4vla.serve.house import Chosen, House
from st4vla.serve.safety.guard import Safety, SafetyConfig
from st4vla.serve.safety.interventions import Intervention
from st4vla.serve.session import Session
from st4vla.serve.state import Routes, State
from st4vla.serve.systems import as_refusal

log = logging.getLogger(__name__)
Read = Callable[[PolicySpec], Observation]


class Guard(Protocol):
    """Safety limits; `safety.Safety` is one."""

    def check(
        self,
        spec: PolicySpec,
        session: Any,
        stamp: RequestStamp,
        chunk: ActionChunk,
        state: np.ndarray | None,
        deadline_s: float,
    ) -> tuple[ActionChunk, Sequence[Intervention]]: ...


@dataclass(frozen=True)
class Visit:
    """One connection, or one HTTP request: who it is, through which door, and the names used where it gives none.

    Attributes:
        is_single: whether it is for one request, so that a session which this does not name ends with it.
        kin: what `robot` and the names of the caller's other nameless connections begin with; "" for a name of its own.
    """

    caller: Caller
    door: str
    robot: str
    session: str
    model: str = ""
    kin: str = ""
    is_single: bool = False


@dataclass(frozen=True)
class Reply:
    """An answered request."""

    actions: np.ndarray
    stamp: ReplyStamp
    infer_ms: float


@dataclass
class Totals:
    """What this process has answered and refused, by kind."""

    served: int = 0
    refused: dict[str, int] = field(default_factory=dict)


class Desk:
    """The one way from any door to the models."""

    def __init__(
        self,
        house: House,
        lock: Lock,
        rate: RateConfig,
        observers: Observers,
        guard: Guard | None = None,
        limits: WireLimits = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.house = house
        self.lock = lock
        self.observers = observers
        self.limits = limits
        self.totals = Totals()
        self.state = State(Routes({}, ""))
        self._rates = Rates(rate, clock)
        self._guard: Guard = guard or Safety(SafetyConfig(), clock)
        self._clock = clock
        house.sessions.forgotten = self.forgotten

    async def follow(self, state: State) -> None:
        """Take up a state: stops and keys at once, models as soon as they are loaded."""
        self.state = state
        self.lock.change(state.keys if state.keys or not state.keys_required else None)
        await self.house.follow(state.routes)

    def handshake(self, visit: Visit) -> dict[str, Any]:
        """Give the metadata that a client is greeted with."""
        chosen = self.house.choose(visit.robot, visit.model)
        return metadata(chosen.replica.spec, chosen.label)

    async def act(self, visit: Visit, stamp: RequestStamp, read: Read, received_s: float) -> Reply:
        """Answer one request.

        Args:
            read: gives the observation a policy of that spec needs from the message.

        Raises:
            WireError: whatever is wrong; the watchers have been told.
        """
        robot, name = names_of(visit, stamp)
        is_passing = visit.is_single and not stamp.session
        stamp = replace(stamp, robot=robot, session=name)
        try:
            return await self._act(visit, stamp, read, received_s, is_passing)
        except Exception as error:  # the boundary to the model: nothing of it but a refusal goes out
            raise self.refused(error, visit, robot, name) from error

    async def _act(self, visit: Visit, stamp: RequestStamp, read: Read, received_s: float, is_passing: bool) -> Reply:
        self.check(visit, stamp.robot)
        chosen = self.house.choose(stamp.robot, visit.model)
        observation = read(chosen.replica.spec)
        session, known = self.house.sessions.open(stamp.session, stamp.robot, visit.caller.key_id)
        if not known and not is_passing:
            self._opened(visit, session, stamp.sequence > 0)
        outcome = await chosen.replica.act(observation, session, stamp, received_s)
        session.actions = None  # until the limits have had their word nothing is sent that could be continued
        self.check_stop(visit, stamp.robot)
        deadline_s = chosen.replica.deadline_s(stamp, received_s)
        chunk = ActionChunk(outcome.actions, plan_age_s=outcome.plan_age_ms / 1000)
        chunk, changed = self._guard.check(chosen.replica.spec, session, stamp, chunk, observation.state, deadline_s)
        session.actions = actions = chunk.actions
        changes = [one.as_plain() for one in changed]
        timing = {**outcome.timing_ms, "total": 1000 * (self._clock() - received_s)}
        self.totals.served += 1
        self._told(stamp, observation, actions, chosen, outcome, timing, changes, is_passing)
        spatial = plain_spatial(outcome.spatial) if stamp.spatial and outcome.spatial else None
        reply = ReplyStamp(
            stamp.session,
            stamp.sequence,
            outcome.plan_age_ms,
            chosen.label,
            timing,
            spatial,
            [one.text for one in changed],
        )
        return Reply(actions, reply, timing["total"])

    async def ground(
        self, visit: Visit, image: np.ndarray, question: str, received_s: float
    ) -> tuple[str, Spatial | None, str]:
        """Answer a question about an image; give the words, the place they name, and the model.

        It is nobody's action, so any valid key may ask, whichever robots it is for.

        Raises:
            WireError: whatever is wrong.
        """
        try:
            self.check_caller(visit, visit.robot, acts=False)
            self.check_stop(visit, visit.robot)
            chosen = self.house.choose(visit.robot, visit.model)
            text, spatial = await chosen.replica.ground(image, question, received_s)
        except Exception as error:  # as in `act`
            raise self.refused(error, visit, visit.robot) from error
        self.totals.served += 1
        return text, spatial, chosen.label

    def check(self, visit: Visit, robot: str) -> None:
        """Refuse a robot whose key ended, that asks too often, or that is stopped.

        Raises:
            WireError: "unauthorized", "forbidden", "rate_limited" or "stopped".
        """
        self.check_caller(visit, robot)
        self.check_stop(visit, robot)

    def check_caller(self, visit: Visit, robot: str, acts: bool = True) -> None:
        """Refuse a robot whose key ended or is not for it, or that asks too often.

        Args:
            acts: whether the request is of that robot; else any valid key may make it.

        Raises:
            WireError: "unauthorized", "forbidden" or "rate_limited".
        """
        if not self.lock.still_valid(visit.caller):
            raise WireError("unauthorized", "Authorization", "The key has ended; connect with a new one.")
        if acts:
            visit.caller.check_robot(robot)
        self._rates.take(f"{visit.caller.key_id}/{robot}")

    def check_stop(self, visit: Visit, robot: str) -> None:
        """Refuse a robot that is stopped.

        Raises:
            WireError: "stopped".
        """
        reason = self.state.stop_reason(robot, visit.kin if robot == visit.robot else "")
        if reason is not None:
            raise WireError("stopped", "", f"Stopped: {reason}. Hold until it is released.")

    def end(self, visit: Visit, stamp: RequestStamp) -> None:
        """Take note that an episode, or the session, is over; a robot that is stopped may say so, too.

        Raises:
            WireError: "unauthorized", "forbidden" or "rate_limited"; the watchers have been told.
        """
        robot, name = names_of(visit, stamp)
        try:
            self.check_caller(visit, robot)
            session = self.house.sessions.find(name, robot, visit.caller.key_id)
        except WireError as error:
            raise self.refused(error, visit, robot, name) from None
        if session is not None:
            session.plan, session.actions, session.motions = None, None, ()
        if stamp.end == "session":
            self.house.sessions.close(name)
        self._tell_behind(Ended(robot, name, "episode" if stamp.end == "episode" else "closed", stamp.success))

    def left(self, visit: Visit) -> None:
        """Take note that a connection is gone: its own unnamed session ends, a named one waits for its robot.

        Of a session that lived for one request nothing is told: a beginning and an end for each would bury the rest.
        """
        for session in self.house.sessions.close_unnamed(visit.session):
            if visit.is_single:
                continue
            self._tell_behind(Ended(session.robot, session.name, "closed"))

    def forgotten(self, session: Session) -> None:
        """Take note that nobody came back for a session."""
        self._tell_behind(Ended(session.robot, session.name, "lost"))

    def refused(
        self, error: BaseException, visit: Visit | None = None, robot: str = "", session: str = ""
    ) -> WireError:
        """Turn any error into a refusal, count it, and tell the watchers."""
        refusal = as_refusal(error)
        if refusal.kind == "internal":
            log.exception("a request of %s could not be answered", robot or "a client", exc_info=error)
        self.totals.refused[refusal.kind] = self.totals.refused.get(refusal.kind, 0) + 1
        caller = visit.caller if visit else Caller("", ())
        self.observers.tell(
            Refused(refusal.kind, refusal.field, refusal.message, robot, session, caller.key_id, caller.address)
        )
        return refusal

    def _opened(self, visit: Visit, session: Session, resumed: bool) -> None:
        caller = visit.caller
        self._tell_behind(Opened(session.robot, session.name, visit.door, caller.key_id, caller.address, resumed))

    def _told(
        self,
        stamp: RequestStamp,
        observation: Observation,
        actions: np.ndarray,
        chosen: Chosen,
        outcome: Any,
        timing: dict[str, float],
        changes: Sequence[Mapping[str, Any]],
        is_passing: bool,
    ) -> None:
        spec = chosen.replica.spec
        model, _, version = chosen.label.rpartition("@")
        event = Served(
            robot=stamp.robot,
            session=stamp.session,
            sequence=stamp.sequence,
            observation=observation,
            actions=actions,
            embodiment=spec.statistics_key,
            control_hz=spec.control_hz,
            model=model or chosen.label,
            model_version=version,
            canary=chosen.is_canary,
            plan_age_ms=outcome.plan_age_ms,
            timing_ms=timing,
            batch_size=outcome.batch_size,
            interventions=changes,
            spatial=outcome.spatial,
            executed_steps=stamp.executed_steps,
            executed_of=stamp.executed_of,
            recording=stamp.recording,
            is_passing=is_passing,
        )
        self._tell_behind(event)

    def _tell_behind(self, event: Event) -> None:
        """Tell what became of a session in the order in which it happened, each behind the answer that it is about.

        The loop comes to it when the door waits for its next frame.
        """
        asyncio.get_running_loop().call_soon(self.observers.tell, event)


def names_of(visit: Visit, stamp: RequestStamp) -> tuple[str, str]:
    """Give robot and session of a request; a robot that names itself but no session has one while it is connected."""
    robot = stamp.robot or visit.robot
    unnamed = visit.session if robot == visit.robot else f"{visit.session}/{robot}"
    return robot, stamp.session or unnamed
