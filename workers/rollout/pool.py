"""Hand work to Ray actors as they come free, restart those that die, and hand their work out again."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from st4vla.platform.errors import ConfigError, St4vlaError, WorkerLost

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
    """

    retries: int = 2
    timeout_s: float = 600.0
    start_timeout_s: float = 600.0
    in_flight: int = 2

    def __post_init__(self) -> None:
        for name in ("retries", "timeout_s", "start_timeout_s"):
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
    """A fixed number of actors that take work when free.

    The driver owns the pool. An actor that dies or overruns is replaced; the item it worked on is charged one
    retry, items that merely waited at it are handed out again free of charge. What is lost with an actor is its
    worlds, which the next one builds again, and the work of the item it was at. An idle actor takes what waits at
    a busy one when nothing else is left. An actor that cannot be placed, as its node is gone, holds nobody up.

    `make_actor(index)` gives a Ray actor with a `ready()` method; an error of ours raised there ends the run, since
    the next actor would meet it too.
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
                    item = self._again.popleft() if self._again else next_item(member.index)
                    nothing_left = item is None
                    if item is None and not member.held:
                        item = self._steal()
                    if item is None:
                        break
                    if not member.held:
                        member.head_since = self._clock()
                    member.held.append((submit(member.actor, item), item))
        return nothing_left

    def _steal(self) -> Item | None:
        """Take an item back that waits at an actor, the one that has been longest at its present item.

        Should that actor begin it at this very moment, both run it, and the first result counts.
        """
        import ray

        busy = [member for member in self._members if not member.starting and len(member.held) > 1]
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
        self._deaths_in_a_row = 0 if item is not None else self._deaths_in_a_row
        self._drop(member, reference)
        if item is None:
            return None
        if self._spent(value):
            self._replace(member)
        reason = retry_reason(value)
        if reason and self._charge(item, reason):
            return None
        return Outcome(item, value)

    def _task_failed(self, member: _Member, reference: Any, item: Any, error: Any) -> Outcome[Item] | None:
        self._drop(member, reference)
        if item is None or isinstance(error.cause, ConfigError):
            raise error.cause if isinstance(error.cause, St4vlaError) else error
        reason = f"{type(error.cause).__name__}: {error.cause}"
        return None if self._charge(item, reason) else Outcome(item, failure="crash", reason=reason)

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
        self._count_death(member, failure, reason)
        _, head = member.held.popleft()
        self._replace(member)
        if head is None or self._charge(head, reason):
            return None
        return Outcome(head, failure=failure, reason=reason)

    def _count_death(self, member: _Member, failure: str, reason: str) -> None:
        """Give up when actors die and nothing gets done; one that waits for a place while others work is no death.

        Raises:
            WorkerLost: so it is.
        """
        if member.starting and failure == "timeout" and not all(other.starting for other in self._members):
            return
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > (self._config.retries + 1) * len(self._members):
            raise WorkerLost(
                f"{self._deaths_in_a_row} actors died one after another without finishing an episode; the last: "
                f"{reason}. Look into Ray's logs (/tmp/ray/session_latest/logs) and at free memory."
            )

    def _replace(self, member: _Member) -> None:
        """Start another actor in a member's place; what waited at it is handed out again."""
        import ray

        self._again.extend(item for _, item in member.held if item is not None)
        ray.kill(member.actor, no_restart=True)
        self._members[self._members.index(member)] = self._start(member.index)

    def _charge(self, item: Item, reason: str) -> bool:
        """Count a retry against the item and queue it again; False if it has none left."""
        key = id_of(item)
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
