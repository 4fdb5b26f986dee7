"""Bring a published checkpoint into a folder of ours: every tensor finds its place, or nothing is written.

1. open the run, map its pickle into memory          2. find the base model: sizes, tokenizer, wording of a turn
3. describe the policy and the semantics of its weights
4. link every published tensor to ours, list at once what does not fit
5. write the folder, with what the published one held besides
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from st4vla.platform.data.statistics import EmbodimentStatistics, statistics_to_text
from st4vla.platform.errors import CheckpointError, ConfigError
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.folder import STATISTICS, Lineage, refuse_existing, save_folder
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.settings import plain
from st4vla.platform.published.base import SMALL_FILES, BaseModel, open_base, read_base
from st4vla.platform.published.describe import describe_policy, overlay
from st4vla.platform.published.fitting import Fitted, fit_published, with_output_layer
from st4vla.platform.published.hub import download
from st4vla.platform.published.names import PLANNER_PREFIX
from st4vla.platform.published.run import HUB, choose_embodiment, open_run, read_weights, to_statistics

logger = logging.getLogger(__name__)

ORIGIN, UNUSED_WEIGHTS = "published.json", "unused.safetensors"
EMBEDDING = "planner.vlm.model.language_model.embed_tokens.weight"


@dataclass(frozen=True)
class ImportConfig:
    """How a published checkpoint is brought in.

    Attributes:
        base_vlm: folder or public name of the vision-language model, in place of what the checkpoint names.
        embodiment: whose statistics scale the actions; needed where there are several.
        weights: name of the .pt file; "" takes the one with the most steps.
        dtype: "" keeps each tensor's own; "bfloat16" halves 32-bit ones.
        settings: settings of policy.yaml in place of what was read, nested, e.g. {"cameras": ["wrist"]}.
        action_side: the preset that a planner without an action side is given.
    """

    base_vlm: str = ""
    embodiment: str = ""
    weights: str = ""
    dtype: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    action_side: str = "st4vla_4b"

    def __post_init__(self) -> None:
        if self.dtype not in ("", "float32", "bfloat16", "float16"):
            raise ConfigError(f"dtype is {self.dtype!r}; use float32, bfloat16, float16, or leave it out.")


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that fits, ready to be written.

    Attributes:
        notes: where it came from, for the lineage.
        origin: what the way back needs beside the weights.
    """

    processor: Processor
    fitted: Fitted
    notes: Mapping[str, Any]
    origin: Mapping[str, Any]


def bring_in(source: str, out: str | Path, options: ImportConfig | None = None) -> Path:
    """Import a published run (a folder, a .pt in it, hf:REPO) or a plain Qwen-VL folder; give our folder.

    Raises:
        CheckpointError: something is missing, does not fit (all of it is listed), is not finite, or cannot be reached;
            or `out` is there already.
        ConfigError: a setting of `options` is out of range.
    """
    options = options or ImportConfig()
    refuse_existing(Path(out))
    prepared = prepare_planner(source, options) if is_planner(source) else prepare_run(source, options)
    return save(Path(out), prepared, options)


def prepare_run(source: str, options: ImportConfig) -> Prepared:
    """Find the place of everything in a published run; its weights stay on the disk until they are written."""
    run = open_run(source, options.weights)
    embodiment = choose_embodiment(run.statistics, options.embodiment)
    statistics = to_statistics(run.statistics, str(run.weights.parent.parent))
    theirs = read_weights(run.weights)
    told = run.config["framework"].get("qwenvl", {}).get("base_vlm", "")
    base = open_base(told, options.base_vlm)
    config = describe_policy(run.config, base.planner, embodiment, options.settings)
    config = with_output_layer(config, theirs, PLANNER_PREFIX)
    check_width(config, statistics[embodiment])
    processor = Processor(config, base.tokenizer, statistics)
    fitted = fit_published(config, processor, theirs, str(run.weights))
    notes = {"source": run.source, "weights": run.weights.name, "step": run.step, "base_vlm": base.name}
    origin = {"config": run.config, "statistics": run.statistics, "weights": run.weights.name}
    return Prepared(processor, fitted, notes | {"base_vlm_was": told}, origin)


def prepare_planner(source: str, options: ImportConfig) -> Prepared:
    """Find the place of a plain Qwen-VL model's weights: a product of stage 1, whose action side is to be trained."""
    folder = Path(source)
    if source.startswith(HUB):
        patterns = (*SMALL_FILES, "*.safetensors", "*.safetensors.index.json")
        folder = download(source.removeprefix(HUB), patterns, "the folder of a copy that is here")
    base = open_base(options.base_vlm) if options.base_vlm else read_base(source, folder)
    theirs = read_shards(folder)
    config = with_output_layer(planner_policy(base, options), theirs, "")
    processor = Processor(config, base.tokenizer)
    fitted = fit_published(config, processor, theirs, str(folder), prefix="", parts=("planner",))
    return Prepared(processor, fitted, {"source": source, "base_vlm": base.name}, {"config": base.values})


def is_planner(source: str) -> bool:
    """Tell a plain model's folder, which has a config.json, from a published run, which has a config.yaml."""
    if source.startswith(HUB):
        from st4vla.platform.published.hub import list_files

        names = list_files(source.removeprefix(HUB), "the folder of a copy that is here")
        return "config.yaml" not in names and any(name.endswith(".safetensors") for name in names)
    return (Path(source) / "config.json").is_file() and not (Path(source) / "config.yaml").is_file()


def planner_policy(base: BaseModel, options: ImportConfig) -> PolicyConfig:
    """Give a planner the action side of a preset."""
    values = plain(PolicyConfig.preset(options.action_side)) | {"planner": plain(base.planner), "name": "planner"}
    return PolicyConfig.from_mapping(overlay(values, options.settings))


def check_width(config: PolicyConfig, statistics: EmbodimentStatistics) -> None:
    """Refuse statistics of another action width than the policy's."""
    if statistics.action.width != config.action_dim:
        raise CheckpointError(
            f"The statistics of {statistics.key!r} are {statistics.action.width} wide, the actions "
            f"{config.action_dim}; choose another embodiment, or copy the statistics of this run."
        )


def save(out: Path, prepared: Prepared, options: ImportConfig) -> Path:
    """Write the folder."""
    processor, fitted = prepared.processor, prepared.fitted
    dtype = getattr(torch, options.dtype) if options.dtype else None
    tensors = {name: narrow(tensor, dtype).contiguous() for name, tensor in fitted.ours.items()}
    kept = {**prepared.origin, "planner_names": fitted.generation, "output_layer": fitted.tied}

    def write(target: Path) -> None:
        processor.tokenizer.save_pretrained(target)
        (target / STATISTICS).write_text(statistics_to_text(list(processor.statistics.values())))
        (target / ORIGIN).write_text(json.dumps(kept, indent=2, default=str) + "\n")
        if fitted.unused:
            save_file({name: t.contiguous() for name, t in fitted.unused.items()}, target / UNUSED_WEIGHTS)

    source = str(prepared.notes["source"])
    lineage = Lineage(parent=source, notes={"imported": {**prepared.notes, **fitted.account()}})
    folder = save_folder(out, processor.config.to_yaml(), tensors, lineage, write)
    logger.info("%s tensors of %s are in %s", fitted.count, source, folder)
    return folder


def narrow(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor


def read_shards(folder: Path) -> dict[str, Tensor]:
    """Map every safetensors file of a folder into memory, as one state dict.

    Raises:
        CheckpointError: there is none, one is damaged, or one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    paths = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        paths = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    if not paths:
        raise CheckpointError(f"{folder} has no .safetensors file; give the folder of a whole model.")
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or missing: {error}. Copy it again.") from error
    return tensors
