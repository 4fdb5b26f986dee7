"""Find the vision-language model that a published planner grew from: its sizes, its tokenizer, its wording of a turn.

Only small files are read from it; the weights are the checkpoint's own.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerFast

from st4vla.platform.errors import CheckpointError
from st4vla.platform.policy.config import PlannerConfig, TextTowerConfig, VisionTowerConfig
from st4vla.platform.policy.planner_build import build_config
from st4vla.platform.published.hub import REPO_NAME, download

logger = logging.getLogger(__name__)

SMALL_FILES = ("config.json", "tokenizer*", "vocab.json", "merges.txt", "chat_template*")
# What private paths call a model, and its public name; the first that fits counts.
PUBLIC_NAMES = {
    r"qwen3[-_.]?vl.*?\b4b|qwen3[-_.]?vl.*?_4b": "Qwen/Qwen3-VL-4B-Instruct",
    r"qwen3[-_.]?vl.*?2b": "Qwen/Qwen3-VL-2B-Instruct",
    r"qwen2?[-_.]?2?[-_.]?5.*?7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    r"qwen2?[-_.]?2?[-_.]?5.*?3b": "Qwen/Qwen2.5-VL-3B-Instruct",
}
IMAGE_TURN = "<|vision_start|><|image_pad|><|vision_end|>"
KINDS = ("qwen2_5_vl", "qwen3_vl")
# Settings of transformers that our planner has no choice in; another value would be another model.
FIXED_TEXT = ("rms_norm_eps", "hidden_act", "rope_parameters", "use_sliding_window", "head_dim")
FIXED_VISION = ("hidden_act", "out_hidden_size", "in_channels", "num_position_embeddings")


@dataclass(frozen=True)
class BaseModel:
    """A vision-language model's small files, read.

    Attributes:
        name: where they came from: a public name or a folder.
        values: its config.json.
    """

    name: str
    planner: PlannerConfig
    tokenizer: PreTrainedTokenizerFast
    values: dict[str, Any]


def open_base(named: str, given: str = "") -> BaseModel:
    """Read the base model that a checkpoint names, or that is given instead.

    Args:
        named: what the checkpoint's configuration says; often a path on a machine elsewhere.
        given: a folder or a public name to use in its place.

    Raises:
        CheckpointError: it cannot be found or reached, or is no model that a planner can be made of.
    """
    name = given or resolve(named)
    if Path(name).is_dir():
        return read_base(name, Path(name))
    if not REPO_NAME.fullmatch(name):
        raise CheckpointError(f"base_vlm {name!r} is neither a folder nor a public name such as Qwen/NAME.")
    if not given and name != named:
        logger.info("base_vlm %r is not here; taking %s, its public name", named, name)
    return read_base(name, download(name, SMALL_FILES, "base_vlm=FOLDER with its config.json and tokenizer.json"))


def resolve(named: str) -> str:
    """Give a folder that is here or a public name for what a checkpoint calls its base.

    Raises:
        CheckpointError: it is a path that is not here, and tells no model.
    """
    if not named:
        raise CheckpointError("The checkpoint names no base_vlm; give base_vlm=FOLDER or a public name.")
    if Path(named).is_dir() or (REPO_NAME.fullmatch(named) and not named.startswith(".")):
        return named
    for part in reversed(Path(named).parts):
        for pattern, public in PUBLIC_NAMES.items():
            if re.search(pattern, part.lower()):
                return public
    raise CheckpointError(
        f"The checkpoint's base_vlm is {named!r}, which is not here and tells no public model; "
        "give base_vlm=FOLDER or a public name, e.g. base_vlm=Qwen/Qwen2.5-VL-3B-Instruct."
    )


def read_base(name: str, folder: Path) -> BaseModel:
    """Read the small files in a folder."""
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise CheckpointError(f"{folder} has no {needed}; give base_vlm=FOLDER of a whole Qwen-VL model.")
    values = json.loads((folder / "config.json").read_text())
    return BaseModel(name, planner_config(folder, values), read_turns(folder), values)


def read_turns(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer with the chat template that the model's own processor uses.

    Raises:
        CheckpointError: the template does not leave a place for an image.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if (separate := folder / "chat_template.json").is_file():
        tokenizer.chat_template = json.loads(separate.read_text())["chat_template"]
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}]
    shown = str(tokenizer.apply_chat_template(turn, tokenize=False)) if tokenizer.chat_template else ""
    if IMAGE_TURN not in shown:
        raise CheckpointError(f"The chat template in {folder} has no {IMAGE_TURN}; give base_vlm=FOLDER of Qwen-VL.")
    return tokenizer


def planner_config(folder: Path, values: dict[str, Any]) -> PlannerConfig:
    """Give our planner's sizes for a model's config.json.

    Raises:
        CheckpointError: it is of another kind, or has settings that our planner cannot have.
    """
    kind = values.get("model_type")
    if kind not in KINDS:
        raise CheckpointError(f"{folder} is a {kind!r}; a planner can be {' or '.join(KINDS)}.")
    theirs = AutoConfig.from_pretrained(folder, local_files_only=True)
    planner = PlannerConfig(kind, text_tower(theirs), vision_tower(kind, theirs.vision_config))
    ours = build_config(planner, dict.fromkeys(("image", "video", "vision_start", "vision_end", "pad", "end"), 0))
    apart = differences("text_config", ours.text_config, theirs.text_config, FIXED_TEXT)
    apart += differences("vision_config", ours.vision_config, theirs.vision_config, FIXED_VISION)
    if apart:
        listed = "\n  ".join(apart)
        raise CheckpointError(f"{folder} has settings that our planner cannot have:\n  {listed}")
    return planner


def text_tower(theirs: Any) -> TextTowerConfig:
    text = theirs.text_config
    return TextTowerConfig(
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        mlp_width=text.intermediate_size,
        vocab_size=text.vocab_size,
        tie_embeddings=bool(theirs.tie_word_embeddings),
        rope_theta=float(text.rope_parameters["rope_theta"]),
        max_positions=text.max_position_embeddings,
        initializer_range=text.initializer_range,
    )


def vision_tower(kind: str, vision: Any) -> VisionTowerConfig:
    own: dict[str, Any]
    if kind == "qwen2_5_vl":
        own = {"full_attention_layers": tuple(vision.fullatt_block_indexes), "window_px": vision.window_size}
    else:
        side = round(vision.num_position_embeddings**0.5)
        own = {"deep_layers": tuple(vision.deepstack_visual_indexes), "position_grid": side}
    return VisionTowerConfig(
        width=vision.hidden_size,
        layers=vision.depth,
        heads=vision.num_heads,
        mlp_width=vision.intermediate_size,
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        **own,
    )


def differences(part: str, ours: Any, theirs: Any, names: tuple[str, ...]) -> list[str]:
    """List the settings of `names` in which two of transformers' configs differ, as far as both have them."""
    pairs = {name: (getattr(ours, name, None), getattr(theirs, name, None)) for name in names}
    return [
        f"{part}.{name}: {seen} instead of {expected}"
        for name, (expected, seen) in pairs.items()
        if seen is not None and plain(seen) != plain(expected)
    ]


def plain(value: Any) -> Any:
    """Give rotary settings without what only names them, numbers as they compare."""
    if not isinstance(value, dict):
        return value
    return {name: item for name, item in value.items() if name not in ("type", "rope_type") and item is not None}
