"""Facts about batching, without Ray and without a clock."""

import asyncio
from typing import Any

import numpy as np
import pytest

from st4vla.platform.contracts import ActionChunk, Observation
from st4vla.platform.errors import ConfigError, PolicyError
from st4vla.workers.rollout.inference import BatchCollector, BatchConfig, InferenceServer

NEVER_MS = 1e9


def request(number: int):
    return Observation({}, None, str(number)), f"session {number}", (number, 0), ""


class Counting:
    """Answer each request with its own number, and note the batches."""

    def __init__(self, fails_on=None):
        self.batches = []
        self._fails_on = fails_on

    async def __call__(self, requests):
        await asyncio.sleep(0)
        numbers = [key[0] for _, _, key, _ in requests]
        self.batches.append(numbers)
        if self._fails_on in numbers:
            raise PolicyError("no")
        return [ActionChunk(np.full((1, 7), number)) for number in numbers]


def ask_all(policy, config, numbers) -> list[Any]:
    async def gather():
        collector = BatchCollector(policy, config)
        return await asyncio.gather(*(collector.ask(request(number)) for number in numbers), return_exceptions=True)

    return asyncio.run(gather())


def test_a_full_batch_waits_for_no_timer():
    policy = Counting()
    answers = ask_all(policy, BatchConfig(max_batch=4, max_wait_ms=NEVER_MS), range(8))
    assert policy.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [int(answer.actions[0, 0]) for answer in answers] == list(range(8))


def test_a_half_full_batch_is_closed_by_its_timer():
    policy = Counting()
    ask_all(policy, BatchConfig(max_batch=4, max_wait_ms=1), range(6))
    assert policy.batches == [[0, 1, 2, 3], [4, 5]]


def test_an_error_reaches_its_own_batch_only():
    policy = Counting(fails_on=1)
    answers = ask_all(policy, BatchConfig(max_batch=2, max_wait_ms=1), range(4))
    assert [isinstance(answer, PolicyError) for answer in answers] == [True, True, False, False]


def test_a_short_answer_is_an_error_for_all_who_asked():
    async def forgetful(requests):
        return [ActionChunk(np.zeros((1, 7)))]

    answers = ask_all(forgetful, BatchConfig(max_batch=2, max_wait_ms=1), range(2))
    assert all(isinstance(answer, ValueError) for answer in answers)


def test_the_server_batches_what_its_policy_acts_on():
    class Echo:
        spec = None

        def __init__(self):
            self.sizes = []

        def reset(self, session_id):
            pass

        def act(self, observations, session_ids, noise_keys):
            self.sizes.append(len(observations))
            return [ActionChunk(np.full((1, 7), key[0])) for key in noise_keys]

    echo: Any = Echo()

    async def drive():
        server = InferenceServer(lambda: echo, BatchConfig(max_batch=3, max_wait_ms=NEVER_MS))
        return await asyncio.gather(*(server.act(*request(number)) for number in range(3)))

    answers = asyncio.run(drive())
    assert echo.sizes == [3]
    assert [int(answer.actions[0, 0]) for answer in answers] == [0, 1, 2]


def test_an_empty_batch_size_is_a_config_error():
    with pytest.raises(ConfigError, match="max_batch is 0"):
        BatchConfig(max_batch=0)
