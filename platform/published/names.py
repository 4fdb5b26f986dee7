"""Say which published tensor is which of ours, both ways.

The names are those of the public InternVLA-M1 code. The planner's come in two generations: transformers up to 4.51
said `visual` and `model`, later ones say `model.visual` and `model.language_model`; DINOv2's own code keeps query,
key and value in one tensor, ours in three.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Generation = Literal["flat", "nested"]
PLANNER_PREFIX = "qwen_vl_interface.model."
OWN_PLANNER = "planner.vlm."
OUTPUT_LAYER = "lm_head.weight"
# Never read by the public code, though saved: what is left of an earlier action model.
UNUSED = re.compile(r"action_model\.net\.history_embedder\.")
PREFIXES = {
    "query_transformer.": "layer_qformer.",
    "frame_encoder.widen.": "dino_pro.",
    "frame_encoder.dino.": "dino_encoder.body.",
    "action_expert.": "action_model.net.",
}
DINO_STEMS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
DINO_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.*)")
DINO_ATTENTION = re.compile(r"attention\.[qkv]_proj\.(weight|bias)")
DINO_PARTS = {
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


@dataclass(frozen=True)
class Link:
    """A published tensor and those of ours that it is, side by side along the first dimension."""

    theirs: str
    ours: tuple[str, ...]


def generation_of(names: Iterable[str], prefix: str = PLANNER_PREFIX) -> Generation:
    """Tell by a checkpoint's names which generation its planner's are of."""
    return (
        "flat" if any(name.startswith((f"{prefix}visual.", f"{prefix}model.layers.")) for name in names) else "nested"
    )


def links(own: Sequence[str], generation: Generation, prefix: str = PLANNER_PREFIX) -> tuple[list[Link], list[str]]:
    """Link our names to published ones; also give those of ours that have no published counterpart.

    Args:
        own: our names, query before key before value.
        prefix: what stands before the planner's names; "" in a plain Qwen-VL checkpoint.
    """
    found: dict[str, list[str]] = {}
    homeless: list[str] = []
    for name in own:
        if theirs := published_name(name, generation, prefix):
            found.setdefault(theirs, []).append(name)
        else:
            homeless.append(name)
    return [Link(theirs, tuple(ours)) for theirs, ours in found.items()], homeless


def published_name(name: str, generation: Generation, prefix: str = PLANNER_PREFIX) -> str | None:
    """Give the published name of one of our tensors, None where it has none."""
    if name.startswith(OWN_PLANNER):
        return prefix + planner_name(name.removeprefix(OWN_PLANNER), generation)
    for ours, theirs in PREFIXES.items():
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            return theirs + (dino_name(rest) if ours == "frame_encoder.dino." else rest)
    return None


def planner_name(name: str, generation: Generation) -> str:
    """Name a tensor of transformers' own model as a generation does."""
    if generation == "nested":
        return name
    return re.sub(r"^model\.(visual\.)", r"\1", name).replace("model.language_model.", "model.", 1)


def dino_name(name: str) -> str:
    """Name a tensor of our DINOv2 as its own code does."""
    if match := DINO_LAYER.fullmatch(name):
        index, part = match.groups()
        if attention := DINO_ATTENTION.fullmatch(part):
            return f"blocks.{index}.attn.qkv.{attention[1]}"
        return f"blocks.{index}.{renamed(part, DINO_PARTS)}"
    return renamed(name, DINO_STEMS)


def renamed(name: str, table: Mapping[str, str]) -> str:
    """Put a table's name in the place of the stem before ".weight" or ".bias", or of the whole name."""
    for ours, theirs in table.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return name


def problems(found: Sequence[Link], own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """List published tensors that are missing, too many or misshapen; `own` and `theirs` give shapes only."""
    expected = {link.theirs: joined_shape([own[name] for name in link.ours]) for link in found}
    lines = [f"missing {name} {shape}" for name, shape in expected.items() if name not in theirs]
    lines += [f"unexpected {name} {list(t.shape)}" for name, t in theirs.items() if name not in expected]
    for name, shape in expected.items():
        if name in theirs and list(theirs[name].shape) != shape:
            lines.append(f"misshapen {name}: {list(theirs[name].shape)} instead of {shape}")
    return lines


def joined_shape(parts: Sequence[Tensor]) -> list[int]:
    """Give the shape of tensors laid side by side along the first dimension."""
    first = list(parts[0].shape)
    return first if len(parts) == 1 else [sum(part.shape[0] for part in parts), *first[1:]]


def to_ours(found: Sequence[Link], own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give our tensors; they share the published ones' memory."""
    ours: dict[str, Tensor] = {}
    for link in found:
        sizes = [own[name].shape[0] for name in link.ours] if len(link.ours) > 1 else None
        parts = [theirs[link.theirs]] if sizes is None else theirs[link.theirs].split(sizes)
        ours |= dict(zip(link.ours, parts, strict=True))
    return ours
