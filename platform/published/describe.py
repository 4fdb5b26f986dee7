"""Turn a published run's configuration into ours, with the semantics its weights were trained with."""

from collections.abc import Mapping
from typing import Any

from st4vla.platform.errors import CheckpointError
from st4vla.platform.policy.config import (
    ExpertConfig,
    PlannerConfig,
    PolicyConfig,
    PromptConfig,
    QueryConfig,
    SemanticsConfig,
    VisionConfig,
)
from st4vla.platform.policy.settings import plain

# Layers, width and heads by name, as the public code and DINOv2's have them.
EXPERTS = {"DiT-S": (6, 384, 4), "DiT-B": (12, 768, 12), "DiT-L": (24, 1024, 16)}
EYES = {"dinov2_vits14": (12, 384, 6), "dinov2_vitb14": (12, 768, 12), "dinov2_vitl14": (24, 1024, 16)}
QUERY_HEADS = 8
CAMERAS = ("third_person", "wrist")
CONTROL_HZ = {"oxe_rt1": 3.0, "oxe_bridge": 5.0, "oxe_droid": 15.0}
PUBLISHED = SemanticsConfig(attend_padding=True, lowercase=True, verbatim=True, rotation="euler")


def describe_policy(
    run: Mapping[str, Any], planner: PlannerConfig, embodiment: str, settings: Mapping[str, Any]
) -> PolicyConfig:
    """Give the policy that a run's weights make.

    Args:
        run: the run's config.yaml.
        settings: settings of policy.yaml that stand in place of what was read, nested.

    Raises:
        CheckpointError: the configuration lacks a setting, or names an architecture that is not known.
        ConfigError: a setting of `settings` is unknown or out of range.
    """
    query = need(run, "framework.layer_qformer")
    expert = describe_expert(run, settings)
    hidden = range(planner.text.layers + 1)
    layers = list(hidden[need(query, "qformer_start_layer") : need(query, "qformer_end_layer")])
    values = {
        "name": str(run.get("run_id", "published")),
        "cameras": list(CAMERAS[: len(find(run, "datasets.vla_data.obs") or [""])]),
        "image_size": image_size(run),
        "state_dim": 0,
        "action_dim": need(run, "framework.action_model.action_dim"),
        "chunk_length": need(run, "framework.action_model.future_action_window_size") + 1,
        "control_hz": CONTROL_HZ.get(embodiment, 5.0),
        "statistics_key": embodiment,
        "planner": plain(planner) | {"plan_layers": [] if layers == [hidden[-1]] else layers},
        "vision": describe_eyes(run, settings),
        "query": plain(
            QueryConfig(
                queries=need(query, "num_query_tokens"),
                width=query.get("ouptput_dim", query.get("output_dim", expert["width"])),
                heads=QUERY_HEADS,
                layers=len(layers),
                dropout=0.1,
                grad_scale=1.0,
            )
        ),
        "expert": expert,
        "prompt": plain(PromptConfig(action=find(run, "datasets.vla_data.CoT_prompt") or "{instruction}")),
        "semantics": plain(PUBLISHED),
    }
    return PolicyConfig.from_mapping(overlay(values, settings))


def describe_expert(run: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    if find(run, "framework.action_model.past_action_window_size"):
        raise CheckpointError(
            "framework.action_model.past_action_window_size is not 0; no published policy reads past actions."
        )
    name = need(run, "framework.action_model.action_model_type")
    layers, width, heads = known(EXPERTS, name, "framework.action_model.action_model_type", "expert", settings)
    draws = find(run, "trainer.repeated_diffusion_steps") or 4
    return plain(ExpertConfig(width=width, layers=layers, heads=heads, noise_draws=draws, ddim_steps=10, guidance=1.5))


def describe_eyes(run: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    name = find(run, "framework.dino.dino_backbone") or "dinov2_vits14"
    layers, width, heads = known(EYES, name, "framework.dino.dino_backbone", "vision", settings)
    return plain(VisionConfig(width, layers, heads, patch_size=14, position_px=518, position_offset=0.1))


def known(
    table: Mapping[str, tuple[int, int, int]], name: str, key: str, part: str, settings: Mapping[str, Any]
) -> tuple[int, int, int]:
    """Give layers, width and heads by a published name, or as `settings` say."""
    told = settings.get(part, {})
    if all(size in told for size in ("layers", "width", "heads")):
        return told["layers"], told["width"], told["heads"]
    if name not in table:
        raise CheckpointError(
            f"{key} is {name!r}; known are {', '.join(table)}. "
            f"For another give settings={{{part}: {{layers: N, width: N, heads: N}}}}."
        )
    return table[name]


def image_size(run: Mapping[str, Any]) -> int:
    """Give the side of the square that views are resized to; the public code's loader has 224 fixed."""
    size = find(run, "datasets.vla_data.image_size") or (
        find(run, "datasets.vla_data.default_image_resolution") or [224]
    )
    return int(list(size)[-1])


def overlay(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested settings over nested values."""
    laid = dict(values)
    for name, value in settings.items():
        nested = isinstance(value, Mapping) and isinstance(laid.get(name), Mapping)
        laid[name] = overlay(laid[name], value) if nested else value
    return laid


def find(values: Mapping[str, Any], path: str) -> Any:
    """Give what stands under a dotted path, None where nothing does."""
    for part in path.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return None
        values = values[part]
    return values


def need(values: Mapping[str, Any], path: str) -> Any:
    """Give what stands under a dotted path; raise CheckpointError where nothing does."""
    if (found := find(values, path)) is None:
        raise CheckpointError(f"The run's config.yaml lacks {path}; copy it again from the published run.")
    return found
