"""Find the place of every published tensor in a policy of ours, or list everything that has none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from st4vla.platform.errors import CheckpointError
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.folder import check_finite, own_tensors
from st4vla.platform.policy.hollow import without_weights
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.settings import plain
from st4vla.platform.published.names import (
    OUTPUT_LAYER,
    PLANNER_PREFIX,
    UNUSED,
    Generation,
    generation_of,
    links,
    problems,
    to_ours,
)


@dataclass(frozen=True)
class Fitted:
    """Published tensors in their places.

    Attributes:
        ours: our tensors by our names.
        unused: published tensors that no code reads, by their own names; kept for the way back.
        tied: whether the output layer was saved beside the equal embedding.
    """

    ours: Mapping[str, Tensor]
    unused: Mapping[str, Tensor]
    tied: bool
    generation: Generation
    count: int

    def account(self) -> dict[str, Any]:
        """Say what became of every published tensor."""
        return {
            "published_tensors": self.count,
            "mapped": self.count - len(self.unused) - self.tied,
            "unused": sorted(self.unused),
            "tied_to_embedding": [OUTPUT_LAYER] if self.tied else [],
            "planner_names": self.generation,
        }


def with_output_layer(config: PolicyConfig, theirs: Mapping[str, Tensor], prefix: str) -> PolicyConfig:
    """Untie the planner's output layer where the weights have one of their own."""
    text = config.planner.text
    if text.tie_embeddings and not is_tied(theirs, prefix):
        values = plain(config)
        values["planner"]["text"]["tie_embeddings"] = False
        return PolicyConfig.from_mapping(values)
    return config


def is_tied(theirs: Mapping[str, Tensor], prefix: str) -> bool:
    """Tell whether there is no output layer, or one equal to the embedding."""
    output = theirs.get(prefix + OUTPUT_LAYER)
    names = (f"{prefix}model.embed_tokens.weight", f"{prefix}model.language_model.embed_tokens.weight")
    embedding = next((theirs[name] for name in names if name in theirs), None)
    return output is None or embedding is None or (output.shape == embedding.shape and torch.equal(output, embedding))


def fit_published(
    config: PolicyConfig,
    processor: Processor,
    theirs: Mapping[str, Tensor],
    where: str,
    prefix: str = PLANNER_PREFIX,
    parts: tuple[str, ...] = (),
) -> Fitted:
    """Find the place of every published tensor.

    Raises:
        CheckpointError: tensors are missing, too many or misshapen, all listed, or not finite.
    """
    with without_weights():
        own = own_tensors(St4vlaModel(config, processor.token_ids))
    if parts:
        own = {name: tensor for name, tensor in own.items() if name.split(".")[0] in parts}
    generation = generation_of(theirs, prefix)
    found, homeless = links(list(own), generation, prefix)
    unused = {name: tensor for name, tensor in theirs.items() if UNUSED.match(name)}
    tied = prefix + OUTPUT_LAYER in theirs and config.planner.text.tie_embeddings
    used = {n: t for n, t in theirs.items() if n not in unused and not (tied and n == prefix + OUTPUT_LAYER)}
    lines = problems(found, own, used) + [f"nothing published for {name}" for name in homeless]
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(
            f"The tensors in {where} do not fit the architecture ({len(lines)}):\n  {listed}\n"
            "Give base_vlm of the right size, or settings that say what differs."
        )
    check_finite(theirs, where)
    return Fitted(to_ours(found, own, used), unused, tied, generation, len(theirs))
