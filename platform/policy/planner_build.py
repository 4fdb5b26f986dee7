"""Build the planner's vision-language model in transformers from our sizes, with random weights and no hub."""

from collections.abc import Mapping
from typing import Any

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from st4vla.platform.policy.config import PlannerConfig, TextTowerConfig

# Mean and standard deviation of each colour, as the image processors of either family normalise.
CLIP_CONSTANTS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF_CONSTANTS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def image_constants(kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return CLIP_CONSTANTS if kind == "qwen2_5_vl" else HALF_CONSTANTS


def build_vlm(config: PlannerConfig, token_ids: Mapping[str, int]) -> Any:
    """Build the model with random weights."""
    built = build_config(config, token_ids)
    if isinstance(built, Qwen2_5_VLConfig):
        return Qwen2_5_VLForConditionalGeneration(built)
    return Qwen3VLForConditionalGeneration(built)


def build_config(config: PlannerConfig, token_ids: Mapping[str, int]) -> Qwen2_5_VLConfig | Qwen3VLConfig:
    """Give transformers' own settings; the rotary sections follow the published proportions at any head width."""
    wide = config.kind == "qwen2_5_vl"
    ids = {f"{name}_token_id": token_ids[name] for name in ("image", "video", "vision_start", "vision_end")}
    text = text_values(config.text, token_ids, qwen2_5_rope(config.text) if wide else qwen3_rope(config.text))
    vision = vision_values(config)
    tied = config.text.tie_embeddings
    values: dict[str, Any] = {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied, **ids}
    return Qwen2_5_VLConfig(**values) if wide else Qwen3VLConfig(**values)


def qwen2_5_rope(text: TextTowerConfig) -> dict[str, Any]:
    half = text.head_dim // 2
    section = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    return {"rope_type": "default", "rope_theta": text.rope_theta, "mrope_section": section}


def qwen3_rope(text: TextTowerConfig) -> dict[str, Any]:
    half = text.head_dim // 2
    section = [half - 2 * (5 * half // 16), 5 * half // 16, 5 * half // 16]
    return {
        "rope_type": "default",
        "rope_theta": text.rope_theta,
        "mrope_section": section,
        "mrope_interleaved": True,
    }


def text_values(text: TextTowerConfig, token_ids: Mapping[str, int], rope: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "intermediate_size": text.mlp_width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "head_dim": text.head_dim,
        "max_position_embeddings": text.max_positions,
        "initializer_range": text.initializer_range,
        "rms_norm_eps": 1e-6,
        "rope_parameters": rope,
        "bos_token_id": None,
        "pad_token_id": token_ids["pad"],
        "eos_token_id": token_ids["end"],
    }


def vision_values(config: PlannerConfig) -> dict[str, Any]:
    vision = config.vision
    values: dict[str, Any] = {
        "depth": vision.layers,
        "hidden_size": vision.width,
        "intermediate_size": vision.mlp_width,
        "num_heads": vision.heads,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "out_hidden_size": config.text.width,
        "initializer_range": vision.initializer_range,
    }
    if config.kind == "qwen2_5_vl":
        layers = list(vision.full_attention_layers)
        return values | {"window_size": vision.window_px, "fullatt_block_indexes": layers}
    grid = {"num_position_embeddings": vision.position_grid**2, "deepstack_visual_indexes": list(vision.deep_layers)}
    return values | grid
