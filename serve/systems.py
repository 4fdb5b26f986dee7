"""The policy as a server runs it: System 2 and System 1 apart where it has two, as one where it has not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from st4vla.platform.contracts import ActionChunk, Observation, Policy, PolicySpec, Spatial
from st4vla.platform.errors import ConfigError, PolicyError, WireError
from st4vla.platform.policy.realtime import Continuation, Inpainting, check_range, continuation

NoiseKey = tuple[int, int]


@dataclass(frozen=True)
class Continue:
    """What a new chunk goes on from: the rows of the old one that remain, float32 [K,A]; `delay` of them are frozen."""

    remaining: np.ndarray
    delay: int


class Systems(Protocol):
    """What a replica needs; `plan` and `actions` may take long and are called from threads, one of each at a time.

    `plan` gives what System 1 acts on, with a `spatial` read-out; `actions` one chunk for each observation; `check`
    refuses, before it joins a batch, what cannot be continued.
    """

    dual: bool

    @property
    def spec(self) -> PolicySpec: ...

    def check(self, continued: Continue) -> None: ...

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

    def check(self, continued: Continue) -> None:
        """Refuse a continuation whose numbers of steps do not fit the chunk.

        Raises:
            WireError: naming the field.
        """
        horizon = self.spec.chunk_length
        try:
            check_range(horizon, horizon - len(continued.remaining), continued.delay)
        except PolicyError as error:
            raise WireError("invalid", "st4vla.delay_steps", str(error)) from None

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
        """Run System 1; what continues an old chunk is inpainted on it, and its frozen rows come back as they were."""
        kept = [self._kept(one) for one in continued]
        if not any(kept):
            return self._policy.actions(observations, plans, noise_keys)
        scale = self._policy.processor.normalizer(self.spec.statistics_key)
        guides = [Inpainting.of(one, scale, self.spec.action_form) if one else None for one in kept]
        chunks = self._policy.actions(observations, plans, noise_keys, guides)
        return [
            replace(chunk, actions=one.keep_frozen(chunk.actions)) if one else chunk
            for chunk, one in zip(chunks, kept, strict=True)
        ]

    def _kept(self, continued: Continue | None) -> Continuation | None:
        if continued is None or not hasattr(self._policy, "processor"):
            return None
        return continuation(continued.remaining, continued.delay, self.spec.chunk_length)

    def ground(self, image: np.ndarray, question: str) -> tuple[str, Spatial | None]:
        """Let the planner answer a question about an image.

        Raises:
            WireError: "unavailable": it has none that does.
        """
        if not hasattr(self._policy, "ground"):
            raise WireError("unavailable", "", "The served policy has no planner that answers questions.")
        (answer,) = self._policy.ground([image], [question])
        return answer.text, answer.spatial

    def read_out(self, image: np.ndarray, instruction: str) -> Spatial | None:
        """Say which object System 2 sees an instruction to be about, its box and the way; None where it cannot."""
        if not hasattr(self._policy, "read_out"):
            return None
        (seen,) = self._policy.read_out([image], [instruction])
        return seen


class OneSystem:
    """A policy that only acts: its plan is whatever it makes for itself, and old chunks are not continued."""

    dual = False

    def __init__(self, policy: Policy):
        self._policy = policy

    @property
    def spec(self) -> PolicySpec:
        """The policy's own."""
        return self._policy.spec

    def check(self, continued: Continue) -> None:
        """Refuse nothing: what remains of an old chunk is not looked at."""

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
    """Give what may be told of an error: our own words for what is wrong, with a request or with how we are set up."""
    if isinstance(error, WireError):
        return error
    if isinstance(error, PolicyError):
        return WireError("invalid", "", str(error))
    if isinstance(error, ConfigError):
        return WireError("unavailable", "", str(error))
    return WireError("internal", "", "The server failed to answer; its log says why.")
