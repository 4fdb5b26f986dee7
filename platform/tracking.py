"""Record runs in MLflow without ever waiting for it and without losing a record.

A `Tracker` is one run. Whatever it is told goes to a file first (`tracking_queue.py`); one background thread a
process sends the files on in order (`tracking_sender.py`). While the store is away the files grow; the next command,
or `st4vla track sync`, sends what is left. A run's id is our own, given before the store has seen it, and is kept
in the store as the tag `st4vla.run`.
"""

import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from st4vla.platform.errors import ConfigError, DataError
from st4vla.platform.tracking_queue import RunQueue
from st4vla.platform.tracking_sender import Sender
from st4vla.platform.tracking_store import MlflowStore
from st4vla.platform.tracking_system import SystemSampler

Status = Literal["FINISHED", "FAILED", "KILLED"]
JOB_ID = "ST4VLA_JOB_ID"
MASK = "***"
SECRET_KEY = re.compile(r"(^|[._-])(token|password|passwd|secret|credentials?|(api|access|private|secret)_?key)$", re.I)
NO_NAME = re.compile(r"[^\w\-. :/]")
URL_LOGIN = re.compile(r"(\w+://)[^/\s:@]+:[^/\s@]+@")


@dataclass(frozen=True)
class TrackingConfig:
    """Where runs are recorded; relative paths are made absolute, so that workers elsewhere write to the same place.

    Attributes:
        uri: an MLflow tracking URI; a SQLite file keeps its artifacts beside it.
        experiment: every run of every command goes into this one.
        queue_dir: where records wait until they are sent.
        system_metrics: also record CPU, memory, disk and GPU every ten seconds.
        enabled: False records nothing.
        upload_limit_mb: larger registered checkpoints are recorded by their path instead of uploaded.
    """

    uri: str = "sqlite:///runs/mlflow.db"
    experiment: str = "st4vla"
    queue_dir: str = "runs/tracking_queue"
    system_metrics: bool = True
    enabled: bool = True
    upload_limit_mb: float = 256.0

    def __post_init__(self) -> None:
        if self.enabled and "://" not in self.uri:
            raise ConfigError(
                f"tracking.uri is {self.uri!r}; expected a URI such as sqlite:///runs/mlflow.db or http://host:5000, "
                "or tracking=off"
            )
        if not self.experiment:
            raise ConfigError("tracking.experiment is empty; name the MLflow experiment, e.g. st4vla")
        object.__setattr__(self, "queue_dir", os.path.abspath(self.queue_dir))
        if (path := self.uri.removeprefix("sqlite:///")) != self.uri:
            object.__setattr__(self, "uri", f"sqlite:///{os.path.abspath(path)}")


class Tracker:
    """One run; every method may be called from any thread and returns once the record is on disk."""

    def __init__(self, run_id: str, queue: RunQueue | None, sender: Sender | None, config: TrackingConfig):
        """Use `Tracker.open` or `child` instead."""
        self.run_id = run_id
        self._queue = queue
        self._sender = sender
        self._config = config
        self._sampler: SystemSampler | None = None
        self._owns_sender = False
        self._files = 0

    @classmethod
    def open(cls, config: TrackingConfig, kind: str, name: str, parent_run_id: str | None = None) -> "Tracker":
        """Start a run of its own process; `parent_run_id` is the `run_id` of a tracker in any process.

        Raises:
            TrackingError: the queue folder cannot be written.
        """
        sender = None
        if config.enabled:
            store = MlflowStore(config.uri, config.experiment, config.upload_limit_mb)
            store.import_client()
            sender = Sender(store, Path(config.queue_dir))
            sender.start()
        tracker = cls._start(config, sender, kind, name, parent_run_id)
        tracker._owns_sender = True
        if config.enabled and config.system_metrics:
            tracker._sampler = SystemSampler(tracker.metrics)
            tracker._sampler.start()
        return tracker

    @classmethod
    def _start(
        cls, config: TrackingConfig, sender: Sender | None, kind: str, name: str, parent: str | None
    ) -> "Tracker":
        run_id = new_run_id(kind)
        if sender is None:
            return cls(run_id, None, None, config)
        queue = RunQueue(Path(config.queue_dir) / run_id)
        tags = {"st4vla.kind": kind}
        if job := os.environ.get(JOB_ID):
            tags["st4vla.job"] = job
        queue.append("start", {"name": name, "parent": parent, "time_ms": _now_ms(), "tags": tags}, durable=True)
        sender.add(queue)
        return cls(run_id, queue, sender, config)

    def child(self, kind: str, name: str) -> "Tracker":
        """Start a run below this one, in the same process; close it before this one."""
        return self._start(self._config, self._sender, kind, name, self.run_id)

    def params(self, mapping: Mapping[str, Any]) -> None:
        """Record settings; nested mappings become dotted keys, and what looks like a secret is masked."""
        flat = {takeable(key): str(value) for key, value in flatten(mask_secrets(mapping)).items()}
        self._append("params", {"params": flat})

    def config(self, mapping: Mapping[str, Any], file_name: str = "config.yaml") -> None:
        """Record a command's whole composed config, as params and as a YAML artifact."""
        self.params(mapping)
        self.text(yaml.safe_dump(mask_secrets(mapping), sort_keys=False), file_name)

    def metrics(self, mapping: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, all at one step (0 where none is given) and the time of the call."""
        values = {takeable(key): float(value) for key, value in mapping.items()}
        self._append("metrics", {"metrics": values, "step": step or 0, "time_ms": _now_ms()})

    def tags(self, mapping: Mapping[str, Any]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self._append("tags", {"tags": {key: str(value) for key, value in mask_secrets(mapping).items()}})

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """Record a file or a folder; it may be deleted as soon as this returns, but not rewritten in place.

        Raises:
            DataError: there is no such file.
        """
        source = Path(path)
        if not source.exists():
            raise DataError(f"artifact {source} does not exist; write it before it is tracked")
        if self._queue is not None:
            kept = self._queue.keep_file(source, self._next_file())
            self._append("artifact", {"path": str(kept), "folder": folder}, durable=True)

    def text(self, content: str, file_name: str) -> None:
        """Record a text as an artifact of that name."""
        self._append("text", {"content": content, "file_name": file_name})

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Record that the run read a dataset: its content's digest, where it lay, and what for ("training")."""
        payload = {"name": name, "digest": digest, "source": mask_url(source), "context": context}
        self._append("dataset", payload)

    def register(self, folder: str | Path, name: str, lineage: Mapping[str, Any]) -> None:
        """Register a checkpoint folder as the newest version of model `name`, under the alias "newest".

        `lineage` becomes tags of the version: parent checkpoint, data digests, git revision.

        Raises:
            DataError: there is no such folder.
        """
        source = Path(folder)
        if not source.is_dir():
            raise DataError(f"checkpoint folder {source} does not exist; save it before it is registered")
        if self._queue is None:
            return
        size_mb = sum(file.stat().st_size for file in source.rglob("*") if file.is_file()) / 1e6
        upload = size_mb <= self._config.upload_limit_mb
        kept = self._queue.keep_file(source, self._next_file()) if upload else None
        tags = {key: str(value) for key, value in flatten(mask_secrets(lineage)).items()}
        payload = {"model": name, "folder": str(source.resolve()), "upload": str(kept or ""), "tags": tags}
        self._append("register", {**payload, "key": f"{self.run_id}/{self._files}-{source.name}"}, durable=True)

    def close(self, status: Status = "FINISHED", wait_s: float = 60.0) -> None:
        """End the run; wait until it is sent, the store proves to be away, or `wait_s` is over."""
        if self._sampler is not None:
            self._sampler.stop()
        if self._queue is None or self._sender is None:
            return
        self._append("end", {"status": status, "time_ms": _now_ms()}, durable=True)
        if self._owns_sender:
            self._sender.close(wait_s)
        self._queue = self._sender = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.close("KILLED" if interrupted else "FAILED" if kind else "FINISHED")

    def _append(self, operation: str, payload: Mapping[str, Any], durable: bool = False) -> None:
        if self._queue is not None and self._sender is not None:
            self._queue.append(operation, payload, durable)
            self._sender.wake()

    def _next_file(self) -> int:
        self._files += 1
        return self._files


def new_run_id(kind: str) -> str:
    """Give a run id that sorts by time: "20261123T044431.123456-collect-3fa2c1"."""
    now = time.time()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
    return f"{stamp}.{int(now % 1 * 1e6):06d}-{kind}-{secrets.token_hex(3)}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def mask_url(text: str) -> str:
    """Hide the login in any URL of a text."""
    return URL_LOGIN.sub(rf"\1{MASK}@", text)


def mask_secrets(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a nested mapping with the values of keys that name a secret, and logins in URLs, masked."""
    return {
        str(key): MASK if value and SECRET_KEY.search(str(key)) else _masked(value) for key, value in mapping.items()
    }


def _masked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return mask_secrets(value)
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return mask_url(value) if isinstance(value, str) else value


def takeable(key: str) -> str:
    """Put an underscore for each character that MLflow takes in no name, as in "++policy.prompt" or "loss/a,b"."""
    return NO_NAME.sub("_", key)


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn {"a": {"b": 1}} into {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
