"""Count a policy's parameters by part, without making its weights."""

import torch

from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.model import St4vlaModel

# Which tokens are special changes no size.
ANY_TOKENS = {"image": 0, "video": 1, "vision_start": 2, "vision_end": 3, "end": 4, "pad": 5}


def parameter_counts(config: PolicyConfig) -> dict[str, int]:
    """Give the number of parameters of each module, "dino" (a part of frame_encoder) and the total."""
    with torch.device("meta"):
        model = St4vlaModel(config, ANY_TOKENS)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    total = sum(counts.values())
    return counts | {"dino": sum(p.numel() for p in model.frame_encoder.dino.parameters()), "total": total}
