"""Say what a checkpoint or a preset holds: parameters by module, semantics, statistics, where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from st4vla.platform.contracts import PolicySpec
from st4vla.platform.data.statistics import read_statistics
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.folder import STATISTICS, Lineage, existing, read_lineage, read_policy_yaml, read_tensors
from st4vla.platform.policy.settings import build_config, plain
from st4vla.platform.policy.sizes import parameter_counts
from st4vla.platform.policy.state_policy import StateMlpConfig

PARTS = {
    "planner": "System 2, the vision-language model",
    "frame_encoder": "DINOv2 and its widening",
    "dino": "of which DINOv2",
    "query_transformer": "queries between the systems",
    "state_encoder": "the robot's state",
    "destination_head": "where that should go",
    "spatial_encoder": "where the plan points",
    "spatial_condition": "its way to the expert",
    "action_expert": "System 1's denoiser",
}


@dataclass(frozen=True)
class Summary:
    """What `st4vla checkpoint show` prints.

    Attributes:
        counts: parameters by module, in the model that the configuration describes, and their total.
        stored: weights that the folder holds, by module; {} for a preset.
        statistics: how the actions of each embodiment are scaled.
    """

    name: str
    kind: str
    spec: PolicySpec
    counts: Mapping[str, int]
    semantics: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""
    stored: Mapping[str, int] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ()
    statistics: Mapping[str, str] = field(default_factory=dict)
    lineage: Lineage | None = None


def summarise(source: str) -> Summary:
    """Summarise a checkpoint folder, or a preset of that name.

    Raises:
        CheckpointError: the folder is incomplete.
        ConfigError: it is neither a folder nor a preset; the presets are listed.
    """
    folder = Path(source)
    if not folder.is_dir():
        return summarise_config(PolicyConfig.preset(source))
    values = read_policy_yaml(folder)
    if values.get("kind") == "state_mlp":
        return summarise_mlp(folder, build_config(StateMlpConfig, values))
    described = summarise_config(PolicyConfig.from_mapping(read_policy_yaml(folder, "st4vla")))
    return Summary(**vars(described) | what_is_stored(folder))


def summarise_config(config: PolicyConfig) -> Summary:
    return Summary(
        name=config.name,
        kind=config.kind,
        spec=config.spec,
        counts=parameter_counts(config),
        semantics=plain(config.semantics) | {"grad_scale": config.query.grad_scale},
        prompt=config.prompt.action,
    )


def what_is_stored(folder: Path) -> dict[str, Any]:
    """Give what only the folder's files tell."""
    tensors = read_tensors(folder)
    stored: dict[str, int] = {}
    for name, tensor in tensors.items():
        part = name.split(".")[0]
        stored[part] = stored.get(part, 0) + tensor.numel()
    scaling = {
        key: ", ".join(f"{s.start}-{s.end - 1} {s.mode}" for s in one.action_slices)
        for key, one in read_statistics(existing(folder / STATISTICS)).items()
    }
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    return {"stored": stored, "dtypes": tuple(dtypes), "statistics": scaling, "lineage": read_lineage(folder)}


def summarise_mlp(folder: Path, config: StateMlpConfig) -> Summary:
    total = sum(tensor.numel() for tensor in read_tensors(folder).values())
    lineage = read_lineage(folder)
    return Summary(config.name, config.kind, config.spec, {"layers": total, "total": total}, lineage=lineage)
