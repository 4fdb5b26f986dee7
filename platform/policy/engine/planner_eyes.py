"""Run the planner's image encoder on views of one size, with every table of places made once.

Qwen3-VL's looks at whole images; Qwen2.5-VL's looks at windows in most layers. Where the windows are equal, as at
224 px, they are one batch; transformers runs them one by one and asks the processor for their lengths each time.

Letters: N images, S patches, P values of a patch, C width, W windows of an image, K merged tokens, D planner width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.engine.attention import attend, rms_norm, sign, turn
from st4vla.platform.policy.planner import Planner
from st4vla.platform.policy.planner_vision import merged_order, patchify, qwen3_positions


class PlannerEyes:
    """The planner's image encoder on uint8 views [N,3,H,W]; weights and tables are read when it is made."""

    def __init__(self, planner: Planner, config: PolicyConfig) -> None:
        self.planner = planner
        self.visual: Any = planner.vlm.model.visual
        self.vision = config.planner.vision
        side = config.image_size // self.vision.patch_size
        self.grid = (side, side)
        projection = self.visual.patch_embed.proj
        device = projection.weight.device
        # A still image repeats its frame over the temporal patch, so the weights of the frames add up.
        self.widen = projection.weight.sum(2).flatten(1)
        self.bias = projection.bias
        self.window = self.vision.window_px // self.vision.token_px * self.vision.merge_size
        if config.planner.kind == "qwen3_vl":
            self.positions, (cos, sin) = qwen3_positions(self.visual, self.grid, device)
        else:
            self.positions = None
            self.order = window_order(side, self.window, self.vision.merge_size, device)
            cos, sin = qwen2_5_tables(self.visual, self.grid, self.vision.merge_size, device)
            cos, sin = cos[self.order], sin[self.order]
            # Each merged token's place after the windows, in units of merged tokens.
            self.back = (
                self.order.view(-1, self.vision.merge_size**2)[:, 0]
                .div(self.vision.merge_size**2, rounding_mode="floor")
                .argsort()
            )
        self.cos, self.signed_sin = cos.float()[:, None], sign(sin.float())[:, None]

    @classmethod
    def fit(cls, config: PolicyConfig) -> bool:
        """Say whether this encoder serves a policy: any Qwen3-VL planner, and Qwen2.5-VL where windows are equal."""
        vision = config.planner.vision
        window = vision.window_px // vision.token_px
        return config.planner.kind == "qwen3_vl" or config.tokens_per_side % max(window, 1) == 0

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Give merged tokens [N,K,D] and the deep features [N*K,D] of Qwen3-VL."""
        pixels = (images.to(self.planner.image_mean.dtype) / 255 - self.planner.image_mean) / self.planner.image_std
        patches_NSP = patchify(pixels, self.vision.patch_size, self.vision.merge_size)
        x_NSC = F.linear(patches_NSP.to(self.widen.dtype), self.widen, self.bias)
        return self._whole(x_NSC + self.positions) if self.positions is not None else self._windows(x_NSC)

    def _whole(self, x_NSC: Tensor) -> tuple[Tensor, list[Tensor]]:
        deep: list[Tensor] = []
        for index, block in enumerate(self.visual.blocks):
            x_NSC = x_NSC + self._attend(block.attn, block.norm1(x_NSC), self.cos, self.signed_sin)
            x_NSC = x_NSC + block.mlp(block.norm2(x_NSC))
            if index in self.vision.deep_layers:
                deep.append(self.visual.deepstack_merger_list[self.vision.deep_layers.index(index)](x_NSC))
        merged = self.visual.merger(x_NSC)
        return merged.view(x_NSC.shape[0], -1, merged.shape[-1]), deep

    def _windows(self, x_NSC: Tensor) -> tuple[Tensor, list[Tensor]]:
        n, s, c = x_NSC.shape
        x_NSC, size = x_NSC[:, self.order], self.window**2
        folded = (-1, size, *self.cos.shape[1:])
        cos, signed_sin = (t.view(folded).repeat(n, 1, 1, 1) for t in (self.cos, self.signed_sin))
        for index, block in enumerate(self.visual.blocks):
            normed = rms_norm(block.norm1, x_NSC)
            if index in self.vision.full_attention_layers:
                seen = self._attend(block.attn, normed, self.cos, self.signed_sin)
            else:
                seen = self._attend(block.attn, normed.view(-1, size, c), cos, signed_sin).view(n, s, c)
            x_NSC = x_NSC + seen
            normed = rms_norm(block.norm2, x_NSC)
            x_NSC = x_NSC + block.mlp.down_proj(F.silu(block.mlp.gate_proj(normed)) * block.mlp.up_proj(normed))
        merger = self.visual.merger
        merged = merger.mlp(rms_norm(merger.ln_q, x_NSC).view(n, -1, merger.hidden_size))
        return merged[:, self.back], []

    def _attend(self, own: Any, x_NSC: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        n, s, _ = x_NSC.shape
        qkv = own.qkv(x_NSC).view(n, s, 3, own.num_heads, -1)
        turned = turn(qkv[:, :, :2], cos.unsqueeze(-3), signed_sin.unsqueeze(-3))
        return own.proj(attend(turned[:, :, 0], turned[:, :, 1], qkv[:, :, 2]))


def window_order(side: int, window: int, merge: int, device: torch.device) -> Tensor:
    """List the patches of a side x side grid window by window, in the order of `patchify` within each."""
    order = merged_order((side, side), merge, device)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=device)
    blocks = place.view(side // window, window, side // window, window).transpose(1, 2).reshape(-1, window * window)
    return blocks[:, merged_order((window, window), merge, device)].reshape(-1)


def qwen2_5_tables(visual: Any, grid: tuple[int, int], merge: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Give the rotary cosine and sine [S,C] of the patches in the order of `patchify`."""
    order = merged_order(grid, merge, device)
    rates = visual.rotary_pos_emb.inv_freq.to(device, torch.float32)
    turns = torch.stack([order // grid[1], order % grid[1]], dim=1)[..., None] * rates
    angles = turns.flatten(1).repeat(1, 2)
    return angles.cos(), angles.sin()
