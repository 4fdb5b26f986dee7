"""A reference finds the model it names, whatever kind it is, and says so where there is none."""

import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from st4vla.platform.errors import CheckpointError, ConfigError, JobError
from st4vla.platform.models import download
from st4vla.serve import fleet_command
from st4vla.serve.models import LoaderConfig, fetched, function_of, load, resolve

LOADER = LoaderConfig()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "lab" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "policy.yaml").write_text("kind: st4vla\n")
    return folder


def test_a_folder_is_labelled_by_its_name_and_what_is_in_it(checkpoint: Path) -> None:
    found = resolve(str(checkpoint), LOADER)
    assert found.label.startswith("lab@") and found.place == str(checkpoint)
    (checkpoint / "lineage.json").write_text("{}")
    assert resolve(str(checkpoint), LOADER).label != found.label


def test_a_folder_without_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no policy.yaml"):
        resolve(str(tmp_path), LOADER)


def test_an_alias_of_the_registry_finds_its_version(checkpoint: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("arm")
    client.create_model_version("arm", checkpoint.as_uri())
    client.create_model_version("arm", (tmp_path / "gone").as_uri(), tags={"st4vla.folder": str(checkpoint)})
    client.set_registered_model_alias("arm", "production", "2")
    for reference, label in (("models:/arm@production", "arm@2"), ("models:/arm/1", "arm@1")):
        found = resolve(reference, LOADER, uri)
        assert (found.label, Path(found.place)) == (label, checkpoint)
    for wrong in ("models:/arm@canary", "models:/leg/1"):
        with pytest.raises(ConfigError, match="has no models:/"):
            resolve(wrong, LOADER, uri)


def test_a_function_of_ones_own_loads_what_it_is_given() -> None:
    loader = LoaderConfig(function="benchmarks.fixed_latency.build")
    found = resolve("fixed-5-0@3", loader)
    assert (found.label, load(found.place, loader).act_s) == ("fixed-5-0@3", 0.005)


def test_a_name_that_cannot_be_imported_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be imported"):
        function_of("benchmarks.nothing.build")


@pytest.mark.slow
def test_a_version_whose_files_lie_elsewhere_is_fetched_where_it_is_loaded(
    checkpoint: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    (checkpoint / "policy.yaml").write_text("kind: toy\n")
    uri, cache = f"sqlite:///{workplace / 'mlflow.db'}", workplace / "cache"
    # MLflow looks an upload up in the process's own store, whatever the client's is, as it registers a version.
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", uri)
    client = MlflowClient(uri, uri)
    upload = client.create_logged_model(client.create_experiment("x", (workplace / "store").as_uri()), name="arm")
    client.log_model_artifacts(upload.model_id, str(checkpoint))
    client.create_registered_model("arm")
    version = client.create_model_version("arm", f"models:/{upload.model_id}", tags={"st4vla.folder": str(checkpoint)})
    shutil.rmtree(checkpoint)
    found = resolve("models:/arm/1", LOADER, uri)
    assert (found.label, found.place) == ("arm@1", "models:/arm/1") and not cache.exists()
    folder = fetched(found.place, cache, uri)
    assert folder.name.startswith("arm-1-") and (folder / "policy.yaml").read_text() == "kind: toy\n"
    # A process that comes second takes what is there as it is, and nothing else is left.
    assert download(version, folder, uri) == folder
    assert list(cache.iterdir()) == [folder]
    # What is there needs no registry.
    (workplace / "mlflow.db").unlink()
    assert fetched(found.place, cache, uri) == folder
    with pytest.raises(CheckpointError, match=f"{folder} holds a policy of kind 'toy'"):
        load(found.place, replace(LOADER, cache=str(cache)), uri)


def test_an_answer_that_takes_long_is_not_taken_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_command, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(JobError, match="look at `st4vla fleet`"):
            fleet_command.call(f"http://127.0.0.1:{silent.getsockname()[1]}", "update", {"model": "m"})
