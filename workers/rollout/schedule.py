"""Decide which episode an actor takes next: one of the world it has built, else one of the lane that is most behind.

Episodes that need the same world form a lane. Building a world is dear, so an actor stays in its lane while there is
work in it; then it takes from the lane whose remaining work, by the mean seconds its episodes have taken so far and
the actors already on it, would last longest. What an actor has been handed and not begun can be taken from it, too;
that is the pool's part (`pool.py`).
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass
class Lane(Generic[Item]):
    """The episodes of one world that wait, and what those that are done have cost."""

    waiting: deque[Item] = field(default_factory=deque)
    done: int = 0
    seconds: float = 0.0


class Lanes(Generic[Item]):
    """A queue of work for many actors; `take` says what an actor does next."""

    def __init__(self, items: Iterable[Item], lane_of: Callable[[Item], Hashable]):
        self._lane_of = lane_of
        self._lanes: dict[Hashable, Lane[Item]] = {}
        self._at: dict[int, Hashable] = {}
        for item in items:
            self._lanes.setdefault(lane_of(item), Lane()).waiting.append(item)

    def __len__(self) -> int:
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def take(self, actor: int) -> Item | None:
        """Give the actor's next item, None when nothing waits."""
        here = self._at.get(actor)
        if here is None or not self._lanes[here].waiting:
            here = self._most_behind(actor)
            if here is None:
                return None
            self._at[actor] = here
        return self._lanes[here].waiting.popleft()

    def finished(self, item: Item, seconds: float) -> None:
        """Learn what an item has cost."""
        lane = self._lanes[self._lane_of(item)]
        lane.done += 1
        lane.seconds += seconds

    def clear(self) -> None:
        """Drop all that waits."""
        for lane in self._lanes.values():
            lane.waiting.clear()

    def _most_behind(self, actor: int) -> Hashable | None:
        behind = {key: self._time_left(key, actor) for key, lane in self._lanes.items() if lane.waiting}
        return max(behind, key=lambda key: behind[key], default=None)

    def _time_left(self, key: Hashable, actor: int) -> float:
        others = sum(where == key for who, where in self._at.items() if who != actor)
        return len(self._lanes[key].waiting) * self._mean_seconds(key) / (1 + others)

    def _mean_seconds(self, key: Hashable) -> float:
        """Give a lane's mean; all lanes' mean while it has finished nothing, so that no lane looks free."""
        lane = self._lanes[key]
        if lane.done:
            return max(lane.seconds / lane.done, 1e-6)
        done = sum(other.done for other in self._lanes.values())
        return max(sum(other.seconds for other in self._lanes.values()) / done, 1e-6) if done else 1.0
