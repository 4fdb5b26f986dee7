"""Find the model a reference names, and load it.

models:/NAME@ALIAS, models:/NAME/VERSION    a version in the MLflow registry; models:/NAME for the newest
FOLDER                                      a checkpoint folder
"""

import hashlib
import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from st4vla.platform.errors import CheckpointError, ConfigError
from st4vla.platform.models import SCHEME, download, find_version

log = logging.getLogger(__name__)
# Together they say which weights these are without reading gigabytes of them.
TELLING = ("policy.yaml", "lineage.json", "statistics.json")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoaderConfig:
    """How a model is loaded.

    Attributes:
        device: "cpu", "cuda" or "auto" for a GPU where the replica has one.
        dtype: of the weights.
        ddim_steps, guidance, temperature: None leaves them to the checkpoint.
        cache: where versions of the registry are fetched to whose files lie elsewhere, once on each machine.
        function: dotted name of a function of one reference that gives a policy, in place of reading a checkpoint; for
            policies of your own and for measuring.
    """

    device: str = "auto"
    dtype: str = "float32"
    ddim_steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    cache: str = "runs/models"
    function: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"loader.dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}.")


@dataclass(frozen=True)
class ModelRef:
    """A model that was found: its label, "name@version", and where it lies.

    The place is a folder, or models:/NAME/VERSION where the files must be fetched by whoever loads it, on its machine.
    """

    label: str
    place: str


def resolve(reference: str, loader: LoaderConfig, tracking_uri: str = "") -> ModelRef:
    """Find what a reference names now; an alias that moves later does not move what was found.

    Raises:
        CheckpointError: there is no such folder.
        ConfigError: there is no such version.
    """
    if loader.function:
        return ModelRef(reference if "@" in reference else f"{reference}@0", reference)
    if reference.startswith(SCHEME):
        return _registered(reference, tracking_uri)
    given = Path(reference).expanduser().absolute()
    folder = given.resolve()
    if not (folder / "policy.yaml").is_file():
        raise CheckpointError(f"{folder} holds no policy.yaml; name a checkpoint folder or models:/NAME@ALIAS.")
    name = given.parent.name if given.name in ("checkpoint", "newest", "best") else given.name
    return ModelRef(f"{name}@{digest_of(folder)}", str(folder))


def digest_of(folder: Path) -> str:
    """Give eight digits that change with the checkpoint."""
    digest = hashlib.sha256()
    for name in TELLING:
        file = folder / name
        digest.update(file.read_bytes() if file.is_file() else b"-")
    weights = folder / "model.safetensors"
    if weights.is_file():
        entry = weights.stat()
        digest.update(f"{entry.st_size} {entry.st_mtime_ns}".encode())
    return digest.hexdigest()[:8]


def _registered(reference: str, tracking_uri: str) -> ModelRef:
    version = find_version(reference, tracking_uri)
    near = _near(version)
    place = f"{SCHEME}{version.name}/{version.version}" if near is None else str(near)
    return ModelRef(f"{version.name}@{version.version}", place)


def _near(version: Any) -> Path | None:
    """Give the folder in which a registered version lies on this machine: where it was registered, or its upload."""
    kept = version.tags.get("st4vla.folder")
    folders = [*([Path(kept)] if kept else []), *_local_copies(version)]
    return next((one for one in folders if (one / "policy.yaml").is_file()), None)


def fetched(place: str, cache: str | Path, tracking_uri: str = "") -> Path:
    """Give the folder of models:/NAME/VERSION on this machine, fetched if it is not there yet.

    Raises:
        ConfigError: there is no such version, or it holds no checkpoint.
    """
    store = hashlib.sha256(tracking_uri.encode()).hexdigest()[:8]  # two registries may have versions of one name
    folder = Path(cache) / f"{place.removeprefix(SCHEME).replace('/', '-')}-{store}"
    if folder.is_dir():  # a version never changes, so the registry need not be there
        return folder
    version = find_version(place, tracking_uri)
    return _near(version) or download(version, folder, tracking_uri)


def _local_copies(version: Any) -> list[Path]:
    parts = urlsplit(version.source or "")
    root = Path(unquote(parts.path)) if parts.scheme in ("", "file") and parts.path else None
    return [file.parent for file in sorted(root.rglob("policy.yaml"))] if root is not None and root.is_dir() else []


def load(place: str, config: LoaderConfig, tracking_uri: str = "") -> Any:
    """Load the policy that lies at a place; see `ModelRef`.

    Raises:
        CheckpointError: it is incomplete or of a kind that this platform does not know.
    """
    if config.function:
        return function_of(config.function)(place)
    import torch

    from st4vla.platform.checkpoint import load_policy, usable_device
    from st4vla.platform.policy.inference import InferenceConfig

    if place.startswith(SCHEME):
        place = str(fetched(place, config.cache, tracking_uri))
    inference = InferenceConfig(ddim_steps=config.ddim_steps, guidance=config.guidance, temperature=config.temperature)
    return load_policy(
        place, device=usable_device(config.device), dtype=getattr(torch, config.dtype), inference=inference
    )


def function_of(dotted: str) -> Any:
    """Import what a dotted name names.

    Raises:
        ConfigError: there is nothing of that name.
    """
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{dotted!r} cannot be imported: {error}; give MODULE.FUNCTION.") from error
