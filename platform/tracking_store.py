"""Put queued records into MLflow such that sending one twice changes nothing.

A run is found again by its tag `st4vla.run`; MLflow itself drops a metric it has at the same key, step, time and
value, and a param of equal value; artifacts overwrite themselves; a registered version is found by its tag.
"""

import fcntl
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from st4vla.platform.tracking_queue import Record

RUN_TAG = "st4vla.run"
MODEL_TAG = "st4vla.registration"
NEWEST = "newest"  # MLflow keeps "latest" for itself
DIGEST_LENGTH = 36  # MLflow's limit; the tag st4vla.digest.NAME keeps the whole
REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
# One retry and ten seconds: a dead server holds up the sending thread, which tries again anyway, and nobody else.
CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def prepare_mlflow() -> None:
    """Let MLflow's clients in this process wait briefly and say little; before its first import."""
    for name, value in CLIENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


class MlflowStore:
    """One experiment of one MLflow store; used by a single thread."""

    def __init__(self, uri: str, experiment: str, upload_limit_mb: float = 256.0):
        self.uri = uri
        self.experiment = experiment
        self.upload_limit_mb = upload_limit_mb
        self._client: Any = None
        self._experiment_id = ""

    def import_client(self) -> None:
        """Import MLflow now: its import must not race with others' when the sending thread first needs it."""
        prepare_mlflow()
        import mlflow.tracking

        if self.uri.startswith("sqlite:"):
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)

    @property
    def client(self) -> Any:
        """The connected MlflowClient; connecting makes the database and the experiment if need be."""
        if self._client is None:
            self.import_client()
            from mlflow import MlflowClient

            with OneAtATime(self.uri):
                client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                self._experiment_id = self._find_experiment(client)
            self._client = client
        return self._client

    def _find_experiment(self, client: Any) -> str:
        found = client.get_experiment_by_name(self.experiment)
        if found is not None:
            return found.experiment_id
        artifacts = None
        if self.uri.startswith("sqlite:///"):
            artifacts = (Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
        return client.create_experiment(self.experiment, artifact_location=artifacts)

    def find_run(self, run_id: str) -> str | None:
        """Give MLflow's id of one of our runs, or None if it has not been sent yet."""
        client = self.client
        found = client.search_runs([self._experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
        return found[0].info.run_id if found else None

    def start(self, run_id: str, payload: Mapping[str, Any]) -> str:
        """Create the run unless an earlier attempt already did; give MLflow's id."""
        if (found := self.find_run(run_id)) is not None:
            return found
        tags = {**payload["tags"], RUN_TAG: run_id}
        if payload["parent"]:
            tags["st4vla.parent"] = payload["parent"]
            parent = self.find_run(payload["parent"])
            if parent is not None:
                tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(
            self._experiment_id, start_time=payload["time_ms"], tags=tags, run_name=payload["name"]
        )
        return run.info.run_id

    def send_batch(self, run: str, records: Sequence[Record]) -> None:
        """Send params, metrics and tags in one request."""
        from mlflow.entities import Metric, Param, RunTag

        metrics, params, tags = [], [], []
        for record in records:
            payload = record.payload
            for key, value in payload.get("metrics", {}).items():
                metrics.append(Metric(key, value, payload["time_ms"], payload["step"]))
            params += [Param(key, value) for key, value in payload.get("params", {}).items()]
            tags += [RunTag(key, value) for key, value in payload.get("tags", {}).items()]
        for start in range(0, max(len(metrics), 10 * len(params), 10 * len(tags)), 1000):
            tenth = slice(start // 10, start // 10 + 100)
            some = metrics[start : start + 800], params[tenth], tags[tenth]
            self.client.log_batch(run, metrics=some[0], params=some[1], tags=some[2])
            if rest := metrics[start + 800 : start + 1000]:
                self.client.log_batch(run, metrics=rest)

    def send(self, run: str, record: Record) -> None:
        """Send one record that is no batch's."""
        payload = record.payload
        match record.operation:
            case "artifact":
                self._send_artifact(run, Path(payload["path"]), payload["folder"])
            case "text":
                self.client.log_text(run, payload["content"], payload["file_name"])
            case "dataset":
                self._send_dataset(run, payload)
            case "register":
                self._register(run, payload)
            case "end":
                self.client.set_terminated(run, payload["status"], payload["time_ms"])

    def _send_artifact(self, run: str, path: Path, folder: str) -> None:
        if path.is_dir():
            self.client.log_artifacts(run, str(path), "/".join(part for part in (folder, path.name) if part))
        else:
            self.client.log_artifact(run, str(path), folder or None)

    def _send_dataset(self, run: str, payload: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digest = payload["digest"]
        dataset = Dataset(payload["name"], digest[:DIGEST_LENGTH], "local", payload["source"])
        self.client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", payload["context"])])])
        self.client.set_tag(run, f"st4vla.digest.{payload['name']}", digest)

    def _register(self, run: str, payload: Mapping[str, Any]) -> None:
        name, key = payload["model"], payload["key"]
        if self._model(name) and self.client.search_model_versions(f"name='{name}' and tag.`{MODEL_TAG}`='{key}'"):
            return
        tags = {**payload["tags"], MODEL_TAG: key, "st4vla.folder": payload["folder"]}
        external = {} if payload["upload"] else {"mlflow.model.isExternal": "true"}
        model = self.client.create_logged_model(
            self._experiment_id, name=name, source_run_id=run, tags={**tags, **external}, model_type="st4vla"
        )
        if payload["upload"]:
            self.client.log_model_artifacts(model.model_id, payload["upload"])
        self.client.finalize_logged_model(model.model_id, "READY")
        version = self.client.create_model_version(
            name, f"models:/{model.model_id}", run_id=run, tags=tags, model_id=model.model_id, await_creation_for=0
        )
        self.client.set_registered_model_alias(name, NEWEST, str(version.version))

    def _model(self, name: str) -> bool:
        """Make the registered model; say whether it was there before."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return True
        return False


def is_refusal(error: Exception) -> bool:
    """Say whether the store will never take this record, rather than being away for now."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in REFUSALS
    return isinstance(error, FileNotFoundError | ValueError | TypeError)


class OneAtATime:
    """Let one process at a time make a SQLite database; MLflow's migrations fail when two run together."""

    def __init__(self, uri: str):
        path = uri.removeprefix("sqlite:///")
        self._path = None if path == uri or urlsplit(uri).netloc else Path(f"{path}.lock")
        self._file: Any = None

    def __enter__(self) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "w")
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
