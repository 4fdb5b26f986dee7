"""Time what serving adds to inference: the unmodified openpi client, two 224 px images, a policy that takes no time.

    python -m benchmarks.serve_overhead [--record] [--requests N]

The client runs in its own process and environment, through the gate and Serve's HAProxy to a replica and back; the
whole round trip counts, the client's packing and unpacking included.
"""

import argparse
import json
import subprocess

from benchmarks.results import record
from benchmarks.serving import UNBOUNDED, client_python, percentiles, server

CLIENT = """
import json, sys, time
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
port, count = int(sys.argv[1]), int(sys.argv[2])
policy = WebsocketClientPolicy("127.0.0.1", port)
rng = np.random.default_rng(0)
seen = {"observation/image": rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "observation/wrist_image": rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "observation/state": np.zeros(8, np.float32), "prompt": "put the bowl on the plate"}
times = []
for i in range(count + 50):
    began = time.perf_counter()
    assert policy.infer(seen)["actions"].shape == (10, 7)
    times.append(time.perf_counter() - began)
print(json.dumps(times[50:]))
"""


def measure(count: int) -> list[float]:
    """Give the seconds of each request."""
    python = client_python("openpi-client==0.1.2")
    if python is None:
        raise SystemExit("openpi-client 0.1.2 could not be installed; PyPI is needed once")
    with server("fixed-0-0@1", *UNBOUNDED) as running:
        command = [str(python), "-c", CLIENT, str(running.port), str(count)]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results.json")
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    p50, p99 = percentiles(measure(options.requests))
    print(f"overhead over {options.requests} requests: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    if options.record:
        command = "python -m benchmarks.serve_overhead --record"
        record("serving overhead, openpi client, 2 x 224 px, p50", 6, round(p50, 2), "ms", "<= 2", command)
        record("serving overhead, openpi client, 2 x 224 px, p99", 6, round(p99, 2), "ms", "<= 8", command)


if __name__ == "__main__":
    main()
