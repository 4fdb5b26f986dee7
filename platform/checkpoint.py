"""Keep a policy in a folder, whole or not at all.

    policy.yaml          the frozen architecture; `kind` says which policy it is (st4vla, state_mlp)
    model.safetensors    the weights; a product of stage 1 may hold only some modules, the planner among them
    tokenizer.json, tokenizer_config.json, chat_template.jinja
    statistics.json      {embodiment: what scales its actions and states}
    lineage.json         parent, data digests, git revision, tracking run

Everything is written beside the target, flushed to the disk and renamed, so a reader never sees half a checkpoint.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from st4vla.platform.contracts import Policy
from st4vla.platform.data.statistics import read_statistics, statistics_to_text
from st4vla.platform.errors import CheckpointError, ConfigError
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.folder import (
    STATISTICS,
    Lineage,
    existing,
    fit,
    own_tensors,
    read_lineage,
    read_policy_yaml,
    read_tensors,
    save_folder,
)
from st4vla.platform.policy.hollow import cast_weights, without_weights
from st4vla.platform.policy.inference import InferenceConfig, St4vlaPolicy
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.state_policy import load_state_policy

__all__ = [
    "Checkpoint",
    "Lineage",
    "load_checkpoint",
    "load_planner",
    "load_policy",
    "prepare_checkpoint",
    "read_policy_yaml",
    "save_checkpoint",
]
AS_SAVED = InferenceConfig()
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back; `fresh` names the modules that it lacked and that are random."""

    model: St4vlaModel
    processor: Processor
    lineage: Lineage
    fresh: tuple[str, ...] = ()


def save_checkpoint(
    folder: str | Path,
    model: St4vlaModel,
    processor: Processor,
    lineage: Lineage,
    *,
    parts: Sequence[str] = (),
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a checkpoint; the processor brings tokenizer and statistics.

    Args:
        parts: the model's modules to keep, e.g. ("planner", "frame_encoder") after stage 1; () keeps all.
        dtype: narrows the weights, e.g. torch.bfloat16.

    Raises:
        CheckpointError: weights are not finite, or the disk is full; nothing is left behind and an older
            checkpoint of that name stays as it was.
    """
    return prepare_checkpoint(model, processor, lineage, parts=parts, dtype=dtype)(folder)


def prepare_checkpoint(
    model: St4vlaModel,
    processor: Processor,
    lineage: Lineage,
    *,
    parts: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    keep: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> Callable[[str | Path], Path]:
    """Copy the weights as they are now; give the function that writes them as `save_checkpoint` does, when it suits.

    Args:
        tensors: what to write, by name; None for the model's own.
        keep: copies tensors to host memory; None takes fresh memory.
    """
    tensors = own_tensors(model) if tensors is None else tensors
    if parts:
        tensors = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] in parts}
    if keep is None or dtype is not None:
        kept = {name: t.detach().to("cpu", dtype or t.dtype, copy=True).contiguous() for name, t in tensors.items()}
    else:
        kept = keep({name: t.detach().contiguous() for name, t in tensors.items()})

    def write_rest(target: Path) -> None:
        processor.tokenizer.save_pretrained(target)
        (target / STATISTICS).write_text(statistics_to_text(list(processor.statistics.values())))

    return lambda folder: save_folder(folder, model.config.to_yaml(), kept, lineage, write_rest)


def load_checkpoint(
    folder: str | Path,
    *,
    parts_ok: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    config: PolicyConfig | None = None,
) -> Checkpoint:
    """Read an st4vla checkpoint.

    Args:
        parts_ok: accept a product of stage 1; modules that it lacks entirely keep random weights and are named in
            `fresh`; seed torch first for the same ones.
        config: settings in place of the folder's own, which the weights must fit as well.

    Raises:
        CheckpointError: a file is missing or unreadable, weights do not fit the architecture (all of them are
            listed), or weights are not finite.
    """
    folder = Path(folder)
    config = config or PolicyConfig.from_mapping(read_policy_yaml(folder, "st4vla"))
    processor = Processor(config, read_tokenizer(folder), read_statistics(existing(folder / STATISTICS)))
    tensors = read_tensors(folder)
    with without_weights():
        model = St4vlaModel(config, processor.token_ids)
    fresh = absent_modules(model, tensors) if parts_ok else ()
    if fresh:
        logger.warning("%s lacks %s, which start from random weights", folder, ", ".join(fresh))
        model = St4vlaModel(config, processor.token_ids)
    fit(model, tensors, folder, fresh)
    cast_weights(model, device, dtype)
    return Checkpoint(model.eval(), processor, read_lineage(folder), fresh)


def load_planner(model: St4vlaModel, folder: str | Path) -> None:
    """Start `model`'s planner from any checkpoint whose planner has the same architecture, whatever its action side."""
    tensors = {n.removeprefix("planner."): t for n, t in read_tensors(Path(folder)).items() if n.startswith("planner.")}
    fit(model.planner, tensors, Path(folder))


def usable_device(wanted: str) -> str:
    """Give "cuda" or "cpu": what is asked for, for "auto" the GPU that this process has, if it has one.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    has_gpu = wanted != "cpu" and torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ConfigError(
            "device is cuda and this process has no GPU; reserve one for it, in an evaluation by "
            "inference.place=actor, or choose device=cpu, which needs none."
        )
    return "cuda" if has_gpu else "cpu"


def load_policy(
    folder: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    inference: InferenceConfig = AS_SAVED,
) -> Policy:
    """Read whatever policy a folder holds, ready to act; its `kind` decides.

    Raises:
        CheckpointError: as `load_checkpoint`, or the kind is unknown.
    """
    kind = read_policy_yaml(Path(folder)).get("kind")
    if kind not in LOADERS:
        raise CheckpointError(f"{folder} holds a policy of kind {kind!r}; this platform knows {', '.join(LOADERS)}.")
    return LOADERS[kind](Path(folder), device, dtype, inference)


def load_dual_system(folder: Path, device: str, dtype: torch.dtype, inference: InferenceConfig) -> Policy:
    checkpoint = load_checkpoint(folder, device=device, dtype=dtype)
    return St4vlaPolicy(checkpoint.model, checkpoint.processor, inference)


def load_mlp(folder: Path, device: str, dtype: torch.dtype, inference: InferenceConfig) -> Policy:
    return load_state_policy(folder)


LOADERS: dict[str, Callable[[Path, str, torch.dtype, InferenceConfig], Policy]] = {
    "st4vla": load_dual_system,
    "state_mlp": load_mlp,
}


def absent_modules(model: St4vlaModel, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Name the modules, other than the planner, of which not one tensor is there."""
    present = {name.split(".")[0] for name in tensors}
    return tuple(name for name, _ in model.named_children() if name != "planner" and name not in present)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    existing(folder / "tokenizer.json")
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
