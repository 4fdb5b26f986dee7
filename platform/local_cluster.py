"""The `cluster` command: a Ray head on this machine that stays up between commands, with token authentication.

It has ports and a folder of its own, so that it meets no other Ray of this machine, and is stopped by ending the one
process that was started: `ray stop` would end every Ray there is.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from st4vla.platform.errors import ConfigError, JobError
from st4vla.platform.machine import process_environment
from st4vla.platform.ports import free_ports
from st4vla.platform.ray_token import ray_token_environment, st4vla_home
from st4vla.platform.serve_environment import SOCKET, hand_over, serve_environment, sweep

START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class ClusterRecord:
    """Where the local cluster listens, and the process that holds it."""

    pid: int
    address: str
    dashboard: str
    folder: str


def main(cfg: Any) -> int:
    """Start, stop or describe the local cluster."""
    if cfg.action == "start":
        record = running() or start(cfg.num_cpus)
        print(f"Ray runs at {record.address}, jobs go to {record.dashboard}; `st4vla submit COMMAND ...` uses it")
    elif cfg.action == "stop":
        print("stopped" if stop() else "no local cluster was running")
    elif cfg.action == "status":
        record = running()
        print(f"Ray runs at {record.address}, process {record.pid}" if record else "no local cluster is running")
        return 0 if record else 1
    else:
        raise ConfigError(f"cluster was asked to {cfg.action!r}; expected start, stop or status")
    return 0


def running() -> ClusterRecord | None:
    """Give the record of the local cluster if its process still lives."""
    try:
        record = ClusterRecord(**json.loads(_record_path().read_text()))
    except FileNotFoundError:
        return None
    try:
        command = psutil.Process(record.pid).cmdline()
    except psutil.NoSuchProcess:
        return None
    return record if "start" in command and "--head" in command else None


def start(num_cpus: int | None = None) -> ClusterRecord:
    """Start a head and wait until it takes jobs.

    Raises:
        JobError: it ended, or did not answer within two minutes; the message names its log.
    """
    home = st4vla_home()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Unix sockets below this folder may be 107 characters long, which a home directory can exceed.
    folder = f"/tmp/st4vla-ray-{os.getuid()}-{os.getpid()}"
    gcs, dashboard, client, agent = free_ports(4)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}", "--node-ip-address=127.0.0.1"]
    command += [f"--num-cpus={num_cpus}"] if num_cpus else []
    log = home / "cluster.log"
    environment = head_environment()
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True, cwd=home
        )
    hand_over(Path(environment[SOCKET]).parent, process.pid)
    record = ClusterRecord(process.pid, f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", folder)
    _record_path().write_text(json.dumps(asdict(record)))
    try:
        _wait_until_it_answers(record, process, log)
    except BaseException:
        stop()
        raise
    return record


def head_environment() -> dict[str, str]:
    """The head's environment: our process settings, our token, how Serve runs; `python` means this interpreter."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {
        **os.environ,
        **process_environment(),
        **ray_token_environment(),
        **serve_environment(),
        "PATH": path,
    }
    environment.pop("RAY_ADDRESS", None)
    return environment


def _wait_until_it_answers(record: ClusterRecord, process: subprocess.Popen, log: Path) -> None:
    host, port = record.dashboard.removeprefix("http://").split(":")
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise JobError(f"ray start ended with {process.returncode}; its log is {log}:\n{log.read_text()[-1500:]}")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise JobError(f"Ray's dashboard at {record.dashboard} did not answer in {START_TIMEOUT_S:.0f} s; see {log}")


def stop() -> bool:
    """End the local cluster; say whether there was one."""
    record = running()
    if record is None:
        _record_path().unlink(missing_ok=True)
        return False
    head = psutil.Process(record.pid)
    members = head.children(recursive=True)
    head.send_signal(signal.SIGTERM)
    end(members + [head], wait_s=10)
    _record_path().unlink(missing_ok=True)
    shutil.rmtree(record.folder, ignore_errors=True)
    sweep()
    return True


def end(processes: Sequence[psutil.Process], wait_s: float) -> None:
    """Wait for processes to go, and kill those that stay: a gcs_server outlives its raylet."""
    _, left = psutil.wait_procs(list(processes), timeout=wait_s)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=5)


def _record_path() -> Path:
    return st4vla_home() / "cluster.json"
