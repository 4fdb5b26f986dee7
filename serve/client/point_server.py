"""Serve the point robot's expert over openpi's WebSocket, without a model: to try a robot's side before there is one.

    python -m st4vla.serve.client.point_server --port 8000

It speaks the protocol of the real server in one small file, one thread a connection, and binds to this machine alone.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from st4vla.platform.contracts import ActionChunk, Observation, PolicySpec
from st4vla.platform.errors import WireError
from st4vla.platform.wire import openpi
from st4vla.platform.wire.stamps import KEY, ReplyStamp, RequestStamp, metadata

CHUNK, STEP_M = 8, 0.01
SPEC = PolicySpec(("camera",), 32, 7, 7, CHUNK, 20.0, "point")
GOAL = (0.2, -0.1, 0.1)


class PointPolicy:
    """A contracts.Policy that walks straight from the state to a goal it knows."""

    spec = SPEC

    def __init__(self, goal: tuple[float, ...] = GOAL) -> None:
        self.goal = goal

    def reset(self, session_id: str) -> None:
        """Forget nothing."""

    def act(
        self,
        observations: Sequence[Observation],
        session_ids: Sequence[str],
        noise_keys: Sequence[tuple[int, int]],
    ) -> list[ActionChunk]:
        """Give a chunk for each observation."""
        return [ActionChunk(self.walk(seen.state)) for seen in observations]

    def walk(self, state: Any, promised: np.ndarray | None = None) -> np.ndarray:
        """Give the actions [8,7]: the promised ones first, then straight on."""
        place, rows = np.asarray(state[:3], np.float64), []
        for row in range(CHUNK):
            known = promised is not None and row < len(promised)
            step = promised[row, :3] if known and promised is not None else towards(place, self.goal)
            place = place + step
            rows.append([*step, 0, 0, 0, 1])
        return np.array(rows, np.float32)


def point_policy(reference: str) -> PointPolicy:
    """Give the point robot's expert to the real server.

    st4vla serve point post.loader.function=st4vla.serve.client.point_server.point_policy
    """
    return PointPolicy()


def towards(place: np.ndarray, goal: tuple[float, ...]) -> np.ndarray:
    """Step to the goal, slower near it."""
    way = np.subtract(goal, place) / 2
    return way * min(1.0, STEP_M / max(float(np.linalg.norm(way)), 1e-9))


def answer(message: Mapping[str, Any], goal: tuple[float, ...] = GOAL) -> dict[str, Any]:
    """Answer one request; the rows that are already promised come first.

    Raises:
        WireError: the state is missing.
    """
    stamp = RequestStamp.read(message.get(KEY) or {})
    state = message.get("state")
    if not isinstance(state, np.ndarray) or state.shape != (SPEC.state_dim,):
        raise WireError("missing", "state", f"Expected {SPEC.state_dim} numbers.")
    promised = None if stamp.remaining is None else stamp.remaining[: stamp.delay_steps]
    reply = ReplyStamp(stamp.session, stamp.sequence, 0.0, "point")
    return {"actions": PointPolicy(goal).walk(state, promised), KEY: reply.as_plain()}


def serve_connection(socket: Any, answer_s: float = 0.0, goal: tuple[float, ...] = GOAL) -> None:
    """Answer one connection until it closes."""
    socket.send(openpi.pack(metadata(SPEC, "point")))
    for frame in socket:
        try:
            message = openpi.unpack(frame if isinstance(frame, bytes) else b"")
            reply = answer(message, goal) if "state" in message else {KEY: {}}
        except WireError as error:
            reply = error.as_plain()
        time.sleep(answer_s)
        socket.send(openpi.pack(reply))


def main() -> None:
    """Serve until interrupted."""
    from websockets.sync.server import serve

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--answer-s", type=float, default=0.05, help="how long an answer takes")
    parser.add_argument("--goal", type=float, nargs=3, default=GOAL)
    options = parser.parse_args()

    def handle(socket: Any) -> None:
        serve_connection(socket, options.answer_s, tuple(options.goal))

    with serve(handle, "127.0.0.1", options.port, compression=None, max_size=16 * 1024 * 1024) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
