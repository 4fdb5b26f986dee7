"""vla-eval's benchmarks take one action a step: the door keeps the chunk, and gives a row to each observation."""

import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image

from st4vla.platform.errors import ConfigError
from st4vla.platform.wire import vla_eval
from st4vla.serve.events import Ended, Refused, Served
from st4vla.serve.keymap import KeyMap
from st4vla.serve.post import PostConfig
from tests.serve.running import CONFIG, Running, a_post

ROWS = 10  # of a chunk of the fixed policy


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with a_post(tmp_path_factory.mktemp("serve")) as running:
        yield running


class Connection:
    """What vla-eval 0.8.0's own connection sends, in its own encoding: pictures as PNG, numbers raw, rising `seq`."""

    def __init__(self, line: Any):
        self._line = line
        self._seq = 0

    def send(self, kind: str, payload: dict[str, Any]) -> None:
        self._seq += 1
        message = {"type": kind, "payload": payload, "seq": self._seq, "timestamp": time.time()}
        frame = msgpack.packb(message, default=as_vla_eval, use_bin_type=True)
        assert frame is not None
        self._line.send(frame)

    def answer(self) -> vla_eval.Message:
        message = vla_eval.unpack(self._line.recv())
        assert message.seq == self._seq
        return message

    def hello(self) -> vla_eval.Message:
        self.send("hello", {"harness_version": "0.8.0", "protocol_version": 1, "benchmark": "LIBEROBenchmark"})
        return self.answer()

    def start(self, mode: dict[str, str]) -> None:
        self.send(
            "episode_start", {"task": {"name": "do", "suite": "libero_10", "task_id": 3, "episode_idx": 0}, **mode}
        )

    def act(self, seen: dict[str, Any]) -> dict[str, Any]:
        self.send("observation", seen)
        message = self.answer()
        if message.type == "error":
            raise RuntimeError(message.payload["error"])
        return message.payload


def as_vla_eval(value: Any) -> Any:
    if value.dtype == np.uint8 and value.ndim == 3:
        buffer = io.BytesIO()
        Image.fromarray(value).save(buffer, "PNG")
        return {"__image__": True, "format": "png", "data": buffer.getvalue(), "shape": list(value.shape)}
    return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}


class SevenColumns:
    """A benchmark that takes its actions as vla-eval's LIBERO does: seven numbers, a gripper that closes at +1."""

    def __init__(self) -> None:
        self.taken: list[list[float]] = []

    def observation(self) -> dict[str, Any]:
        """Give frames as bright as the number of steps so far."""
        frame = np.full((32, 32, 3), len(self.taken), np.uint8)
        images = {"agentview": frame, "wrist": frame}
        return {"images": images, "task_description": "do", "states": np.zeros(8), "controller_states": np.zeros(8)}

    def step(self, action: dict[str, Any]) -> None:
        row = action["actions"].tolist()
        assert len(row) == 7
        self.taken.append(row)


def run_episode(connection: Connection, steps: int, **mode: str) -> SevenColumns:
    """Send what vla-eval's synchronous runner sends in an episode."""
    benchmark = SevenColumns()
    connection.start(mode)
    for _ in range(steps):
        benchmark.step(connection.act(benchmark.observation()))
    connection.send("episode_end", {"metrics": {"success": True}, "steps": steps, "elapsed_sec": 0.5})
    return benchmark


def asked(running: Running, since: int = 0) -> list[tuple[int, int | None]]:
    """Give what the policy was asked since: the first frame's brightness, and the rows said to be executed."""
    served = [event for event in running.events[since:] if isinstance(event, Served)]
    brightness = [int(event.observation.images["third_person"][0, 0, 0]) for event in served]
    return list(zip(brightness, [event.executed_steps for event in served], strict=True))


def test_each_observation_is_answered_by_one_row_and_the_policy_is_asked_once_a_chunk(shared: Running) -> None:
    before = len(shared.events)
    with shared.ws("/vla-eval") as line:
        connection = Connection(line)
        assert connection.hello().payload["action_spec"]["gripper"]["format"] == "binary_close_positive"
        taken = np.array(run_episode(connection, 2 * ROWS + 3).taken)
        shared.wait(lambda: len([one for one in shared.events[before:] if isinstance(one, Ended)]) == 2)
    assert taken.shape == (23, 7) and (taken[:, 6] == 1).all()
    assert taken[:, 0].tolist() == [0] * 10 + [10] * 10 + [20] * 3
    assert asked(shared, before) == [(0, None), (10, 10), (20, 10)]
    ended = [event for event in shared.events[before:] if isinstance(event, Ended)]
    assert [event.success for event in ended][:2] == [None, True]


@pytest.mark.parametrize("last", ["episode_end", "episode_start"])
def test_another_episode_begins_with_a_chunk_of_its_own(shared: Running, last: str) -> None:
    with shared.ws("/vla-eval") as line:
        connection, benchmark = Connection(line), SevenColumns()
        connection.hello()
        run_episode(connection, 4)
        benchmark.taken = [[]] * 77
        connection.send(last, {"task": {}})
        assert connection.act(benchmark.observation())["actions"][0] == 77


def test_a_live_benchmark_is_not_said_to_have_executed_every_row(shared: Running) -> None:
    before = len(shared.events)
    with shared.ws("/vla-eval") as line:
        connection = Connection(line)
        connection.hello()
        run_episode(connection, ROWS + 1, mode="live")
        shared.wait(lambda: len(asked(shared, before)) == 2)
    assert asked(shared, before) == [(0, None), (10, None)]


def test_the_policy_is_asked_anew_after_as_many_rows_as_are_set(tmp_path: Path) -> None:
    with a_post(tmp_path, replace(CONFIG, vla_eval_rows=4)) as running, running.ws("/vla-eval") as line:
        connection = Connection(line)
        connection.hello()
        taken = np.array(run_episode(connection, 9).taken)
        running.wait(lambda: len(asked(running)) == 3)
        assert taken[:, 0].tolist() == [0] * 4 + [4] * 4 + [8]
        assert asked(running) == [(0, None), (4, 4), (8, 4)]
    with pytest.raises(ConfigError, match="vla_eval_rows is -1"):
        PostConfig(vla_eval_rows=-1)


def test_an_emergency_stop_also_refuses_the_rows_that_are_left(tmp_path: Path) -> None:
    with a_post(tmp_path) as running, running.ws("/vla-eval") as line:
        connection, benchmark = Connection(line), SevenColumns()
        connection.hello()
        for _ in range(3):
            benchmark.step(connection.act(benchmark.observation()))
        running.http("/v1/fleet/stop", {"robot": "", "reason": "a hand in the cell"})
        running.wait(lambda: bool(running.post.desk.state.stopped))
        with pytest.raises(RuntimeError, match="a hand in the cell"):
            connection.act(benchmark.observation())
        running.http("/v1/fleet/release", {"robot": ""})
        running.wait(lambda: not running.post.desk.state.stopped)
        assert connection.act(benchmark.observation())["actions"][0] == 3
        running.wait(lambda: len(asked(running)) == 2)
        assert asked(running) == [(0, None), (3, 3)]
    assert [event.kind for event in running.of(Refused)] == ["stopped"]


def test_a_wrong_observation_is_refused_by_name_under_its_number(shared: Running) -> None:
    with shared.ws("/vla-eval") as line:
        connection = Connection(line)
        connection.hello()
        connection.send("observation", {**SevenColumns().observation(), "states": np.zeros(3)})
        error = connection.answer()
        assert (error.type, error.payload["kind"], error.payload["field"]) == ("error", "invalid", "states")


def test_a_key_map_that_does_not_fit_the_policy_is_said_and_breaks_no_connection(tmp_path: Path) -> None:
    keys = KeyMap("mine", {"third_person": "images/agentview"}, ("states",), "task_description")
    with a_post(tmp_path, replace(CONFIG, vla_eval_keys=keys)) as running, running.ws("/vla-eval") as line:
        connection = Connection(line)
        for _ in range(2):
            error = connection.hello()
            assert (error.type, error.payload["kind"]) == ("error", "unavailable")
            assert "no place for the camera 'wrist'" in error.payload["error"]
        with pytest.raises(RuntimeError, match="no place for the camera 'wrist'"):
            connection.act(SevenColumns().observation())
    assert [event.kind for event in running.of(Refused)] == ["unavailable"] * 3
