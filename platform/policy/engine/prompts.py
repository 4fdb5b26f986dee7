"""Prepare what System 2 reads of an instruction once, and put such prompts into batches of static shape.

An instruction is said for a whole episode; its tokens, their embeddings, the rotary tables of their places and the
positions of the image's tokens stay the same from look to look.

Letters: B rows, L positions, D planner width, C width of a head, K image tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from st4vla.platform.policy.engine.attention import sign
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Batch


@dataclass(frozen=True)
class Prompts:
    """Prompts of a batch on the device, padded on the left.

    Attributes:
        embeds: [B,L,D], the words' embeddings.
        cos, signed_sin: float32 [B,L,1,C], the rotary tables.
        image_at: [B*K], where the image tokens stand among the B*L positions.
        seen: bool [B,L], False at padding; None where there is none.
    """

    embeds: Tensor
    cos: Tensor
    signed_sin: Tensor
    image_at: Tensor
    seen: Tensor | None = None

    @property
    def bias(self) -> Tensor | None:
        """Give the bool [B,1,L,L] of who may look at whom; padding looks at itself, so that nothing is not a number."""
        if self.seen is None:
            return None
        length = self.seen.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.seen.device).tril()
        alone = torch.eye(length, dtype=torch.bool, device=self.seen.device)
        return ((self.seen[:, None, :] & causal) | alone)[:, None]


def prepare(model: St4vlaModel, prompt: Batch, device: torch.device) -> Prompts:
    """Prepare one prompt as `Processor.encode_prompts` gives it, of one row without padding."""
    text = model.planner.vlm.model.language_model
    ids = prompt["input_ids"]
    embeds = text.embed_tokens(ids.to(device))
    wide = torch.zeros(1, dtype=torch.float32, device=device)
    cos, sin = (table[:, :, None] for table in text.rotary_emb(wide, prompt["position_ids"].to(device)))
    image_at = (ids[0] == model.planner.image_token_id).nonzero()[:, 0].to(device)
    return Prompts(embeds, cos, sign(sin), image_at)


def stack(prompts: Sequence[Prompts], length: int) -> Prompts:
    """Batch single prompts, padded on the left to `length`."""
    if len(prompts) == 1 and prompts[0].embeds.shape[1] == length:
        return prompts[0]
    first = prompts[0]
    rows = len(prompts)
    embeds = first.embeds.new_zeros(rows, length, first.embeds.shape[2])
    cos = first.cos.new_ones(rows, length, *first.cos.shape[2:])
    signed_sin = first.signed_sin.new_zeros(cos.shape)
    seen = torch.zeros(rows, length, dtype=torch.bool, device=embeds.device)
    image_at = []
    for row, one in enumerate(prompts):
        start = length - one.embeds.shape[1]
        embeds[row, start:], cos[row, start:], signed_sin[row, start:] = one.embeds[0], one.cos[0], one.signed_sin[0]
        seen[row, start:] = True
        image_at.append(one.image_at + row * length + start)
    return Prompts(embeds, cos, signed_sin, torch.cat(image_at), seen)
