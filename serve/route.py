"""Wait until Serve's HAProxy sends robots straight to a replica, not through the slower proxy that stands in.

While a replica starts, Serve's Python proxy answers in its place, and a WebSocket opened then stays on that way for as
long as it lives. So a server says that it is ready only once the straight way is open.
"""

import logging
import socket
import time
from pathlib import Path

log = logging.getLogger(__name__)
SERVER, STATUS = 1, 17  # columns of HAProxy's `show stat`
REPLICA = "SERVE_REPLICA_"
PATIENCE_S = 30.0


def wait_for_direct_route(place: Path, patience_s: float = PATIENCE_S) -> bool:
    """Wait until a replica is up in the HAProxy whose administration socket lies below `place`.

    Returns:
        whether it came; if not, robots are answered all the same, but more slowly, and a warning says so.
    """
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if any(has_replica(answer) for answer in map(statistics, place.glob("**/admin.sock"))):
            return True
        time.sleep(0.1)
    log.warning(
        "Serve's HAProxy has no replica after %g s; robots that connect now go through a slower proxy", patience_s
    )
    return False


def statistics(path: Path) -> str:
    """Ask an HAProxy how its servers are; nothing where it does not answer."""
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(2.0)
            line.connect(str(path))
            line.sendall(b"show stat\n")
            return b"".join(iter(lambda: line.recv(65536), b"")).decode("ascii", "replace")
    except OSError:
        return ""


def has_replica(answer: str) -> bool:
    """Say whether a replica is among the servers that are up."""
    rows = (line.split(",") for line in answer.splitlines())
    return any(len(row) > STATUS and row[SERVER].startswith(REPLICA) and row[STATUS].startswith("UP") for row in rows)
