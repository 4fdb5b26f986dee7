"""The whole application on Ray Serve: unmodified foreign clients are answered, replicas are replaced, models loaded."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serve_overhead import CLIENT
from benchmarks.serving import Server, client_python, environment, fleet, server

pytestmark = [pytest.mark.ray, pytest.mark.slow]

VLA_EVAL_CLIENT = """
import asyncio, sys
import numpy as np
from vla_eval.connection import Connection

async def main():
    async with Connection(f"ws://127.0.0.1:{sys.argv[1]}/") as line:
        assert line.server_info["protocol_version"] == 1
        await line.start_episode({"task": {"name": "x"}, "mode": "sync"})
        frame = np.full((64, 64, 3), 9, np.uint8)
        seen = {"images": {"agentview": frame, "wrist": frame}, "task_description": "do", "states": np.zeros(8)}
        print((await line.act(seen))["actions"].tolist())
        await line.end_episode({"success": True})

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with server("fixed-0-0@1") as running:
        yield running


def foreign(package: str) -> Path:
    python = client_python(package)
    if python is None:
        pytest.skip(f"{package} could not be installed from PyPI into an environment of its own")
    return python


def answer_of(python: Path, script: str, *arguments: str) -> str:
    done = subprocess.run(
        [str(python), "-c", script, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_unmodified_openpi_client_is_answered(running: Server) -> None:
    times = json.loads(answer_of(foreign("openpi-client==0.1.2"), CLIENT, str(running.port), "3"))
    assert len(times) == 3


def test_the_unmodified_vla_eval_client_is_answered(running: Server) -> None:
    row = answer_of(foreign("vla-eval==0.8.0"), VLA_EVAL_CLIENT, str(running.vla_eval_port))
    assert json.loads(row)[0] == 9


def test_the_fleet_command_shows_and_changes_what_is_served(running: Server) -> None:
    def command(*words: str) -> str:
        line = [sys.executable, "-m", "st4vla.platform.cli", "fleet", *words, "--url", running.http]
        return subprocess.run(line, capture_output=True, text=True, env=environment(), check=True).stdout

    assert "production  fixed-0-0@1" in command()
    assert "canary      fixed-0-0@2 for 50 %" in command("canary", "fixed-0-0@2", "--share", "0.5")
    assert "stopped     arm-7: smoke" in command("stop", "arm-7", "--reason", "smoke")
    assert "stopped" not in command("release", "arm-7")
    assert "production  fixed-0-0@2" in command("promote")
    assert "production  fixed-0-0@1" in command("rollback")
    assert fleet(running)["routes"]["previous"] == "fixed-0-0@2"
