"""The query transformer between the systems: a few learned queries read the plan and the newest frame.

Pre-norm on the queries only, cross-attention and a four times wider GELU MLP per layer, one input projection for all
(InternVLA-M1, section 2.1). Where the paper asks that the action loss reach the planner weakened, the gradient really
is scaled here; the public code leaves it whole.

Letters: B rows, L planner positions, P = D or, where a plan of several layers has them side by side, layers x D,
K frame tokens, D planner width, Q queries, C width of the queries.
"""

from typing import Any

import torch
from torch import Tensor, nn

from st4vla.platform.policy.config import QueryConfig


class ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by `scale`."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return tokens.view_as(tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * ctx.scale, None


class QueryLayer(nn.Module):
    """One look of the queries at the tokens."""

    def __init__(self, config: QueryConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = nn.MultiheadAttention(width, config.heads, dropout=config.dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, queries: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        seen, _ = self.cross_attn(self.norm1(queries), tokens, tokens, key_padding_mask=hidden, need_weights=False)
        queries = queries + seen
        return queries + self.dropout(self.mlp(self.norm2(queries)))


class QueryTransformer(nn.Module):
    """Fuse plan [B,L,P] and frame tokens [B,K,D] into the condition [B,Q,C]; each layer reads its own of several."""

    def __init__(self, config: QueryConfig, planner_width: int) -> None:
        super().__init__()
        self.grad_scale = config.grad_scale
        self.proj = nn.Linear(planner_width, config.width)
        self.query_tokens = nn.Parameter(torch.randn(config.queries, config.width) * 0.02)
        self.layers = nn.ModuleList(QueryLayer(config) for _ in range(config.layers))

    def forward(self, plan_BLP: Tensor, plan_mask_BL: Tensor, frame_BKD: Tensor) -> Tensor:
        """`plan_mask_BL` is 1 where the plan has a token and 0 at padding, which no query sees."""
        plan: Tensor = ScaleGradient.apply(plan_BLP, self.grad_scale)  # pyright: ignore[reportAssignmentType]
        parts = plan.to(frame_BKD.dtype).split(frame_BKD.shape[-1], dim=-1)
        read = [self.proj(torch.cat([plan_BLD, frame_BKD], dim=1)) for plan_BLD in parts]
        seen = torch.ones(frame_BKD.shape[:2], dtype=torch.bool, device=frame_BKD.device)
        hidden = ~torch.cat([plan_mask_BL.bool(), seen], dim=1)
        queries = self.query_tokens.expand(len(plan), -1, -1)
        for index, layer in enumerate(self.layers):
            queries = layer(queries, read[index % len(read)], hidden)
        return queries
