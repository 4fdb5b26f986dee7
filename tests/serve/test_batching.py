"""Requests of many robots are computed together, and none harms another."""

import asyncio
from collections.abc import Sequence

import pytest

from st4vla.platform.errors import ConfigError, WireError
from st4vla.serve.batching import BatchConfig, Batcher


class Gate:
    """Doubles numbers once it is opened; refuses negative ones, with everything beside them."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()

    async def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        await self.open.wait()
        if min(numbers) < 0:
            raise ValueError("negative")
        return [2 * number for number in numbers]


async def soon(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_what_arrives_during_a_computation_is_computed_together() -> None:
    async def story() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate, BatchConfig(max_batch=4))
        asked = [asyncio.create_task(batcher.ask(1, "robot1"))]
        await soon()
        asked += [asyncio.create_task(batcher.ask(i, f"robot{i}")) for i in range(2, 8)]
        await soon()
        gate.open.set()
        answers = await asyncio.gather(*asked)
        assert [answer.value for answer in answers] == [2, 4, 6, 8, 10, 12, 14]
        assert gate.batches[:2] == [[1], [2, 3, 4, 5]] and answers[1].batch_size == 4
        await batcher.close()

    asyncio.run(story())


def test_the_most_urgent_are_computed_first() -> None:
    async def story() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate, BatchConfig(max_batch=1, max_queue=9))
        now = asyncio.get_running_loop().time()
        asked = [asyncio.create_task(batcher.ask(1, "a"))]
        await soon()
        asked += [asyncio.create_task(batcher.ask(n, str(n), now + 100 * n)) for n in (3, 2)]
        await soon()
        gate.open.set()
        await asyncio.gather(*asked)
        assert gate.batches == [[1], [2], [3]]

    asyncio.run(story())


def test_a_request_whose_time_is_over_is_refused_and_not_computed() -> None:
    async def story() -> None:
        gate = Gate()
        gate.open.set()
        batcher: Batcher[int, int] = Batcher(gate, BatchConfig())
        with pytest.raises(WireError, match="deadline passed") as caught:
            await batcher.ask(1, "robot", deadline_s=0.0)
        assert caught.value.kind == "deadline" and gate.batches == [] and batcher.counts.expired == 1

    asyncio.run(story())


def test_a_request_that_breaks_the_computation_breaks_only_itself() -> None:
    async def story() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate, BatchConfig(max_batch=4))
        asked = [asyncio.create_task(batcher.ask(0, "first"))]
        await soon()
        asked += [asyncio.create_task(batcher.ask(i, f"robot{i}")) for i in (1, -1, 2)]
        await soon()
        gate.open.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(answers[2], ValueError)
        assert [a.value for a in answers if not isinstance(a, BaseException)] == [0, 2, 4]

    asyncio.run(story())


def test_more_requests_than_may_wait_are_refused_at_once() -> None:
    async def story() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate, BatchConfig(max_batch=1, max_queue=2))
        asked = [asyncio.create_task(batcher.ask(i, str(i))) for i in range(3)]
        await soon()
        results = await asyncio.gather(asked[2], return_exceptions=True)
        assert isinstance(results[0], WireError) and results[0].kind == "overloaded"
        gate.open.set()
        await asyncio.gather(*asked[:2])

    asyncio.run(story())


def test_a_robot_that_left_is_not_computed_for() -> None:
    async def story() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate, BatchConfig(max_batch=1, max_queue=9))
        first, gone, last = [asyncio.create_task(batcher.ask(i, str(i))) for i in (1, 2, 3)]
        await soon()
        gone.cancel()
        gate.open.set()
        await asyncio.gather(first, last)
        assert gate.batches == [[1], [3]]

    asyncio.run(story())


def test_closing_answers_what_waits_and_refuses_what_comes() -> None:
    async def story() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate, BatchConfig())
        asked = asyncio.create_task(batcher.ask(1, "robot"))
        await soon()
        gate.open.set()
        await batcher.close()
        assert (await asked).value == 2
        with pytest.raises(WireError, match="stopping"):
            await batcher.ask(2, "robot")

    asyncio.run(story())


def test_a_queue_shorter_than_a_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_queue is 2"):
        BatchConfig(max_batch=4, max_queue=2)
