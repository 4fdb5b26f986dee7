"""One engine for evaluation, reinforcement and serving: prompts kept, shapes static, graphs where there is a GPU.

On a processor rows run one by one at their own length (docs/inference.md says why and what it costs). On a GPU rows
are filled up to a bucket, prompts and plans padded on the left to a multiple of `text_step`, and each system is one
captured graph per shape; nothing between the images' way in and the actions' way out waits for the GPU.

Letters: B rows, L positions, P width of a plan, V views, T chunk steps, A action width, S state width.
"""

from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from st4vla.platform.policy.diffusion import Guide
from st4vla.platform.policy.engine.graphs import Graphs, Tensors
from st4vla.platform.policy.engine.prompts import Prompts, prepare, stack
from st4vla.platform.policy.engine.systems import Systems
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.plan import Plan, stack_plans
from st4vla.platform.policy.processor import Batch, Processor

PROMPTS_KEPT = 512
BATCHES_KEPT = 64


class Engine:
    """Run a model's two systems on batches that are already on its device.

    What is derived from the weights is made here; a model whose weights change later needs a new engine.

    Args:
        text_step: lengths of padded prompts and plans are multiples of it.
    """

    def __init__(
        self,
        model: St4vlaModel,
        processor: Processor,
        ddim_steps: int | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        text_step: int = 16,
    ) -> None:
        self.model, self.processor, self.text_step = model, processor, text_step
        self.device = next(model.parameters()).device
        self.systems = Systems(model, ddim_steps, guidance, temperature)
        self._graphs = Graphs(self.device)
        self._prompt = lru_cache(PROMPTS_KEPT)(self._prepare)
        self._prompts = lru_cache(BATCHES_KEPT)(self._stack)

    def plan(self, instructions: Sequence[str], images: Tensor) -> tuple[Tensor, Tensor | None, list[int]]:
        """System 2: give plans [B,L,P], where they point [B,3] or None, and how many of their last positions count."""
        lengths = [self._prompt(words).embeds.shape[1] for words in instructions]
        prompts = self._prompts(tuple(instructions))
        given = (prompts.embeds, prompts.cos, prompts.signed_sin, prompts.image_at, prompts.seen, images)
        plan, place = self._graphs.run(("plan", *map(shape, given)), self._plan, given)
        assert plan is not None
        extra = plan.shape[1] - prompts.embeds.shape[1]
        return plan, place, [length + extra for length in lengths]

    def act(self, plans: Sequence[Plan], seen: Batch, noise: Tensor, guides: Sequence[Guide | None] = ()) -> Tensor:
        """System 1: give normalised actions [B,T,A] for views and states [B,V,3,H,W], [B,S] and noise [B,T,A].

        Guided rows are sampled step by step, as a guide may be any function; all others by one graph.
        """
        plan, mask = stack_plans(plans, self._padded(max(plan.hidden.shape[1] for plan in plans)))
        whole = len(plans) == 1 and mask.shape[1] == plans[0].hidden.shape[1]
        given = (plan, None if whole else mask, seen["images"], seen.get("state"), noise)
        if guides:
            return self.systems.act(*given, guides)
        (actions,) = self._graphs.run(("act", *map(shape, given)), self._act, given)
        assert actions is not None
        return actions

    def _plan(
        self, embeds: Tensor, cos: Tensor, signed_sin: Tensor, image_at: Tensor, seen: Tensor | None, images: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return self.systems.plan(Prompts(embeds, cos, signed_sin, image_at, seen), images)

    def _act(self, plan: Tensor, mask: Tensor | None, images: Tensor, state: Tensor | None, noise: Tensor) -> Tensors:
        return (self.systems.act(plan, mask, images, state, noise),)

    def _prepare(self, instruction: str) -> Prompts:
        return prepare(self.model, self.processor.encode_prompts([instruction]), self.device)

    def _stack(self, instructions: tuple[str, ...]) -> Prompts:
        prompts = [self._prompt(words) for words in instructions]
        return stack(prompts, self._padded(max(prompt.embeds.shape[1] for prompt in prompts)))

    def _padded(self, length: int) -> int:
        return length if self.device.type == "cpu" else -(-length // self.text_step) * self.text_step


def shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
