"""Hand work to Ray actors as they come free, restart those that die, and hand their work out again."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from st4vla.platform.errors import ConfigError, St4vlaError, WorkerLost
from st4vla.workers.rollout.strikes import Strikes

log = logging.getLogger(__name__)

Item = TypeVar("Item")

# How often a pool looks at its clock while nothing comes back, and asks whether its own node is still there.
TICK_S, NODE_CHECK_S = 1.0, 5.0


@dataclass(frozen=True)
class PoolConfig:
    """How patient a pool is.

    Attributes:
        retries: how often one item is handed out again after its actor died, timed out or reported a crash.
        timeout_s: how long one item may run before its actor is killed.
        start_timeout_s: how long an actor may take to be placed and get ready.
        in_flight: items an actor holds at once; 2 hide the trip to the driver.
        retire_after: failures in a row of a place whose processes keep breaking, at items that did not break another
            place's, after which it gets no more work while others do theirs; 0 for never.
    """

    retries: int = 2
    timeout_s: float = 600.0
    start_timeout_s: float = 600.0
    in_flight: int = 2
    retire_after: int = 3

    def __post_init__(self) -> None:
        for name in ("retries", "timeout_s", "start_timeout_s", "retire_after"):
            if getattr(self, name) < 0:
                raise ConfigError(f"pool.{name} is {getattr(self, name)}; expected 0 or more.")
        if self.in_flight < 1:
            raise ConfigError(f"pool.in_flight is {self.in_flight}; an actor holds at least 1 item.")


@dataclass(frozen=True)
class Outcome(Generic[Item]):
    """What came of an item: its value, or after all retries the kind and the reason of the failure."""

    item: Item
    value: Any = None
    failure: str = ""
    reason: str = ""


@dataclass
class _Member:
    """One actor and what it holds; the first entry of `held` is what it works on (item None: getting ready)."""

    actor: Any
    index: int
    held: deque[tuple[Any, Any]] = field(default_factory=deque)
    head_since: float = 0.0

    @property
    def starting(self) -> bool:
        return bool(self.held) and self.held[0][1] is None


class Pool(Generic[Item]):
    """A number of actors that take work when free.

    The driver owns the pool. An actor that dies, overruns or says that it is spent is replaced; the item it worked on
    is charged one retry and goes to another actor while one lives, items that merely waited at it are handed out
    again free of charge. What is lost with an actor is its worlds, which the next one builds again, and the work of
    the item it was at. A place whose actors break one after another is retired (`strikes.py`). An idle actor takes
    what waits at a busy one when nothing else is left. An actor that cannot be placed, as its node is gone, holds
    nobody up.

    `make_actor(index)` gives a Ray actor with a `ready()` method; an error of ours raised there ends the run, since
    the next actor would meet it too, any other counts as a death of that actor.
    """

    def __init__(
        self,
        make_actor: Callable[[int], Any],
        num_actors: int,
        config: PoolConfig,
        on_retry: Callable[[Item, str], None] = lambda item, reason: None,
        spent: Callable[[Any], bool] = lambda value: False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._make_actor = make_actor
        self._config = config
        self._on_retry = on_retry
        self._spent = spent
        self._clock = clock
        self._again: deque[Item] = deque()
        self._charges: dict[Any, int] = {}
        self._failed_at: dict[Any, int] = {}
        self._strikes = Strikes(config.retire_after)
        self._slow: set[int] = set()  # whose last start failed or took too long: nothing waits for them
        self._deaths_in_a_row = 0
        self._node_checked = self._clock()
        self._members = [self._start(index) for index in range(num_actors)]

    @property
    def actors(self) -> list[Any]:
        """The actors that are alive as far as the driver knows."""
        return [member.actor for member in self._members]

    def run(
        self,
        next_item: Callable[[int], Item | None],
        submit: Callable[[Any, Item], Any],
        retry_reason: Callable[[Any], str] = lambda value: "",
    ) -> Iterator[Outcome[Item]]:
        """Give an outcome for each item, in the order they finish.

        Args:
            next_item: the next item for the actor of that number, or None if there is none now; asked again after
                every outcome.
            submit: hands the item to the actor, gives the reference to wait for.
            retry_reason: why a value that came back is not to be kept yet, "" if it is.

        Raises:
            WorkerLost: actors die one after another without finishing anything.
        """
        import ray

        while True:
            nothing_left = self._fill(next_item, submit)
            owners = {reference: member for member in self._members for reference, _ in member.held}
            if nothing_left and not any(item is not None for member in self._members for _, item in member.held):
                return
            done, _ = ray.wait(list(owners), num_returns=1, timeout=TICK_S)
            for reference in done:
                outcome = self._receive(owners[reference], reference, retry_reason)
                if outcome is not None:
                    yield outcome
            for outcome in self._kill_overdue():
                yield outcome
            if not done:
                self._check_node()

    def _check_node(self) -> None:
        """Make sure that the node this driver stands on lives; without it nothing would ever come back.

        Raises:
            WorkerLost: it does not.
        """
        import ray
        from ray.exceptions import RayError

        if self._clock() - self._node_checked < NODE_CHECK_S:
            return
        self._node_checked = self._clock()
        try:
            here = ray.get_runtime_context().get_node_id()
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        except (RayError, ConnectionError, RuntimeError) as error:
            raise WorkerLost(f"Ray no longer answers: {first_line(error)}. Run the same command again.") from error
        if here not in alive:
            raise WorkerLost(
                "the Ray node of this command has died (its raylet was killed, or ran out of memory); what is in the "
                "ledger is safe. Run the same command again."
            )

    def _start(self, index: int) -> _Member:
        member = _Member(self._make_actor(index), index, head_since=self._clock())
        member.held.append((member.actor.ready.remote(), None))
        return member

    def _fill(self, next_item: Callable[[int], Item | None], submit: Callable[[Any, Item], Any]) -> bool:
        """Give every ready actor its next items, those with the least to do first; say whether nothing was left."""
        nothing_left = False
        for depth in range(1, self._config.in_flight + 1):
            for member in self._members:
                while not member.starting and len(member.held) < depth:
                    item = self._take_again(member)
                    item = next_item(member.index) if item is None else item
                    nothing_left = item is None and not self._again
                    if item is None and not member.held:
                        item = self._steal(member)
                    if item is None:
                        break
                    if not member.held:
                        member.head_since = self._clock()
                    member.held.append((submit(member.actor, item), item))
        return nothing_left

    def _take_again(self, member: _Member) -> Item | None:
        """Give the first item to be tried again that did not just fail at this actor."""
        for place, item in enumerate(self._again):
            if not self._avoids(member, item):
                del self._again[place]
                return item
        return None

    def _avoids(self, member: _Member, item: Item) -> bool:
        """Whether an item failed here last and another actor can take it, now or once it has started."""
        if self._failed_at.get(id_of(item)) != member.index:
            return False
        others = (other for other in self._members if other is not member)
        return any(not other.starting or other.index not in self._slow for other in others)

    def _steal(self, thief: _Member) -> Item | None:
        """Take an item back that waits at an actor, the one that has been longest at its present item.

        Should that actor begin it at this very moment, both run it, and the first result counts.
        """
        import ray

        busy = [member for member in self._members if not member.starting and len(member.held) > 1]
        busy = [member for member in busy if not self._avoids(thief, member.held[-1][1])]
        if not busy:
            return None
        reference, item = min(busy, key=lambda member: member.head_since).held.pop()
        ray.cancel(reference)
        return item

    def _receive(self, member: _Member, reference: Any, retry_reason: Callable[[Any], str]) -> Outcome[Item] | None:
        """Take what came back; None if the item goes round again."""
        import ray
        from ray import exceptions

        item = next(held for ref, held in member.held if ref == reference)
        try:
            value = ray.get(reference)
        except exceptions.RayActorError as error:
            return self._bury(member, "crash", f"its actor died: {first_line(error)}")
        except exceptions.RayTaskError as error:
            return self._task_failed(member, reference, item, error)
        except exceptions.RayError as error:  # killed by the memory monitor, or its result was lost with a node
            return self._bury(member, "crash", f"{type(error).__name__}: {first_line(error)}")
        self._drop(member, reference)
        if item is None:
            self._slow.discard(member.index)
            return None
        self._deaths_in_a_row = 0
        reason, spent = retry_reason(value), self._spent(value)
        if not reason:
            self._strikes.clear(member.index)
        elif spent:
            self._strikes.add(member.index, id_of(item))
        if spent:
            self._replace(member)
        if reason and self._charge(member, item, reason):
            return None
        return Outcome(item, value)

    def _task_failed(self, member: _Member, reference: Any, item: Any, error: Any) -> Outcome[Item] | None:
        """Deal with what a method of an actor raised; getting ready it may be this node's fault alone."""
        ours = isinstance(error.cause, St4vlaError)
        reason = f"{type(error.cause).__name__}: {error.cause}"
        if item is None and not ours:
            return self._bury(member, "crash", f"it could not get ready: {reason}")
        if item is None or isinstance(error.cause, ConfigError):
            raise error.cause
        self._drop(member, reference)
        return None if self._charge(member, item, reason) else Outcome(item, failure="crash", reason=reason)

    def _drop(self, member: _Member, reference: Any) -> None:
        member.held = deque(entry for entry in member.held if entry[0] != reference)
        member.head_since = self._clock()

    def _kill_overdue(self) -> Iterator[Outcome[Item]]:
        """Kill the actors whose item has run too long."""
        for member in list(self._members):
            limit = self._config.start_timeout_s if member.starting else self._config.timeout_s
            if member.held and self._clock() - member.head_since > limit:
                outcome = self._bury(member, "timeout", f"it gave no answer within {limit:g} s")
                if outcome is not None:
                    yield outcome

    def _bury(self, member: _Member, failure: str, reason: str) -> Outcome[Item] | None:
        """Replace a dead actor and hand out again what it held."""
        log.warning("rollout actor %d is replaced: %s", member.index, reason)
        waiting = self._only_waits(member, failure)
        if not waiting:
            self._count_death(reason)
        _, head = member.held.popleft()
        if head is None:
            self._slow.add(member.index)
        if not waiting:
            self._strikes.add(member.index, object() if head is None else id_of(head))
        self._replace(member)
        if head is None or self._charge(member, head, reason):
            return None
        return Outcome(head, failure=failure, reason=reason)

    def _only_waits(self, member: _Member, failure: str) -> bool:
        """Whether an actor waits for a place while others work, which is no death."""
        return member.starting and failure == "timeout" and not all(other.starting for other in self._members)

    def _count_death(self, reason: str) -> None:
        """Give up when actors die and nothing gets done.

        Raises:
            WorkerLost: so it is.
        """
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > (self._config.retries + 1) * len(self._members):
            raise WorkerLost(
                f"{self._deaths_in_a_row} actors died one after another without finishing an episode; the last: "
                f"{reason}. Look into Ray's logs (/tmp/ray/session_latest/logs) and at free memory."
            )

    def _replace(self, member: _Member) -> None:
        """Start another actor in a member's place, or retire the place; what waited is handed out again."""
        import ray

        self._again.extend(item for _, item in member.held if item is not None)
        ray.kill(member.actor, no_restart=True)
        others_work = any(other is not member and not other.starting for other in self._members)
        if others_work and self._strikes.out(member.index):
            log.warning(
                "rollout actor %d is retired: its process broke %d times in a row over what others finish; %d go on",
                member.index,
                self._config.retire_after,
                len(self._members) - 1,
            )
            self._members.remove(member)
        else:
            self._members[self._members.index(member)] = self._start(member.index)

    def _charge(self, member: _Member, item: Item, reason: str) -> bool:
        """Count a retry against the item and queue it again; False if it has none left."""
        key = id_of(item)
        self._failed_at[key] = member.index
        self._charges[key] = self._charges.get(key, 0) + 1
        if self._charges[key] > self._config.retries:
            return False
        self._on_retry(item, reason)
        self._again.append(item)
        return True

    def close(self) -> None:
        """Kill the actors; worlds need no farewell."""
        import ray

        for member in self._members:
            ray.kill(member.actor, no_restart=True)


def id_of(item: Any) -> Any:
    """Give what identifies an item over its retries."""
    return getattr(item, "episode_id", item)


def first_line(error: Exception) -> str:
    """Shorten Ray's page-long messages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
