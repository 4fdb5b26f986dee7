"""Drive a robot from a policy server: look, ask, execute, hold; without ever waiting for an answer.

    client = RobotClient(ClientConfig(url="ws://127.0.0.1:8000", robot="arm-1"), Embodiment.load("arm.yaml"))
    with client:
        client.run(robot)

`run` calls the robot at its control rate. A program with a loop of its own calls `tick` once per control step, and one
that is asynchronous awaits `run_async`, where the robot's methods may be coroutines.

One control step (`tick`):

1. Take in what has arrived: a chunk takes the place of what is left of the old one, less the rows executed meanwhile.
2. If the present chunk is far enough on, look and ask for the next one. The robot goes on executing.
3. Give the next action, within the embodiment's limits. With none left, brake within the limits, then hold.

Needs numpy, msgpack and websockets, nothing else.
"""

import asyncio
import inspect
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from st4vla.platform.contracts import Observation
from st4vla.platform.errors import ConfigError, WireError
from st4vla.platform.wire.stamps import KEY, RequestStamp
from st4vla.serve.client.chunks import ChunkQueue, DelayEstimate, look_at
from st4vla.serve.client.link import Connected, Event, Link, Lost, Refused, Reply
from st4vla.serve.client.settings import ClientConfig, ClientStats, Command, Pace, Robot, check_fit, too_old
from st4vla.serve.safety.embodiment import Embodiment
from st4vla.serve.safety.interventions import Intervention, InterventionLog
from st4vla.serve.safety.motion import Motion, MotionLimits

log = logging.getLogger(__name__)

# The request itself is at fault: asking again would not help if nothing was ever answered.
OUR_FAULT = ("malformed", "too_large", "missing", "invalid")
TURNED_AWAY = ("unauthorized", "forbidden")


@dataclass(frozen=True)
class _Asked:
    """The request in flight."""

    sequence: int
    step: int
    executed: int
    at_s: float


class RobotClient:
    """One robot's side of a session; one thread calls it, and only its link has another.

    The session outlives the connection: after a loss the client asks again under the same session with a new picture,
    and executes what is left of its chunk meanwhile.

    Args:
        link: the connection; one of the config's own unless given.
        interventions: where clamps, refusals, holds and stops at this end are written down.
        clock: seconds.
    """

    def __init__(
        self,
        config: ClientConfig,
        embodiment: Embodiment,
        link: Link | None = None,
        interventions: InterventionLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.embodiment = embodiment
        self.session = uuid.uuid4().hex
        self.stats = ClientStats()
        self.metadata: Mapping[str, Any] = {}
        self.last_reply: Mapping[str, Any] = {}
        self.delay = DelayEstimate(config.delay_window, config.delay_warmup, config.first_delay_steps)
        self._link = link or Link(config.link())
        self._limits = MotionLimits(embodiment)
        self._interventions = interventions
        self._clock = clock
        self._queue = ChunkQueue()
        self._motion: Motion | None = None
        self._last_action: np.ndarray | None = None
        self._asked: _Asked | None = None
        self._sequence, self._chunk_of = 0, None
        self._ask_from_s = 0.0
        self._is_late = False
        self._stopped = self._trouble = ""
        self._fatal: WireError | ConfigError | None = None

    def __enter__(self) -> "RobotClient":
        self._link.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say that the session is over and close the connection."""
        if self._link.is_up and self._asked is None:
            self._tell(RequestStamp(self.config.robot, self.session, self._sequence, end="session"))
        self._link.close()

    def wait_until_connected(self, timeout_s: float = 10.0) -> Mapping[str, Any]:
        """Wait for the server's metadata and give it.

        Raises:
            WireError: "unavailable", or the server turned the key away.
            ConfigError: the server's policy does not fit the embodiment.
        """
        until = time.monotonic() + timeout_s
        while not self.stats.connections:
            self.receive()
            self._raise_fatal()
            if time.monotonic() > until:
                why = self._trouble or "no answer"
                raise WireError("unavailable", "", f"{self.config.url} is not there after {timeout_s:g} s: {why}.")
            time.sleep(0.01)
        return self.metadata

    def tick(self, observe: Callable[[], Observation]) -> Command:
        """Take one control step: give what the robot is to do now. `observe` is called only when it is needed.

        Raises:
            WireError: the server turned the key away, or refused the first request as wrong.
            ConfigError: the server's policy does not fit the embodiment.
        """
        self.receive()
        if self.wants_to_look():
            self.look(observe())
            self.receive()
        return self.command()

    def receive(self) -> None:
        """Take in what has arrived."""
        while (event := self._link.poll()) is not None:
            self._take(event)

    def wants_to_look(self) -> bool:
        """Say whether it is time to look and to ask."""
        if self._stopped or self._fatal or self._asked or not self._link.is_up or self._clock() < self._ask_from_s:
            return False
        if not len(self._queue):
            return True
        if self.config.chunking == "wait":
            return self._queue.cursor >= self.config.execute_steps
        return self._queue.cursor >= look_at(self._queue.horizon, self.config.execute_steps, self.delay.steps)

    def look(self, observation: Observation) -> None:
        """Ask for the next chunk, with what is seen now."""
        rests = self._at_rest and not len(self._queue)
        if self._motion is None:
            self._motion = self._limits.standing(observation.state)
        else:
            self._motion = self._limits.anchored(self._motion, observation.state)
        self._sequence += 1
        self._asked = _Asked(self._sequence, self.stats.steps, self._queue.executed, self._clock())
        self._link.send(self._sequence, self._message(observation, rests))
        if self.config.chunking == "wait":
            self._queue.clear()

    def command(self) -> Command:
        """Give what the robot is to do in this control step, and count it.

        Raises:
            WireError, ConfigError: as `tick`.
        """
        self._raise_fatal()
        self.stats.steps += 1
        if self._stopped:
            self._forget_motion()
            self._hold("stopped", self._stopped)
            return Command(None, "stopped")
        if self._may_execute() and (action := self._limited(self._queue.pop())) is not None:
            self._is_late = False
            self.stats.executed += 1
            return Command(action, "chunk")
        if self._queue.executed and self.config.chunking == "realtime":
            self.stats.late += 1
            self._hold("late", "the chunk is used up and the next is not there")
        if self._at_rest:
            self.stats.held += 1
            return Command(None, "waiting")
        assert self._motion is not None
        self._motion, action = self._limits.brake(self._motion, self._last_action)
        self._last_action = action
        return Command(action.astype(np.float32), "braking")

    def stop(self, reason: str = "the operator's stop") -> None:
        """Drop every action and hold from the next control step on, until `release`; any thread may call it."""
        if not self._stopped:
            self._write(Intervention("stopped", self.config.robot, "emergency stop", message=reason, place="client"))
        self._stopped = reason or "stopped"

    def release(self) -> None:
        """Let the robot go on after `stop`. A stop at the server is released there."""
        self._stopped = ""
        self._write(Intervention("released", self.config.robot, "emergency stop", place="client"))

    def end_episode(self, success: bool | None = None) -> None:
        """Say that an episode is over; the next look begins another from a standstill."""
        self._forget_motion()
        self._queue, self._chunk_of = ChunkQueue(), None
        if self._link.is_up:
            stamp = RequestStamp(self.config.robot, self.session, self._sequence, end="episode", success=success)
            self._tell(stamp)

    def run(self, robot: Robot, steps: int | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        """Drive a robot at its control rate, for so many steps or until interrupted; it holds when this ends."""
        pace = Pace(self.embodiment.period_s, self._clock)
        last = None if steps is None else self.stats.steps + steps
        try:
            while last is None or self.stats.steps < last:
                command = self.tick(robot.observe)
                robot.hold() if command.action is None else robot.apply(command.action)
                sleep(self._pause(pace))
        finally:
            robot.hold()

    async def run_async(self, robot: Any, steps: int | None = None) -> None:
        """Drive a robot whose methods may be coroutines; it holds when this ends or is cancelled."""
        pace = Pace(self.embodiment.period_s, self._clock)
        last = None if steps is None else self.stats.steps + steps
        try:
            while last is None or self.stats.steps < last:
                self.receive()
                if self.wants_to_look():
                    self.look(await _awaited(robot.observe()))
                    self.receive()
                command = self.command()
                await _awaited(robot.hold() if command.action is None else robot.apply(command.action))
                await asyncio.sleep(self._pause(pace))
        finally:
            await _awaited(robot.hold())

    def _pause(self, pace: "Pace") -> float:
        seconds = pace.next()
        self.stats.overruns += seconds < 0
        return max(seconds, 0.0)

    @property
    def _at_rest(self) -> bool:
        return self._motion is None or self._motion.is_at_rest

    def _may_execute(self) -> bool:
        if not len(self._queue):
            return False
        return self.config.chunking == "realtime" or self._queue.cursor < self.config.execute_steps

    def _limited(self, action: np.ndarray) -> np.ndarray | None:
        """Clamp the next action; what no limit can make sense of ends the chunk, and gives None."""
        assert self._motion is not None
        try:
            limited = self._limits.limit(self._motion, action[None])
        except WireError as error:
            self._queue.clear(unused=1)
            return self._drop(str(error))
        self._motion, self._last_action = limited.motions[-1], limited.actions[0]
        for clamp in limited.clamps:
            self.stats.clamps += 1
            entries = {"part": clamp.part, "asked": clamp.asked, "given": clamp.given, "place": "client"}
            self._write(
                Intervention("clamped", self.config.robot, clamp.limit, self.session, self._sequence, **entries)
            )
        return limited.actions[0].astype(np.float32)

    def _message(self, observation: Observation, rests: bool) -> dict[str, Any]:
        keys = self.config.keys
        message: dict[str, Any] = {keys.images.get(c, f"images/{c}"): image for c, image in observation.images.items()}
        if observation.state is not None and keys.state:
            message[keys.state[0]] = np.asarray(observation.state, np.float32)
        message[keys.prompt] = observation.instruction
        remaining = self._queue.remaining()
        delay = min(self.delay.steps, len(remaining)) if self.config.chunking == "realtime" else 0
        stamp = RequestStamp(
            robot=self.config.robot,
            session=self.session,
            sequence=self._sequence,
            deadline_ms=self.config.deadline_ms,
            delay_steps=delay,
            executed_steps=self._queue.cursor,
            executed_of=self._chunk_of,
            at_rest=rests,
            spatial=self.config.spatial,
            recording=self.config.recording,
            remaining=remaining if delay else None,
        )
        return {**message, KEY: stamp.as_plain()}

    def _tell(self, stamp: RequestStamp) -> None:
        """Send what needs no answer of use; whatever comes back is dropped, as nobody waits for that ticket."""
        self._link.send(-1, {KEY: stamp.as_plain()})

    def _take(self, event: Event) -> None:
        match event:
            case Connected(metadata):
                self._connected(metadata)
            case Lost(reason, was_up):
                self.stats.losses += was_up
                level = logging.WARNING if was_up else logging.DEBUG
                log.log(level, "%s has no connection to %s: %s", self.config.robot, self.config.url, reason)
                self._asked, self._trouble = None, reason
            case Refused(ticket, error):
                self._refused(ticket, error)
            case Reply(ticket, message):
                if self._asked is not None and ticket == self._asked.sequence:
                    self._replied(self._asked, message)

    def _connected(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.stats.connections += 1
        self.delay.reconnected()
        self._ask_from_s = 0.0
        try:
            check_fit(metadata, self.embodiment)
        except ConfigError as error:
            self._fatal = error

    def _replied(self, asked: _Asked, message: Mapping[str, Any]) -> None:
        """Put a chunk in place of what is left of the old one, unless it comes too late or cannot be used."""
        self._asked = None
        took_s = self._clock() - asked.at_s
        self.stats.latency_ms = [*self.stats.latency_ms[-99:], 1000 * took_s]
        self.delay.add(self.stats.steps - asked.step)
        if self.config.deadline_ms and 1000 * took_s > self.config.deadline_ms:
            return self._drop(f"the answer took {1000 * took_s:.0f} ms")
        if reason := too_old(message, self.embodiment.max_plan_age_ms):
            return self._drop(reason)
        assert self._motion is not None
        try:
            rows = self._limits.usable(self._motion, np.asarray(message.get("actions")))
        except WireError as error:
            return self._drop(str(error))
        self.last_reply = message
        self.stats.replies += 1
        self._queue.replace(rows, asked.executed)
        self._chunk_of = asked.sequence

    def _drop(self, reason: str) -> None:
        self.stats.dropped_replies += 1
        self._write(
            Intervention("refused", self.config.robot, "answer", self.session, self._sequence, "client", message=reason)
        )

    def _refused(self, ticket: int, error: WireError) -> None:
        """Take a refusal in: a stop is obeyed, our own fault ends the first attempt, anything else is tried again."""
        if ticket < 0:
            return
        self._asked = None
        self.stats.refusals[error.kind] = self.stats.refusals.get(error.kind, 0) + 1
        self._ask_from_s = self._clock() + self.config.pause_s
        if error.kind == "stopped":
            self._forget_motion()
            self._hold("stopped", str(error))
        elif ticket == 0 or error.kind in TURNED_AWAY or (error.kind in OUR_FAULT and not self.stats.replies):
            self._fatal = error
        log.warning("%s was refused: %s", self.config.robot, error)

    def _forget_motion(self) -> None:
        """Drop every action, and take the robot to stand wherever it is found at the next look."""
        self._queue.clear()
        self._queue.executed = 0
        self._motion = self._asked = None

    def _hold(self, limit: str, message: str) -> None:
        """Write down that the robot begins to hold."""
        if not self._is_late:
            self._is_late = True
            self._write(
                Intervention("held", self.config.robot, limit, self.session, self._sequence, "client", message=message)
            )

    def _write(self, intervention: Intervention) -> None:
        if self._interventions is not None:
            self._interventions.write(intervention)

    def _raise_fatal(self) -> None:
        if self._fatal is not None:
            raise self._fatal


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
