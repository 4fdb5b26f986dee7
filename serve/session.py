"""What the server remembers of each robot between two of its requests."""

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from st4vla.platform.errors import ConfigError, WireError


@dataclass(frozen=True)
class SessionConfig:
    """How many sessions are remembered, and for how long.

    Attributes:
        max_sessions: when there are more, the key that has the most loses the one unused for longest.
        forget_after_s: an unused session is forgotten after so long.
    """

    max_sessions: int = 1024
    forget_after_s: float = 120.0

    def __post_init__(self) -> None:
        if self.max_sessions < 1 or self.forget_after_s <= 0:
            raise ConfigError(
                f"session.max_sessions is {self.max_sessions} and session.forget_after_s {self.forget_after_s}; "
                "both must be positive."
            )


@dataclass
class Session:
    """One run of one robot.

    Attributes:
        owner: the key or connection that may use it.
        plan: what System 2 last made for it, None before the first.
        plan_seen_s: when the frame that the plan was made from arrived.
        plan_for: the model that made it, and the instruction it was made for.
        planning: whether a newer plan is being made.
        sequence: number of the last request answered; -1 before the first.
        actions: float32 [T,A], the last chunk sent; None before the first.
        motions: the motion which that chunk began from, and the motion behind each of its rows; see `safety/guard.py`.
        motions_of: number of the request whose chunk they are.
    """

    name: str
    robot: str
    owner: str
    used_s: float
    plan: Any = None
    plan_seen_s: float = 0.0
    plan_for: tuple[str, str] = ("", "")
    planning: bool = False
    sequence: int = -1
    actions: np.ndarray | None = None
    motions: Sequence[Any] = ()
    motions_of: int = -1
    noise_seed: int = field(init=False)

    def __post_init__(self) -> None:
        # From the name alone: a session that goes on at another replica draws the noise it would have drawn here.
        self.noise_seed = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")

    def noise_key(self, sequence: int) -> tuple[int, int]:
        """Give the key of a request's noise: one that is sent again after a lost connection is answered the same."""
        return self.noise_seed, sequence

    def check_sequence(self, sequence: int) -> None:
        """Refuse a request that is older than the last one answered.

        Raises:
            WireError: "stale".
        """
        if sequence < self.sequence:
            raise WireError(
                "stale", "st4vla.sequence", f"Request {sequence} comes after {self.sequence} was answered; drop it."
            )

    def keep_plan(self, plan: Any, made_for: tuple[str, str], seen_s: float) -> None:
        """Keep a plan unless one of a newer frame is there already."""
        if self.plan is None or seen_s >= self.plan_seen_s:
            self.plan, self.plan_for, self.plan_seen_s = plan, made_for, seen_s

    def remaining(self, executed: int) -> np.ndarray | None:
        """Give the rows of the last chunk from `executed` on; None before the first chunk."""
        return None if self.actions is None else self.actions[executed:]


class Sessions:
    """Open, find and forget sessions; the clock is given, and `forgotten` is told of every one that nobody closed."""

    def __init__(self, config: SessionConfig, clock: Callable[[], float] = time.monotonic):
        self._config = config
        self._clock = clock
        self._held: OrderedDict[str, Session] = OrderedDict()
        self.forgotten: Callable[[Session], None] = lambda session: None

    def __len__(self) -> int:
        """Count the sessions held."""
        return len(self._held)

    def open(self, name: str, robot: str, owner: str) -> tuple[Session, bool]:
        """Give the session of that name, and whether it was there before.

        Raises:
            WireError: "forbidden": somebody else's session has that name.
        """
        now = self._clock()
        session = self._held.get(name)
        if session is None:
            self._make_room(owner)
            session = self._held[name] = Session(name, robot, owner, now)
            return session, False
        self._check_owner(session, robot, owner)
        session.used_s = now
        self._held.move_to_end(name)
        return session, True

    def find(self, name: str, robot: str, owner: str) -> Session | None:
        """Give the session of that name if there is one.

        Raises:
            WireError: "forbidden", as `open`.
        """
        session = self._held.get(name)
        if session is not None:
            self._check_owner(session, robot, owner)
        return session

    def close(self, name: str) -> Session | None:
        """Forget a session; give it if it was there."""
        return self._held.pop(name, None)

    def close_unnamed(self, connection: str) -> list[Session]:
        """Forget the sessions that a connection's requests had without naming one; give them."""
        names = [name for name in self._held if name == connection or name.startswith(f"{connection}/")]
        return [self._held.pop(name) for name in names]

    def forget_old(self) -> None:
        """Forget what was not used for long."""
        now = self._clock()
        while self._held:
            oldest = next(iter(self._held.values()))
            if now - oldest.used_s < self._config.forget_after_s:
                return
            self._forget(oldest)

    def _make_room(self, owner: str) -> None:
        """Forget the oldest session of whoever has the most, so that nobody's flood ends what others have."""
        self.forget_old()
        while len(self._held) >= self._config.max_sessions:
            counts = Counter(session.owner for session in self._held.values())
            most = max(counts, key=lambda one: (counts[one], one == owner))
            self._forget(next(session for session in self._held.values() if session.owner == most))

    def _forget(self, session: Session) -> None:
        del self._held[session.name]
        self.forgotten(session)

    @staticmethod
    def _check_owner(session: Session, robot: str, owner: str) -> None:
        if session.owner != owner or session.robot != robot:
            raise WireError("forbidden", "st4vla.session", "Another robot uses a session of this name.")
