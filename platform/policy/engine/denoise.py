"""Sample a chunk by guided DDIM with everything that does not change from step to step made beforehand.

The same numbers as `diffusion.sample_ddim` up to rounding (a test holds the two equal). What is saved: the widened
condition is made once a chunk, the time's tokens once and for all; conditional and unconditional rows run as one
batch; and in the last block only the action tokens, which alone are read, look and think.

Letters: B rows, Q condition tokens, T chunk steps, A action width, C width, S = Q + T.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from st4vla.platform.policy.denoiser import Block, Denoiser
from st4vla.platform.policy.diffusion import Guide, ddim_subset, signal_levels, step_back


class Sampler:
    """DDIM over one denoiser; its weights are read when it is made."""

    def __init__(self, denoiser: Denoiser, count: int, total: int, guidance: float, temperature: float = 1.0) -> None:
        self.denoiser, self.guidance, self.temperature = denoiser, guidance, temperature
        levels, subset = signal_levels(total), ddim_subset(count, total)
        self.steps = [(levels[subset[i]], levels[subset[i - 1]] if i else 1.0) for i in range(count - 1, -1, -1)]
        positions = denoiser.positional_embedding
        self.tokens = denoiser.z_embedder.uncondition.shape[0]
        times = denoiser.t_embedder(torch.tensor(subset[::-1], device=positions.device))
        self.times = (times[:, None] + positions[: self.tokens])[:, None]
        self.action_positions = positions[self.tokens :]
        self.blank = denoiser.z_embedder(denoiser.z_embedder.uncondition)

    def __call__(self, noise_BTA: Tensor, condition_BQC: Tensor, guides: Sequence[Guide | None] = ()) -> Tensor:
        """Denoise [B,T,A], standard normal, in float32 for any weights; guides as in `diffusion.sample_ddim`."""
        wide = self.denoiser.z_embedder(condition_BQC)
        if self.guidance != 1.0:
            wide = torch.cat([wide, self.blank.expand_as(wide)])
        x = self.temperature * noise_BTA.float()
        for time, (level, previous) in zip(self.times, self.steps, strict=True):
            epsilon = self._noise(x.to(wide.dtype), wide + time).float()
            x = step_back(x, epsilon, level, previous, guides)
        return x

    def _noise(self, x_BTA: Tensor, tokens: Tensor) -> Tensor:
        """Predict the guided noise; `tokens` holds unconditional rows below the conditional ones, if guided."""
        actions = self.denoiser.x_embedder(x_BTA) + self.action_positions
        both = len(tokens) != len(x_BTA)
        x = torch.cat([tokens, torch.cat([actions, actions]) if both else actions], dim=1)
        *blocks, last = self.denoiser.blocks
        for block in blocks:
            x = block(x)
        assert isinstance(last, Block)
        epsilon = self.denoiser.final_layer(act_only(last, x, x_BTA.shape[1]))
        if not both:
            return epsilon
        conditional, unconditional = epsilon.chunk(2)
        return torch.lerp(unconditional, conditional, self.guidance)


def act_only(block: Block, x_BSC: Tensor, actions: int) -> Tensor:
    """Give what a block makes of the last `actions` tokens [B,T,C], which read all."""
    b, s, c = x_BSC.shape
    own, normed = block.attn, block.norm1(x_BSC)
    weight, bias = own.qkv.weight, own.qkv.bias
    q = F.linear(normed[:, -actions:], weight[:c], bias[:c]).view(b, actions, own.heads, -1).transpose(1, 2)
    k, v = F.linear(normed, weight[c:], bias[c:]).view(b, s, 2, own.heads, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x_BSC[:, -actions:] + own.proj(mixed)
    return x + block.mlp(block.norm2(x))
