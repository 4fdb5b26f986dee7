"""Sum the losses of a policy on the batches of one step."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

Losses = dict[str, torch.Tensor]
Batch = Mapping[str, Any]
# What a batch keeps in fp32 when it goes to a model in bf16: noise is mixed into it, and the least of it would be lost.
EXACT = "actions"


class Trainable(Protocol):
    """What training asks of a policy: two losses, each a mapping with the key "loss" and any parts worth watching.

    A batch may name the dataset of each row under "dataset"; "rows" [B], if it is given back, is then each row's loss.
    """

    def action_loss(self, batch: Batch) -> Mapping[str, torch.Tensor]: ...

    def grounding_loss(self, batch: Batch) -> Mapping[str, torch.Tensor]: ...


class Objective(torch.nn.Module):
    """Carry a policy through DeepSpeed: all losses are reached by `forward`, as ZeRO's hooks ask.

    `forward` takes {"robot": batch, "grounding": batch}, either of which may be absent. It gives the weighted sum and,
    detached for the log, {"robot/loss": ..., "grounding/loss": ..., "grounding/<part>": ..., "robot/of/DATASET": ...}.
    """

    def __init__(self, model: torch.nn.Module, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.model = model
        self.weights = dict(weights)

    def forward(self, batches: Mapping[str, Batch]) -> tuple[torch.Tensor, Losses]:
        """Compute each batch's losses and their weighted sum."""
        policy: Trainable = self.model  # type: ignore[assignment]
        ways = {"robot": policy.action_loss, "grounding": policy.grounding_loss}
        total, parts = None, {}
        for source, batch in batches.items():
            losses = dict(ways[source](batch))
            rows = losses.pop("rows", None)
            weighted = self.weights[source] * losses["loss"]
            total = weighted if total is None else total + weighted
            parts.update({f"{source}/{name}": value.detach().float() for name, value in losses.items()})
            if rows is not None:
                parts.update({f"{source}/of/{name}": mean for name, mean in by_dataset(rows, batch["dataset"]).items()})
        if total is None:
            raise ValueError("the step has no batch; expected robot, grounding or both")
        return total, parts


def by_dataset(rows: torch.Tensor, names: Sequence[str]) -> Losses:
    """Give the mean of a batch's rows [B] for every dataset that has one in it."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return {name: rows[torch.tensor(own, device=rows.device)].mean().float() for name, own in places.items()}
