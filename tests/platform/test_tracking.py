"""Runs reach MLflow whole and in order, whatever happens to the store or to the process meanwhile."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from st4vla.platform.errors import ConfigError, DataError
from st4vla.platform.track import sync
from st4vla.platform.tracking import Tracker, TrackingConfig, flatten, mask_secrets
from st4vla.platform.tracking_queue import RunQueue, queue_states


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite store for the module: making its tables takes five seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def config(workplace: Path, store_uri: str) -> TrackingConfig:
    return TrackingConfig(uri=store_uri, system_metrics=False)


def runs_of(config: TrackingConfig) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(config.uri)
    experiment = client.get_experiment_by_name(config.experiment)
    assert experiment is not None
    return {run.info.run_name or "": run for run in client.search_runs([experiment.experiment_id])}


def test_a_run_its_child_and_all_they_recorded_are_in_mlflow_after_close(config: TrackingConfig) -> None:
    from mlflow import MlflowClient

    Path("report.html").write_text("<p>fine</p>")
    Path("checkpoint").mkdir()
    Path("checkpoint/policy.yaml").write_text("kind: st4vla\n")
    with Tracker.open(config, "demo", "parent") as parent:
        parent.config({"policy": {"width": 128}, "api_key": "abc", "++arm,1": {"on": True}})
        parent.artifact("report.html", "reports")
        parent.dataset("reach", "f" * 64, "runs/reach", "training")
        parent.register("checkpoint", "tiny", {"parent": "base"})
        Path("report.html").unlink()
        child = parent.child("eval", "child")
        child.metrics({"success": 0.5, "loss/bridge,rt_1": 2.0}, step=3)
        child.close()
    runs = runs_of(config)
    assert runs["parent"].data.params == {"policy.width": "128", "api_key": "***", "__arm_1.on": "True"}
    assert runs["child"].data.metrics == {"success": 0.5, "loss/bridge_rt_1": 2.0}
    assert runs["parent"].info.status == runs["child"].info.status == "FINISHED"
    assert runs["child"].data.tags["mlflow.parentRunId"] == runs["parent"].info.run_id
    assert runs["parent"].data.tags["st4vla.run"] == parent.run_id
    assert runs["parent"].inputs.dataset_inputs[0].dataset.digest == "f" * 36
    client = MlflowClient(config.uri)
    assert {file.path for file in client.list_artifacts(runs["parent"].info.run_id)} == {"config.yaml", "reports"}
    assert client.get_metric_history(runs["child"].info.run_id, "success")[0].step == 3
    version = client.get_model_version_by_alias("tiny", "newest")
    assert version.tags["parent"] == "base" and version.run_id == runs["parent"].info.run_id
    assert queue_states(Path(config.queue_dir)) == []


def test_what_mlflow_refuses_is_set_aside_with_its_reason_and_the_rest_is_sent(config: TrackingConfig) -> None:
    with Tracker.open(config, "demo", "stubborn") as tracker:
        tracker.params({"width": 1})
        tracker.params({"width": 2})
        tracker.metrics({"loss": 0.25})
    run = runs_of(config)["stubborn"]
    assert run.data.params == {"width": "1"} and run.data.metrics == {"loss": 0.25}
    assert [state.rejected for state in queue_states(Path(config.queue_dir))] == [1]
    refused = json.loads((Path(config.queue_dir) / tracker.run_id / "rejected.jsonl").read_text())
    assert refused["params"] == {"width": "2"} and "Changing param values" in refused["reason"]


def test_records_sent_twice_are_in_the_store_once(config: TrackingConfig) -> None:
    from st4vla.platform.tracking_sender import send_run
    from st4vla.platform.tracking_store import MlflowStore

    queue = RunQueue(Path(config.queue_dir) / "20260101T000000.000000-demo-abcdef")
    queue.append("start", {"name": "twice", "parent": None, "time_ms": 1, "tags": {}})
    queue.append("metrics", {"metrics": {"loss": 0.5}, "step": 1, "time_ms": 7})
    queue.append("end", {"status": "FINISHED", "time_ms": 9})
    store = MlflowStore(config.uri, config.experiment)
    assert send_run(store, queue)
    queue.mark_sent(0, "", ended=False)
    assert send_run(store, queue)
    run = runs_of(config)["twice"]
    assert len(store.client.get_metric_history(run.info.run_id, "loss")) == 1


KILLED_RUN = """
import os, signal, sys
from st4vla.platform.tracking import Tracker, TrackingConfig
tracker = Tracker.open(TrackingConfig(uri=sys.argv[1], system_metrics=False), "train", "killed")
for step in range(100):
    tracker.metrics({"loss": step}, step)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_no_record_and_its_run_ends_as_killed(
    config: TrackingConfig, st4vla_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-c", KILLED_RUN, config.uri]
    assert subprocess.run(command, env=st4vla_environment, timeout=120).returncode == -signal.SIGKILL
    assert sync(config) == 1
    run = runs_of(config)["killed"]
    assert run.info.status == "KILLED" and run.data.metrics == {"loss": 99.0}


@pytest.mark.slow
def test_a_server_killed_mid_run_loses_nothing_and_keeps_the_order(workplace: Path) -> None:
    from mlflow import MlflowClient

    port = free_port()
    config = TrackingConfig(uri=f"http://127.0.0.1:{port}", system_metrics=False)
    server = start_server(port)
    tracker = Tracker.open(config, "train", "outlived")
    tracker.metrics({"loss": 0}, 0)
    wait_until(lambda: queue_states(Path(config.queue_dir))[0].unsent == 0)
    kill(server)
    for step in range(1, 50):
        tracker.metrics({"loss": step}, step)
    orphan = tracker.child("eval", "born while it was dead")
    orphan.metrics({"success": 1.0})
    assert [state.unsent for state in queue_states(Path(config.queue_dir))] == [49, 2]
    orphan.close()
    tracker.close(wait_s=30)
    assert len(queue_states(Path(config.queue_dir))) == 2
    server = start_server(port)
    assert sync(config) == 2
    runs = runs_of(config)
    history = MlflowClient(config.uri).get_metric_history(runs["outlived"].info.run_id, "loss")
    assert [metric.step for metric in history] == list(range(50))
    assert [metric.timestamp for metric in history] == sorted(metric.timestamp for metric in history)
    born = runs["born while it was dead"]
    assert born.data.tags["mlflow.parentRunId"] == runs["outlived"].info.run_id
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert queue_states(Path(config.queue_dir)) == []
    kill(server)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start_server(port: int) -> subprocess.Popen:
    """Start a real MLflow server on this folder's SQLite file and wait until it answers."""
    import urllib.request

    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", "artifacts"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
        except OSError:
            return False

    wait_until(answers)
    return process


def kill(server: subprocess.Popen) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def wait_until(condition: Any, timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.1)


def test_a_queue_cut_in_the_middle_of_a_line_keeps_the_lines_before(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path / "run")
    queue.append("tags", {"tags": {"a": "1"}})
    queue.release()
    with open(tmp_path / "run" / "records.jsonl", "a") as file:
        file.write('{"op": "tags", "ta')
    reopened = RunQueue(tmp_path / "run")
    reopened.append("tags", {"tags": {"a": "2"}})
    assert [record.payload["tags"]["a"] for record in reopened.unsent()] == ["1", "2"]


def test_a_run_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path / "run")
    with pytest.raises(BlockingIOError):
        RunQueue(tmp_path / "run")
    assert queue_states(tmp_path)[0].alive
    queue.release()
    assert not queue_states(tmp_path)[0].alive


def test_tracking_that_is_off_writes_nothing(workplace: Path) -> None:
    with Tracker.open(TrackingConfig(uri="", enabled=False), "demo", "off") as tracker:
        tracker.metrics({"loss": 1.0})
        tracker.child("eval", "child").close()
    assert list(workplace.iterdir()) == []


def test_relative_places_become_absolute(workplace: Path) -> None:
    config = TrackingConfig()
    assert config.uri == f"sqlite:///{workplace}/runs/mlflow.db"
    assert config.queue_dir == f"{workplace}/runs/tracking_queue"


def test_secrets_are_masked_by_key_and_in_urls() -> None:
    shown = mask_secrets({"auth": {"token": "t"}, "num_tokens": 5, "uri": "https://me:pw@host/x", "password": ""})
    assert shown == {"auth": {"token": "***"}, "num_tokens": 5, "uri": "https://***@host/x", "password": ""}


def test_nested_settings_become_dotted_params() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


def test_an_artifact_that_does_not_exist_is_named(config: TrackingConfig) -> None:
    with pytest.raises(DataError, match="missing.png does not exist"), Tracker.open(config, "demo", "x") as tracker:
        tracker.artifact("missing.png")


def test_a_bad_uri_is_named() -> None:
    with pytest.raises(ConfigError, match="tracking.uri is 'mlflow.db'"):
        TrackingConfig(uri="mlflow.db")
