"""Policies of a known duration, for measuring what serving adds; no command serves them unless it is told this module.

Every answer holds the first pixel of the frame it was given and the first number of the state, so that a reply which
was swapped or lost between robots is seen.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from st4vla.platform.contracts import ActionChunk, Observation, PolicySpec

SPEC = PolicySpec(("third_person", "wrist"), 224, 8, 7, 10, 10.0, "fixed_latency")


@dataclass(frozen=True)
class Plan:
    """A plan that says which frame it was made from."""

    pixel: int
    instruction: str
    spatial: None = None


class FixedLatencyPolicy:
    """Two systems that take `plan_s` and `act_s` a batch, whatever its size."""

    def __init__(self, act_s: float = 0.0, plan_s: float = 0.0, spec: PolicySpec = SPEC):
        self.act_s = act_s
        self.plan_s = plan_s
        self.spec = spec
        self.batches: list[int] = []
        self.planned: list[int] = []

    def reset(self, session_id: str) -> None:
        """Forget nothing."""

    def plan(self, observations: Sequence[Observation]) -> list[Plan]:
        """Wait, and name the frames."""
        self.planned.append(len(observations))
        wait(self.plan_s)
        return [Plan(first_pixel(seen), seen.instruction) for seen in observations]

    def actions(
        self,
        observations: Sequence[Observation],
        plans: Sequence[Plan],
        noise_keys: Sequence[tuple[int, int]],
        guide: object = None,
    ) -> list[ActionChunk]:
        """Wait, and answer with the first pixel of the frame, that of the plan, and the state's first number."""
        self.batches.append(len(observations))
        wait(self.act_s)
        return [self._chunk(seen, plan, key) for seen, plan, key in zip(observations, plans, noise_keys, strict=True)]

    def _chunk(self, seen: Observation, plan: Plan, key: tuple[int, int]) -> ActionChunk:
        actions = np.zeros((self.spec.chunk_length, self.spec.action_dim), np.float32)
        actions[:, 0], actions[:, 1] = first_pixel(seen), plan.pixel
        actions[:, 2] = 0.0 if seen.state is None else seen.state[0]
        actions[:, 3] = key[1] % 1_000_000
        return ActionChunk(actions)


def build(reference: str) -> FixedLatencyPolicy:
    """Give the policy that a reference such as "fixed-50-10@2" describes: 50 ms to act, 10 ms to plan, version 2."""
    _, act_ms, plan_ms = reference.partition("@")[0].split("-")
    return FixedLatencyPolicy(float(act_ms) / 1000, float(plan_ms) / 1000)


def first_pixel(seen: Observation) -> int:
    return int(next(iter(seen.images.values()))[0, 0, 0])


def wait(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)
