"""Answer many robots by one computation at a time: collect requests, close a batch, compute it off the event loop."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from st4vla.platform.errors import ConfigError, WireError
from st4vla.serve.patience import Patience, PatienceConfig

Q = TypeVar("Q")
A = TypeVar("A")
Compute = Callable[[Sequence[Q]], Awaitable[Sequence[A | BaseException]]]


@dataclass(frozen=True)
class BatchConfig:
    """When a batch is closed, and how many requests may wait.

    Attributes:
        max_batch: requests in one computation at most.
        max_queue: requests that may wait; more are refused as "overloaded" at once.
        patience: how long a batch waits for robots that are foreseen to ask.
    """

    max_batch: int = 16
    max_queue: int = 256
    patience: PatienceConfig = PatienceConfig()

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ConfigError(f"batch.max_batch is {self.max_batch}; a batch holds at least 1 request.")
        if self.max_queue < self.max_batch:
            raise ConfigError(
                f"batch.max_queue is {self.max_queue}, less than batch.max_batch={self.max_batch}; "
                "let at least one batch wait."
            )


@dataclass
class Waiting(Generic[Q, A]):
    """One request, its robot, when it came, until when its answer is of use, and where the answer goes."""

    request: Q
    robot: str
    arrived_s: float
    deadline_s: float
    answer: asyncio.Future[A]


@dataclass(frozen=True)
class Answered(Generic[A]):
    """An answer, how long it waited for its batch to start, and how many shared the batch."""

    value: A
    queue_s: float
    batch_size: int


@dataclass
class Counts:
    """What a batcher has done since it was made."""

    batches: int = 0
    answered: int = 0
    expired: int = 0
    overloaded: int = 0
    sizes: dict[int, int] = field(default_factory=dict)


class Batcher(Generic[Q, A]):
    """Collect requests of many robots into batches, soonest deadline first; one batch is computed at a time.

    While one batch is computed the next collects. A request whose deadline passes while it waits is refused as
    "deadline" and never computed. A batch that fails is computed again one by one, so that a request which breaks the
    computation breaks nobody else's.

    Args:
        compute: answers a batch, in order; in place of an answer it may give an exception for that request alone.
        clock: seconds, the event loop's own unless a test gives one.
    """

    def __init__(
        self, compute: Callable[[Sequence[Q]], Awaitable[Sequence[A]]], config: BatchConfig, name: str = "batcher"
    ):
        self._compute = compute
        self._config = config
        self._name = name
        self.patience = Patience(config.patience)
        self.counts = Counts()
        self._waiting: list[Waiting[Q, Answered[A]]] = []
        self._arrival = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        """Count the requests that wait."""
        return len(self._waiting)

    async def ask(self, request: Q, robot: str, deadline_s: float = float("inf")) -> Answered[A]:
        """Wait for the answer to one request.

        Args:
            deadline_s: by `time.monotonic`.

        Raises:
            WireError: "overloaded", "deadline", or "unavailable" when the batcher is closed.
        """
        now = time.monotonic()
        if self._closed:
            raise WireError("unavailable", "", "The server is stopping; connect again.")
        if len(self._waiting) >= self._config.max_queue:
            self.counts.overloaded += 1
            raise WireError("overloaded", "", f"{len(self._waiting)} requests wait already; ask again later.")
        self.patience.asked(robot, now)
        answer: asyncio.Future[Answered[A]] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(request, robot, now, deadline_s, answer))
        self._arrival.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=self._name)
        return await answer

    async def close(self) -> None:
        """Answer what waits, then stop; later requests are refused."""
        self._closed = True
        self._arrival.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while self._waiting or not self._closed:
            if not self._waiting:
                self._arrival.clear()
                await self._arrival.wait()
                continue
            await self._gather()
            batch = self._take()
            if batch:
                await self._answer(batch)

    async def _gather(self) -> None:
        """Wait for foreseen requests as long as that pays."""
        free_s = time.monotonic()
        while 0 < len(self._waiting) < self._config.max_batch and not self._closed:
            now = time.monotonic()
            room = self._config.max_batch - len(self._waiting)
            robots = {waiting.robot for waiting in self._waiting}
            due = self._soonest_deadline() - self.patience.durations.of(self._config.max_batch)
            until = min(self.patience.wait_until(robots, free_s, room, now), due)
            if until <= now:
                return
            self._arrival.clear()
            try:
                async with asyncio.timeout(until - now):  # not `wait_for`, see `Control.watch`
                    await self._arrival.wait()
            except TimeoutError:
                return

    def _soonest_deadline(self) -> float:
        return min(waiting.deadline_s for waiting in self._waiting)

    def _take(self) -> list[Waiting[Q, Answered[A]]]:
        """Refuse what is too late, and take the most urgent of the rest."""
        now = time.monotonic()
        kept = []
        for waiting in self._waiting:
            if waiting.answer.done():  # its robot has gone
                continue
            if waiting.deadline_s <= now:
                self.counts.expired += 1
                late = f"The deadline passed {1000 * (now - waiting.deadline_s):.0f} ms before the computation began."
                waiting.answer.set_exception(WireError("deadline", "", late))
            else:
                kept.append(waiting)
        kept.sort(key=lambda waiting: waiting.deadline_s)
        self._waiting = kept[self._config.max_batch :]
        return kept[: self._config.max_batch]

    async def _answer(self, batch: list[Waiting[Q, Answered[A]]]) -> None:
        began = time.monotonic()
        answers = await self._computed([waiting.request for waiting in batch])
        ended = time.monotonic()
        self.patience.answered([waiting.robot for waiting in batch], len(batch), ended - began, ended)
        self.counts.batches += 1
        self.counts.sizes[len(batch)] = self.counts.sizes.get(len(batch), 0) + 1
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, BaseException):
                waiting.answer.set_exception(answer)
            else:
                self.counts.answered += 1
                waiting.answer.set_result(Answered(answer, began - waiting.arrived_s, len(batch)))

    async def _computed(self, requests: list[Q]) -> Sequence[A | BaseException]:
        try:
            answers = await self._compute(requests)
            if len(answers) != len(requests):
                raise RuntimeError(f"{self._name} gave {len(answers)} answers to {len(requests)} requests")
            return answers
        except Exception as error:  # goes back to those who asked
            if len(requests) == 1:
                return [error]
        return [answer for request in requests for answer in await self._computed([request])]
