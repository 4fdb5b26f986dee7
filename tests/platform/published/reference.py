"""The public InternVLA-M1 code's mathematics, written anew in plain torch from a description of it.

Nothing here comes from the policy under test: modules bear the published names, so that their state dict is a published
checkpoint. The planner is transformers' own Qwen2.5-VL, as in the public code; around it stand DINOv2's block, the
layer-wise query transformer that sees padding, the DiT that reads its condition as tokens, and DDIM by respacing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Everything that a tiny run's modules depend on."""

    image: int = 112
    planner_width: int = 64
    eyes_width: int = 128
    eyes_layers: int = 2
    eyes_grid: int = 11
    width: int = 64
    layers: int = 2
    heads: int = 4
    queries: int = 6
    chunk: int = 4
    actions: int = 7
    read: tuple[int, int] = (3, 4)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(c // self.heads)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, width: int, approximate: str) -> None:
        super().__init__()
        self.approximate = approximate
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width) + 0.5)


class EyeBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, "none")
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1.gamma * self.attn(self.norm1(x))
        return x + self.ls2.gamma * self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 14, 14)


class Eyes(nn.Module):
    """DINOv2 as its own code has it."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.eyes_width
        self.grid = sizes.eyes_grid
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, sizes.eyes_grid**2 + 1, width))
        self.mask_token = nn.Parameter(torch.randn(1, width))
        self.patch_embed = PatchEmbed(width)
        self.blocks = nn.ModuleList(EyeBlock(width, width // 64) for _ in range(sizes.eyes_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed.proj(pixels)
        rows = patches.shape[-1]
        square = self.pos_embed[:, 1:].reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        scale = float(rows + 0.1) / self.grid
        moved = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic", antialias=False)
        assert moved.shape[-2:] == (rows, rows)
        x = patches.flatten(2).transpose(1, 2) + moved.flatten(2).transpose(1, 2)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:]


class DinoEncoder(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.body = Eyes(sizes)

    def forward(self, views: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([torch.from_numpy(np.array(view)).permute(2, 0, 1).float() / 255 for view in views])
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        return self.body((pixels - mean[:, None, None]) / std[:, None, None])


class CrossBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = nn.MultiheadAttention(width, 8, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, queries: Tensor, tokens: Tensor, hidden: Tensor | None) -> Tensor:
        queries = queries + self.cross_attn(self.norm1(queries), tokens, tokens, key_padding_mask=hidden)[0]
        return queries + self.mlp(self.norm2(queries))


class LayerQformer(nn.Module):
    layers: Any

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.proj = nn.Linear(sizes.planner_width, sizes.width)
        self.query_tokens = nn.Parameter(torch.randn(sizes.queries, sizes.width))
        self.layers = nn.ModuleList(CrossBlock(sizes.width) for _ in range(sizes.read[1] - sizes.read[0]))

    def forward(self, layers: Sequence[Tensor], hidden: Tensor | None = None) -> Tensor:
        queries = self.query_tokens.expand(len(layers[0]), -1, -1)
        for block, tokens in zip(self.layers, layers, strict=True):
            queries = block(queries, self.proj(tokens), hidden)
        return queries


class Embedder(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)


class TimeEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(128, dtype=torch.float32) / 128)
        angles = t[:, None].float() * frequencies[None]
        return self.mlp(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))


class DitBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, "tanh")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(F.layer_norm(x, x.shape[-1:], eps=1e-6))
        return x + self.mlp(F.layer_norm(x, x.shape[-1:], eps=1e-6))


class Dit(nn.Module):
    z_embedder: Any

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.queries = sizes.queries
        self.history_embedder = Embedder(sizes.actions, width)
        self.x_embedder = Embedder(sizes.actions, width)
        self.t_embedder = TimeEmbedder(width)
        self.z_embedder = Embedder(width, width)
        self.z_embedder.uncondition = nn.Parameter(torch.randn(sizes.queries, width))
        self.positional_embedding = nn.Parameter(torch.randn(sizes.queries + sizes.chunk, width))
        self.blocks = nn.ModuleList(DitBlock(width, sizes.heads) for _ in range(sizes.layers))
        self.final_layer = Embedder(width, sizes.actions)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        c = self.t_embedder(t)[:, None] + self.z_embedder.linear(z)
        x = torch.cat([c, self.x_embedder.linear(x)], dim=1) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        return self.final_layer.linear(F.layer_norm(x, x.shape[-1:], eps=1e-6))[:, self.queries :]

    def with_guidance(self, x: Tensor, t: Tensor, z: Tensor, scale: float) -> Tensor:
        half = x[: len(x) // 2]
        conditional, unconditional = self(torch.cat([half, half]), t, z).chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        return torch.cat([guided, guided])


class ActionModel(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.net = Dit(sizes)


class QwenInterface(nn.Module):
    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class Original(nn.Module):
    """The whole published model; `model` is transformers' own planner."""

    def __init__(self, sizes: Sizes, model: Any) -> None:
        super().__init__()
        self.sizes = sizes
        self.qwen_vl_interface = QwenInterface(model)
        self.layer_qformer = LayerQformer(sizes)
        self.action_model = ActionModel(sizes)
        self.dino_encoder = DinoEncoder(sizes)
        self.dino_pro = nn.Linear(sizes.eyes_width, sizes.planner_width)

    def hidden(self, inputs: dict[str, Tensor], images: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Give all hidden layers; attention gives nothing at padding, as FlashAttention's unpadding leaves it."""
        model = self.qwen_vl_interface.model
        seen = inputs["attention_mask"][..., None]
        hooks = [
            layer.self_attn.register_forward_hook(lambda _, __, out: (out[0] * seen, *out[1:]))
            for layer in model.model.language_model.layers
        ]
        is_image = (inputs["input_ids"] == model.config.image_token_id).int()
        output = model(**inputs, **images, mm_token_type_ids=is_image, output_hidden_states=True)
        for hook in hooks:
            hook.remove()
        return output.hidden_states

    def condition(
        self, hidden: Sequence[Tensor], views: Sequence[Sequence[Image.Image]], mask: Tensor | None = None
    ) -> Tensor:
        """Fuse; with `mask` [B,L] the queries do not see padding, which the public code never asks for."""
        frames = self.dino_encoder([view for row in views for view in row])
        frames = self.dino_pro(frames.reshape(len(views), -1, frames.shape[-1]))
        read = [torch.cat([layer, frames], dim=1) for layer in hidden[slice(*self.sizes.read)]]
        blind = None
        if mask is not None:
            blind = ~torch.cat([mask.bool(), torch.ones(frames.shape[:2], dtype=torch.bool)], dim=1)
        return self.layer_qformer(read, blind)

    def sample(self, condition: Tensor, noise: Tensor, steps: int, scale: float) -> list[Tensor]:
        """Give the trajectory of DDIM, the last being the normalised actions."""
        net = self.action_model.net
        blank = net.z_embedder.uncondition[None].expand(len(condition), -1, -1)
        z, x = torch.cat([condition, blank]), torch.cat([noise, noise])
        return [step.chunk(2)[0] for step in ddim(lambda x, t: net.with_guidance(x, t, z, scale), x, steps)]


def ddim(model, x: Tensor, count: int, total: int = 100):
    """Yield x after every step of DDIM (eta 0, nothing clipped) on a respaced squared-cosine schedule."""
    bar = lambda share: math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    betas = np.array([min(1 - bar((i + 1) / total) / bar(i / total), 0.999) for i in range(total)])
    stride = next(i for i in range(1, total) if len(range(0, total, i)) == count)
    kept = list(range(0, total, stride))
    full = np.cumprod(1.0 - betas)
    last, respaced = 1.0, []
    for i in kept:
        respaced.append(1 - full[i] / last)
        last = full[i]
    levels = np.cumprod(1.0 - np.array(respaced))
    before = np.append(1.0, levels[:-1])
    for i in reversed(range(count)):
        t = torch.full((len(x),), kept[i])
        epsilon = model(x, t)
        start = math.sqrt(1 / levels[i]) * x - math.sqrt(1 / levels[i] - 1) * epsilon
        again = (math.sqrt(1 / levels[i]) * x - start) / math.sqrt(1 / levels[i] - 1)
        x = start * math.sqrt(before[i]) + math.sqrt(1 - before[i]) * again
        yield x


def unnormalize(actions: np.ndarray, statistics: dict) -> np.ndarray:
    """Scale [T,7] back as the public code does."""
    low, high = np.array(statistics["q01"]), np.array(statistics["q99"])
    mask = np.array(statistics.get("mask", np.ones_like(low, dtype=bool)))
    actions = np.clip(actions, -1, 1)
    actions[:, 6] = np.where(actions[:, 6] < 0.5, 0, 1)
    return np.where(mask, 0.5 * (actions + 1) * (high - low) + low, actions)
