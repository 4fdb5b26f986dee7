"""Remember how each robot of one replica is doing, for the fleet page.

`FleetView` is told of every event and keeps the newest of each robot: a few numbers, the last frame and what the
planner said of it. `snapshot` turns that into plain values once in a while; frames become pictures only then, and only
those that are new. Robots name themselves, so their number is bounded: the one unheard of for longest makes room.
"""

import statistics
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from st4vla.platform.errors import ConfigError
from st4vla.platform.wire.stamps import plain_spatial
from st4vla.serve.events import Ended, Event, Opened, Refused, Served, Stopped, Trouble
from st4vla.serve.watch.pictures import Picture, PictureMaker, ReadOut, first_image

FLEET = "*"
LONGEST_TEXT = 200
RATE_WINDOW_S = 10.0
SHARE_WINDOW_S = 60.0


@dataclass(frozen=True)
class FleetConfig:
    """What the fleet page remembers.

    Attributes:
        max_robots: robots remembered by one replica.
        window: answers that a robot's latency is taken from.
        frame_every_s: a robot's picture is made anew at most this often.
        frame_px: longest side of the picture.
        read_outs: pictures a second that the planner is asked about while somebody looks, for boxes and traces; 0 for
            none.
        troubles: the newest troubles kept.
    """

    max_robots: int = 256
    window: int = 64
    frame_every_s: float = 1.0
    frame_px: int = 320
    read_outs: int = 2
    troubles: int = 20

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("max_robots", "window", "frame_px", "troubles"):
            if getattr(self, name) < 1:
                raise ConfigError(f"fleet.{name} is {getattr(self, name)}; expected 1 or more.")
        if self.read_outs < 0:
            raise ConfigError(f"fleet.read_outs is {self.read_outs}; expected 0 or more.")


@dataclass
class RobotState:
    """The newest of one robot; times are Unix seconds."""

    robot: str
    last: Served | None = None
    connected: bool = True
    protocol: str = ""
    requests: int = 0
    interventions: int = 0
    refusals: int = 0
    episodes: int = 0
    seen_at: float = 0.0
    last_intervention: Mapping[str, Any] = field(default_factory=dict)
    last_refusal: Mapping[str, Any] = field(default_factory=dict)
    answers: deque[tuple[float, float]] = field(default_factory=deque)
    picture: Picture = field(default_factory=Picture)


class FleetView:
    """An observer of one replica's robots.

    Args:
        stops: gives the emergency stops in force, {robot or "*": reason}; without it they are known from events.
        clock: Unix time in seconds.
        read_out: asks the planner about a picture.
    """

    def __init__(
        self,
        config: FleetConfig = FleetConfig(),
        stops: Callable[[], Mapping[str, str]] | None = None,
        clock: Callable[[], float] = time.time,
        read_out: ReadOut | None = None,
    ) -> None:
        self.config, self._clock = config, clock
        self._maker = PictureMaker(config.frame_px, config.read_outs, read_out, clock)
        self._lock = threading.Lock()
        self._robots: OrderedDict[str, RobotState] = OrderedDict()
        self._versions: deque[tuple[float, str, str, bool]] = deque(maxlen=20_000)
        self._troubles: deque[Mapping[str, Any]] = deque(maxlen=config.troubles)
        self._stops: dict[str, str] = {}
        self._read_stops = stops or (lambda: self._stops)

    def __call__(self, event: Event) -> None:
        """Note an event."""
        with self._lock:
            if isinstance(event, Served):
                self._note_served(event)
            elif isinstance(event, Refused):
                self._note_refused(event)
            elif isinstance(event, Opened):
                state = self._state(event.robot, event.at)
                state.connected, state.protocol = True, event.protocol
            elif isinstance(event, Ended):
                self._note_ended(event)
            elif isinstance(event, Stopped):
                self._note_stop(event)
            elif isinstance(event, Trouble):
                told = {"kind": event.kind, "reason": _short(event.reason), "robot": event.robot, "at": event.at}
                self._troubles.append(told)

    def snapshot(self) -> dict[str, Any]:
        """Give everything as plain values; pictures are left to `pictures`."""
        now = self._clock()
        with self._lock:
            robots = [_robot(state, now) for state in self._robots.values()]
            versions = _versions(self._versions, now)
            troubles = list(self._troubles)
        stops = [{"robot": robot, "reason": _short(reason)} for robot, reason in dict(self._read_stops()).items()]
        return {"at": now, "robots": robots, "versions": versions, "stops": stops, "troubles": troubles}

    def pictures(self, since: Mapping[str, float] | None = None) -> dict[str, tuple[float, bytes]]:
        """Give the last frame of each robot as (time, JPEG), except those that `since` has already."""
        now, wanted = self._clock(), []
        with self._lock:
            for state in self._robots.values():
                if state.last is not state.picture.event and now - state.picture.at >= self.config.frame_every_s:
                    wanted.append((state.picture, state.last))
        self._maker.renew(wanted)
        with self._lock:
            have = since or {}
            pictures = {name: state.picture for name, state in self._robots.items()}
            return {name: (one.at, one.jpeg) for name, one in pictures.items() if one.jpeg and have.get(name) != one.at}

    def _note_served(self, event: Served) -> None:
        state = self._state(event.robot, event.at)
        state.last, state.connected = event, not event.is_passing
        state.requests += 1
        state.answers.append((event.at, event.timing_ms.get("total", 0.0)))
        if len(state.answers) > self.config.window:
            state.answers.popleft()
        if event.interventions:
            newest = event.interventions[-1]
            state.interventions += len(event.interventions)
            state.last_intervention = {
                "kind": _short(newest.get("kind", "")),
                "limit": _short(newest.get("limit", "")),
                "at": event.at,
            }
        self._versions.append((event.at, event.model, event.model_version, event.canary))

    def _note_refused(self, event: Refused) -> None:
        # Who was turned away at the door is no robot yet.
        if event.robot in self._robots:
            state = self._robots[event.robot]
            state.refusals += 1
            state.last_refusal = {"kind": event.kind, "where": _short(event.where), "at": event.at}

    def _note_ended(self, event: Ended) -> None:
        if event.robot in self._robots:
            state = self._robots[event.robot]
            state.episodes += 1
            state.connected = event.kind == "episode"

    def _note_stop(self, event: Stopped) -> None:
        if event.engaged:
            self._stops[event.robot or FLEET] = event.reason
        else:
            self._stops.pop(event.robot or FLEET, None)

    def _state(self, robot: str, at: float) -> RobotState:
        state = self._robots.get(robot)
        if state is None:
            state = self._robots[robot] = RobotState(robot)
            if len(self._robots) > self.config.max_robots:
                self._robots.popitem(last=False)
        state.seen_at = max(state.seen_at, at)
        self._robots.move_to_end(robot)
        return state


def _robot(state: RobotState, now: float) -> dict[str, Any]:
    latencies = sorted(latency for _, latency in state.answers)
    recent = sum(now - at <= RATE_WINDOW_S for at, _ in state.answers)
    facts: dict[str, Any] = {
        "robot": state.robot,
        "connected": state.connected,
        "protocol": state.protocol,
        "requests": state.requests,
        "interventions": state.interventions,
        "refusals": state.refusals,
        "episodes": state.episodes,
        "seen_at": state.seen_at,
        "rate_hz": recent / RATE_WINDOW_S,
        "p50_ms": statistics.median(latencies) if latencies else None,
        "p95_ms": latencies[round(0.95 * (len(latencies) - 1))] if latencies else None,
        "history_ms": [round(latency, 1) for _, latency in state.answers],
        "last_intervention": dict(state.last_intervention),
        "last_refusal": dict(state.last_refusal),
        "frame_at": state.picture.at,
    }
    return facts | (_last(state.last, state.picture) if state.last else {})


def _last(event: Served, picture: Picture) -> dict[str, Any]:
    """Give the newest answer's facts; what the planner said goes with the frame that is shown, not with a newer one."""
    shown, spatial = (picture.event, picture.spatial) if picture.event else (event, event.spatial)
    height, width = first_image(shown).shape[:2]
    return {
        "session": event.session,
        "sequence": event.sequence,
        "embodiment": event.embodiment,
        "model": event.model,
        "version": event.model_version,
        "canary": event.canary,
        "instruction": _short(event.observation.instruction),
        "plan_age_ms": event.plan_age_ms,
        "batch_size": event.batch_size,
        "timing_ms": dict(event.timing_ms),
        "frame_size": [width, height],
        "spatial": None if spatial is None else plain_spatial(spatial),
    }


def _versions(served: deque[tuple[float, str, str, bool]], now: float) -> list[dict[str, Any]]:
    """Count the answers of the last minute by what gave them."""
    while served and now - served[0][0] > SHARE_WINDOW_S:
        served.popleft()
    counts: dict[tuple[str, str, bool], int] = {}
    for _, *who in served:
        counts[tuple(who)] = counts.get(tuple(who), 0) + 1  # type: ignore[index]
    return [{"model": m, "version": v, "canary": c, "requests": n} for (m, v, c), n in counts.items()]


def _short(text: Any) -> str:
    return str(text)[:LONGEST_TEXT]
