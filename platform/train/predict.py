"""Let a policy under training answer questions and act open loop, whole batches at a time.

The serving path (`policy/inference.py`) makes every row independent of its batch; validation needs no such care.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from st4vla.platform.contracts import GroundingSample, Observation, Spatial
from st4vla.platform.policy.grounding import SHAPES
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.spatial import SpatialParseError
from st4vla.platform.train.objective import EXACT

MOST_TOKENS = 64


class Predictor:
    """A model and its processor, asked on the model's own device and in its own precision."""

    def __init__(self, model: St4vlaModel, processor: Processor) -> None:
        self.model = model
        self.processor = processor
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype

    @torch.no_grad()
    def answer(self, asked: Sequence[GroundingSample]) -> list[Spatial | None]:
        """Answer questions greedily; None where the text could not be read."""
        questions = [self.processor.question(sample.kind, sample.label) for sample in asked]
        batch = self.processor.encode_questions([sample.image for sample in asked], questions)
        end = self.processor.token_ids["end"]
        rows = self.model.planner.answer(placed(batch, self.model), end, MOST_TOKENS)
        return [self._read(sample, row) for sample, row in zip(asked, rows, strict=True)]

    @torch.no_grad()
    def act(
        self, seen: Sequence[Observation], keys: Sequence[tuple[int, int]], statistics_key: str = ""
    ) -> list[np.ndarray]:
        """Give a chunk [T,A] in physical units for each observation, its noise drawn from its key.

        Args:
            statistics_key: the embodiment that all of them are of; the policy's own unless given.
        """
        embodiment = statistics_key or self.model.config.statistics_key
        prompts = self.processor.encode_prompts([one.instruction for one in seen])
        batch = placed(prompts | self.processor.encode_views(seen, embodiment), self.model)
        plan, mask = self.model.plan(batch)
        condition = self.model.condition(plan, mask, batch["images"], batch.get("state"))
        noise = torch.from_numpy(np.stack([self._noise(key) for key in keys])).to(self.device, condition.dtype)
        actions = self.model.sample(condition, noise).float().cpu().numpy()
        return list(self.processor.normalizer(embodiment).unnormalize_action(actions))

    def _noise(self, key: tuple[int, int]) -> np.ndarray:
        config = self.model.config
        rng = np.random.Generator(np.random.Philox(key=list(key)))
        return rng.standard_normal((config.chunk_length, config.action_dim), dtype=np.float32)

    def _read(self, sample: GroundingSample, tokens: Sequence[int]) -> Spatial | None:
        if sample.kind in ("subgoal", "words"):
            return Spatial(label=str(self.processor.tokenizer.decode(list(tokens))).strip())
        try:
            return self.processor.read_answer(tokens, sample.image, SHAPES[sample.kind])
        except SpatialParseError:
            return None


def placed(batch: Mapping[str, torch.Tensor], model: torch.nn.Module) -> dict[str, Any]:
    """Bring a batch to a model's device and precision; actions to be noised keep theirs."""
    weight = next(model.parameters())
    return {
        name: value.to(weight.device, weight.dtype if value.is_floating_point() and name != EXACT else value.dtype)
        for name, value in batch.items()
    }
