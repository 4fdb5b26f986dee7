"""Find a registered model and give its checkpoint folder: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `models:/NAME`.

What was uploaded is fetched once into a cache, whole or not at all; what was too large to upload is used where it lies.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError
from st4vla.platform.tracking_store import NEWEST, OneAtATime, prepare_mlflow

SCHEME = "models:/"
PATTERN = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))?")


def fetch_model(uri: str, tracking_uri: str, cache: str | Path = "runs/models") -> Path:
    """Give the folder of a registered model; without alias or version the newest.

    Raises:
        ConfigError: the name is of another form, there is no such model, or its files are gone.
    """
    version = find_version(uri, tracking_uri)
    if version.tags.get("mlflow.model.isExternal") or _is_external(version, tracking_uri):
        return _where_it_lies(uri, version)
    folder = Path(cache).resolve() / f"{version.name}-{version.version}"
    return folder if folder.is_dir() else download(version, folder, tracking_uri)


def find_version(uri: str, tracking_uri: str) -> Any:
    """Look up in the registry, "" for MLflow's own choice of one, which version a name means now.

    Raises:
        ConfigError: the name is of another form, or there is no such model.
    """
    match = PATTERN.fullmatch(uri)
    if match is None:
        raise ConfigError(f"{uri!r} names no model; expected models:/NAME@ALIAS, models:/NAME/VERSION or models:/NAME.")
    name, alias, version = match.group("name", "alias", "version")
    prepare_mlflow()
    from mlflow.exceptions import MlflowException

    try:
        with OneAtATime(tracking_uri):  # the first look makes the database
            if version is not None:
                return _client(tracking_uri).get_model_version(name, version)
            return _client(tracking_uri).get_model_version_by_alias(name, alias or NEWEST)
    except MlflowException as error:
        raise ConfigError(
            f"the registry at {tracking_uri or 'the default store'} has no {uri}: {error.message} `st4vla track ui` "
            "shows what it has; training with tracking registers a checkpoint."
        ) from error


def _client(tracking_uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri or None, registry_uri=tracking_uri or None)


def _is_external(version: Any, tracking_uri: str) -> bool:
    model = _client(tracking_uri).get_logged_model(version.source.removeprefix(SCHEME))
    return model.tags.get("mlflow.model.isExternal") == "true"


def _where_it_lies(uri: str, version: Any) -> Path:
    folder = Path(version.tags.get("st4vla.folder", ""))
    if not (folder / "policy.yaml").is_file():
        raise ConfigError(
            f"{uri} was too large to upload and lay at {folder}, which holds no checkpoint any more; name another "
            "version, or the folder it was moved to."
        )
    return folder


def download(version: Any, folder: Path, tracking_uri: str) -> Path:
    """Fetch a version's checkpoint into a folder, whole or not at all; several processes may do so at the same time.

    Raises:
        ConfigError: it holds no checkpoint.
    """
    import mlflow.artifacts

    folder.parent.mkdir(parents=True, exist_ok=True)
    store = tracking_uri or None
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as scratch:
        mlflow.artifacts.download_artifacts(
            artifact_uri=version.source, dst_path=scratch, tracking_uri=store, registry_uri=store
        )
        found = next((path.parent for path in Path(scratch).rglob("policy.yaml")), None)
        if found is None:
            raise ConfigError(
                f"version {version.version} of {version.name} holds no checkpoint (no policy.yaml in it)."
            )
        try:
            found.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    return folder
