"""Say how Ray Serve is to run: HAProxy before it, its files private, its ports out of others' way."""

import os
import tempfile
from pathlib import Path

from st4vla.platform.ports import free_ports

WEEK_S = 7 * 24 * 3600


def serve_environment(drain_s: float = 30.0) -> dict[str, str]:
    """Give what Ray Serve's processes must find in their environment, before the first of them starts.

    HAProxy's administration socket lies in a folder that only its owner can enter; ports that Serve would choose
    itself are free ones, so that several applications fit on one machine.

    Args:
        drain_s: how long connections of a replica that is replaced may live on.
    """
    # Sockets below this folder, and a node's name of 56 characters, may be 97 characters long in all.
    place = Path(tempfile.mkdtemp(prefix="st4-"))
    fallback, fallback_grpc, metrics, stats = free_ports(4)
    wanted = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(place / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(place / "admin.sock"),
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
