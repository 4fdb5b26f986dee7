"""A serving process from its sockets: what robots do is seen on the page's paths, in the metrics and in a recording."""

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from websockets.sync.client import connect

from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.wire import openpi
from st4vla.serve.access import KeyFile
from st4vla.serve.control import Control
from st4vla.serve.models import LoaderConfig
from st4vla.serve.post import NearControl, Post, PostConfig
from st4vla.serve.recorder.settings import RecorderConfig
from st4vla.serve.watch.audit import AuditConfig
from st4vla.serve.watch.observers import WatchConfig


@dataclass
class Running:
    """A serving process in a thread of this one."""

    post: Post
    port: int
    loop: asyncio.AbstractEventLoop

    def get(self, path: str, key: str = "") -> tuple[int, dict[str, str], bytes]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def change(self, action: str, **details: Any) -> None:
        asyncio.run_coroutine_threadsafe(self.post.change(action, **details), self.loop).result(30)

    def drive(self, robot: str, requests: int, key: str = "") -> None:
        headers = {"Authorization": f"Api-Key {key}"} if key else None
        with connect(f"ws://127.0.0.1:{self.port}", additional_headers=headers, compression=None) as line:
            line.recv()
            for number in range(requests):
                stamp = {"robot": robot, "session": f"s-{robot}", "sequence": number, "executed_steps": 2}
                line.send(openpi.pack({**message(number), "st4vla": stamp}))
                assert "actions" in openpi.unpack(line.recv(decode=False))
            end = {"robot": robot, "session": f"s-{robot}", "end": "episode", "success": True}
            line.send(openpi.pack({"st4vla": end}))
            line.recv()


def message(number: int) -> dict[str, Any]:
    image = np.full((32, 32, 3), 10 + number, np.uint8)
    images = {"third_person": image, "wrist": image}
    return {"images": images, "state": np.zeros(8, np.float32), "prompt": "lift the cup"}


@contextmanager
def running(folder: Path, config: PostConfig) -> Iterator[Running]:
    control, ready, made = Control(str(folder)), threading.Event(), []

    async def whole() -> None:
        await control.begin({"toy@1": "fixed-0-0@1"}, "toy@1")
        post = Post(config, NearControl(control), "replica-1")
        await post.start()
        server = uvicorn.Server(uvicorn.Config(post.application(), port=0, log_level="error", ws="websockets-sansio"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        made.append((Running(post, port, asyncio.get_running_loop()), server))
        ready.set()
        await serving
        await post.close()

    thread = threading.Thread(target=lambda: asyncio.run(whole()))
    thread.start()
    assert ready.wait(60)
    try:
        yield made[0][0]
    finally:
        made[0][1].should_exit = True
        thread.join(60)


def config_of(folder: Path) -> PostConfig:
    recorder = RecorderConfig(str(folder / "recordings"), min_free_mb=1)
    watch = WatchConfig(record=True, audit=True, recorder=recorder, audit_log=AuditConfig(str(folder / "audit")))
    return PostConfig(loader=LoaderConfig(function="benchmarks.fixed_latency.build"), watch=watch)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def test_what_robots_do_is_seen_counted_written_down_and_recorded(tmp_path: Path) -> None:
    with running(tmp_path, config_of(tmp_path)) as server:
        server.drive("arm-1", 4)
        server.drive("arm-2", 2)
        server.change("stop", robot="arm-2", reason="smoke")

        def seen() -> Any:
            told = json.loads(server.get("/v1/robots")[2])
            return told if len(told["robots"]) == 2 and told["stops"] and told["robots"][1]["frame_at"] else None

        told = until(seen)
        counted = [(one["robot"], one["requests"], one["episodes"]) for one in told["robots"]]
        assert counted == [("arm-1", 4, 1), ("arm-2", 2, 1)]
        assert told["stops"] == [{"robot": "arm-2", "reason": "smoke"}]
        assert told["versions"][0]["version"] == "1" and told["deployment"]["production"] == "toy@1"
        assert server.get("/v1/robots/frame?robot=arm-1")[2][:2] == b"\xff\xd8"
        assert server.get("/v1/robots/frame?robot=nobody")[0] == 400
        status, headers, page = server.get("/fleet")
        assert status == 200 and b"<title>Fleet</title>" in page
        assert "script-src 'sha256-" in headers["content-security-policy"]
        until(lambda: b'robot="arm-2"' in server.get("/metrics")[2])
    # The recorder's process goes on by itself where the machine is slow; it removes the spool when it is done.
    until(lambda: not list((tmp_path / "recordings" / "spool").iterdir()))
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
    with running(tmp_path, replace(config_of(tmp_path), watch=WatchConfig())) as server:
        until(lambda: server.post.desk.lock.is_open is False)
        assert server.get(path)[0] == 401 and server.get(path, robot)[0] == 403
        assert server.get(path, screen)[0] in (200, 400)
        if path == "/fleet":
            assert server.get(path)[1]["www-authenticate"].startswith("Basic")
