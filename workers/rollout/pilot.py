"""Let a policy take the expert's place in a demonstration: one action at a time, a look when its chunk is used up."""

from collections import deque
from typing import Any

import numpy as np

from st4vla.platform.contracts import EpisodeSpec
from st4vla.workers.rollout.episode import check_chunk
from st4vla.workers.rollout.inference import PolicyClient


class Pilot:
    """Fly one episode of one world by a policy; remembers the rest of the last chunk.

    Args:
        execute: actions of each chunk that are executed before the next look; None for the whole chunk.
    """

    def __init__(self, world: Any, client: PolicyClient, spec: EpisodeSpec, execute: int | None = None) -> None:
        self._world, self._client, self._spec, self._execute = world, client, spec, execute
        self._queue: deque[np.ndarray] = deque()
        self._looks = 0
        client.reset(spec.episode_id)

    def act(self) -> np.ndarray:
        """Give the next action, float32 [7].

        Raises:
            PolicyError: the policy's answer is unusable.
        """
        if not self._queue:
            observation = self._world.observe(self._client.spec)
            chunk = self._client.act(observation, self._spec.episode_id, (self._spec.seed, self._looks))
            self._queue.extend(check_chunk(chunk, self._client.spec)[: self._execute])
            self._looks += 1
        return self._queue.popleft()
