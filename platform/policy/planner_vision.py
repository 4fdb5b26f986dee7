"""Run the planner's image encoder on views of one size.

transformers runs attention image by image, because images may differ in size; ours never do, so Qwen3-VL's encoder
is run here on whole batches with the same weights (a test holds the two equal). Qwen2.5-VL's windows go through
transformers' own code.

Letters: N images, S patches, P values of a patch, C width, K merged tokens, D planner width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from st4vla.platform.policy.config import PlannerConfig

ROTARY_BASE = 10_000.0


def patchify(pixels: Tensor, patch: int, merge: int) -> Tensor:
    """Cut [N,3,H,W] into patches [N,S,3*patch*patch], those of one merged token next to each other."""
    n, channels, height, width = pixels.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    cut = pixels.view(n, channels, rows, merge, patch, columns, merge, patch)
    return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(n, rows * columns * merge * merge, channels * patch * patch)


def encode_views(
    visual: Any, config: PlannerConfig, patches_NSP: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, list[Tensor]]:
    """Give merged tokens [N,K,D] and, for Qwen3-VL, deep features [N*K,D] of its deep layers."""
    if config.kind == "qwen3_vl":
        return encode_qwen3(visual, patches_NSP, grid)
    n, patch = patches_NSP.shape[0], config.vision.patch_size
    still = patches_NSP.view(n, -1, 3, 1, patch * patch).expand(-1, -1, -1, config.vision.temporal_patch_size, -1)
    grid_thw = torch.tensor([[1, *grid]] * n, device=patches_NSP.device)
    merged = visual(still.flatten(0, 1).flatten(1), grid_thw=grid_thw).pooler_output
    return merged.view(n, -1, merged.shape[-1]), []


def encode_qwen3(visual: Any, patches_NSP: Tensor, grid: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
    # A still image repeats its frame over the temporal patch, so the weights of the frames add up.
    weight = visual.patch_embed.proj.weight.sum(2).flatten(1)
    positions_SC, rotary = qwen3_positions(visual, grid, patches_NSP.device)
    x_NSC = F.linear(patches_NSP.to(weight.dtype), weight, visual.patch_embed.proj.bias) + positions_SC
    deep: list[Tensor] = []
    for index, block in enumerate(visual.blocks):
        x_NSC = x_NSC + attend(block.attn, block.norm1(x_NSC), rotary)
        x_NSC = x_NSC + block.mlp(block.norm2(x_NSC))
        if index in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[list(visual.deepstack_visual_indexes).index(index)]
            deep.append(merger(x_NSC))
    merged = visual.merger(x_NSC)
    return merged.view(x_NSC.shape[0], -1, merged.shape[-1]), deep


def attend(attention: Any, x_NSC: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    n, s, c = x_NSC.shape
    q, k, v = attention.qkv(x_NSC).view(n, s, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(rotate(q, *rotary), rotate(k, *rotary), v)
    return attention.proj(mixed.transpose(1, 2).reshape(n, s, c))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def qwen3_positions(visual: Any, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Give the learned positions [S,C], resampled to the grid, and the rotary cosine and sine [S,c]."""
    learned = visual.pos_embed.weight
    side = round(len(learned) ** 0.5)
    if (side, side) != grid:
        square = learned.T.view(1, -1, side, side).float()
        square = F.interpolate(square, size=grid, mode="bilinear", align_corners=True)
        learned = square.flatten(2)[0].T.to(visual.pos_embed.weight.dtype)
    order = merged_order(grid, visual.config.spatial_merge_size, device)
    width = visual.config.hidden_size // visual.config.num_heads // 2
    rates = ROTARY_BASE ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    turns = torch.stack([order // grid[1], order % grid[1]], dim=1)[..., None] * rates
    angles = turns.flatten(1).repeat(1, 2)
    return learned[order], (angles.cos(), angles.sin())


def merged_order(grid: tuple[int, int], merge: int, device: torch.device) -> Tensor:
    """List the patches of a grid, row by row, in the order of `patchify`."""
    index = torch.arange(grid[0] * grid[1], device=device)
    return index.view(grid[0] // merge, merge, grid[1] // merge, merge).transpose(1, 2).reshape(-1)
