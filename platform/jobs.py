"""The `submit` and `jobs` commands: run any st4vla command as a Ray job, and look after jobs."""

import asyncio
import logging
import os
import secrets
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from st4vla.platform.arguments import parse_arguments
from st4vla.platform.cli import compose_command, find_command, refuse_missing
from st4vla.platform.errors import ConfigError, JobError
from st4vla.platform.local_cluster import running
from st4vla.platform.machine import CHECKOUT, process_environment
from st4vla.platform.ray_token import ray_token_environment
from st4vla.platform.shipping import packed_package
from st4vla.platform.tracking import JOB_ID

NOT_REMOTE = ("submit", "jobs", "cluster", "doctor")
STOPPED_EXIT = 130


def submit_main(cfg: Any) -> int:
    """Ship the package, start the command on the cluster, stream its log and give its exit code."""
    words = [str(word) for word in cfg.arguments]
    command = remote_command(str(cfg.remote_command), words)
    workdir = Path(cfg.workdir or os.getcwd()).absolute()
    client = connect(cfg.address)
    job_id = f"st4vla-{cfg.remote_command}-{secrets.token_hex(4)}"
    environment = job_environment(job_id)
    entrypoint = shell_entrypoint(str(cfg.python), command, workdir)
    try:
        client.submit_job(
            entrypoint=entrypoint,
            submission_id=job_id,
            runtime_env={"py_modules": [str(packed_package())], "env_vars": environment},
            metadata={"command": shlex.join(["st4vla", *command])},
        )
    except RuntimeError as error:
        raise JobError(f"Ray refused the job ({error}); `st4vla doctor` checks the versions") from error
    print(f"job {job_id}; its MLflow runs carry the tag st4vla.job={job_id}", flush=True)
    if not cfg.follow:
        return 0
    return follow(client, job_id)


def remote_command(name: str, words: Sequence[str]) -> list[str]:
    """Check a command line here, before anything is shipped, and point its engine at the cluster it will run on.

    Raises:
        ConfigError: as the command itself would, or for a command that belongs on this machine.
    """
    if name in NOT_REMOTE:
        raise ConfigError(f"{name} looks after this machine and cannot be submitted; run it here")
    spec = find_command(name)
    arguments = parse_arguments(spec, words)
    cfg = compose_command(name, arguments.overrides)
    if not (arguments.help or arguments.print_config):
        refuse_missing(spec, cfg)
    chosen = any(override.startswith("engine=") for override in arguments.overrides)
    engine = ["engine=cluster"] if "engine" in cfg and not chosen else []
    return [name, *words, *engine]


def job_environment(job_id: str) -> dict[str, str]:
    """Give the job our thread settings and where this checkout keeps its software Vulkan.

    The driver file's own path stays here: on a node with a GPU it would hide the GPU.
    """
    environment = process_environment()
    environment.pop("VK_DRIVER_FILES", None)
    vulkan = os.environ.get("ST4VLA_VULKAN", str(CHECKOUT / ".vulkan"))
    return {**environment, "ST4VLA_VULKAN": vulkan, "PYTHONUNBUFFERED": "1", JOB_ID: job_id}


def shell_entrypoint(python: str, command: Sequence[str], workdir: Path) -> str:
    """Run the command in `workdir`, where its relative paths mean what they mean here if the folder is shared.

    -P keeps that folder off the import path: a checkout in it must not hide the package that was shipped.
    """
    folder = shlex.quote(str(workdir))
    return f"mkdir -p {folder} && cd {folder} && exec {python} -P -m st4vla.platform.cli {shlex.join(command)}"


def connect(address: str | None) -> Any:
    """Open a job client: to `address`, else to RAY_ADDRESS, else to the local cluster.

    Raises:
        JobError: there is no cluster to connect to, or it does not answer.
    """
    os.environ.update(ray_token_environment())
    from ray.job_submission import JobSubmissionClient

    for chatty in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    wanted = address or os.environ.get("RAY_ADDRESS", "")
    if not wanted.startswith(("http://", "https://")):
        record = running()
        if record is None or wanted not in ("", "auto", record.address):
            raise JobError(
                f"no cluster at {wanted or 'hand'}; expected the address of a Ray dashboard such as "
                "http://head:8265 in --address or RAY_ADDRESS, or a local one: `st4vla cluster start`"
            )
        wanted = record.dashboard
    try:
        return JobSubmissionClient(wanted)
    except (ConnectionError, RuntimeError) as error:
        raise JobError(f"the Ray cluster at {wanted} did not take us ({error}); is it up, with our token?") from error


def follow(client: Any, job_id: str) -> int:
    """Stream a job's log until it ends; Ctrl-C stops only the following."""
    try:
        asyncio.run(_stream(client, job_id))
    except KeyboardInterrupt:
        print(f"\nthe job goes on; follow it: st4vla jobs logs {job_id}   stop it: st4vla jobs stop {job_id}")
        return STOPPED_EXIT
    return exit_code(client, job_id)


async def _stream(client: Any, job_id: str) -> None:
    async for text in client.tail_job_logs(job_id):
        print(text, end="", flush=True)


def exit_code(client: Any, job_id: str, timeout_s: float = 30.0) -> int:
    """Wait for a job's last state and give its exit code; 130 if it was stopped, 1 if it never started.

    Raises:
        JobError: the job still runs when the time is over.
    """
    deadline = time.monotonic() + timeout_s
    while not (info := _info(client, job_id)).status.is_terminal():
        if time.monotonic() > deadline:
            raise JobError(f"job {job_id} closed its log but is {info.status}; ask `st4vla jobs list`")
        time.sleep(0.2)
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        return STOPPED_EXIT
    if info.driver_exit_code is None:
        print(info.message)
    return info.driver_exit_code or 1


def _info(client: Any, job_id: str) -> Any:
    try:
        return client.get_job_info(job_id)
    except RuntimeError as error:
        raise JobError(f"the cluster knows no job {job_id!r}; `st4vla jobs list` shows those it knows") from error


def jobs_main(cfg: Any) -> int:
    """List jobs, show or follow one's log, or stop one."""
    if cfg.action not in ("list", "logs", "stop"):
        raise ConfigError(f"jobs was asked to {cfg.action!r}; expected list, logs or stop")
    if cfg.action != "list" and not cfg.job:
        raise ConfigError(f"jobs {cfg.action} needs a job: st4vla jobs {cfg.action} JOB")
    client = connect(cfg.address)
    if cfg.action == "list":
        list_jobs(client)
        return 0
    info = _info(client, cfg.job)
    if cfg.action == "logs":
        if info.status.is_terminal():
            print(client.get_job_logs(cfg.job), end="")
            return exit_code(client, cfg.job)
        return follow(client, cfg.job)
    print("stopping" if client.stop_job(cfg.job) else f"job {cfg.job} had already ended: {info.status.value}")
    return 0


def list_jobs(client: Any) -> None:
    """Print one line for each job submitted to the cluster, newest last."""
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "state", "started", "seconds", "command")
    table.columns[0].no_wrap = True
    table.columns[0].min_width = 28
    submitted = [job for job in client.list_jobs() if job.submission_id]
    for job in sorted(submitted, key=lambda job: job.start_time or 0):
        begun = (job.start_time or 0) / 1000
        seconds = (job.end_time / 1000 if job.end_time else time.time()) - begun
        started = time.strftime("%m-%d %H:%M:%S", time.localtime(begun))
        command = (job.metadata or {}).get("command", job.entrypoint)
        table.add_row(job.submission_id, job.status.value, started, f"{seconds:.0f}", command)
    Console().print(table if submitted else "no job was submitted to this cluster")
