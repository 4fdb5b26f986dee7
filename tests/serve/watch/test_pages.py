"""A serving process from its sockets: what robots do is seen on the page's paths, in the metrics and in a recording."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.serve.access import KeyFile
from st4vla.serve.post import PostConfig
from st4vla.serve.recorder.settings import RecorderConfig
from st4vla.serve.watch.observers import WatchConfig
from tests.serve.running import CONFIG, Running, a_post, ask


def drive(server: Running, robot: str, requests: int) -> None:
    """Let a robot connect, ask some times, and end its episode."""
    with server.ws() as line:
        line.recv()
        for number in range(requests):
            stamp = {"robot": robot, "session": f"s-{robot}", "sequence": number, "executed_steps": 2}
            assert "actions" in ask(line, {**message(number), "st4vla": stamp})
        ask(line, {"st4vla": {"robot": robot, "session": f"s-{robot}", "end": "episode", "success": True}})


def message(number: int) -> dict[str, Any]:
    image = np.full((32, 32, 3), 10 + number, np.uint8)
    images = {"third_person": image, "wrist": image}
    return {"images": images, "state": np.zeros(8, np.float32), "prompt": "lift the cup"}


def config_of(folder: Path) -> PostConfig:
    recorder = RecorderConfig(str(folder / "recordings"), min_free_mb=1)
    return PostConfig(loader=CONFIG.loader, watch=WatchConfig(record=True, audit=True, recorder=recorder))


def test_what_robots_do_is_seen_counted_written_down_and_recorded(tmp_path: Path) -> None:
    with a_post(tmp_path, config_of(tmp_path)) as server:
        drive(server, "arm-1", 4)
        drive(server, "arm-2", 2)
        server.call(server.post.change("stop", robot="arm-2", reason="smoke"))

        def seen() -> Any:
            told = json.loads(server.get("/v1/robots")[2])
            return told if len(told["robots"]) == 2 and told["stops"] and told["robots"][1]["frame_at"] else None

        told = server.wait(seen)
        counted = [(one["robot"], one["requests"], one["episodes"]) for one in told["robots"]]
        assert counted == [("arm-1", 4, 1), ("arm-2", 2, 1)]
        assert told["stops"] == [{"robot": "arm-2", "reason": "smoke"}]
        assert told["versions"][0]["version"] == "1" and told["deployment"]["production"] == "fixed-0-0@1"
        assert server.get("/v1/robots/frame?robot=arm-1")[2][:2] == b"\xff\xd8"
        assert server.get("/v1/robots/frame?robot=nobody")[0] == 400
        status, headers, page = server.get("/fleet")
        assert status == 200 and b"<title>Fleet</title>" in page
        assert "script-src 'sha256-" in headers["content-security-policy"]
        server.wait(lambda: b'robot="arm-2"' in server.get("/metrics")[2])
    # The recorder's process goes on by itself where the machine is slow; it removes the spool when it is done.
    server.wait(lambda: not list((tmp_path / "recordings" / "spool").iterdir()))
    (folder,) = (tmp_path / "recordings" / "datasets").iterdir()
    dataset = open_dataset(folder)
    assert sorted(dataset.episode(n).facts["robot"] for n in range(dataset.num_episodes)) == ["arm-1", "arm-2"]
    assert {dataset.episode(n).facts["success"] for n in range(2)} == {True}
    events = [json.loads(line)["event"] for line in (tmp_path / "audit" / "audit.jsonl").read_text().splitlines()]
    assert events.count("opened") == 2 and events.count("ended") == 2 and "opened" == events[0]


@pytest.mark.parametrize("path", ["/fleet", "/v1/robots", "/v1/robots/frame?robot=x", "/metrics"])
def test_only_keys_that_may_observe_see_the_fleet(tmp_path: Path, path: str) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    robot, screen = keys.add("robot", ["act"]), keys.add("screen", ["observe"])
    with a_post(tmp_path, PostConfig(loader=CONFIG.loader)) as server:
        server.wait(lambda: server.post.desk.lock.is_open is False)
        assert server.get(path)[0] == 401 and server.get(path, robot)[0] == 403
        assert server.get(path, screen)[0] in (200, 400)
        if path == "/fleet":
            assert server.get(path)[1]["www-authenticate"].startswith("Basic")
