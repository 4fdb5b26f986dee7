"""Act with a dual-system policy: plan, condition, denoise, for many sessions at once.

A row must never depend on its neighbours: its noise comes from its own key alone, and, because matrix kernels round
differently at different batch shapes, rows run one by one on a processor (what that costs is in docs/policy.md). On an
accelerator rows run in buckets of fixed size.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from st4vla.platform.contracts import ActionChunk, Observation, Point, PolicySpec, Spatial
from st4vla.platform.errors import PolicyError
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Batch, Processor
from st4vla.platform.policy.settings import require
from st4vla.platform.policy.spatial import Shape, SpatialParseError

MASK_64 = (1 << 64) - 1
MOST_ANSWER_TOKENS = 96


@dataclass(frozen=True)
class InferenceConfig:
    """How a policy is run; None leaves it to the checkpoint.

    Attributes:
        plan_period_s: a session's plan is used again until it is this old; 0 makes a new one for every look.
        buckets: batch sizes on an accelerator, ascending; smaller batches are filled up.
    """

    ddim_steps: int | None = None
    guidance: float | None = None
    plan_period_s: float = 0.0
    buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)

    def __post_init__(self) -> None:
        require(self.plan_period_s >= 0, self, "plan_period_s", "it must not be negative")
        require(bool(self.buckets) and list(self.buckets) == sorted(set(self.buckets)), self, "buckets", "sort them")


@dataclass(frozen=True)
class Plan:
    """What System 2 handed over for one session: hidden layer [1,L,D], mask [1,L], what it points at, and when."""

    hidden: Tensor
    mask: Tensor
    spatial: Spatial | None
    instruction: str
    made_at_s: float


@dataclass(frozen=True)
class Answer:
    """What the planner said, and the place it named in pixels of the image, where one could be read."""

    text: str
    spatial: Spatial | None


AS_SAVED = InferenceConfig()


def draw_noise(key: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Draw standard normal float32 noise from a key alone, by a counter-based generator."""
    counter = np.random.Philox(key=np.array([part & MASK_64 for part in key], np.uint64))
    generator = np.random.Generator(counter)
    return generator.standard_normal(shape, np.float32)


class St4vlaPolicy:
    """A contracts.Policy; holds one plan per session and nothing else that changes.

    Args:
        clock: seconds, for the age of plans.
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
        self.device = next(model.parameters()).device
        self._plans: dict[str, Plan] = {}

    @property
    def spec(self) -> PolicySpec:
        return self.model.config.spec

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
        """Give one chunk per observation.

        Raises:
            PolicyError: an observation lacks what the policy needs, or an action came out not finite.
        """
        chunks: list[ActionChunk] = []
        most = 1 if self.device.type == "cpu" else self.config.buckets[-1]
        for start in range(0, len(observations), most):
            part = slice(start, start + most)
            chunks += self._act(observations[part], session_ids[part], noise_keys[part])
        return chunks

    def ground(
        self, images: Sequence[np.ndarray], questions: Sequence[str], shape: Shape | None = None
    ) -> list[Answer]:
        """Ask the planner about images, one question each, as the Processor's `question` words them."""
        return ground(self.model, self.processor, images, questions, shape)

    def _act(
        self, observations: Sequence[Observation], sessions: Sequence[str], keys: Sequence[tuple[int, int]]
    ) -> list[ActionChunk]:
        count = len(observations)
        fill = self._bucket(count) - count
        batch = self._to_device(self.processor.encode_observations([*observations, *[observations[-1]] * fill]))
        began = time.perf_counter()
        hidden, mask, spatial, ages = self._plans_for(batch, observations, sessions)
        planned = time.perf_counter()
        condition = self.model.condition(hidden, mask, batch["images"], batch.get("state"))
        noise = self._noise([*keys, *[keys[-1]] * fill]).to(condition)
        actions = self.model.sample(condition, noise, self.config.ddim_steps, self.config.guidance)
        values = actions[:count].float().cpu().numpy()
        timing = {"system2_s": planned - began, "system1_s": time.perf_counter() - planned}
        if not np.isfinite(values).all():
            raise PolicyError("The policy's actions are not finite; its weights or the observation are broken.")
        physical = self.processor.normalizer(self.spec.statistics_key).unnormalize_action(values)
        return [ActionChunk(physical[i], spatial[i], timing, ages[i]) for i in range(count)]

    def _plans_for(
        self, batch: Batch, observations: Sequence[Observation], sessions: Sequence[str]
    ) -> tuple[Tensor, Tensor, list[Spatial | None], list[float]]:
        """Give the plans of a batch, what they point at, and their ages; anew unless a lone one is fresh enough."""
        now = self.clock()
        held = [self._held(s, o.instruction, now) for s, o in zip(sessions, observations, strict=True)]
        if len(held) == batch["images"].shape[0] == 1 and held[0] is not None:
            return held[0].hidden, held[0].mask, [held[0].spatial], [now - held[0].made_at_s]
        hidden, mask, maps = self.model.plan_and_point(batch)
        spatial = self._pointed_at(maps, observations)
        if self.config.plan_period_s:
            for i, (session, observation) in enumerate(zip(sessions, observations, strict=True)):
                seen = mask[i].bool()
                kept = hidden[i : i + 1, seen], mask[i : i + 1, seen]
                plan = Plan(*kept, spatial[i], observation.instruction, now)
                self._plans[session] = plan
        return hidden, mask, spatial, [0.0] * len(observations)

    def _pointed_at(self, maps: Tensor | None, observations: Sequence[Observation]) -> list[Spatial | None]:
        """Read where each plan's last token points, in pixels of the planner's first view; None without such a head."""
        if maps is None:
            return [None] * len(observations)
        camera = self.model.config.planner_cameras[0]
        shapes = [o.images[camera].shape for o in observations]
        points = [peak(chances, shape[1], shape[0]) for chances, shape in zip(maps.float().cpu(), shapes, strict=False)]
        return [Spatial(o.instruction, points=(point,)) for o, point in zip(observations, points, strict=True)]

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

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}


def peak(chances_GG: Tensor, width: int, height: int) -> Point:
    """Give the centre of the likeliest 3 x 3 cells of a square map, in pixels of an image of this size.

    Taken about its likeliest cell, weighted, so that two far objects never meet in the middle.
    """
    side = chances_GG.shape[0]
    row, column = divmod(int(chances_GG.argmax()), side)
    rows = slice(max(row - 1, 0), row + 2)
    columns = slice(max(column - 1, 0), column + 2)
    near = chances_GG[rows, columns]
    y = (near.sum(1) * torch.arange(side)[rows]).sum() / near.sum() + 0.5
    x = (near.sum(0) * torch.arange(side)[columns]).sum() / near.sum() + 0.5
    return float(x) * width / side, float(y) * height / side


@torch.inference_mode()
def ground(
    model: St4vlaModel,
    processor: Processor,
    images: Sequence[np.ndarray],
    questions: Sequence[str],
    shape: Shape | None = None,
) -> list[Answer]:
    """Let a model answer questions about images greedily; the model must be in eval mode where it has dropout."""
    device = next(model.parameters()).device
    batch: Mapping[str, Tensor] = {k: v.to(device) for k, v in processor.encode_questions(images, questions).items()}
    rows = model.planner.answer(batch, processor.token_ids["end"], MOST_ANSWER_TOKENS)
    return [read_answer(processor, row, image, shape) for row, image in zip(rows, images, strict=True)]


def read_answer(processor: Processor, tokens: Sequence[int], image: np.ndarray, shape: Shape | None) -> Answer:
    text = processor.decode(tokens)
    try:
        return Answer(text, processor.read_answer(tokens, image, shape))
    except SpatialParseError:
        return Answer(text, None)
