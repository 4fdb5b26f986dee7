"""The auxiliary dense loss: say for every cell of a view which words describe what lies there, or nothing.

Without it a small vision-language model trained from nothing does not learn to point; with it, it does within minutes.
Names are split into words and a cell's target is shared among them, so that what is learned of a red cube serves red
bowls and blue cubes. This is ours, not the papers': they start from pretrained encoders.

Letters: N images, K tokens of an image, D their width, G cells along a side, M named objects, W words.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseHead(nn.Linear):
    """Map tokens in raster order to logits of 1 + W classes (nothing, then words) for cells x cells cells each."""

    def __init__(self, width: int, words: int, cells_per_token: int) -> None:
        super().__init__(width, cells_per_token**2 * (words + 1))
        self.cells = cells_per_token
        self.classes = words + 1

    def forward(self, tokens_NKD: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Give logits [N,G,G,1+W]."""
        side = round(tokens_NKD.shape[1] ** 0.5)
        logits = super().forward(tokens_NKD).view(-1, side, side, self.cells, self.cells, self.classes)
        return logits.transpose(2, 3).reshape(-1, side * self.cells, side * self.cells, self.classes)

    def loss(self, tokens_NKD: Tensor, labels_NGG: Tensor, targets_NMW: Tensor) -> Tensor:
        """Give the divergence of the predicted words from those of each cell's object; 0 is perfect.

        Cells of -1 are left out. Objects cover a few percent of a view, so objects and background carry half each.
        """
        log_p = F.log_softmax(self(tokens_NKD).float(), dim=-1)
        rows = torch.arange(labels_NGG.shape[0], device=labels_NGG.device)[:, None, None]
        targets_NGGW = targets_NMW[rows, labels_NGG.clamp(min=0)]
        errors_NGG = F.kl_div(log_p, targets_NGGW, reduction="none").sum(-1)
        parts = [(errors_NGG * part).sum() / part.sum().clamp(min=1) for part in (labels_NGG > 0, labels_NGG == 0)]
        return (parts[0] + parts[1]) / 2
