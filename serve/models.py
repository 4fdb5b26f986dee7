"""Find the model a reference names, and load it.

models:/NAME@ALIAS, models:/NAME/VERSION    a version in the MLflow registry
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

log = logging.getLogger(__name__)
REGISTRY = "models:/"
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
        function: dotted name of a function of one reference that gives a policy, in place of reading a checkpoint; for
            policies of your own and for measuring.
    """

    device: str = "auto"
    dtype: str = "float32"
    ddim_steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    function: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"loader.dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}.")


@dataclass(frozen=True)
class ModelRef:
    """A model that was found: its label, "name@version", and where it lies."""

    label: str
    place: str


def resolve(reference: str, loader: LoaderConfig, tracking_uri: str = "") -> ModelRef:
    """Find what a reference names now; an alias that moves later does not move what was found.

    Raises:
        CheckpointError: there is no such version or folder.
    """
    if loader.function:
        return ModelRef(reference if "@" in reference else f"{reference}@0", reference)
    if reference.startswith(REGISTRY):
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
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name, by_alias, wanted = reference.removeprefix(REGISTRY).partition("@")
    if not by_alias:
        name, _, wanted = name.partition("/")
    client = MlflowClient(tracking_uri=tracking_uri or None, registry_uri=tracking_uri or None)
    try:
        version: Any = (
            client.get_model_version_by_alias(name, wanted) if by_alias else client.get_model_version(name, wanted)
        )
    except MlflowException as error:
        raise CheckpointError(
            f"the registry at {tracking_uri or 'the default store'} has no {reference}: {error.message} Register a "
            "checkpoint by training with tracking on, or give its folder."
        ) from error
    return ModelRef(f"{name}@{version.version}", str(_folder_of(version)))


def _folder_of(version: Any) -> Path:
    """Give where a registered version lies: its uploaded files, or the folder it was registered from."""
    from mlflow.artifacts import download_artifacts

    kept = Path(version.tags.get("st4vla.folder", ""))
    for candidate in (kept, *_local_copies(version)):
        if (candidate / "policy.yaml").is_file():
            return candidate
    root = Path(download_artifacts(artifact_uri=version.source))
    found = sorted(root.rglob("policy.yaml"))
    if not found:
        raise CheckpointError(f"version {version.version} of {version.name} holds no policy.yaml; register it again.")
    return found[0].parent


def _local_copies(version: Any) -> list[Path]:
    parts = urlsplit(version.source or "")
    root = Path(unquote(parts.path)) if parts.scheme in ("", "file") and parts.path else None
    return [file.parent for file in sorted(root.rglob("policy.yaml"))] if root is not None and root.is_dir() else []


def load(place: str, config: LoaderConfig) -> Any:
    """Load the policy that lies at a place.

    Raises:
        CheckpointError: it is incomplete or of a kind that this platform does not know.
    """
    if config.function:
        return function_of(config.function)(place)
    import torch

    from st4vla.platform.checkpoint import load_policy
    from st4vla.platform.policy.inference import InferenceConfig

    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    inference = InferenceConfig(ddim_steps=config.ddim_steps, guidance=config.guidance, temperature=config.temperature)
    return load_policy(place, device=device, dtype=getattr(torch, config.dtype), inference=inference)


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
