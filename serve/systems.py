"""The policy as a server runs it: System 2 and System 1 apart where it has two, as one where it has not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from st4vla.platform.contracts import ActionChunk, Observation, Policy, PolicySpec, Spatial
from st4vla.platform.errors import ConfigError, PolicyError, WireError

NoiseKey = tuple[int, int]


@dataclass(frozen=True)
class Continue:
    """What a new chunk goes on from: the rows of the old one that remain, float32 [K,A]; `delay` of them are frozen."""

    remaining: np.ndarray
    delay: int


class Systems(Protocol):
    """What a replica needs; both calls may take long and are made from threads, one of each at a time.

    `plan` gives what System 1 acts on, with a `spatial` read-out; `actions` one chunk for each observation.
    """

    dual: bool

    @property
    def spec(self) -> PolicySpec: ...

    def plan(self, observations: Sequence[Observation]) -> Sequence[Any]: ...

    def actions(
        self,
        observations: Sequence[Observation],
        plans: Sequence[Any],
        noise_keys: Sequence[NoiseKey],
        continued: Sequence[Continue | None],
    ) -> list[ActionChunk]: ...


class DualSystems:
    """A policy with two systems that may be run apart."""

    dual = True

    def __init__(self, policy: Any):
        self._policy = policy

    @property
    def spec(self) -> PolicySpec:
        """The policy's own."""
        return self._policy.spec

    def plan(self, observations: Sequence[Observation]) -> Sequence[Any]:
        """Run System 2."""
        return self._policy.plan(observations)

    def actions(
        self,
        observations: Sequence[Observation],
        plans: Sequence[Any],
        noise_keys: Sequence[NoiseKey],
        continued: Sequence[Continue | None],
    ) -> list[ActionChunk]:
        """Run System 1."""
        return self._policy.actions(observations, plans, noise_keys)

    def ground(self, image: np.ndarray, question: str) -> tuple[str, Spatial | None]:
        """Let the planner answer a question about an image."""
        (answer,) = self._policy.ground([image], [question])
        return answer.text, answer.spatial


class OneSystem:
    """A policy that only acts: its plan is whatever it makes for itself, and old chunks are not continued."""

    dual = False

    def __init__(self, policy: Policy):
        self._policy = policy

    @property
    def spec(self) -> PolicySpec:
        """The policy's own."""
        return self._policy.spec

    def plan(self, observations: Sequence[Observation]) -> Sequence[Any]:
        """Give nothing: there is no System 2."""
        return [None] * len(observations)

    def actions(
        self,
        observations: Sequence[Observation],
        plans: Sequence[Any],
        noise_keys: Sequence[NoiseKey],
        continued: Sequence[Continue | None],
    ) -> list[ActionChunk]:
        """Act; the noise key's first part tells sessions apart."""
        return self._policy.act(observations, [str(seed) for seed, _ in noise_keys], noise_keys)


def systems_of(policy: Any) -> Systems:
    """Give a policy as a server runs it.

    Raises:
        ConfigError: it needs what no robot can send.
    """
    if policy.spec.state_form == "privileged":
        raise ConfigError(
            "the policy reads a simulator's privileged state, which no robot can send; serve one that acts from images."
        )
    return DualSystems(policy) if hasattr(policy, "plan") and hasattr(policy, "actions") else OneSystem(policy)


def as_refusal(error: BaseException) -> WireError:
    """Give what may be told of an error: our own words for what is wrong with a request, nothing of anything else."""
    if isinstance(error, WireError):
        return error
    if isinstance(error, PolicyError):
        return WireError("invalid", "", str(error))
    return WireError("internal", "", "The server failed to answer; its log says why.")
