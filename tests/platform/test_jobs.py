"""Any command runs as a Ray job with its own log and exit code, and the local cluster leaves nothing behind."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from st4vla.platform import jobs, local_cluster
from st4vla.platform.cli import main
from st4vla.platform.errors import ConfigError, JobError
from st4vla.platform.ray_token import ray_token_environment
from st4vla.platform.shipping import packed_package


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ST4VLA_HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # so that what the test sets is taken away after it
        monkeypatch.delenv(name)
    return tmp_path / "home"


def test_the_token_is_made_once_and_readable_by_its_owner_only(home: Path) -> None:
    path = Path(ray_token_environment()["RAY_AUTH_TOKEN_PATH"])
    token = path.read_text()
    assert len(token) == 64 and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Path(ray_token_environment()["RAY_AUTH_TOKEN_PATH"]).read_text() == token


def test_a_foreign_clusters_token_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/secrets/theirs")
    assert ray_token_environment()["RAY_AUTH_TOKEN_PATH"] == "/secrets/theirs"
    assert not home.exists()


def test_the_packed_package_holds_code_and_configs_and_is_made_once(home: Path) -> None:
    package = packed_package()
    assert package.name == "st4vla"
    assert (package / "platform" / "cli.py").is_file() and (package / "configs" / "tracking" / "off.yaml").is_file()
    made = package.stat().st_mtime_ns
    assert packed_package() == package and package.stat().st_mtime_ns == made


def test_a_typo_is_found_before_anything_is_shipped(home: Path) -> None:
    with pytest.raises(ConfigError, match="Could not override 'actoin'"):
        jobs.remote_command("track", ["actoin=sync"])
    with pytest.raises(ConfigError, match="eval needs policy_from; usage: st4vla eval"):
        jobs.remote_command("eval", ["suite=seen"])
    with pytest.raises(ConfigError, match="cannot be submitted"):
        jobs.remote_command("cluster", [])


def test_the_entrypoint_quotes_its_folder_and_words() -> None:
    entry = jobs.shell_entrypoint("python", ["eval", "text=it's"], Path("/data/my runs"))
    assert entry.startswith("mkdir -p '/data/my runs' && cd '/data/my runs' && exec python -P -m st4vla.platform.cli")
    assert entry.endswith("""eval 'text=it'"'"'s'""")


def test_a_job_keeps_the_cluster_free_of_this_machines_driver_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VK_DRIVER_FILES", "/here/icd.json")
    environment = jobs.job_environment("st4vla-eval-1")
    assert "VK_DRIVER_FILES" not in environment and environment["ST4VLA_JOB_ID"] == "st4vla-eval-1"


def test_without_a_cluster_the_next_step_is_named(home: Path) -> None:
    with pytest.raises(JobError, match="st4vla cluster start"):
        jobs.connect(None)


@pytest.fixture
def cluster(home: Path, workplace: Path, ray_token: Path) -> Iterator[local_cluster.ClusterRecord]:
    home.mkdir()
    shutil.copy2(ray_token, home / "ray_token")
    record = local_cluster.start(num_cpus=1)
    yield record
    local_cluster.stop()


@pytest.mark.ray
@pytest.mark.slow
def test_a_command_runs_as_a_job_and_its_exit_code_comes_back(
    cluster: local_cluster.ClusterRecord, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "track", "show"]) == 0
    assert f"store sqlite:///{workplace}/runs/mlflow.db" in capfd.readouterr().out
    assert main(["submit", "track", "dance"]) == 2
    assert "track was asked to 'dance'" in capfd.readouterr().out
    client = jobs.connect(None)
    states = {job.submission_id: job.status.value for job in client.list_jobs()}
    assert sorted(states.values()) == ["FAILED", "SUCCEEDED"]
    failed = next(job for job, state in states.items() if state == "FAILED")
    assert main(["jobs", "logs", failed]) == 2
    assert main(["jobs", "stop", failed]) == 0
    assert "had already ended: FAILED" in capfd.readouterr().out
    head = psutil.Process(cluster.pid)
    members = [head, *head.children(recursive=True)]
    assert local_cluster.stop() and local_cluster.running() is None
    assert [process for process in members if process.is_running() and process.status() != "zombie"] == []
    assert os.environ["RAY_AUTH_MODE"] == "token"
