"""The two systems of one policy as functions of tensors: what a graph can capture and a caller can time apart."""

from collections.abc import Sequence

import torch
from torch import Tensor

from st4vla.platform.policy.diffusion import Guide
from st4vla.platform.policy.engine.condition import fuse
from st4vla.platform.policy.engine.denoise import Sampler
from st4vla.platform.policy.engine.planner_eyes import PlannerEyes
from st4vla.platform.policy.engine.prompts import Prompts
from st4vla.platform.policy.engine.text import read_text
from st4vla.platform.policy.model import St4vlaModel


class Systems:
    """A model's two systems; what is derived from weights is read when it is made."""

    @torch.no_grad()
    def __init__(
        self,
        model: St4vlaModel,
        ddim_steps: int | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
    ) -> None:
        expert = model.config.expert
        self.model = model
        self.eyes = PlannerEyes(model.planner, model.config) if PlannerEyes.fit(model.config) else model.planner.see
        self.sampler = Sampler(
            model.action_expert,
            ddim_steps or expert.ddim_steps,
            expert.diffusion_steps,
            expert.guidance if guidance is None else guidance,
            expert.temperature if temperature is None else temperature,
        )

    def plan(self, prompts: Prompts, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """System 2: give the plan [B,L,P] and where it points, as `St4vlaModel.places`; None without such a head."""
        model = self.model
        views = torch.stack([images[:, view] for view in model.planner_views], dim=1)
        tokens_NKD, deep = self.eyes(views.flatten(0, 1))
        text = model.planner.vlm.model.language_model
        plan, last = read_text(text, prompts, tokens_NKD, deep, model.config.planner.plan_layers)
        places = model.places(last, tokens_NKD.to(last.dtype))
        return model.with_places(plan, places), places

    def act(
        self,
        plan: Tensor,
        mask: Tensor | None,
        images: Tensor,
        state: Tensor | None,
        noise: Tensor,
        guides: Sequence[Guide | None] = (),
    ) -> Tensor:
        """System 1: give normalised actions [B,T,A] under a plan [B,L,P]; its mask [B,L] is None if all is seen."""
        condition = self.condition(plan, mask, images, state)
        return self.sampler(noise, condition, guides)

    def condition(self, plan: Tensor, mask: Tensor | None, images: Tensor, state: Tensor | None) -> Tensor:
        """Fuse the plan with the newest views [B,V,3,H,W] and the state: the condition tokens [B,Q,C]."""
        model = self.model
        tokens = [fuse(model.query_transformer, plan, model.frame_encoder(images), mask)]
        if model.spatial_condition is not None:
            tokens.append(model.spatial_condition(plan[:, -1:]))
        if model.state_encoder is not None:
            assert state is not None
            tokens.append(model.state_encoder(state.to(tokens[0].dtype))[:, None])
        return torch.cat(tokens, dim=1)
