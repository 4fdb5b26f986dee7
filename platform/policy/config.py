"""Describe a policy: every size and choice that its weights depend on, checked, to and from YAML."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from st4vla.platform.contracts import ActionForm, PolicySpec, StateForm
from st4vla.platform.errors import ConfigError
from st4vla.platform.policy.settings import build_config, packaged, plain, require, require_positive

UNIFIED_PROMPT = (
    "Your task is {instruction}. Figure out how to execute it, then locate the key object needed."  # ST4VLA, figure 2
)


@dataclass(frozen=True)
class TextTowerConfig:
    """The planner's language model; `vocab_size` may exceed the tokenizer's, never fall short of it."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    tie_embeddings: bool = True
    rope_theta: float = 1_000_000.0
    max_positions: int = 32_768
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        require_positive(self, "width", "layers", "heads", "kv_heads", "mlp_width", "vocab_size", "initializer_range")
        require(self.heads % self.kv_heads == 0, self, "kv_heads", f"it must divide heads, which is {self.heads}")
        require(self.head_dim >= 16 and self.head_dim % 16 == 0, self, "head_dim", "use a multiple of 16")


@dataclass(frozen=True)
class VisionTowerConfig:
    """The planner's own image encoder.

    Attributes:
        deep_layers: Qwen3-VL: the layers whose tokens are added to the first layers of the language model.
        full_attention_layers: Qwen2.5-VL: the layers that look beyond a window of `window_px` pixels.
        position_grid: Qwen3-VL: side of the grid of learned positions.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    patch_size: int
    merge_size: int = 2
    temporal_patch_size: int = 2
    deep_layers: tuple[int, ...] = ()
    full_attention_layers: tuple[int, ...] = ()
    window_px: int = 112
    position_grid: int = 48
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        require_positive(self, "width", "layers", "heads", "mlp_width", "patch_size", "merge_size", "position_grid")
        require(self.width % (self.heads * 4) == 0, self, "width", "it must be a multiple of 4 x heads")
        for name in ("deep_layers", "full_attention_layers"):
            layers = getattr(self, name)
            require(all(0 <= i < self.layers for i in layers), self, name, f"layers run from 0 to {self.layers - 1}")

    @property
    def token_px(self) -> int:
        """Side of the square that one merged token covers, in pixels of the policy's image."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True)
class DenseConfig:
    """The auxiliary loss that teaches a small planner where things are (off with weight 0).

    A linear head on the merged vision tokens predicts which of `words` describe what lies in each of
    `cells_per_token` x `cells_per_token` cells of a token. Names are split into words, so that a red cube is learned
    from a red bowl and a blue cube.
    """

    weight: float = 0.0
    cells_per_token: int = 4
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.weight >= 0, self, "weight", "it must not be negative")
        require_positive(self, "cells_per_token")
        require(len(set(self.words)) == len(self.words), self, "words", "each word may stand there once")
        require(self.weight == 0 or bool(self.words), self, "words", "list the words, or set weight to 0")


@dataclass(frozen=True)
class PlannerConfig:
    """System 2, a vision-language model of transformers.

    Attributes:
        cameras: the policy's cameras that System 2 looks at; () means all, as published.
        plan_layers: the hidden layers that make the plan, side by side, one for each layer of the query transformer:
            0 is the embedding, `text.layers` the normalised last; () is that last one, for all layers of the query
            transformer.
    """

    kind: Literal["qwen2_5_vl", "qwen3_vl"]
    text: TextTowerConfig
    vision: VisionTowerConfig
    dense: DenseConfig = DenseConfig()
    cameras: tuple[str, ...] = ()
    plan_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        there = all(0 <= layer <= self.text.layers for layer in self.plan_layers)
        require(there, self, "plan_layers", f"hidden layers run from 0 to {self.text.layers}")
        if self.kind == "qwen2_5_vl":
            same = self.text.heads * self.text.head_dim == self.text.width
            require(same, self.text, "head_dim", "Qwen2.5-VL needs heads x head_dim = width")
            require(not self.vision.deep_layers, self.vision, "deep_layers", "only qwen3_vl has them")


@dataclass(frozen=True)
class VisionConfig:
    """DINOv2, which looks at the newest frame for System 1.

    Attributes:
        position_px: the image size of its learned positions.
        position_offset: what is added to the sides of the patch grid where the positions are resampled to it; DINOv2's
            own code, with which published weights were trained, has 0.1, transformers has 0.
        dense_weight: weight of the dense loss on its own patch tokens in stage 1, for want of pretrained weights.
    """

    width: int
    layers: int
    heads: int
    patch_size: int
    position_px: int
    initializer_range: float = 0.02
    dense_weight: float = 0.0
    position_offset: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "width", "layers", "heads", "patch_size", "position_px")
        require(self.width % self.heads == 0, self, "width", f"it must be a multiple of heads, which is {self.heads}")


@dataclass(frozen=True)
class QueryConfig:
    """The query transformer between the two systems; `grad_scale` decays what the action loss sends to the planner."""

    queries: int
    width: int
    heads: int
    layers: int = 1
    dropout: float = 0.0
    grad_scale: float = 0.5

    def __post_init__(self) -> None:
        require_positive(self, "queries", "width", "heads", "layers")
        require(self.width % self.heads == 0, self, "width", f"it must be a multiple of heads, which is {self.heads}")
        require(0 <= self.dropout < 1, self, "dropout", "it must lie in [0, 1)")
        require(0 <= self.grad_scale <= 1, self, "grad_scale", "it must lie in [0, 1]")


@dataclass(frozen=True)
class ExpertConfig:
    """System 1's denoiser and how it is trained and sampled.

    Attributes:
        temperature: the noise that a chunk is denoised from is scaled by it: 1 as published, below 1 for chunks nearer
            to the likeliest one, 0 for one chunk per observation.
    """

    width: int
    layers: int
    heads: int
    condition_dropout: float = 0.1
    diffusion_steps: int = 100
    noise_draws: int = 4
    ddim_steps: int = 10
    guidance: float = 1.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "width", "layers", "heads", "diffusion_steps", "noise_draws", "ddim_steps", "guidance")
        require(0 <= self.temperature <= 1, self, "temperature", "it must lie in [0, 1]")
        require(self.width % self.heads == 0, self, "width", f"it must be a multiple of heads, which is {self.heads}")
        require(0 <= self.condition_dropout < 1, self, "condition_dropout", "it must lie in [0, 1)")


@dataclass(frozen=True)
class PromptConfig:
    """What the planner is told; way-points beyond `max_waypoints` of a trace are thinned evenly."""

    action: str = UNIFIED_PROMPT
    max_waypoints: int = 8

    def __post_init__(self) -> None:
        require("{instruction}" in self.action, self, "action", "it must contain {instruction}")
        require(self.max_waypoints >= 2, self, "max_waypoints", "use at least 2")


@dataclass(frozen=True)
class SemanticsConfig:
    """With which habits the weights were trained, where published code and paper differ.

    The defaults are ours; a checkpoint imported from the public InternVLA-M1 code has every one the other way.

    Attributes:
        attend_padding: in a padded batch the queries also look at padding, as FlashAttention leaves it: seen by no
            token, seeing none. A policy that acts has no padding, whatever this says.
        lowercase: the instruction is lower-cased when the policy acts, though not when it learns.
        verbatim: the instruction goes into the prompt as it is; else white space is tidied and a closing full stop
            gives way to the prompt's own.
        rotation: what columns 3 to 5 of an arm's delta action are: a rotation vector, or roll, pitch and yaw.
    """

    attend_padding: bool = False
    lowercase: bool = False
    verbatim: bool = False
    rotation: Literal["vector", "euler"] = "vector"


@dataclass(frozen=True)
class PolicyConfig:
    """A whole dual-system policy.

    Attributes:
        state_dim: width of the proprioceptive state; 0 leaves the state out, as published.
        image_size: every view is resized to this square before both encoders.
        spatial_token: where the plan points (`Planner.where`) is appended to the plan as one more token and handed to
            the action expert as one more condition token; off as published (docs/decisions/0004).
        destination: the spatial token also says where what it points at should go, by a head of its own.
    """

    name: str
    cameras: tuple[str, ...]
    image_size: int
    state_dim: int
    action_dim: int
    chunk_length: int
    control_hz: float
    statistics_key: str
    planner: PlannerConfig
    vision: VisionConfig
    query: QueryConfig
    expert: ExpertConfig
    prompt: PromptConfig = PromptConfig()
    semantics: SemanticsConfig = SemanticsConfig()
    action_form: ActionForm = "delta_end_effector"
    state_form: StateForm = "proprioception"
    spatial_token: bool = False
    destination: bool = False
    kind: Literal["st4vla"] = "st4vla"

    def __post_init__(self) -> None:
        require_positive(self, "image_size", "action_dim", "chunk_length", "control_hz")
        require(bool(self.cameras), self, "cameras", "name at least one camera")
        known = set(self.planner.cameras) <= set(self.cameras)
        require(known, self.planner, "cameras", f"name some of {', '.join(self.cameras)}")
        require(self.state_dim >= 0, self, "state_dim", "use 0 to leave the state out")
        points = bool(self.planner.dense.words) or not self.spatial_token
        require(points, self, "spatial_token", "a planner without planner.dense.words points at nothing")
        require(
            self.spatial_token or not self.destination, self, "destination", "it is told by spatial_token, set that"
        )
        token_px, patch_px = self.planner.vision.token_px, self.vision.patch_size
        require(self.image_size % token_px == 0, self, "image_size", f"the planner needs a multiple of {token_px}")
        require(self.image_size % patch_px == 0, self, "image_size", f"DINOv2 needs a multiple of {patch_px}")
        require(
            self.query.width == self.expert.width, self, "query", f"its width must be {self.expert.width}, the expert's"
        )
        reads = len(self.planner.plan_layers)
        require(reads in (0, self.query.layers), self.planner, "plan_layers", f"name {self.query.layers} or none")
        require(not (reads > 1 and self.spatial_token), self, "spatial_token", "it needs a plan of one layer")

        if self.vision.dense_weight:
            side = self.image_size // patch_px
            require(
                self.dense_side % side == 0,
                self.vision,
                "dense_weight",
                f"{side} patches must divide {self.dense_side} cells",
            )

    @property
    def planner_cameras(self) -> tuple[str, ...]:
        """The views System 2 looks at, in the order of `cameras`."""
        return tuple(c for c in self.cameras if not self.planner.cameras or c in self.planner.cameras)

    @property
    def places(self) -> int:
        """How many places the spatial token tells."""
        return 1 + self.destination

    @property
    def dense_side(self) -> int:
        """Cells of the dense loss along one side of a view."""
        return self.tokens_per_side * self.planner.dense.cells_per_token

    @property
    def tokens_per_side(self) -> int:
        """Merged planner tokens along one side of a view."""
        return self.image_size // self.planner.vision.token_px

    @property
    def tokens_per_view(self) -> int:
        return self.tokens_per_side**2

    @property
    def spec(self) -> PolicySpec:
        """What the rest of the platform must know of the policy."""
        return PolicySpec(
            cameras=self.cameras,
            image_size=self.image_size,
            state_dim=self.state_dim,
            action_dim=self.action_dim,
            chunk_length=self.chunk_length,
            control_hz=self.control_hz,
            statistics_key=self.statistics_key,
            action_form=self.action_form,
            state_form=self.state_form,
            rotation_form="euler_xyz" if self.semantics.rotation == "euler" else "rotation_vector",
        )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "PolicyConfig":
        """Build from nested mappings, as YAML or a composed configuration gives them."""
        return build_config(cls, values)

    @classmethod
    def preset(cls, name: str) -> "PolicyConfig":
        """Give a packaged preset, `configs/policy/NAME.yaml`.

        Raises:
            ConfigError: there is none of that name; those there are are listed.
        """
        return cls.from_mapping(packaged("policy", name, "preset"))

    @classmethod
    def from_yaml(cls, path: str | Path) -> "PolicyConfig":
        """Read one YAML file; a config group's file has the same form."""
        values = yaml.safe_load(Path(path).read_text())
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds {type(values).__name__}; expected the settings of a policy.")
        return cls.from_mapping(values)

    def to_yaml(self) -> str:
        """Write every setting, defaults included, so that later defaults change nothing."""
        return yaml.safe_dump(plain(self), sort_keys=False, width=120)
