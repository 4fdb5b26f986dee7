"""Keep a policy in a folder, whole or not at all.

    policy.yaml          the frozen architecture; `kind` says which policy it is (st4vla, state_mlp)
    model.safetensors    the weights; a product of stage 1 may hold only some modules, the planner among them
    tokenizer.json, tokenizer_config.json, chat_template.jinja
    statistics.json      {embodiment: what scales its actions and states}
    lineage.json         parent, data digests, git revision, tracking run

Everything is written beside the target, flushed to the disk and renamed, so a reader never sees half a checkpoint.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from st4vla.platform.contracts import Policy
from st4vla.platform.data.statistics import read_statistics, statistics_to_text
from st4vla.platform.errors import CheckpointError
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor

POLICY, WEIGHTS, STATISTICS, LINEAGE = "policy.yaml", "model.safetensors", "statistics.json", "lineage.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lineage:
    """Where weights come from.

    Attributes:
        parent: the checkpoint that training started from, "" for random weights.
        data: digest of each dataset by its name.
        notes: anything else worth keeping, e.g. stage and step.
    """

    parent: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    git_revision: str = ""
    mlflow_run: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


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
    tensors = own_tensors(model)
    if parts:
        tensors = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] in parts}
    tensors = {name: t.detach().to("cpu", dtype or t.dtype).contiguous() for name, t in tensors.items()}

    def write(target: Path) -> None:
        processor.tokenizer.save_pretrained(target)
        (target / STATISTICS).write_text(statistics_to_text(list(processor.statistics.values())))

    return save_folder(folder, model.config.to_yaml(), tensors, lineage, write)


def save_folder(
    folder: str | Path,
    policy_yaml: str,
    tensors: Mapping[str, Tensor],
    lineage: Lineage,
    write_rest: Callable[[Path], None] = lambda target: None,
) -> Path:
    """Write any kind's checkpoint atomically; see `save_checkpoint` for what is raised."""
    folder = Path(folder)
    check_finite(tensors, str(folder))
    needed = sum(t.numel() * t.element_size() for t in tensors.values())
    with whole_folder(folder, needed) as target:
        (target / POLICY).write_text(policy_yaml)
        (target / LINEAGE).write_text(json.dumps(asdict(lineage), indent=2) + "\n")
        write_rest(target)
        save_file(dict(tensors), target / WEIGHTS, metadata={"format": "pt"})
    return folder


@contextmanager
def whole_folder(folder: Path, needed_bytes: int) -> Iterator[Path]:
    """Give a hidden folder to fill; rename it to `folder` when that went well, remove it otherwise."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise CheckpointError(f"Cannot write beside {folder}: {error}. Choose another folder.") from error
    try:
        if (free := shutil.disk_usage(hidden).free) < needed_bytes:
            raise OSError(f"{free} bytes are free")
        hidden.chmod(0o755)
        yield hidden
        for path in hidden.iterdir():
            path.chmod(0o644)
            flush(path)
        flush(hidden)
        replace_folder(hidden, folder)
        flush(folder.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Could not save {folder}, which needs {needed_bytes} bytes of weights: {error}. "
            "Free space or choose another folder; nothing was changed."
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; an older folder of that name is moved aside first and removed after."""
    if not folder.exists():
        new.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent)) / folder.name
    folder.rename(aside)
    new.rename(folder)
    shutil.rmtree(aside.parent)


def flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_checkpoint(
    folder: str | Path, *, parts_ok: bool = False, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Checkpoint:
    """Read an st4vla checkpoint.

    Args:
        parts_ok: accept a product of stage 1; modules that it lacks entirely keep random weights and are named in
            `fresh`; seed torch first for the same ones.

    Raises:
        CheckpointError: a file is missing or unreadable, weights do not fit the architecture (all of them are
            listed), or weights are not finite.
    """
    folder = Path(folder)
    config = PolicyConfig.from_mapping(read_policy_yaml(folder, "st4vla"))
    processor = Processor(config, read_tokenizer(folder), read_statistics(existing(folder / STATISTICS)))
    model = St4vlaModel(config, processor.token_ids)
    tensors = read_tensors(folder)
    fresh = absent_modules(model, tensors) if parts_ok else ()
    if fresh:
        logger.warning("%s lacks %s, which start from random weights", folder, ", ".join(fresh))
    fit(model, tensors, folder, fresh)
    return Checkpoint(model.to(device, dtype).eval(), processor, read_lineage(folder), fresh)


def load_planner(model: St4vlaModel, folder: str | Path) -> None:
    """Start `model`'s planner from any checkpoint whose planner has the same architecture, whatever its action side."""
    tensors = {n.removeprefix("planner."): t for n, t in read_tensors(Path(folder)).items() if n.startswith("planner.")}
    fit(model.planner, tensors, Path(folder))


def load_policy(folder: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Policy:
    """Read whatever policy a folder holds, ready to act; its `kind` decides.

    Raises:
        CheckpointError: as `load_checkpoint`, or the kind is unknown.
    """
    kind = read_policy_yaml(Path(folder)).get("kind")
    if kind == "st4vla":
        from st4vla.platform.policy.inference import St4vlaPolicy

        checkpoint = load_checkpoint(folder, device=device, dtype=dtype)
        return St4vlaPolicy(checkpoint.model, checkpoint.processor)
    if kind == "state_mlp":
        from st4vla.platform.policy.state_policy import load_state_policy

        return load_state_policy(folder)
    raise CheckpointError(f"{folder} holds a policy of kind {kind!r}; this platform knows st4vla and state_mlp.")


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Give the state dict without second names of shared tensors (a tied output layer)."""
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            own[name] = tensor
    return own


def absent_modules(model: St4vlaModel, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Name the modules, other than the planner, of which not one tensor is there."""
    present = {name.split(".")[0] for name in tensors}
    return tuple(name for name, _ in model.named_children() if name != "planner" and name not in present)


def fit(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path, fresh: Sequence[str] = ()) -> None:
    """Load `tensors` into `module`, leaving `fresh` submodules alone; all names that do not fit stand in one error."""
    own = {name: tensor for name, tensor in own_tensors(module).items() if name.split(".")[0] not in fresh}
    spare = {name for name in module.state_dict() if name not in own}
    problems = [f"missing {name} {list(tensor.shape)}" for name, tensor in own.items() if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in own and name not in spare]
    problems += [
        f"misshapen {name}: {list(tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise CheckpointError(
            f"The weights in {folder} do not fit the architecture ({len(problems)} tensors):\n  {listed}\n"
            f"Use the {POLICY} they were trained with."
        )
    check_finite(tensors, str(folder))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    broken = [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        raise CheckpointError(
            f"{len(broken)} tensors of {where} hold NaN or infinity, first {broken[0]}; use an earlier checkpoint."
        )


def existing(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {path.parent} is no complete checkpoint.")
    return path


def read_policy_yaml(folder: Path, kind: str | None = None) -> dict[str, Any]:
    values = yaml.safe_load(existing(folder / POLICY).read_text())
    if not isinstance(values, dict) or (kind and values.get("kind") != kind):
        found = values.get("kind") if isinstance(values, dict) else type(values).__name__
        raise CheckpointError(f"{folder / POLICY} describes {found!r}; expected a policy of kind {kind!r}.")
    return values


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    existing(folder / "tokenizer.json")
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    path = existing(folder / WEIGHTS)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}. Copy it again from where it came from.") from error


def read_lineage(folder: Path) -> Lineage:
    return Lineage(**json.loads(existing(folder / LINEAGE).read_text()))
