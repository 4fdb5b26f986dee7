"""A serving process behind a real socket, for the tests of serving: no Ray, models made of arithmetic."""

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from websockets.sync.client import connect

from st4vla.platform.wire import openpi
from st4vla.platform.wire.json_form import write_image
from st4vla.platform.wire.limits import WireLimits
from st4vla.serve.control import Control
from st4vla.serve.events import Event
from st4vla.serve.keymap import KeyMap
from st4vla.serve.models import LoaderConfig
from st4vla.serve.post import NearControl, Post, PostConfig
from st4vla.serve.watch.audit import AuditConfig

LIBERO = KeyMap(
    "libero",
    {"third_person": "observation/image", "wrist": "observation/wrist_image"},
    ("observation/state",),
)
VLA_EVAL = KeyMap(
    "vla_eval",
    {"third_person": "images/agentview", "wrist": "images/wrist"},
    ("states",),
    "task_description",
    gripper="close_positive",
)
CONFIG = PostConfig(
    loader=LoaderConfig(function="benchmarks.fixed_latency.build"),
    keys=LIBERO,
    vla_eval_keys=VLA_EVAL,
    limits=WireLimits(max_bytes=200_000),
)


class Running:
    """A post behind a real socket, on an event loop of its own."""

    def __init__(self, config: PostConfig, folder: Path, model: str):
        self.config, self.folder, self.model = config, folder, model
        self.events: list[Event] = []
        self.ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self._run(),))

    async def _run(self) -> None:
        self.control = Control(str(self.folder))
        await self.control.begin({self.model: self.model}, self.model)
        self.post = Post(self.config, NearControl(self.control), observers=[self.events.append])
        await self.post.start()
        settings = uvicorn.Config(self.post.application(), port=0, log_level="error", lifespan="off")
        self.server = uvicorn.Server(settings)
        serving = asyncio.ensure_future(self.server.serve())
        while not self.server.started:
            await asyncio.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.ready.set()
        await serving
        await self.post.close()

    def call(self, story: Any) -> Any:
        """Run something on the post's loop."""
        return asyncio.run_coroutine_threadsafe(story, self.loop).result(60)

    def ws(self, path: str = "/", key: str = "") -> Any:
        """Connect."""
        headers = {"Authorization": f"Api-Key {key}"} if key else None
        return connect(f"ws://127.0.0.1:{self.port}{path}", compression=None, additional_headers=headers)

    def http(self, path: str, body: Any = None, key: str = "") -> tuple[int, Any]:
        """Ask, and give status and answer."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, raw = self.get(path, key, data)
        return status, json.loads(raw) if raw[:1] in (b"{", b"[") else raw

    def get(self, path: str, key: str = "", data: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        """Ask, and give status, headers and body as they come."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def post_as(self, path: str, body: Any, headers: dict[str, str]) -> int:
        """Send a body with headers of one's own, and give the status."""
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def wait(self, holds: Callable[[], Any]) -> Any:
        """Wait until something holds, and give it."""
        deadline = time.monotonic() + 60
        while not (found := holds()):
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)
        return found

    def of(self, kind: type) -> list[Any]:
        """The events of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]


@contextmanager
def a_post(folder: Path, config: PostConfig = CONFIG, model: str = "fixed-0-0@1") -> Iterator[Running]:
    """Run a post for the length of a `with` block."""
    watch = replace(config.watch, audit_log=AuditConfig(folder=str(folder / "audit")))
    running = Running(replace(config, watch=watch), folder, model)
    running.thread.start()
    assert running.ready.wait(60)
    try:
        yield running
    finally:
        running.server.should_exit = True
        running.thread.join(60)


def libero(pixel: int = 3, **more: Any) -> dict[str, Any]:
    """Give an openpi message."""
    frame = np.full((64, 64, 3), pixel, np.uint8)
    seen = {"observation/image": frame, "observation/wrist_image": frame, "observation/state": np.full(8, pixel)}
    return {**seen, "prompt": "reach", **more}


def ask(line: Any, message: dict[str, Any]) -> Any:
    """Send an openpi message and give what comes back."""
    line.send(openpi.pack(message))
    answer = line.recv()
    return json.loads(answer) if isinstance(answer, str) else openpi.unpack(answer)


def native(pixel: int = 9, **more: Any) -> dict[str, Any]:
    """Give the body of a `POST /v1/act`."""
    image = write_image(np.full((32, 32, 3), pixel, np.uint8))
    return {"images": {"third_person": image, "wrist": image}, "state": [0.0] * 8, "instruction": "reach", **more}
