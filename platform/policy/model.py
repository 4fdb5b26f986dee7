"""The dual-system policy as one torch module: plan, condition, denoise.

    views + prompt --Planner--> plan [B,L,D]                                    System 2, may be cached
    newest views --FrameEncoder--> frame tokens [B,K,D]                         System 1 from here
    plan + frame --QueryTransformer--> condition [B,Q,C], and one more token each for the place and the state
    noise + condition --Denoiser, DDIM--> actions [B,T,A], normalised

Method: ST4VLA (arXiv 2602.10109) and InternVLA-M1 (arXiv 2510.13778), section 2.1; the plan is the planner's last
layer unless the config names several. Added, and off as published: the state token, and the place the plan points at.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.denoiser import Denoiser
from st4vla.platform.policy.dense import PLACE, DenseHead, WhereHead, place_of_peak
from st4vla.platform.policy.diffusion import Guide, mean_error, noise_errors, row_errors, sample_ddim
from st4vla.platform.policy.planner import Planner, prompt_end
from st4vla.platform.policy.query import QueryTransformer, ScaleGradient
from st4vla.platform.policy.vision import FrameEncoder


class St4vlaModel(nn.Module):
    """Planner, frame encoder, query transformer and action expert under one roof."""

    def __init__(self, config: PolicyConfig, token_ids: Mapping[str, int]) -> None:
        """Build with random weights; seed torch first for the same ones."""
        super().__init__()
        self.config = config
        width = config.planner.text.width
        self.planner_views = [config.cameras.index(camera) for camera in config.planner_cameras]
        self.planner = Planner(config.planner, token_ids)
        self.frame_encoder = FrameEncoder(config.vision, width, frame_dense_head(config))
        self.query_transformer = QueryTransformer(config.query, width)
        self.state_encoder = two_layers(config.state_dim, config.expert.width) if config.state_dim else None
        self.destination_head = WhereHead(width, config.planner.dense.cells_per_token) if config.destination else None
        self.spatial_encoder = two_layers(PLACE * config.places, width) if config.spatial_token else None
        self.spatial_condition = nn.Linear(width, config.expert.width) if config.spatial_token else None
        tokens = config.query.queries + bool(config.state_dim) + config.spatial_token
        self.action_expert = Denoiser(config.expert, tokens, config.chunk_length, config.action_dim)

    def plan(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """System 2: give the plan [B,L,P] and its mask [B,L]; P is D unless `planner.plan_layers` names several."""
        return self.plan_and_point(batch)[:2]

    def plan_and_point(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """System 2: give the plan, its mask, and where in its first view it points (`places`).

        Where weights learned with padding in sight (`semantics.attend_padding`), the mask hides none of it. Plans that
        are kept apart have no padding, as the public code has none when it acts on one observation a call.
        """
        hidden, last, tokens = self.planner.plan({**batch, "images": batch["images"][:, self.planner_views]})
        mask, places = batch["attention_mask"], self.places(last, tokens)
        if self.config.semantics.attend_padding and not bool(mask.all()):
            hidden = torch.where(mask[..., None].bool(), hidden, self.planner.padding().to(hidden.dtype))
            mask = torch.ones_like(mask)
        if self.spatial_encoder is not None:
            hidden, mask = self.with_places(hidden, places), torch.cat([mask, mask[:, -1:]], dim=1)
        return hidden, mask, places

    def with_places(self, plan: Tensor, places: Tensor | None) -> Tensor:
        """Append to a plan [B,L,D] the token of where it points, if the config asks for one."""
        if self.spatial_encoder is None or places is None:
            return plan
        return torch.cat([plan, self.spatial_encoder(places.to(plan.dtype))[:, None]], dim=1)

    def places(self, hidden: Tensor, tokens: Tensor) -> Tensor | None:
        """Give [B,3] where in its first view a plan points, and in three more columns where that should go, if asked.

        Args:
            hidden: the planner's last layer [B,L,D].
            tokens: its merged vision tokens [N,K,D].
        """
        chances = self.planner.where(hidden, tokens)
        if chances is None or self.destination_head is None:
            return None if chances is None else place_of_peak(chances.float())
        goals = self.destination_head.chances(*prompt_end(hidden, tokens))
        return torch.cat([place_of_peak(chances.float()), place_of_peak(goals.float())], dim=1)

    def condition(self, plan: Tensor, mask: Tensor, images: Tensor, state: Tensor | None = None) -> Tensor:
        """Fuse a plan, which may be old, with the newest views [B,V,3,H,W] and state [B,S]."""
        tokens = [self.query_transformer(plan, mask, self.frame_encoder(images))]
        if self.spatial_condition is not None:
            spatial = ScaleGradient.apply(plan[:, -1:], self.config.query.grad_scale)
            tokens.append(self.spatial_condition(spatial))
        if self.state_encoder is not None:
            assert state is not None
            tokens.append(self.state_encoder(state.to(tokens[0].dtype))[:, None])
        return torch.cat(tokens, dim=1)

    def action_loss(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Give the noise-prediction loss; the planner and the condition run once for all noise draws.

        A batch that says which dataset each row is of ("dataset") also gets "rows" [B], each row's own, for the log.
        """
        plan, mask = self.plan(batch)
        condition = self.condition(plan, mask, batch["images"], batch.get("state"))
        expert = self.config.expert
        errors, counts = noise_errors(
            self.action_expert,
            batch["actions"],
            batch["is_pad"],
            condition,
            expert.noise_draws,
            expert.diffusion_steps,
            generator,
        )
        losses = {"loss": mean_error(errors, counts)}
        return losses | {"rows": row_errors(errors, counts, len(plan))} if "dataset" in batch else losses

    def grounding_loss(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give "answer" (next-token), "dense", "where" and "goal" if there are any, and their weighted sum "loss"."""
        losses, last, tokens = self.planner.grounding_losses(batch)
        if self.destination_head is not None and "goal_cells" in batch:
            losses["goal"] = self.destination_head.loss(last, tokens, batch["goal_cells"])
        total = losses["answer"]
        for name in ("dense", "where", "goal"):
            if name in losses:
                total = total + self.config.planner.dense.weight * losses[name]
        if (head := self.frame_encoder.dense_head) is not None and "dense_labels" in batch:
            patches = self.frame_encoder.patches(batch["images"].flatten(0, 1))
            losses["frame_dense"] = head.loss(patches, batch["dense_labels"], batch["dense_targets"])
            total = total + self.config.vision.dense_weight * losses["frame_dense"]
        return {"loss": total, **losses}

    def sample(
        self,
        condition: Tensor,
        noise: Tensor,
        steps: int | None = None,
        guidance: float | None = None,
        guides: Sequence[Guide | None] = (),
    ) -> Tensor:
        """System 1's last part: denoise `noise` [B,T,A] into normalised actions; config values unless given.

        The noise is standard normal; `expert.temperature` scales it here.
        """
        expert = self.config.expert
        return sample_ddim(
            self.action_expert,
            expert.temperature * noise,
            condition,
            steps or expert.ddim_steps,
            expert.diffusion_steps,
            expert.guidance if guidance is None else guidance,
            guides,
        )


def frame_dense_head(config: PolicyConfig) -> DenseHead | None:
    """Build the dense head on DINOv2's patches, where the config gives it a weight."""
    if not config.vision.dense_weight:
        return None
    cells = config.dense_side * config.vision.patch_size // config.image_size
    return DenseHead(config.vision.width, len(config.planner.dense.words), cells)


def two_layers(inputs: int, width: int) -> nn.Module:
    """Build a light encoder of a few numbers into one token."""
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width))
