"""System 1's own eyes: DINOv2 patch tokens of the newest frame of every view, widened to the planner's width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from st4vla.platform.policy.config import VisionConfig
from st4vla.platform.policy.dense import DenseHead

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class OffsetEmbeddings(Dinov2Embeddings):
    """DINOv2's embeddings, whose positions are resampled as DINOv2's own code does.

    There the sides of the new grid are taken `offset` larger than they are, which moves every sample a little;
    transformers' own asks for the sides as they are.
    """

    def __init__(self, config: Dinov2Config, offset: float) -> None:
        super().__init__(config)
        self.offset = offset

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        learned = self.position_embeddings
        side, patch = round((learned.shape[1] - 1) ** 0.5), self.patch_embeddings.projection.stride
        rows, columns = height // patch[0], width // patch[1]
        if (rows, columns) == (side, side):
            return learned
        square = learned[:, 1:].view(1, side, side, -1).permute(0, 3, 1, 2).float()
        scale = ((rows + self.offset) / side, (columns + self.offset) / side)
        moved = F.interpolate(square, scale_factor=scale, mode="bicubic")
        return torch.cat([learned[:, :1], moved.flatten(2).transpose(1, 2).to(learned.dtype)], dim=1)


class FrameEncoder(nn.Module):
    """Turn uint8 views [B,V,3,H,W] into patch tokens [B,V*K,D] (InternVLA-M1, section 2.1)."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: VisionConfig, planner_width: int, dense: DenseHead | None = None) -> None:
        """Build with random weights; `dense` is the head of an auxiliary loss where there are no pretrained ones."""
        super().__init__()
        self.dense_head = dense
        shape = Dinov2Config(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            patch_size=config.patch_size,
            image_size=config.position_px,
            initializer_range=config.initializer_range,
        )
        self.dino = Dinov2Model(shape)
        if config.position_offset:
            self.dino.embeddings = OffsetEmbeddings(shape, config.position_offset)
        self.widen = nn.Linear(config.width, planner_width)
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.widen(self.patches(images.flatten(0, 1))).view(images.shape[0], -1, self.widen.out_features)

    def patches(self, images: Tensor) -> Tensor:
        """Give the normalised patch tokens [N,K,C] of uint8 images [N,3,H,W]."""
        pixels = (images.to(self.image_mean.dtype) / 255 - self.image_mean) / self.image_std
        return self.dino(pixels).last_hidden_state[:, 1:]
