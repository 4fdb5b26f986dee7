"""Write a checkpoint of ours in the published layout, for the public code and for transformers to read.

A checkpoint that was imported comes out as it went in, to the bit; one that was trained here gets the names, the
configuration and the statistics that the public code expects.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from st4vla.platform.checkpoint import read_tokenizer
from st4vla.platform.data.statistics import read_statistics
from st4vla.platform.errors import CheckpointError
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.folder import (
    STATISTICS,
    existing,
    own_tensors,
    read_lineage,
    read_policy_yaml,
    read_tensors,
    refuse_existing,
    whole_folder,
)
from st4vla.platform.policy.hollow import without_weights
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.planner_build import build_config
from st4vla.platform.policy.processor import Processor
from st4vla.platform.published.bring_in import EMBEDDING, ORIGIN, UNUSED_WEIGHTS
from st4vla.platform.published.describe import EXPERTS, EYES
from st4vla.platform.published.names import OUTPUT_LAYER, PLANNER_PREFIX, Link, links
from st4vla.platform.published.run import CONFIG, from_statistics
from st4vla.platform.published.run import STATISTICS as PUBLISHED_STATISTICS

HISTORY = "action_model.net.history_embedder.linear"
# How transformers reads an image for either planner where views are 224 px: as they are.
PIXELS = {"min_pixels": 3136, "max_pixels": 12_845_056}


def write_out(folder: str | Path, out: str | Path) -> Path:
    """Write a checkpoint folder as a published run, or as a plain Qwen-VL folder if it has a planner only.

    Raises:
        CheckpointError: it holds what the published layout has no place for, all listed, or cannot be written, or
            `out` is there already.
    """
    folder, out = Path(folder), Path(out)
    refuse_existing(out)
    config = PolicyConfig.from_mapping(read_policy_yaml(folder, "st4vla"))
    tensors = read_tensors(folder)
    if all(name.startswith("planner.") for name in tensors):
        return write_planner(folder, out, config, tensors)
    origin = read_origin(folder)
    state = published_state(config, tensors, origin, PLANNER_PREFIX, folder)
    state |= unused_state(folder, config)
    step = int(read_lineage(folder).notes.get("step", 0))
    with whole_folder(out, size_of(state)) as target:
        (target / "checkpoints").mkdir()
        save_pickle(state, target / "checkpoints" / origin.get("weights", f"steps_{step}_pytorch_model.pt"))
        settings = origin.get("config") or published_config(config)
        (target / CONFIG).write_text(yaml.safe_dump(settings, sort_keys=False))
        statistics = read_statistics(existing(folder / STATISTICS))
        written = from_statistics(statistics, origin.get("statistics", {}))
        (target / PUBLISHED_STATISTICS).write_text(json.dumps(written, indent=2) + "\n")
    return out


def save_pickle(state: Mapping[str, Tensor], path: Path) -> None:
    """Save a state dict as the public code does; raises OSError where the disk is full."""
    try:
        torch.save(dict(state), path)
    except RuntimeError as error:
        raise OSError(f"torch could not write {path.name}: {error}") from error


def write_planner(folder: Path, out: Path, config: PolicyConfig, tensors: Mapping[str, Tensor]) -> Path:
    """Write a planner as transformers' from_pretrained reads it."""
    origin = read_origin(folder)
    tokenizer = read_tokenizer(folder)
    names = {"planner_names": "flat" if config.planner.kind == "qwen2_5_vl" else "nested"}
    state = published_state(config, tensors, names | origin, "", folder, parts=("planner",))
    values = origin.get("config")
    if values is None:
        built = build_config(config.planner, Processor(config, tokenizer).token_ids)
        values = built.to_dict() | {"architectures": [architecture(config)]}
    with whole_folder(out, size_of(state)) as target:
        tokenizer.save_pretrained(target)
        (target / "config.json").write_text(json.dumps(values, indent=2, default=str) + "\n")
        (target / "preprocessor_config.json").write_text(json.dumps(preprocessor(config), indent=2) + "\n")
        save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return out


def published_state(
    config: PolicyConfig,
    tensors: Mapping[str, Tensor],
    origin: Mapping[str, Any],
    prefix: str,
    folder: Path,
    parts: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Give the state dict under published names."""
    found, homeless = published_links(config, folder, origin.get("planner_names", "nested"), prefix, parts)
    lines = [f"{name} has no place in the published layout" for name in homeless]
    lines += [f"{name} is missing" for link in found for name in link.ours if name not in tensors]
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(f"{folder} cannot be written in the published layout ({len(lines)}):\n  {listed}")
    joined = {link.theirs: [tensors[name] for name in link.ours] for link in found}
    state = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in joined.items()}
    if origin.get("output_layer"):
        state[prefix + OUTPUT_LAYER] = tensors[EMBEDDING].clone()
    return state


def published_links(
    config: PolicyConfig, folder: Path, generation: Any, prefix: str, parts: tuple[str, ...]
) -> tuple[list[Link], list[str]]:
    with without_weights():
        model = St4vlaModel(config, Processor(config, read_tokenizer(folder)).token_ids)
    own = [name for name in own_tensors(model) if not parts or name.split(".")[0] in parts]
    return links(own, generation, prefix)


def unused_state(folder: Path, config: PolicyConfig) -> dict[str, Tensor]:
    """Give the tensors that the public code asks for and never reads: those it was imported with, or zeros."""
    path = folder / UNUSED_WEIGHTS
    if (folder / ORIGIN).is_file():
        if not path.is_file():
            return {}
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    width, actions = config.expert.width, config.action_dim
    return {f"{HISTORY}.weight": torch.zeros(width, actions), f"{HISTORY}.bias": torch.zeros(width)}


def published_config(config: PolicyConfig) -> dict[str, Any]:
    """Give the settings that the public code reads, for a policy that was made here."""
    expert, vision, layers = config.expert, config.vision, config.planner.plan_layers
    first, end = (layers[0], layers[-1] + 1) if layers else (config.planner.text.layers, config.planner.text.layers + 1)
    sizes = {"DiT": (EXPERTS, expert), "DINOv2": (EYES, vision)}
    names = {}
    for what, (table, part) in sizes.items():
        fitting = [name for name, size in table.items() if size == (part.layers, part.width, part.heads)]
        names[what] = fitting[0] if fitting else f"{what}-{part.layers}x{part.width}x{part.heads}"
    return {
        "run_id": config.name,
        "framework": {
            "framework_py": "InternVLA-M1",
            "qwenvl": {"base_vlm": "Qwen/Qwen2.5-VL-3B-Instruct", "vl_hidden_dim": config.planner.text.width},
            "dino": {"dino_backbone": names["DINOv2"]},
            "layer_qformer": {
                "qformer_start_layer": first,
                "qformer_end_layer": end,
                "num_query_tokens": config.query.queries,
                "input_dim": config.planner.text.width,
                "ouptput_dim": config.query.width,
                "grad_scale": config.query.grad_scale,
            },
            "action_model": {
                "action_model_type": names["DiT"],
                "action_hidden_dim": expert.width,
                "action_dim": config.action_dim,
                "use_ema": False,
                "future_action_window_size": config.chunk_length - 1,
                "past_action_window_size": 0,
            },
        },
        "datasets": {
            "vla_data": {"CoT_prompt": config.prompt.action, "image_size": [config.image_size, config.image_size]}
        },
        "trainer": {"repeated_diffusion_steps": expert.noise_draws},
    }


def read_origin(folder: Path) -> dict[str, Any]:
    """Read what an import kept for the way back; {} where the checkpoint was made here."""
    path = folder / ORIGIN
    return json.loads(path.read_text()) if path.is_file() else {}


def architecture(config: PolicyConfig) -> str:
    names = {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}
    return names[config.planner.kind]


def preprocessor(config: PolicyConfig) -> dict[str, Any]:
    """Give the image processor's settings."""
    vision = config.planner.vision
    return PIXELS | {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": vision.patch_size,
        "merge_size": vision.merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }


def size_of(state: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
