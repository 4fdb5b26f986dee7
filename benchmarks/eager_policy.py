"""The policy run as the public InternVLA-M1 code runs it: the path that the engine's speed is held against.

Every call words and tokenises its prompt anew; images go through PIL and float32 one by one; the planner is
transformers' own forward under autocast, which keeps every hidden layer though only the last is read; the action side
is float32; DDIM doubles its batch for guidance and computes the condition's tokens at every step; nothing is kept
from one call to the next. Rows run as one batch, padded to the longest. Weights are shared where the type allows it.
"""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from st4vla.platform.contracts import Observation
from st4vla.platform.policy.diffusion import sample_ddim
from st4vla.platform.policy.layout import join, pad_left
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.planner_vision import patchify
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.prompt import action_prompt


class EagerPolicy:
    """Two systems without an engine; `plan` and `act` take and give what the engine's do."""

    def __init__(self, model: St4vlaModel, processor: Processor) -> None:
        self.model, self.processor, self.config = model, processor, model.config
        self.device = next(model.parameters()).device
        self.frames, self.queries = deepcopy(model.frame_encoder).float(), deepcopy(model.query_transformer).float()
        self.expert = deepcopy(model.action_expert).float()
        rest = (model.spatial_condition, model.state_encoder)
        self.spatial, self.state = (None if part is None else deepcopy(part).float() for part in rest)

    def plan(self, observations: Sequence[Observation]) -> tuple[Tensor, Tensor]:
        """System 2: give the plan [B,L,D] and its mask."""
        batch = {name: part.to(self.device) for name, part in self._prompts(observations).items()}
        pixels = torch.stack([self._pixels(o, self.config.planner_cameras) for o in observations]).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu"):
            hidden, tokens = self._read(batch, pixels.flatten(0, 1))
        places, mask = self.model.places(hidden, tokens), batch["attention_mask"]
        if places is None or self.model.spatial_encoder is None:
            return hidden, mask
        token = self.model.spatial_encoder(places.to(hidden.dtype))
        return torch.cat([hidden, token[:, None]], dim=1), torch.cat([mask, mask[:, -1:]], dim=1)

    def act(self, observations: Sequence[Observation], plan: Tensor, mask: Tensor, noise: Tensor) -> np.ndarray:
        """System 1: give the actions [B,T,A], un-normalised on the processor."""
        views = torch.stack([self._views(o) for o in observations]).to(self.device)
        tokens = [self.queries(plan.float(), mask, self.frames(views))]
        if self.spatial is not None:
            tokens.append(self.spatial(plan[:, -1:].float()))
        if self.state is not None:
            normalizer = self.processor.normalizer(self.config.statistics_key)
            states = [normalizer.normalize_state(o.state) for o in observations if o.state is not None]
            tokens.append(self.state(torch.from_numpy(np.stack(states)).to(self.device))[:, None])
        expert = self.config.expert
        how = (expert.ddim_steps, expert.diffusion_steps, expert.guidance)
        actions = sample_ddim(self.expert, expert.temperature * noise.float(), torch.cat(tokens, dim=1), *how)
        return self.processor.normalizer(self.config.statistics_key).unnormalize_action(actions.cpu().numpy())

    def _read(self, batch: dict[str, Tensor], pixels: Tensor) -> tuple[Tensor, Tensor]:
        planner, vision = self.model.planner, self.config.planner.vision
        pixels = ((pixels / 255 - planner.image_mean) / planner.image_std).to(planner.vlm.dtype)
        side = self.config.image_size // vision.patch_size
        cut = patchify(pixels, vision.patch_size, vision.merge_size)
        cut = cut.view(*cut.shape[:2], 3, 1, -1).expand(-1, -1, -1, vision.temporal_patch_size, -1)
        grid = torch.tensor([[1, side, side]] * len(pixels), device=self.device)
        seen = planner.vlm.model.visual(cut.flatten(0, 1).flatten(1), grid_thw=grid)
        deep = getattr(seen, "deepstack_features", None)
        at = batch["input_ids"] == planner.image_token_id
        embeds = planner.vlm.model.language_model.embed_tokens(batch["input_ids"])
        extra = {"visual_pos_masks": at, "deepstack_visual_embeds": deep} if deep else {}
        output = planner.vlm.model.language_model(
            inputs_embeds=embeds.masked_scatter(at[..., None], seen.pooler_output.to(embeds.dtype)),
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            output_hidden_states=True,
            use_cache=True,
            **extra,
        )
        hidden = output.hidden_states[-1]
        return hidden, seen.pooler_output.view(len(pixels), -1, hidden.shape[-1]).to(hidden.dtype)

    def _prompts(self, observations: Sequence[Observation]) -> dict[str, Tensor]:
        processor, views, turns = self.processor, len(self.config.planner_cameras), []
        for observation in observations:
            words = action_prompt(observation.instruction, self.config.prompt, self.config.semantics, acting=True)
            content = [{"type": "image"}] * views + [{"type": "text", "text": words}]
            text = processor.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],  # pyright: ignore[reportArgumentType]
                tokenize=False,
                add_generation_prompt=True,
            )
            ids = processor.tokenizer(str(text), add_special_tokens=False)["input_ids"]
            turns.append(join(ids, processor.token_ids["image"], self.config.tokens_per_side))  # pyright: ignore[reportArgumentType]
        return pad_left(turns, processor.token_ids["pad"])

    def _pixels(self, observation: Observation, cameras: Sequence[str]) -> Tensor:
        """Give views as float32 [V,3,H,W], resized one by one."""
        size = (self.config.image_size, self.config.image_size)
        pictures = [Image.fromarray(observation.images[camera]).resize(size) for camera in cameras]
        return torch.stack([torch.from_numpy(np.asarray(one, np.float32)).permute(2, 0, 1) for one in pictures])

    def _views(self, observation: Observation) -> Tensor:
        return self._pixels(observation, self.config.cameras)
