"""Hold what System 2 handed over for one robot, and put such plans together into a batch.

Letters: B rows, L plan positions, D planner width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from st4vla.platform.contracts import Spatial


@dataclass(frozen=True)
class Plan:
    """The plan of one robot: what System 1 acts on until there is a newer one.

    It has no padding, owns its memory and refers to nothing else, so that it may be kept, sent and dropped freely.

    Attributes:
        hidden: the planner's last hidden layer [1,L,D]; with `spatial_token` its last row is that token.
        mask: ones [1,L].
        spatial: what the plan points at, in pixels of the planner's first view; None without such a head.
        instruction: the words it was made for.
        made_at_s: when its frame was taken in, by the policy's clock.
        took_s: seconds it took to make, with the rows made together with it.
    """

    hidden: Tensor
    mask: Tensor
    spatial: Spatial | None
    instruction: str
    made_at_s: float
    took_s: float = 0.0


def stack_plans(plans: Sequence[Plan], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Batch plans of unequal length as hidden [B,L,D] and mask [B,L], padded on the left with what no query sees.

    Args:
        length: positions of the result; the longest plan's unless given.
    """
    length = length or max(plan.hidden.shape[1] for plan in plans)
    if len(plans) == 1 and plans[0].hidden.shape[1] == length:
        return plans[0].hidden, plans[0].mask
    first = plans[0]
    hidden = first.hidden.new_zeros(len(plans), length, first.hidden.shape[2])
    mask = first.mask.new_zeros(len(plans), length)
    for row, plan in enumerate(plans):
        hidden[row, -plan.hidden.shape[1] :] = plan.hidden[0]
        mask[row, -plan.mask.shape[1] :] = plan.mask[0]
    return hidden, mask


def unstack_row(hidden_BLD: Tensor, length: int, row: int) -> tuple[Tensor, Tensor]:
    """Give one row's own last `length` positions as hidden [1,L,D] and mask [1,L] that share no memory with others."""
    hidden = hidden_BLD[row : row + 1, -length:]
    hidden = hidden if len(hidden_BLD) == 1 else hidden.clone()
    return hidden, torch.ones(1, length, dtype=torch.long, device=hidden.device)
