"""Decide how long a batch waits for robots that are about to ask: as long as more are answered a second for it.

A robot in closed loop asks again some milliseconds after its last answer, so its next request can be foreseen. Let n
requests wait, k more be foreseen within t, and a batch of b take F(b) = a + c b, learned from the batches computed.
Starting now answers n requests in F(n), waiting answers n + k in t + F(n + k); the better rate wins. A policy that
computes its rows one by one has a near 0, and nobody waits for anybody. Without this, eight robots fall into two
groups that wait for one another's batches, and each is answered half as often as it could be.

A robot that asks at its own rate, more than a batch's time after its answer, gains nothing from a better rate, and is
not waited for.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from st4vla.platform.errors import ConfigError


@dataclass(frozen=True)
class PatienceConfig:
    """Bounds on waiting.

    Attributes:
        max_wait_ms: no batch waits longer, whatever is foreseen.
        share: nor longer than this share of the time the batch will take.
        slack_ms: a robot counts as late when it is this much later than foreseen, and is then not waited for.
    """

    max_wait_ms: float = 30.0
    share: float = 0.5
    slack_ms: float = 2.0

    def __post_init__(self) -> None:
        for name in ("max_wait_ms", "share", "slack_ms"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"patience.{name} is {getattr(self, name)}; it must be at least 0 and finite.")


class Durations:
    """How long a batch of b takes, a + c b, learned by least squares that forgets one part in twenty a batch."""

    KEPT = 0.95

    def __init__(self) -> None:
        self._sums = [0.0] * 5

    def learn(self, size: int, seconds: float) -> None:
        """Take in one batch."""
        news = (1.0, size, seconds, size * size, size * seconds)
        self._sums = [self.KEPT * old + new for old, new in zip(self._sums, news, strict=True)]

    def line(self) -> tuple[float, float]:
        """Give a and c in seconds, both at least 0; while only one size was seen, all of it counts as a."""
        weight, x, y, xx, xy = self._sums
        if not weight:
            return 0.0, 0.0
        mean_x, mean_y = x / weight, y / weight
        spread = xx / weight - mean_x**2
        slope = (xy / weight - mean_x * mean_y) / spread if spread > 0.01 else 0.0
        slope = min(max(slope, 0.0), mean_y / mean_x)
        return mean_y - slope * mean_x, slope

    def of(self, size: int) -> float:
        """Foresee the seconds of a batch."""
        fixed, each = self.line()
        return fixed + each * size


@dataclass
class Rhythm:
    """When one robot was last answered, and how long after an answer it asks again (mean and mean deviation)."""

    answered_s: float
    gap_s: float | None = None
    spread_s: float = 0.0

    def asked(self, now: float) -> None:
        """Learn from a request."""
        gap = now - self.answered_s
        if self.gap_s is None:
            self.gap_s = gap
            return
        self.spread_s += 0.25 * (abs(gap - self.gap_s) - self.spread_s)
        self.gap_s += 0.25 * (gap - self.gap_s)

    def due_s(self, slack_s: float) -> float:
        """Give the time by which the robot will have asked again, if it keeps its rhythm."""
        return self.answered_s + (self.gap_s or 0.0) + 2 * self.spread_s + slack_s


class Patience:
    """Foresee requests, robot by robot, and say until when a batch should wait; every time is given from outside."""

    MOST_ROBOTS = 4096

    def __init__(self, config: PatienceConfig):
        self._config = config
        self._rhythms: dict[str, Rhythm] = {}
        self.durations = Durations()

    def asked(self, robot: str, now: float) -> None:
        """Take in a request."""
        if robot in self._rhythms:
            self._rhythms[robot].asked(now)

    def answered(self, robots: Iterable[str], size: int, seconds: float, now: float) -> None:
        """Take in a computed batch."""
        self.durations.learn(size, seconds)
        for robot in robots:
            rhythm = self._rhythms.setdefault(robot, Rhythm(now))
            rhythm.answered_s = now
        while len(self._rhythms) > self.MOST_ROBOTS:
            del self._rhythms[next(iter(self._rhythms))]

    def wait_until(self, waiting: set[str], since_s: float, room: int, now: float) -> float:
        """Say until when to wait, `now` or earlier for not at all.

        Args:
            waiting: robots whose requests are in the batch.
            since_s: since when the batch could have been started.
            room: how many more the batch can hold.
        """
        count, takes = len(waiting), self.durations.of
        longest = min(self._config.max_wait_ms / 1000, self._config.share * takes(count))
        best, until = count / max(takes(count), 1e-6), now
        foreseen = self._foreseen(waiting, takes(count), since_s + longest, now)
        for k, due in enumerate(foreseen[:room], start=1):
            rate = (count + k) / max(due - now + takes(count + k), 1e-6)
            if rate > best:
                best, until = rate, due
        return until

    def _foreseen(self, waiting: set[str], batch_s: float, latest_s: float, now: float) -> list[float]:
        """Give the times by which absent robots in closed loop will have asked, soonest first, until `latest_s`."""
        slack = self._config.slack_ms / 1000
        closed = [r for name, r in self._rhythms.items() if name not in waiting and (r.gap_s or 0.0) <= batch_s]
        dues = [rhythm.due_s(slack) for rhythm in closed if rhythm.gap_s is not None]
        return sorted(due for due in dues if now < due <= latest_s)
