"""Decide how long a batch waits for robots that are about to ask: as long as that saves them more than it costs.

A robot in closed loop asks again some milliseconds after its last answer, so the next request of every robot can be
foreseen. Let n requests wait, k more be foreseen within dt, and a batch of b take a + c b. Starting now, the k wait
until the batch ends and then for one of their own; waiting costs n times dt. The sum of all waits is shorter by

    k (a - dt - n c) - n dt

if the batch waits. a and c are learned from the batches computed; a policy that computes its rows one by one has a
near 0, and nobody waits for anybody.
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

    def wait_until(self, waiting: set[str], first_s: float, room: int, now: float) -> float:
        """Say until when to wait, `now` or earlier for not at all.

        Args:
            waiting: robots whose requests are in the batch.
            first_s: when the first of them arrived.
            room: how many more the batch can hold.
        """
        fixed, each = self.durations.line()
        count = len(waiting)
        longest = min(self._config.max_wait_ms / 1000, self._config.share * (fixed + each * count))
        best, until = 0.0, now
        for k, due in enumerate(self._foreseen(waiting, first_s + longest, now)[:room], start=1):
            wait = due - now
            saved = k * (fixed - wait - count * each) - count * wait
            if saved > best:
                best, until = saved, due
        return until

    def _foreseen(self, waiting: set[str], latest_s: float, now: float) -> list[float]:
        """Give the times by which absent robots will have asked, soonest first, within (now, latest_s]."""
        slack = self._config.slack_ms / 1000
        dues = [rhythm.due_s(slack) for robot, rhythm in self._rhythms.items() if robot not in waiting]
        return sorted(due for due in dues if now < due <= latest_s)
