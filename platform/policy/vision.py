"""System 1's own eyes: DINOv2 patch tokens of the newest frame of every view, widened to the planner's width."""

import torch
from torch import Tensor, nn

from st4vla.platform.policy.config import VisionConfig
from st4vla.platform.policy.dense import DenseHead
from st4vla.platform.policy.dino import Dino

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrameEncoder(nn.Module):
    """Turn uint8 views [B,V,3,H,W] into patch tokens [B,V*K,D] (InternVLA-M1, section 2.1)."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: VisionConfig, planner_width: int, dense: DenseHead | None = None) -> None:
        """Build with random weights; `dense` is the head of an auxiliary loss where there are no pretrained ones."""
        super().__init__()
        self.dense_head = dense
        self.dino = Dino(config)
        self.widen = nn.Linear(config.width, planner_width)
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.widen(self.patches(images.flatten(0, 1))).view(images.shape[0], -1, self.widen.out_features)

    def patches(self, images: Tensor) -> Tensor:
        """Give the normalised patch tokens [N,K,C] of uint8 images [N,3,H,W]."""
        pixels = (images.to(self.image_mean.dtype) / 255 - self.image_mean) / self.image_std
        return self.dino(pixels.to(self.widen.weight.dtype))
