"""System 1's denoiser: a DiT that reads the condition as tokens before the noisy actions.

The form of CogACT's action model, which InternVLA-M1 uses: condition tokens with the time added to each stand before
the action tokens, plain self-attention, learned positions, LayerNorm without weights, a last layer that starts at
zero. With `condition_dropout` a row's condition is replaced by a learned one, which makes guidance possible.

Letters: B rows, Q condition tokens, T chunk steps, A action width, C width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from st4vla.platform.policy.config import ExpertConfig

TIME_FEATURES = 256


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, s, c = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, c))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Linear(nn.Module):
    """A linear layer under the name `linear`, where published weights have it."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class ConditionEmbedder(Linear):
    def __init__(self, width: int, tokens: int) -> None:
        super().__init__(width, width)
        self.uncondition = nn.Parameter(torch.empty(tokens, width))


class TimeEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, steps_B: Tensor) -> Tensor:
        half = TIME_FEATURES // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, device=steps_B.device, dtype=torch.float32) / half)
        angles = steps_B[:, None].float() * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(next(self.mlp.parameters()).dtype))


class FinalLayer(nn.Module):
    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, actions)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm_final(x))


class Denoiser(nn.Module):
    """Predict the noise in actions [B,T,A] at diffusion step [B], given the condition [B,Q,C]."""

    def __init__(self, config: ExpertConfig, condition_tokens: int, chunk_length: int, action_dim: int) -> None:
        super().__init__()
        width = config.width
        self.condition_dropout = config.condition_dropout
        self.x_embedder = Linear(action_dim, width)
        self.t_embedder = TimeEmbedder(width)
        self.z_embedder = ConditionEmbedder(width, condition_tokens)
        self.positional_embedding = nn.Parameter(torch.empty(condition_tokens + chunk_length, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.final_layer = FinalLayer(width, action_dim)
        self.initialise()

    def initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        scale = self.positional_embedding.shape[1] ** -0.5
        nn.init.normal_(self.positional_embedding, std=scale)
        nn.init.normal_(self.z_embedder.uncondition, std=scale)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, noisy_BTA: Tensor, steps_B: Tensor, condition_BQC: Tensor) -> Tensor:
        tokens = self.z_embedder(condition_BQC) + self.t_embedder(steps_B)[:, None]
        x = torch.cat([tokens, self.x_embedder(noisy_BTA)], dim=1) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        return self.final_layer(x[:, -noisy_BTA.shape[1] :])

    def drop_condition(self, condition_BQC: Tensor, draws_B: Tensor) -> Tensor:
        """Replace the condition of rows whose draw in [0,1) falls below `condition_dropout`."""
        dropped = (draws_B < self.condition_dropout)[:, None, None]
        return torch.where(dropped, self.z_embedder.uncondition.to(condition_BQC.dtype), condition_BQC)
