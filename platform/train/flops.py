"""Count what a step's losses cost in floating point operations, from the policy's shapes alone.

Only products of matrices count, a multiplication and an addition as two operations, as `torch.utils.flop_counter` does.
A layer costs its forward pass once more for the gradient of its weights, if they are trained, and once more for the
gradient of its input, if anything before it is trained. What the losses do not need is not counted: padding, what
`deepspeed.recompute` or a fused attention kernel computes twice, and a LoRA adapter's own products (about a percent).
Attention counts whole, though causal: that is the usual reading of model FLOPs utilisation (PaLM, arXiv 2204.02311,
appendix B).

Letters: S patches of an image, K merged tokens, C width of a part, D planner width, L tokens of a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from st4vla.platform.policy.config import ExpertConfig, PlannerConfig, PolicyConfig, VisionConfig
from st4vla.platform.policy.denoiser import TIME_FEATURES
from st4vla.platform.policy.dense import PLACE
from st4vla.platform.policy.layout import IGNORE

MATCH_WIDTH = 32  # of `WhereHead`
TOWER, TEXT = "planner.vlm.model.visual", "planner.vlm.model.language_model"


@dataclass(frozen=True)
class Cost:
    """Operations of a forward pass: of layers whose input may need a gradient, and of those that read raw numbers."""

    inner: float = 0.0
    first: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.inner + other.inner, self.first + other.first)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.inner * times, self.first * times)

    def trained(self, weights: bool, inputs: bool) -> float:
        """Give the operations of forward and backward pass."""
        return self.inner * (1 + weights + inputs) + self.first * (1 + weights)


def linear(rows: float, width_in: int, width_out: int) -> float:
    """Give the operations of a linear layer."""
    return 2.0 * rows * width_in * width_out


def attention(queries: float, keys: float, width: int) -> float:
    """Give the operations of scores and mixing; `width` is that of all heads."""
    return 4.0 * queries * keys * width


def tower_cost(planner: PlannerConfig, image_size: int) -> Cost:
    """Give the cost of the planner's own image encoder on one view."""
    vision, wide = planner.vision, planner.kind == "qwen2_5_vl"
    side = image_size // vision.patch_size
    patches, width = side**2, vision.width
    frames = vision.temporal_patch_size if wide else 1  # the frames' weights are added up before, `planner_vision.py`
    layers = vision.layers * (
        linear(patches, width, 4 * width) + linear(patches, width, vision.mlp_width) * (3 if wide else 2)
    )
    whole = len(vision.full_attention_layers) if wide else vision.layers
    layers += attention(1, patches**2, width) * whole
    layers += attention(1, window_pairs(planner, image_size), width) * (vision.layers - whole)
    merged, block = patches // vision.merge_size**2, width * vision.merge_size**2
    merger = linear(merged, block, block) + linear(merged, block, planner.text.width)
    inner = layers + merger * (1 + len(vision.deep_layers))
    return Cost(inner, linear(patches, 3 * frames * vision.patch_size**2, width))


def window_pairs(planner: PlannerConfig, image_size: int) -> float:
    """Give the pairs of patches that see each other where attention stays within windows (Qwen2.5-VL)."""
    vision = planner.vision
    side, window = image_size // vision.token_px, max(1, vision.window_px // vision.token_px)
    spans = [window] * (side // window) + [side % window]
    return float(sum(span**2 for span in spans) ** 2 * vision.merge_size**4)


def text_cost(planner: PlannerConfig, tokens: float, pairs: float) -> Cost:
    """Give the cost of the language model on rows of `tokens` altogether, `pairs` the sum of their squared lengths."""
    text = planner.text
    heads, kv_heads = text.heads * text.head_dim, text.kv_heads * text.head_dim
    projections = 2 * linear(tokens, text.width, heads) + 2 * linear(tokens, text.width, kv_heads)
    mlp = 3 * linear(tokens, text.width, text.mlp_width)
    return Cost(text.layers * (projections + mlp + attention(1, pairs, heads)))


def where_cost(planner: PlannerConfig, tokens_per_view: int) -> tuple[Cost, float]:
    """Give the cost of what a where head makes of one row, and of matching its query with every cell of one view."""
    if not planner.dense.words:
        return Cost(), 0.0
    width, cells = planner.text.width, planner.dense.cells_per_token**2
    keys = linear(tokens_per_view, width, cells * MATCH_WIDTH)
    return Cost(linear(1, width, MATCH_WIDTH) + keys), 2.0 * MATCH_WIDTH * tokens_per_view * cells


def dino_cost(vision: VisionConfig, image_size: int) -> Cost:
    """Give the cost of DINOv2 on one view."""
    patches, width = (image_size // vision.patch_size) ** 2, vision.width
    seen = patches + 1
    layer = linear(seen, width, 4 * width) + 2 * linear(seen, width, 4 * width) + attention(seen, seen, width)
    return Cost(vision.layers * layer, linear(patches, 3 * vision.patch_size**2, width))


def query_cost(config: PolicyConfig, plan_tokens: float, frame_tokens: int, rows: int) -> Cost:
    """Give the cost of the query transformer on `rows` plans of `plan_tokens` altogether."""
    query, width = config.query, config.query.width
    read = plan_tokens + rows * frame_tokens
    queries = rows * query.queries
    layer = 2 * linear(queries, width, width) + 2 * linear(read, width, width)
    layer += attention(query.queries, read, width) + 2 * linear(queries, width, 4 * width)
    projected = linear(read, config.planner.text.width, width) * max(1, len(config.planner.plan_layers))
    return Cost(query.layers * layer + projected)


def expert_cost(expert: ExpertConfig, conditions: int, chunk: int, actions: int) -> Cost:
    """Give the cost of denoising one chunk once."""
    width, tokens = expert.width, conditions + chunk
    layer = linear(tokens, width, 12 * width) + attention(tokens, tokens, width)
    inner = expert.layers * layer + linear(conditions, width, width) + linear(1, width, width)
    inner += linear(chunk, width, actions)
    return Cost(inner, linear(chunk, actions, width) + linear(1, TIME_FEATURES, width))


class FlopCount:
    """Say what the losses of one worker's batches cost, forward and backward, in the model as it is trained."""

    def __init__(self, config: PolicyConfig, model: torch.nn.Module) -> None:
        self.config = config
        self._plain = [name for name, one in model.named_parameters() if one.requires_grad and ".lora_" not in name]
        self._any = [name for name, one in model.named_parameters() if one.requires_grad]
        self._tower = tower_cost(config.planner, config.image_size)
        self._where = where_cost(config.planner, config.tokens_per_view)
        self._dino = dino_cost(config.vision, config.image_size)

    def __call__(self, batches: Mapping[str, Mapping[str, Any]]) -> float:
        """Give the operations of a micro-batch, {"robot": ..., "grounding": ...}."""
        ways = {"robot": self.robot, "grounding": self.grounding}
        return sum(ways[source](batch) for source, batch in batches.items())

    def grounding(self, batch: Mapping[str, Any]) -> float:
        """Give the operations of a batch of questions."""
        config, rows, views = self.config, *batch["images"].shape[:2]
        planner, width = config.planner, config.planner.text.width
        total, flows = self._planner(batch, rows * views)
        words = float((batch["labels"] != IGNORE).sum())
        total += Cost(linear(words, width, planner.text.vocab_size)).trained(self._trains("planner.vlm"), flows)
        if planner.dense.words and "dense_labels" in batch:
            outputs = planner.dense.cells_per_token**2 * (len(planner.dense.words) + 1)
            dense = Cost(linear(rows * views * config.tokens_per_view, width, outputs))
            total += dense.trained(self._trains("planner.dense_head"), self._flows(TOWER))
            total += rows * self._matched("planner.where_head", flows)
            if config.destination and "goal_cells" in batch:
                total += rows * self._matched("destination_head", flows)
            total += self._frame_dense(rows * views)
        return total

    def robot(self, batch: Mapping[str, Any]) -> float:
        """Give the operations of a batch of action samples, all noise draws of it."""
        config, rows, views = self.config, *batch["images"].shape[:2]
        expert, width, planner_width = config.expert, config.expert.width, config.planner.text.width
        total, flows = self._planner(batch, rows * len(config.planner_cameras))
        place = config.spatial_token
        if config.planner.dense.words:
            total += rows * self._matched("planner.where_head", flows, place)
        if config.destination:
            total += rows * self._matched("destination_head", flows)
        frame_tokens = views * (config.image_size // config.vision.patch_size) ** 2
        eyes, seen = self._trains("frame_encoder"), self._flows("frame_encoder")
        widened = Cost(linear(rows * frame_tokens, config.vision.width, planner_width))
        total += (self._dino * (rows * views) + widened).trained(eyes, seen)
        tokens = float(batch["attention_mask"].sum()) + rows * place
        flows, before = flows or seen, flows or (config.destination and self._trains("destination_head"))
        query = query_cost(config, tokens, frame_tokens, rows)
        total += query.trained(self._trains("query_transformer"), flows)
        flows = flows or self._flows("query_transformer")
        if place:
            lit = self._trains("spatial_encoder")
            total += Cost(linear(rows, PLACE * config.places, planner_width)).trained(lit, before)
            total += Cost(linear(rows, planner_width, planner_width)).trained(lit, before or lit)
            total += Cost(linear(rows, planner_width, width)).trained(self._trains("spatial_condition"), True)
        if config.state_dim:
            light = Cost(linear(rows, width, width), linear(rows, config.state_dim, width))
            total += light.trained(self._trains("state_encoder"), True)
        conditions = config.query.queries + bool(config.state_dim) + place
        one = expert_cost(expert, conditions, config.chunk_length, config.action_dim)
        denoised = one * (rows * expert.noise_draws)
        return total + denoised.trained(self._trains("action_expert"), flows or self._flows("action_expert"))

    def _planner(self, batch: Mapping[str, Any], views: int) -> tuple[float, bool]:
        """Give the operations of planner and image encoder, and whether a gradient flows back to its last layer."""
        lengths = batch["attention_mask"].sum(1).double()
        text = text_cost(self.config.planner, float(lengths.sum()), float(lengths.square().sum()))
        flows = self._flows(TOWER) or self._flows(TEXT)
        total = (self._tower * views).trained(self._trains(TOWER), self._flows(TOWER))
        return total + text.trained(self._trains(TEXT), flows), flows

    def _matched(self, head: str, flows: bool, used: bool = True) -> float:
        """Give the operations of one row in a where head, whose map is or is not `used` by a loss."""
        made, match = self._where
        lit, flows = used and self._trains(head), used and flows
        return made.trained(lit, flows) + match * (1 + 2 * (lit or flows))

    def _frame_dense(self, views: int) -> float:
        vision, planner = self.config.vision, self.config.planner
        if not vision.dense_weight:
            return 0.0
        cells = (self.config.dense_side * vision.patch_size // self.config.image_size) ** 2
        patches = (self.config.image_size // vision.patch_size) ** 2
        head = Cost(linear(views * patches, vision.width, cells * (len(planner.dense.words) + 1)))
        cost = self._dino * views + head
        return cost.trained(self._trains("frame_encoder"), self._flows("frame_encoder"))

    def _trains(self, part: str) -> bool:
        return any(name.startswith(f"{part}.") for name in self._plain)

    def _flows(self, part: str) -> bool:
        return any(name.startswith(f"{part}.") for name in self._any)


# Dense peak of bf16 products with fp32 sums, in FLOP/s, by the words of a device's name; from the makers' data sheets.
PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}


def peak_flops(device_name: str) -> float | None:
    """Give a device's bf16 peak in FLOP/s by its name, None for one that is not in the table, a CPU above all."""
    words = set(device_name.replace("-", " ").split())
    fitting = [name for name in PEAKS if set(name.split()) <= words]
    return PEAKS[max(fitting, key=len)] if fitting else None
