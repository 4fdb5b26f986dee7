"""The auxiliary dense losses: say what lies in every cell of a view, and where lies what was asked for.

Without it a small vision-language model trained from nothing does not learn to point; with it, it does within minutes.
Names are split into words and a cell's target is shared among them, so that what is learned of a red cube serves red
bowls and blue cubes. This is ours, not the papers': they start from pretrained encoders.

Letters: N images, B rows, K tokens of an image, D their width, G cells along a side, M named objects, W words.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLACE = 3  # x, y and chance


class DenseHead(nn.Linear):
    """Map tokens in raster order to logits of 1 + W classes (nothing, then words) for cells x cells cells each."""

    def __init__(self, width: int, words: int, cells_per_token: int) -> None:
        super().__init__(width, cells_per_token**2 * (words + 1))
        self.cells = cells_per_token
        self.classes = words + 1

    def forward(self, tokens_NKD: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Give logits [N,G,G,1+W]."""
        return to_cells(super().forward(tokens_NKD), self.cells)

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


class WhereHead(nn.Module):
    """Let the plan's last token point: match it with every cell of a view.

    The dense words alone say what lies where; this ties them to what was asked, at the very token from which an answer
    would start and which the action expert reads first. Without it a tiny planner takes three times as many samples.
    """

    def __init__(self, width: int, cells_per_token: int, match_width: int = 32) -> None:
        super().__init__()
        self.cells = cells_per_token
        self.query = nn.Linear(width, match_width)
        self.key = nn.Linear(width, cells_per_token**2 * match_width)

    def forward(self, last_BD: Tensor, tokens_BKD: Tensor) -> Tensor:
        """Give logits [B,G,G] of where in the view lies what is looked for."""
        keys_BGGM = to_cells(self.key(tokens_BKD), self.cells)
        return torch.einsum("bm,bijm->bij", self.query(last_BD), keys_BGGM) / keys_BGGM.shape[-1] ** 0.5

    def loss(self, last_BD: Tensor, tokens_BKD: Tensor, cells_BGG: Tensor) -> Tensor:
        """Give the divergence from an even spread over the object's cells; rows that show none of it are left out."""
        log_p = F.log_softmax(self(last_BD, tokens_BKD).float().flatten(1), dim=-1)
        share = cells_BGG.flatten(1) / cells_BGG.flatten(1).sum(1, keepdim=True).clamp(min=1)
        shown = share.sum(1) > 0
        errors = F.kl_div(log_p, share, reduction="none").sum(1)
        return (errors * shown).sum() / shown.sum().clamp(min=1)

    def chances(self, last_BD: Tensor, tokens_BKD: Tensor) -> Tensor:
        """Give the probability map [B,G,G]."""
        logits = self(last_BD, tokens_BKD)
        return logits.flatten(1).softmax(-1).view_as(logits)


def to_cells(features_NKF: Tensor, cells: int) -> Tensor:
    """Unfold tokens in raster order, each holding cells x cells cells, into a map [N,G,G,F / cells^2]."""
    side = round(features_NKF.shape[1] ** 0.5)
    unfolded = features_NKF.view(len(features_NKF), side, side, cells, cells, -1)
    return unfolded.transpose(2, 3).reshape(len(features_NKF), side * cells, side * cells, -1)


def place_of_peak(chances_BGG: Tensor, reach: int = 3) -> Tensor:
    """Give [B,3]: x and y of the likeliest place, 0..1 of a view's sides, and the chance that lies about it.

    The mean is taken over the cells about the likeliest one only, so that two far objects never meet in the middle;
    over so many of them that a whole small object is among them, whose likeliest cell may be at either end.
    """
    side = chances_BGG.shape[-1]
    best = chances_BGG.flatten(1).argmax(1)
    grid = torch.arange(side, device=chances_BGG.device)
    near_rows = (grid - (best // side)[:, None]).abs() <= reach
    near_columns = (grid - (best % side)[:, None]).abs() <= reach
    near_BGG = chances_BGG * near_rows[:, :, None] * near_columns[:, None, :]
    mass = near_BGG.sum((1, 2))
    centres = (grid + 0.5) / side
    x = (near_BGG.sum(1) * centres).sum(1) / mass
    y = (near_BGG.sum(2) * centres).sum(1) / mass
    return torch.stack([x, y, mass], dim=1)
