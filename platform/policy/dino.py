"""DINOv2 (Oquab et al., arXiv 2304.07193): a vision transformer with layer scale, for views of one square size.

Written out here so that neither the names of the weights nor the numbers depend on the version of a library; the names
are those that checkpoints have had from the start (transformers 5.23), and a test holds the numbers equal to its model.

Letters: N images, S patches, P values of a patch, C width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from st4vla.platform.policy.config import VisionConfig

NORM_EPS = 1e-6
CHANNELS = 3


class PatchEmbeddings(nn.Module):
    """Cut images into patches and widen each; kept as a convolution for the shape of its weights."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.projection = nn.Conv2d(CHANNELS, config.width, config.patch_size, config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn [N,3,H,W] into [N,S,C], row by row."""
        n, channels, height, width = pixels.shape
        rows, columns = height // self.patch, width // self.patch
        cut = pixels.view(n, channels, rows, self.patch, columns, self.patch).permute(0, 2, 4, 1, 3, 5)
        weight, bias = self.projection.weight, self.projection.bias
        return F.linear(cut.reshape(n, rows * columns, -1).to(weight.dtype), weight.flatten(1), bias)


class Embeddings(nn.Module):
    """Patches behind a class token, with learned positions; the mask token is DINOv2's own and never used."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.side = config.position_px // config.patch_size
        self.offset = config.position_offset
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.mask_token = nn.Parameter(torch.zeros(1, config.width))
        self.patch_embeddings = PatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.randn(1, self.side**2 + 1, config.width))

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn [N,3,H,W] into [N,1+S,C]."""
        patches = self.patch_embeddings(pixels)
        positions = self.positions(pixels.shape[2] // self.patch_embeddings.patch)
        first = (self.cls_token + positions[:, :1]).expand(len(pixels), -1, -1)
        return torch.cat([first, patches + positions[:, 1:]], dim=1)

    def positions(self, side: int) -> Tensor:
        """Give the positions [1,1+S,C] of a side x side grid of patches, resampled bicubically where it differs.

        DINOv2's own code takes the sides of the new grid `offset` = 0.1 larger than they are, which moves every sample
        a little; transformers takes them as they are.
        """
        if side == self.side:
            return self.position_embeddings
        own = self.position_embeddings
        square = own[:, 1:].view(1, self.side, self.side, -1).permute(0, 3, 1, 2).float()
        scale = (side + self.offset) / self.side
        if self.offset:
            moved = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
        else:
            moved = F.interpolate(square, size=(side, side), mode="bicubic")
        return torch.cat([own[:, :1], moved.flatten(2).transpose(1, 2).to(own.dtype)], dim=1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, s, c = x.shape
        split = (part(x).view(n, s, self.heads, -1).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(F.scaled_dot_product_attention(*split).transpose(1, 2).reshape(n, s, c))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, heads)
        self.layer_scale1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)
        self.layer_scale2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addcmul(x, self.attention(self.norm1(x)), self.layer_scale1.lambda1)
        return torch.addcmul(x, self.mlp(self.norm2(x)), self.layer_scale2.lambda1)


class Encoder(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config.width, config.heads) for _ in range(config.layers))


class Dino(nn.Module):
    """Turn normalised images [N,3,H,W] into patch tokens [N,S,C], the class token left out."""

    def __init__(self, config: VisionConfig) -> None:
        """Build with random weights: normal of `initializer_range`, cut at two units; biases zero."""
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.initialise(config.initializer_range)

    def initialise(self, spread: float) -> None:
        # The order, and that layers are drawn twice, are transformers' own: a seed gives what it has always given.
        linears = [module for module in self.encoder.modules() if isinstance(module, nn.Linear)]
        for module in (*linears, self.embeddings.patch_embeddings.projection):
            nn.init.normal_(module.weight, std=spread)
            nn.init.trunc_normal_(module.weight, std=spread)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.embeddings.position_embeddings, std=spread)
        nn.init.trunc_normal_(self.embeddings.cls_token, std=spread)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embeddings(pixels)
        for layer in self.encoder.layer:
            x = layer(x)
        return self.layernorm(x[:, 1:])
