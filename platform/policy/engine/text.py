"""Run the planner's language model on a prompt once: no cache, no hidden state that nobody reads, no logits.

The same weights and the same mathematics as transformers' Qwen2.5-VL and Qwen3-VL (a test holds the two equal); what
is left out is what only generation, packing and attention maps need.

Letters: B rows, L positions, D width, H heads, C width of a head, N images, K merged tokens of an image.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from st4vla.platform.policy.engine.attention import attend, rms_norm, turn
from st4vla.platform.policy.engine.prompts import Prompts


def read_text(
    text: Any, prompts: Prompts, tokens_NKD: Tensor, deep: Sequence[Tensor], layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Give the hidden layers `layers` side by side (the last where there are none), and the last one [B,L,D].

    Args:
        tokens_NKD: merged vision tokens, which take the places of the image tokens.
        deep: features [N*K,D] that Qwen3-VL adds at those places after its first layers.
        layers: 0 is the embedding, the number of layers the normalised last.
    """
    shape, bias = prompts.embeds.shape, prompts.bias
    tokens = tokens_NKD.flatten(0, 1).to(prompts.embeds.dtype)
    x_BLD = prompts.embeds.flatten(0, 1).index_copy(0, prompts.image_at, tokens).view(shape)
    kept = {0: x_BLD}
    for index, layer in enumerate(text.layers):
        x_BLD = x_BLD + attention(layer.self_attn, rms_norm(layer.input_layernorm, x_BLD), prompts, bias)
        x_BLD = x_BLD + mlp(layer.mlp, rms_norm(layer.post_attention_layernorm, x_BLD))
        if index + 1 in layers:
            kept[index + 1] = x_BLD
        if index < len(deep):
            seen = deep[index].to(x_BLD.dtype)
            x_BLD = x_BLD.flatten(0, 1).index_add(0, prompts.image_at, seen).view(shape)
    last = kept[len(text.layers)] = rms_norm(text.norm, x_BLD)
    return (torch.cat([kept[i] for i in layers], dim=-1) if layers else last), last


def attention(own: Any, x_BLD: Tensor, prompts: Prompts, bias: Tensor | None) -> Tensor:
    heads = (*x_BLD.shape[:2], -1, own.head_dim)
    q, k, v = own.q_proj(x_BLD).view(heads), own.k_proj(x_BLD).view(heads), own.v_proj(x_BLD).view(heads)
    if hasattr(own, "q_norm"):
        q, k = rms_norm(own.q_norm, q), rms_norm(own.k_norm, k)
    q, k = (turn(part, prompts.cos, prompts.signed_sin) for part in (q, k))
    return own.o_proj(attend(q, k, v, causal=True, bias=bias))


def mlp(own: Any, x_BLD: Tensor) -> Tensor:
    return own.down_proj(F.silu(own.gate_proj(x_BLD)) * own.up_proj(x_BLD))
