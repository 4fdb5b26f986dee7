"""Write and read the folder of any policy: whole or not at all, and only weights that fit and are finite."""

import json
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

from st4vla.platform.errors import CheckpointError
from st4vla.platform.policy.hollow import fill

POLICY, WEIGHTS, STATISTICS, LINEAGE = "policy.yaml", "model.safetensors", "statistics.json", "lineage.json"


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


def refuse_existing(folder: Path) -> None:
    """Raise CheckpointError where a folder that somebody named by hand holds anything that would be lost."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder} is there already; choose another folder or remove it.")


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
        yield hidden
        for path in [*hidden.rglob("*"), hidden]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            flush(path)
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


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Give the state dict without second names of shared tensors (a tied output layer)."""
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            own[name] = tensor
    return own


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
    fill(module, own, tensors)
    with torch.no_grad():
        for name, tensor in own.items():
            if not tensor.is_meta:
                tensor.copy_(tensors[name])


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not is_finite(tensor)]
    if broken:
        raise CheckpointError(
            f"{len(broken)} tensors of {where} hold NaN or infinity, first {broken[0]}; use an earlier checkpoint."
        )


def is_finite(tensor: Tensor) -> bool:
    """Tell whether no number is NaN or infinite: the extremes would be, and finding them takes no memory."""
    return not tensor.numel() or all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor.detach()))


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


def read_tensors(folder: Path) -> dict[str, Tensor]:
    path = existing(folder / WEIGHTS)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}. Copy it again from where it came from.") from error


def read_lineage(folder: Path) -> Lineage:
    return Lineage(**json.loads(existing(folder / LINEAGE).read_text()))
