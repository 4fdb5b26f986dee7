"""System 2: a vision-language model whose last hidden layer is the plan, and which can answer in words.

Stage 1 trains it with the next-token loss on answers (ST4VLA, section 3) and, for small planners trained from
nothing, with an auxiliary dense loss on the merged vision tokens, without which they do not learn to point.

Letters: B rows, V views, N = B x V images, S patches of an image, K merged tokens of an image, L text positions,
D planner width.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from st4vla.platform.errors import PolicyError
from st4vla.platform.policy.config import PlannerConfig
from st4vla.platform.policy.dense import DenseHead, WhereHead
from st4vla.platform.policy.packing import Packing, no_mask
from st4vla.platform.policy.planner_build import build_vlm, image_constants
from st4vla.platform.policy.planner_vision import encode_views, patchify

IGNORE = -100


class Planner(nn.Module):
    """Read views and a prompt; give the plan [B,L,D], losses on answers, or an answer."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: PlannerConfig, token_ids: Mapping[str, int]) -> None:
        """Build with random weights; `token_ids` are those of `Processor.token_ids`."""
        super().__init__()
        self.config = config
        self.image_token_id, self.pad_token_id = token_ids["image"], token_ids["pad"]
        self.vlm = build_vlm(config, token_ids)
        mean, std = image_constants(config.kind)
        self.register_buffer("image_mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        dense = config.dense
        self.dense_head = DenseHead(config.text.width, len(dense.words), dense.cells_per_token) if dense.words else None
        self.where_head = WhereHead(config.text.width, dense.cells_per_token) if dense.words else None

    def see(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode uint8 views [N,3,H,W] into merged tokens [N,K,D] and the deep features of Qwen3-VL."""
        pixels = (images.to(self.image_mean.dtype) / 255 - self.image_mean) / self.image_std
        vision = self.config.vision
        patches_NSP = patchify(pixels, vision.patch_size, vision.merge_size)
        grid = (images.shape[2] // vision.patch_size, images.shape[3] // vision.patch_size)
        return encode_views(self.vlm.model.visual, self.config, patches_NSP, grid)

    def read(self, batch: Mapping[str, Tensor], cache: DynamicCache | None = None) -> tuple[Tensor, Tensor]:
        """Give the last hidden layer [B,L,D], and the merged vision tokens [N,K,D] that went into it."""
        last, _, tokens_NKD = self._run(batch, cache)
        return last, tokens_NKD

    def plan(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Give the plan [B,L,P], the last hidden layer [B,L,D], and the merged vision tokens [N,K,D].

        P is D, or as many times D as `plan_layers` names layers.
        """
        layers = self.config.plan_layers
        last, states, tokens_NKD = self._run(batch, None, several=bool(layers))
        return torch.cat([states[i] for i in layers], dim=-1) if layers else last, last, tokens_NKD

    def padding(self) -> Tensor:
        """Give the plan [P] at a padding token that sees no token, as FlashAttention leaves it."""
        text = self.vlm.model.language_model
        states = [text.embed_tokens.weight[self.pad_token_id]]
        for layer in text.layers:
            states.append(states[-1] + layer.mlp(layer.post_attention_layernorm(states[-1])))
        states[-1] = text.norm(states[-1])
        return torch.cat([states[i] for i in self.config.plan_layers or (len(states) - 1,)])

    def _run(
        self, batch: Mapping[str, Tensor], cache: DynamicCache | None, several: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Give the last hidden layer, all of them where `several` are asked for, and the merged vision tokens."""
        packing = Packing.of(batch)
        ids, positions = batch["input_ids"], batch["position_ids"]
        if packing is not None:
            ids, positions = packing.pack(ids), packing.pack(positions)
        tokens_NKD, deep = self.see(batch["images"].flatten(0, 1))
        is_image_BL = ids == self.image_token_id
        embeds_BLD = self.vlm.model.language_model.embed_tokens(ids)
        tokens_NKD = tokens_NKD.to(embeds_BLD.dtype)
        embeds_BLD = embeds_BLD.masked_scatter(is_image_BL[..., None], tokens_NKD)
        extra: dict[str, Any] = {"visual_pos_masks": is_image_BL, "deepstack_visual_embeds": deep} if deep else {}
        if packing is not None:
            extra["packing"] = packing
        output = self.vlm.model.language_model(
            inputs_embeds=embeds_BLD,
            attention_mask=batch["attention_mask"] if packing is None else no_mask(ids),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            output_hidden_states=several,
            **extra,
        )
        last, states = output.last_hidden_state, tuple(output.hidden_states) if several else ()
        if packing is not None:
            last, states = packing.unpack(last), tuple(packing.unpack(state) for state in states)
        return last, states, tokens_NKD

    def grounding_losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Give the next-token loss on the answers and, where the batch and the config have them, the dense losses.

        A batch that says which dataset each row is of ("dataset") also gets "rows" [B], each row's own, for the log.
        Beside the losses: the last hidden layer [B,D] where each prompt ends, and the merged vision tokens [N,K,D].
        """
        hidden_BLD, tokens_NKD = self.read(batch)
        labels = batch["labels"][:, 1:]
        spoken = labels != IGNORE
        logits = self.vlm.lm_head(hidden_BLD[:, :-1][spoken])
        losses = {"answer": F.cross_entropy(logits.float(), labels[spoken])}
        if "dataset" in batch:
            each = F.cross_entropy(logits.detach().float(), labels[spoken], reduction="none")
            words = torch.zeros_like(spoken, dtype=each.dtype).masked_scatter(spoken, each)
            losses["rows"] = words.sum(1) / spoken.sum(1).clamp(min=1)
        if self.dense_head is not None and "dense_labels" in batch:
            losses["dense"] = self.dense_head.loss(tokens_NKD, batch["dense_labels"], batch["dense_targets"])
        last_BD = hidden_BLD[torch.arange(len(spoken)), spoken.int().argmax(1)]
        if self.where_head is not None and "answer_cells" in batch:
            losses["where"] = self.where_head.loss(last_BD, tokens_NKD, batch["answer_cells"])
        return losses, last_BD, tokens_NKD

    def where(self, hidden_BLD: Tensor, tokens_NKD: Tensor) -> Tensor | None:
        """Give the probability map [B,G,G] of what the prompts are about in their first view; None without the head.

        Prompts end where the padding on the left has put them: at the last position.
        """
        if self.where_head is None:
            return None
        return self.where_head.chances(*prompt_end(hidden_BLD, tokens_NKD))

    @torch.no_grad()
    def answer(self, batch: Mapping[str, Tensor], end_id: int, most_tokens: int) -> list[list[int]]:
        """Decode greedily after the prompt; each row's tokens up to its end of turn.

        Raises:
            PolicyError: the numbers are not finite.
        """
        cache = DynamicCache(config=self.vlm.config.text_config)
        hidden, _ = self.read(batch, cache)
        mask, position = batch["attention_mask"], batch["position_ids"].amax(dim=(0, 2)) + 1
        chosen: list[Tensor] = []
        done = torch.zeros_like(position, dtype=torch.bool)
        for _ in range(most_tokens):
            logits = self.vlm.lm_head(hidden[:, -1])
            if not bool(torch.isfinite(logits).all()):
                raise PolicyError("The planner's answer is not finite; its weights are broken. Load them anew.")
            token = logits.argmax(-1)
            token = torch.where(done, end_id, token)
            chosen.append(token)
            done |= token == end_id
            if bool(done.all()):
                break
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            hidden = self.vlm.model.language_model(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=position[None, :, None].expand(3, -1, 1),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            position = position + 1
        rows = torch.stack(chosen, dim=1).tolist()
        return [row[: row.index(end_id)] if end_id in row else row for row in rows]


def prompt_end(hidden_BLD: Tensor, tokens_NKD: Tensor) -> tuple[Tensor, Tensor]:
    """Give what a where head matches: the last hidden layer where prompts end [B,D], and their first view [B,K,D]."""
    return hidden_BLD[:, -1], tokens_NKD.view(len(hidden_BLD), -1, *tokens_NKD.shape[1:])[:, 0]
