"""Fuse a plan with the newest frame: the query transformer for rows whose padding, if any, no query may see.

The published code shows its queries the padding of a batch. A robot alone has none, and a row here must not depend on
its neighbours; so every row is answered as if it were alone, whatever `semantics.attend_padding` says of training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from st4vla.platform.policy.query import QueryLayer, QueryTransformer


def fuse(queries: QueryTransformer, plan_BLP: Tensor, frame_BKD: Tensor, mask_BL: Tensor | None) -> Tensor:
    """Give the queries [B,Q,C] after they have read the plan and the frame; no mask where there is no padding."""
    frame = queries.proj(frame_BKD)
    read = [
        torch.cat([queries.proj(part.to(frame_BKD.dtype)), frame], dim=1)
        for part in plan_BLP.split(frame_BKD.shape[-1], dim=-1)
    ]
    seen = None if mask_BL is None else F.pad(mask_BL.bool(), (0, frame_BKD.shape[1]), value=True)[:, None, None]
    x_BQC = queries.query_tokens.expand(len(plan_BLP), -1, -1)
    for index, layer in enumerate(queries.layers):
        assert isinstance(layer, QueryLayer)
        x_BQC = x_BQC + look(layer, x_BQC, read[index % len(read)], seen)
        x_BQC = x_BQC + layer.mlp(layer.norm2(x_BQC))
    return x_BQC


def look(layer: QueryLayer, x_BQC: Tensor, tokens_BSC: Tensor, seen: Tensor | None) -> Tensor:
    own, (rows, _, width) = layer.cross_attn, x_BQC.shape
    weight, bias = own.in_proj_weight, own.in_proj_bias
    assert weight is not None and bias is not None
    q = F.linear(layer.norm1(x_BQC), weight[:width], bias[:width])
    k, v = F.linear(tokens_BSC, weight[width:], bias[width:]).chunk(2, dim=-1)
    q, k, v = (part.view(rows, -1, own.num_heads, own.head_dim).transpose(1, 2) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return own.out_proj(mixed.transpose(1, 2).flatten(2))
