"""Run the language model on tokens alone: the rows of a batch stand behind each other in one sequence, without padding.

Products with weights, norms and rotations treat every token by itself, so they run on the tokens of all rows at once.
Attention alone looks along rows: there the tokens are laid out in rows again, padded on the right, where a causal mask
hides padding from every token by itself, so that the fastest kernels apply. Positions are those of each row.

Letters: B rows, L tokens of the longest row, T tokens of all rows, H heads, E width of a head, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "st4vla_packed"


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a padded batch belong.

    Attributes:
        tokens: int64 [T], places in the batch as it came, [B*L] with padding on the left.
        rows: int64 [T], places in rows padded on the right, [B*L].
        size: B and L.
    """

    tokens: Tensor
    rows: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> "Packing | None":
        """Read it from a batch that `places` was added to; None for any other."""
        if "token_places" not in batch:
            return None
        rows, length = batch["attention_mask"].shape
        return cls(batch["token_places"], batch["row_places"], (rows, length))

    def pack(self, padded_BL: Tensor) -> Tensor:
        """Give the tokens' values [...,1,T] of [...,B,L]."""
        return padded_BL.flatten(-2)[..., self.tokens].unsqueeze(-2)

    def unpack(self, packed_1TD: Tensor) -> Tensor:
        """Give [B,L,D] as the batch came, padding zero."""
        return self._spread(packed_1TD[0], self.tokens)

    def lay_out(self, packed_1HTE: Tensor) -> Tensor:
        """Give [B,H,L,E], padded on the right."""
        return self._spread(packed_1HTE[0].transpose(0, 1), self.rows).transpose(1, 2)

    def gather(self, laid_out_BLHE: Tensor) -> Tensor:
        """Give [1,T,H,E]."""
        return laid_out_BLHE.flatten(0, 1)[self.rows][None]

    def _spread(self, values: Tensor, places: Tensor) -> Tensor:
        room = values.new_zeros(self.size[0] * self.size[1], *values.shape[1:])
        return room.index_copy(0, places, values).unflatten(0, self.size)


def places(attention_mask: Tensor) -> dict[str, Tensor]:
    """Give "token_places" and "row_places" of a batch padded on the left; nothing where there is no padding."""
    length = attention_mask.shape[1]
    tokens = attention_mask.flatten().nonzero()[:, 0]
    if len(tokens) == attention_mask.numel():
        return {}
    row = tokens // length
    return {"token_places": tokens, "row_places": tokens - (length - attention_mask.sum(1))[row]}


def allow_packing(vlm: Any) -> None:
    """Let a planner's language model run packed batches; on others it computes what it did before."""
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    vlm.model.language_model.config._attn_implementation = ATTENTION


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attend along each row; without `packing` this is transformers' own attention."""
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    laid_out = [packing.lay_out(one) for one in (query, key, value)]
    mixed, _ = sdpa_attention_forward(module, *laid_out, attention_mask=None, **settings | {"is_causal": True})
    return packing.gather(mixed), None


def no_mask(like: Tensor) -> Tensor:
    """Give a mask that the language model hands on unread: it takes any of four dimensions for a finished one."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=like.device)
