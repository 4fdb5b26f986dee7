"""Say how Ray Serve is to run: HAProxy before it, its files private, its ports out of others' way.

HAProxy's files lie in a folder of their own that bears the name of the process they are for. Whoever made it removes it
at the end; what a killed process left is removed, with any HAProxy that still runs there, when the next one starts.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from st4vla.platform.ports import free_ports

WEEK_S = 7 * 24 * 3600
# Names the folder of one application's proxies, and is in their environment.
SOCKET = "RAY_SERVE_HAPROXY_SOCKET_PATH"
PREFIX, OWNER = "st4-", "owner"


def serve_environment(drain_s: float = 30.0) -> dict[str, str]:
    """Give what Ray Serve's processes must find in their environment, before the first of them starts.

    HAProxy's administration socket lies in a folder that only its owner can enter; ports that Serve would choose
    itself are free ones, so that several applications fit on one machine.

    Args:
        drain_s: how long connections of a replica that is replaced may live on.
    """
    place = Path(os.environ[SOCKET]).parent if SOCKET in os.environ else new_folder()
    fallback, fallback_grpc, metrics, stats = free_ports(4)
    wanted = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(place / "haproxy.cfg"),
        SOCKET: str(place / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(place / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(place),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(place / "server-state"),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        # Serve gives a starting proxy five seconds and then kills it, which a busy machine never gets past.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        # Two pictures pass in few pieces.
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
        # A replica's doors share the loop that reads its sockets: a hop to another thread and back costs more than the
        # rest of a request's way through Serve. Models are computed in threads of their own.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # Serve reloads its HAProxy when replicas come and go, and ends connections of the one before after two minutes.
        # A robot's connection lives as long as its replica does: that one ends it, when it is drained.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(WEEK_S),
        # How long connections of a replica that is replaced live on, while a new one starts that can take them.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": f"{drain_s:g}",
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


@contextmanager
def serve_settings(drain_s: float = 30.0) -> Iterator[Path]:
    """Set this process's environment so for the length of a `with` block; give the folder of HAProxy's files.

    A folder made here is removed at the end, and its HAProxies are ended, which Ray does not do with their actors; one
    that the environment named before belongs to a cluster that goes on.
    """
    sweep()
    settings = serve_environment(drain_s)
    added = [name for name in settings if name not in os.environ]
    place = Path(settings[SOCKET]).parent
    os.environ.update(settings)
    try:
        yield place
    finally:
        for name in added:
            os.environ.pop(name, None)
        if SOCKET in added:
            end_proxies(place)
            shutil.rmtree(place, ignore_errors=True)


def new_folder() -> Path:
    """Make a folder that belongs to this process."""
    # Sockets below this folder, and a node's name of 56 characters, may be 97 characters long in all.
    place = Path(tempfile.mkdtemp(prefix=PREFIX))
    hand_over(place, os.getpid())
    return place


def hand_over(place: Path, pid: int) -> None:
    """Let a folder live as long as a process does."""
    (place / OWNER).write_text(f"{pid} {psutil.Process(pid).create_time()}")


def sweep() -> None:
    """Remove what processes of this user left that are gone, and end the HAProxies that still run there."""
    for place in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # somebody else's, or removed by another one meanwhile
            if place.stat().st_uid == os.getuid() and is_abandoned(place):
                end_proxies(place)
                shutil.rmtree(place, ignore_errors=True)


def is_abandoned(place: Path) -> bool:
    """Say whether the process that a folder is for has gone; one that names none is left alone."""
    try:
        pid, created = (place / OWNER).read_text().split()
        return psutil.Process(int(pid)).create_time() != float(created)
    except psutil.NoSuchProcess:
        return True
    except (FileNotFoundError, ValueError):
        return False


def end_proxies(place: Path) -> None:
    """End the HAProxies whose files lie in a folder."""
    for process in psutil.process_iter(["name", "environ"]):
        mine = (process.info["environ"] or {}).get(SOCKET) == str(place / "admin.sock")
        if process.info["name"] == "haproxy" and mine:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
