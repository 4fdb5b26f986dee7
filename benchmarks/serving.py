"""What the serving benchmarks stand on: a server of its own, foreign clients in environments of their own, robots."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.results import ROOT
from st4vla.platform.ports import free_ports
from st4vla.platform.wire import openpi
from st4vla.serve.fleet_command import call

START_TIMEOUT_S = 300.0
PIXELS = 224
UNBOUNDED = ("post.rate.requests_per_s=100000", "post.rate.burst=10000")


@dataclass(frozen=True)
class Server:
    """A running `st4vla serve`."""

    port: int
    vla_eval_port: int
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def url(self) -> str:
        """The openpi door."""
        return f"ws://127.0.0.1:{self.port}/"

    @property
    def http(self) -> str:
        """The HTTP door, without a slash."""
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """What it has printed."""
        return (self.folder / "serve.log").read_text()


ANNOUNCED = "openpi"  # in the table that says where it serves


@contextmanager
def server(reference: str, *overrides: str, fixed: bool = True) -> Iterator[Server]:
    """Run `st4vla serve` with a policy of known duration, and end it."""
    port, vla_eval_port = free_ports(2)
    command = [sys.executable, "-m", "st4vla.platform.cli", "serve", reference, "tracking=off"]
    command += [f"gate.port={port}", f"gate.vla_eval_port={vla_eval_port}", "keymap=libero", "engine.num_cpus=4"]
    command += ["post.loader.function=benchmarks.fixed_latency.build"] if fixed else []
    with tempfile.TemporaryDirectory(prefix="st4vla-serve-") as name:
        folder = Path(name)
        with open(folder / "serve.log", "wb") as log:
            process = subprocess.Popen(
                [*command, *overrides], cwd=folder, stdout=log, stderr=log, env=environment(), start_new_session=True
            )
        running = Server(port, vla_eval_port, process, folder)
        try:
            wait_until_ready(running)
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def environment() -> dict[str, str]:
    """The environment in which a child finds st4vla and this folder as this process does."""
    paths = [str(ROOT), *(path for path in sys.path if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "OMP_NUM_THREADS": "1"}


def wait_until_ready(running: Server) -> None:
    """Wait until a model is loaded and the server has said where it serves.

    Raises:
        RuntimeError: the server ended or took too long; with its log.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{running.http}/readyz", timeout=5):
                if ANNOUNCED in running.log():
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the server did not become ready:\n{running.log()[-3000:]}")


def fleet(running: Server) -> dict[str, Any]:
    """Ask the server how it is."""
    with urllib.request.urlopen(f"{running.http}/v1/fleet", timeout=30) as answer:
        return json.loads(answer.read())


def call_fleet(running: Server, action: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """Change something, as `st4vla fleet` does."""
    return call(running.http, action, details)


def redeploy(running: Server) -> None:
    """Have every replica replaced, and wait until it is done."""
    before = running.log().count("every replica was replaced")
    running.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + START_TIMEOUT_S
    while running.log().count("every replica was replaced") == before:
        if time.monotonic() > deadline or running.process.poll() is not None:
            raise RuntimeError(f"the replicas were not replaced:\n{running.log()[-3000:]}")
        time.sleep(0.2)


def batch_sizes(running: Server) -> dict[int, int]:
    """Count the batches of each size that all replicas have computed."""
    sizes: Counter[int] = Counter()
    for replica in fleet(running)["replicas"].values():
        for model in replica["loaded"].values():
            sizes.update({int(size): count for size, count in model["sizes"].items()})
    return dict(sorted(sizes.items()))


def members(running: Server, words: str) -> list[psutil.Process]:
    """Give the server's own processes whose command line holds words, "ServeReplica" or "haproxy"."""
    found = []
    for process in psutil.Process(running.process.pid).children(recursive=True):
        try:
            if words in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def client_python(package: str) -> Path | None:
    """Give the interpreter of an environment that holds one foreign client, made once; None where PyPI is away."""
    home = Path(os.environ.get("ST4VLA_CLIENTS") or Path.home() / ".cache" / "st4vla" / "clients") / package
    python = home / "bin" / "python"
    if (home / "complete").exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, capture_output=True)
    # openpi-client imports typing_extensions without asking for it.
    wanted = [package, "typing_extensions"]
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted]
    if subprocess.run(install, capture_output=True, check=False, timeout=600).returncode:
        return None
    (home / "complete").touch()
    return python


def libero_message(pixel: int, **more: Any) -> bytes:
    """Pack a LIBERO observation whose frames have one value, so that its answer can be told from others."""
    frame = np.full((PIXELS, PIXELS, 3), pixel, np.uint8)
    message = {
        "observation/image": frame,
        "observation/wrist_image": frame,
        "observation/state": np.full(8, float(pixel)),
        "prompt": "put the bowl on the plate",
    }
    return openpi.pack({**message, **more})


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """Give the median and the 99th percentile in milliseconds."""
    p50, p99 = np.percentile(np.asarray(seconds) * 1000, [50, 99])
    return float(p50), float(p99)
