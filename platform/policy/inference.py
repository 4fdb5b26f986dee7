"""Act with a dual-system policy: plan, condition, denoise, for many sessions at once.

A row must never depend on its neighbours: its noise comes from its own key alone, and, because matrix kernels round
differently at different batch shapes, rows run one by one on a processor (what that costs is in docs/policy.md). On an
accelerator rows run in buckets of fixed size.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from st4vla.platform.contracts import ActionChunk, Observation, PolicySpec, Spatial
from st4vla.platform.errors import PolicyError
from st4vla.platform.policy.diffusion import Guide
from st4vla.platform.policy.engine.engine import Engine
from st4vla.platform.policy.grounding import Answer, ground
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.plan import Plan, unstack_row
from st4vla.platform.policy.processor import Batch, Processor
from st4vla.platform.policy.read_out import read_out
from st4vla.platform.policy.settings import require, require_positive
from st4vla.platform.policy.spatial import Shape

MASK_64 = (1 << 64) - 1


@dataclass(frozen=True)
class InferenceConfig:
    """How a policy is run; None leaves it to the checkpoint.

    Attributes:
        statistics_key: the embodiment to act for, of those that the checkpoint has statistics of.
        plan_period_s: a session's plan is used again until it is this old; 0 makes a new one for every look.
        buckets: batch sizes on an accelerator, ascending; smaller batches are filled up.
        text_step: on an accelerator prompts and plans are padded to a multiple of so many positions.
    """

    ddim_steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    statistics_key: str | None = None
    plan_period_s: float = 0.0
    buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    text_step: int = 16

    def __post_init__(self) -> None:
        require_positive(self, "text_step")
        require(self.temperature is None or 0 <= self.temperature <= 1, self, "temperature", "it must lie in [0, 1]")
        require(self.plan_period_s >= 0, self, "plan_period_s", "it must not be negative")
        require(bool(self.buckets) and list(self.buckets) == sorted(set(self.buckets)), self, "buckets", "sort them")


AS_SAVED = InferenceConfig()


def draw_noise(key: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Draw standard normal float32 noise from a key alone, by a counter-based generator."""
    counter = np.random.Philox(key=np.array([part & MASK_64 for part in key], np.uint64))
    generator = np.random.Generator(counter)
    return generator.standard_normal(shape, np.float32)


class St4vlaPolicy:
    """A contracts.Policy, and its two systems apart; holds one plan per session and nothing else that changes.

    `plan` and `actions` hold nothing at all: whoever calls them keeps the plans, as a server does that runs System 2
    on its own schedule.

    Args:
        clock: seconds, for the age of plans.

    Raises:
        PolicyError: there are no statistics of the embodiment to act for.
    """

    def __init__(
        self,
        model: St4vlaModel,
        processor: Processor,
        config: InferenceConfig = AS_SAVED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.config = config
        self.clock = clock
        self.engine = Engine(
            self.model, processor, config.ddim_steps, config.guidance, config.temperature, config.text_step
        )
        self.device = self.engine.device
        own = model.config.spec
        self.spec: PolicySpec = replace(own, statistics_key=config.statistics_key or own.statistics_key)
        if config.statistics_key:
            processor.normalizer(config.statistics_key)
        self._plans: dict[str, Plan] = {}

    def acting_for(self, statistics_key: str) -> "St4vlaPolicy":
        """Give the same policy for another embodiment of its statistics: weights and engine shared, plans of its own.

        Raises:
            PolicyError: there are no statistics of that embodiment.
        """
        self.processor.normalizer(statistics_key)
        other = copy(self)
        other.config = replace(self.config, statistics_key=statistics_key)
        other.spec = replace(self.spec, statistics_key=statistics_key)
        other._plans = {}
        return other

    def reset(self, session_id: str) -> None:
        """Forget the session's plan."""
        self._plans.pop(session_id, None)

    @torch.inference_mode()
    def act(
        self,
        observations: Sequence[Observation],
        session_ids: Sequence[str],
        noise_keys: Sequence[tuple[int, int]],
    ) -> list[ActionChunk]:
        """Give one chunk per observation, under the session's plan where it is fresh enough.

        Raises:
            PolicyError: an observation lacks what the policy needs, or an action came out not finite.
        """
        chunks: list[ActionChunk] = []
        for part in self._parts(len(observations)):
            rows, now = observations[part], self.clock()
            seen = self._see(rows)
            plans = self._plans_for(rows, session_ids[part], seen, now)
            chunks += self._act_on(seen, plans, noise_keys[part], (), now)
        return chunks

    @torch.inference_mode()
    def plan(self, observations: Sequence[Observation]) -> list[Plan]:
        """System 2 alone: give one plan per observation, to be kept and used with newer frames.

        Raises:
            PolicyError: an observation lacks what the policy needs.
        """
        plans: list[Plan] = []
        for part in self._parts(len(observations)):
            rows, now = observations[part], self.clock()
            plans += self._plan(rows, self._see(rows)["images"], now)
        return plans

    @torch.inference_mode()
    def actions(
        self,
        observations: Sequence[Observation],
        plans: Sequence[Plan],
        noise_keys: Sequence[tuple[int, int]],
        guide: Guide | Sequence[Guide | None] | None = None,
    ) -> list[ActionChunk]:
        """System 1 alone: give one chunk per observation, from its newest frame under a plan that may be old.

        Each chunk says how old its plan is. The plan's words stand; those of the observation are not read.

        Args:
            guide: corrects the clean chunk that each denoising step predicts, in normalised actions [1,T,A]; one for
                all rows or one per row.

        Raises:
            PolicyError: an observation lacks what the policy needs, a plan is missing, or an action is not finite.
        """
        if not len(observations) == len(plans) == len(noise_keys):
            counts = f"{len(observations)} observations, {len(plans)} plans and {len(noise_keys)} noise keys"
            raise PolicyError(f"System 1 was given {counts}; give one plan and one key for each observation.")
        guides = [guide] * len(observations) if callable(guide) else (guide or ())
        chunks: list[ActionChunk] = []
        for part in self._parts(len(observations)):
            seen = self._see(observations[part])
            chunks += self._act_on(seen, plans[part], noise_keys[part], guides[part], self.clock())
        return chunks

    def ground(
        self, images: Sequence[np.ndarray], questions: str | Sequence[str], shape: Shape | None = None
    ) -> list[Answer]:
        """Ask the planner about images: boxes, points or trajectories in pixels of each, see `grounding.ground`."""
        return ground(self.model, self.processor, images, questions, shape)

    def read_out(self, images: Sequence[np.ndarray], instructions: Sequence[str]) -> list[Spatial]:
        """Ask the planner which object each instruction is about now, its box and the way, see `read_out.read_out`."""
        return read_out(self.model, self.processor, images, instructions)

    def _parts(self, count: int) -> Iterator[slice]:
        """Cut rows into what is computed at once: one on a processor, a largest bucket on an accelerator."""
        most = 1 if self.device.type == "cpu" else self.config.buckets[-1]
        return (slice(start, start + most) for start in range(0, count, most))

    def _see(self, observations: Sequence[Observation]) -> Batch:
        """Put the views, and the state where there is one, on the device; filled up to a bucket."""
        fill = self._bucket(len(observations)) - len(observations)
        rows = [*observations, *[observations[-1]] * fill]
        return self._to_device(self.processor.encode_views(rows, self.spec.statistics_key))

    def _plans_for(
        self, observations: Sequence[Observation], sessions: Sequence[str], seen: Batch, now: float
    ) -> list[Plan]:
        """Give each session's plan, made anew where it is too old, for other words, or not there."""
        held = [self._held(s, o.instruction, now) for s, o in zip(sessions, observations, strict=True)]
        rows = [i for i, plan in enumerate(held) if plan is None]
        if rows:
            images = seen["images"] if len(rows) == len(held) else seen["images"][self._filled(rows)]
            made = iter(self._plan([observations[i] for i in rows], images, now))
            held = [plan or next(made) for plan in held]
        plans = [plan for plan in held if plan is not None]
        if self.config.plan_period_s:
            self._plans.update(zip(sessions, plans, strict=True))
        return plans

    def _plan(self, observations: Sequence[Observation], images: Tensor, now: float) -> list[Plan]:
        """Run System 2 on rows whose views, filled up to a bucket, are on the device."""
        began = time.perf_counter()
        words = [o.instruction for o in observations]
        hidden, places, lengths = self.engine.plan([*words, *words[-1:] * (len(images) - len(words))], images)
        spatial = self._pointed_at(places, observations)
        took = time.perf_counter() - began
        return [
            Plan(*unstack_row(hidden, lengths[i], i), spatial[i], words[i], now, took) for i in range(len(observations))
        ]

    def _act_on(
        self,
        seen: Batch,
        plans: Sequence[Plan],
        keys: Sequence[tuple[int, int]],
        guides: Sequence[Guide | None],
        now: float,
    ) -> list[ActionChunk]:
        """Run System 1 on rows whose views, filled up to a bucket, are on the device."""
        began, count = time.perf_counter(), len(plans)
        fill = len(seen["images"]) - count
        noise = self._to_device({"noise": self._noise([*keys, *[keys[-1]] * fill])})["noise"]
        guides = [*guides, *[None] * fill] if any(guides) else ()
        actions = self.engine.act([*plans, *[plans[-1]] * fill], seen, noise, guides)
        values = actions[:count].float().cpu().numpy()
        took = time.perf_counter() - began
        if not np.isfinite(values).all():
            raise PolicyError("The policy's actions are not finite; its weights or the observation are broken.")
        physical = self.processor.normalizer(self.spec.statistics_key).unnormalize_action(values)
        return [chunk_under(plan, row, took, now) for plan, row in zip(plans, physical, strict=True)]

    def _pointed_at(self, places: Tensor | None, observations: Sequence[Observation]) -> list[Spatial | None]:
        """Give where each plan points in pixels of the planner's first view; None without a head that says it."""
        if places is None:
            return [None] * len(observations)
        camera = self.model.config.planner_cameras[0]
        spatial: list[Spatial | None] = []
        for observation, (x, y, *_) in zip(observations, places.tolist(), strict=False):
            height, width = observation.images[camera].shape[:2]
            spatial.append(Spatial(observation.instruction, points=((x * width, y * height),)))
        return spatial

    def _held(self, session: str, instruction: str, now: float) -> Plan | None:
        plan = self._plans.get(session)
        if plan is None or plan.instruction != instruction or now - plan.made_at_s >= self.config.plan_period_s:
            return None
        return plan

    def _noise(self, keys: Sequence[tuple[int, int]]) -> Tensor:
        shape = (self.spec.chunk_length, self.spec.action_dim)
        return torch.from_numpy(np.stack([draw_noise(key, shape) for key in keys]))

    def _bucket(self, count: int) -> int:
        if self.device.type == "cpu":
            return count
        return next(size for size in self.config.buckets if size >= count)

    def _filled(self, rows: list[int]) -> list[int]:
        return rows + rows[-1:] * (self._bucket(len(rows)) - len(rows))

    def _to_device(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        return {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in batch.items()}


def chunk_under(plan: Plan, actions: np.ndarray, took_s: float, now: float) -> ActionChunk:
    """Wrap one row's actions with where its plan points, how old it is, and what either system took."""
    age = max(now - plan.made_at_s, 0.0)
    timing = {"system2_s": 0.0 if age else plan.took_s, "system1_s": took_s}
    return ActionChunk(actions, plan.spatial, timing, age)
