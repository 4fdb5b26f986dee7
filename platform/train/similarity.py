"""Measure how alike the two objectives pull on the planner: the projection-space similarity (PSS) of ST4VLA.

G_spat and G_act are the gradients of the grounding and the action loss on one shared weight, the query projection of
the planner's last self-attention layer, over a fixed probe batch of each kind. P = G G^+ projects on what a gradient
moves, and PSS = tr(P_spat P_act) / min(rank) (ST4VLA, arXiv 2602.10109, section on gradient similarity).

With full numerical rank P is the identity and PSS is 1 whatever the gradients are, so a cut of the rank is essential;
the paper does not state its own. Ours keeps the leading singular directions that carry `energy` of a gradient's squared
norm. Two subspaces drawn at random score max(rank) / rows, which is reported beside it as "chance".
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from st4vla.platform.policy.model import St4vlaModel

Row = dict[str, float]
PROBE_SEED = 0


def leading_directions(gradient: torch.Tensor, energy: float) -> torch.Tensor:
    """Give an orthonormal basis [rows, r] of the fewest directions that carry `energy` of the squared norm.

    A gradient of zero has none.
    """
    directions, sizes, _ = torch.linalg.svd(gradient.double(), full_matrices=False)
    carried = (sizes**2).cumsum(0)
    if not carried[-1] > 0:
        return directions[:, :0]
    rank = int((carried < energy * carried[-1]).sum()) + 1
    return directions[:, :rank]


def similarity(one: torch.Tensor, other: torch.Tensor, energy: float) -> Row:
    """Compare two gradients [rows, columns] of one weight: "pss", "chance", and both ranks.

    A gradient of zero pulls nowhere, so there is nothing to compare and the row is empty.
    """
    bases = [leading_directions(gradient, energy) for gradient in (one, other)]
    ranks = [basis.shape[1] for basis in bases]
    if min(ranks) == 0:
        return {}
    shared = float((bases[0].T @ bases[1]).square().sum())
    return {
        "pss": shared / min(ranks),
        "chance": max(ranks) / one.shape[0],
        "rank_grounding": float(ranks[0]),
        "rank_action": float(ranks[1]),
    }


def shared_weight(model: St4vlaModel) -> torch.nn.Parameter:
    """Give the weight both objectives are compared on."""
    return model.planner.vlm.model.language_model.layers[-1].self_attn.q_proj.weight


def gradient_of(
    model: St4vlaModel, loss: Callable[[], Mapping[str, torch.Tensor]], world_size: int = 1
) -> torch.Tensor:
    """Differentiate a loss by the shared weight alone, averaged over workers; no accumulated gradient is touched."""
    with torch.enable_grad():
        gradient = torch.autograd.grad(loss()["loss"], shared_weight(model))[0].float()
    if world_size > 1:
        dist.all_reduce(gradient)
    return gradient / world_size


def compare_objectives(
    model: St4vlaModel,
    grounding: Mapping[str, Any],
    robot: Mapping[str, Any],
    energy: float,
    world_size: int = 1,
) -> Row:
    """Give the similarity on two probe batches, each worker's its share; noise is the same at every call."""
    noise = torch.Generator(device=robot["actions"].device).manual_seed(PROBE_SEED)
    spatial = gradient_of(model, lambda: model.grounding_loss(grounding), world_size)
    action = gradient_of(model, lambda: model.action_loss(robot, noise), world_size)
    return similarity(spatial, action, energy)
