"""The few operations that both towers of the planner share, each in as few kernels as there are.

Letters: B rows, L positions, H heads, C width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(norm: Any, x: Tensor) -> Tensor:
    """Apply a root-mean-square norm of transformers, whose names for the tiny number differ from no norm at all."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def turn(x_BLHC: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turn heads by their position: x cos + swap(x) sin, in float32; `signed_sin` is negative in its first half."""
    wide = x_BLHC.float()
    return torch.addcmul(wide * cos, wide.roll(wide.shape[-1] // 2, -1), signed_sin).to(x_BLHC.dtype)


def sign(sin: Tensor) -> Tensor:
    """Negate the first half of the last dimension, which stands for rotating the halves with a change of sign."""
    first, second = sin.chunk(2, dim=-1)
    return torch.cat([-first, second], dim=-1)


def attend(q_BLHC: Tensor, k_BLHC: Tensor, v_BLHC: Tensor, causal: bool = False, bias: Tensor | None = None) -> Tensor:
    """Mix values [B,L,H*C]; keys and values may have fewer heads than queries, each serving a group of them."""
    q, k, v = (part.transpose(1, 2) for part in (q_BLHC, k_BLHC, v_BLHC))
    if (groups := q.shape[1] // k.shape[1]) > 1:
        k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal and bias is None)
    return mixed.transpose(1, 2).flatten(2)
