"""Every door answers what it should and refuses what it should, on real sockets, without Ray."""

import asyncio
import base64
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
import pytest
import uvicorn
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from st4vla.platform.wire import openpi, vla_eval
from st4vla.platform.wire.json_form import write_image
from st4vla.platform.wire.limits import WireLimits
from st4vla.platform.wire.stamps import KEY
from st4vla.serve.access import KeyFile, RateConfig
from st4vla.serve.control import Control
from st4vla.serve.events import Ended, Event, Opened, Refused, Served, Stopped
from st4vla.serve.keymap import KeyMap
from st4vla.serve.models import LoaderConfig
from st4vla.serve.post import NearControl, Post, PostConfig
from st4vla.serve.watch.audit import AuditConfig
from st4vla.serve.watch.observers import WatchConfig

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
        return asyncio.run_coroutine_threadsafe(story, self.loop).result(20)

    def ws(self, path: str = "/", key: str = "") -> Any:
        """Connect."""
        headers = {"Authorization": f"Api-Key {key}"} if key else None
        return connect(f"ws://127.0.0.1:{self.port}{path}", compression=None, additional_headers=headers)

    def http(self, path: str, body: Any = None, key: str = "") -> tuple[int, Any]:
        """Ask, and give status and answer."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                raw = answer.read()
                return answer.status, json.loads(raw) if raw[:1] in (b"{", b"[") else raw
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def post_as(self, path: str, body: Any, headers: dict[str, str]) -> int:
        """Send a body with headers of one's own, and give the status."""
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def wait(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def of(self, kind: type) -> list[Any]:
        """The events of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]


@contextmanager
def a_post(folder: Path, config: PostConfig = CONFIG, model: str = "fixed-0-0@1") -> Iterator[Running]:
    watch = WatchConfig(audit_log=AuditConfig(folder=str(folder / "audit")))
    running = Running(replace(config, watch=watch), folder, model)
    running.thread.start()
    assert running.ready.wait(30)
    try:
        yield running
    finally:
        running.server.should_exit = True
        running.thread.join(20)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with a_post(tmp_path_factory.mktemp("serve")) as running:
        yield running


def libero(pixel: int = 3, **more: Any) -> dict[str, Any]:
    frame = np.full((64, 64, 3), pixel, np.uint8)
    seen = {"observation/image": frame, "observation/wrist_image": frame, "observation/state": np.full(8, pixel)}
    return {**seen, "prompt": "reach", **more}


def ask(line: Any, message: dict[str, Any]) -> Any:
    line.send(openpi.pack(message))
    answer = line.recv()
    return json.loads(answer) if isinstance(answer, str) else openpi.unpack(answer)


def test_openpi_is_greeted_and_answered(shared: Running) -> None:
    with shared.ws() as line:
        greeting = openpi.unpack(line.recv())
        assert greeting[KEY]["model_version"] == "fixed-0-0@1" and greeting[KEY]["cameras"] == ["third_person", "wrist"]
        first, second = ask(line, libero(3)), ask(line, libero(4))
    assert first["actions"].shape == (10, 7) and first["actions"][0, 0] == 3 and second["actions"][0, 0] == 4
    assert KEY not in first and "prev_total_ms" in second["server_timing"]


def test_a_stamped_request_is_answered_with_a_stamp(shared: Running) -> None:
    with shared.ws() as line:
        line.recv()
        stamp = {"robot": "arm-1", "session": "run-1", "sequence": 8, "deadline_ms": 5000.0}
        answer = ask(line, libero(5, st4vla=stamp))[KEY]
        assert (answer["session"], answer["sequence"], answer["model_version"]) == ("run-1", 8, "fixed-0-0@1")
        assert set(answer["timing_ms"]) == {"queue", "system2", "system1", "total"}
        assert ask(line, libero(5, st4vla={**stamp, "sequence": 7}))["error"]["kind"] == "stale"
    opened = [event for event in shared.of(Opened) if event.session == "run-1"]
    assert opened[0].robot == "arm-1" and opened[0].resumed
    assert any(event.sequence == 8 and event.robot == "arm-1" for event in shared.of(Served))


def test_a_session_goes_on_over_a_new_connection(shared: Running) -> None:
    for sequence in (0, 1):
        with shared.ws() as line:
            line.recv()
            stamp = {"robot": "arm-2", "session": "run-2", "sequence": sequence}
            assert ask(line, libero(5, st4vla=stamp))[KEY]["sequence"] == sequence
    assert len([event for event in shared.of(Opened) if event.session == "run-2"]) == 1


def test_the_end_of_an_episode_is_taken_note_of(shared: Running) -> None:
    with shared.ws() as line:
        line.recv()
        answer = ask(line, {"st4vla": {"robot": "arm-3", "session": "run-3", "end": "episode", "success": True}})
        assert answer[KEY]["end"] == "episode"
    ended = [event for event in shared.of(Ended) if event.session == "run-3"]
    assert (ended[0].kind, ended[0].success) == ("episode", True)


def test_a_refusal_leaves_the_connection_open_and_is_text_for_plain_clients(shared: Running) -> None:
    with shared.ws() as line:
        line.recv()
        line.send(b"\xc1")
        assert json.loads(line.recv())["error"]["kind"] == "malformed"
        line.send("hello")
        assert json.loads(line.recv())["error"]["kind"] == "malformed"
        error = ask(line, {**libero(), "observation/state": np.full(8, np.nan)})["error"]
        assert (error["kind"], error["field"]) == ("invalid", "observation/state")
        assert ask(line, libero(6))["actions"][0, 0] == 6


def test_a_refusal_is_binary_for_clients_that_send_our_stamp(shared: Running) -> None:
    with shared.ws() as line:
        line.recv()
        line.send(openpi.pack({"st4vla": {"sequence": -1}}))
        answer = line.recv()
        assert isinstance(answer, bytes) and openpi.unpack(answer)["error"]["field"] == "st4vla.sequence"


def test_a_frame_beyond_the_limit_is_refused_by_size(shared: Running) -> None:
    with shared.ws() as line:
        line.recv()
        line.send(b"\0" * 200_001)
        assert json.loads(line.recv())["error"]["kind"] == "too_large"


def test_a_client_that_only_sends_rubbish_is_sent_away(shared: Running) -> None:
    with shared.ws() as line:
        line.recv()
        with pytest.raises(ConnectionClosed):
            for _ in range(60):
                line.send(b"\xc1")
                line.recv()


def test_vla_eval_is_answered_with_the_same_number(shared: Running) -> None:
    frame = np.full((32, 32, 3), 9, np.uint8)
    seen = {"images": {"agentview": frame, "wrist": frame}, "task_description": "do", "states": np.zeros(8)}
    with shared.ws("/vla-eval") as line:
        line.send(vla_eval.pack(vla_eval.Message("hello", {"harness_version": "x", "protocol_version": 1}, 1)))
        hello = vla_eval.unpack(line.recv())
        assert (hello.type, hello.seq, hello.payload["protocol_version"]) == ("hello", 1, 1)
        assert hello.payload["action_spec"]["gripper"]["format"] == "binary_close_positive"
        line.send(vla_eval.pack(vla_eval.Message("episode_start", {"task": {}, "mode": "sync"}, 2)))
        line.send(vla_eval.pack(vla_eval.Message("observation", seen, 3), "png"))
        action = vla_eval.unpack(line.recv())
        assert (action.type, action.seq) == ("action", 3) and action.payload["actions"][0, [0, 6]].tolist() == [9, 1]
        line.send(vla_eval.pack(vla_eval.Message("observation", {**seen, "states": np.zeros(3)}, 4)))
        error = vla_eval.unpack(line.recv())
        assert (error.type, error.seq, error.payload["field"]) == ("error", 4, "states")


def test_http_acts_and_refuses_by_status(shared: Running) -> None:
    image = write_image(np.full((32, 32, 3), 9, np.uint8))
    body = {"images": {"third_person": image, "wrist": image}, "state": [0.0] * 8, "instruction": "reach"}
    status, answer = shared.http("/v1/act", body)
    assert status == 200 and answer["actions"][0][0] == 9 and answer[KEY]["model_version"] == "fixed-0-0@1"
    status, answer = shared.http("/v1/act", {**body, "images": {"wrist": image}})
    assert status == 400 and answer["error"]["field"] == "images/third_person"
    assert shared.http("/v1/act", b"x" * 200_001)[0] == 413
    assert shared.http("/v1/ground", {"image": image, "question": "where"})[0] == 503


def test_health_readiness_and_the_description_are_there(shared: Running) -> None:
    assert shared.http("/healthz") == (200, b"OK\n") and shared.http("/readyz") == (200, b"OK\n")
    assert {"/v1/act", "/v1/ground", "/v1/fleet"} <= set(shared.http("/openapi.json")[1]["paths"])


def test_an_unknown_path_is_refused(shared: Running) -> None:
    with pytest.raises(InvalidStatus), shared.ws("/secret"):
        pass


def test_keys_open_what_their_scopes_say(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    robot, admin = keys.add("robot", ["act"], ["arm-*"]), keys.add("admin", ["observe", "admin"])
    with a_post(tmp_path) as running:
        for wrong in ("", "st4vla_00000000_x", robot[:-1] + "-", admin):
            with pytest.raises(InvalidStatus) as caught, running.ws(key=wrong):
                pass
            assert caught.value.response.status_code in (401, 403)
        with running.ws(key=robot) as line:
            line.recv()
            assert "actions" in ask(line, libero(st4vla={"robot": "arm-7"}))
            assert ask(line, libero(st4vla={"robot": "leg-1"}))["error"]["kind"] == "forbidden"
            assert running.http("/v1/fleet", key=robot)[0] == 403 and running.http("/v1/fleet", key=admin)[0] == 200
            assert running.http("/v1/fleet/stop", {"robot": "arm-7"}, robot)[0] == 403
            keys.revoke(robot.split("_")[1])
            running.wait(lambda: any(key.revoked_at for key in running.post.desk.state.keys))
            assert ask(line, libero(st4vla={"robot": "arm-7"}))["error"]["kind"] == "unauthorized"
    assert {event.kind for event in running.of(Refused)} >= {"unauthorized", "forbidden"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[broken"}, 403),
        ({"Origin": "http://evil.example", "Host": "evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://127.0.0.1:PORT", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://127.0.0.1:PORT", "Sec-Fetch-Site": "same-origin"}, 400),
        ({}, 400),
    ],
)
def test_another_sites_page_changes_nothing(shared: Running, headers: dict[str, str], status: int) -> None:
    # What passes is refused for its own sake: there is nothing to go back to.
    given = {name: value.replace("PORT", str(shared.port)) for name, value in headers.items()}
    assert shared.post_as("/v1/fleet/rollback", {}, given) == status


def test_a_password_that_a_browser_remembers_changes_nothing(tmp_path: Path) -> None:
    key = KeyFile(tmp_path / "keys.json").add("admin", ["observe", "admin"])
    password = "Basic " + base64.b64encode(f"me:{key}".encode()).decode()
    with a_post(tmp_path) as server:
        assert server.post_as("/v1/fleet/stop", {"robot": ""}, {"Authorization": password}) == 401
        assert not server.post.desk.state.stopped
        page = f"http://127.0.0.1:{server.port}"
        headers = {"Authorization": f"Api-Key {key}", "Origin": page}
        assert server.post_as("/v1/fleet/stop", {"robot": ""}, headers) == 200


def test_an_emergency_stop_refuses_actions_until_it_is_released(shared: Running) -> None:
    with shared.ws() as line:
        line.recv()
        message = libero(st4vla={"robot": "arm-9", "session": "run-9"})
        assert "actions" in ask(line, message)
        assert shared.http("/v1/fleet/stop", {"robot": "arm-9", "reason": "a hand in the cell"})[0] == 200
        shared.wait(lambda: "arm-9" in shared.post.desk.state.stopped)
        error = ask(line, message)["error"]
        assert error["kind"] == "stopped" and "a hand in the cell" in error["message"]
        assert "actions" in ask(line, libero(st4vla={"robot": "arm-10"}))
        shared.http("/v1/fleet/release", {"robot": "arm-9"})
        shared.wait(lambda: not shared.post.desk.state.stopped)
        assert "actions" in ask(line, message)
    assert [event.engaged for event in shared.of(Stopped)] == [True, False]


def test_one_robot_that_asks_too_often_is_slowed_down(tmp_path: Path) -> None:
    with a_post(tmp_path, replace(CONFIG, rate=RateConfig(requests_per_s=0.001, burst=2))) as running:
        with running.ws() as line:
            line.recv()
            answers = [ask(line, libero(st4vla={"robot": "arm"})) for _ in range(3)]
            other = ask(line, libero(st4vla={"robot": "other"}))
    assert "actions" in answers[1] and answers[2]["error"]["kind"] == "rate_limited" and "actions" in other


def test_models_change_over_an_open_connection_and_back(tmp_path: Path) -> None:
    def version(line: Any) -> str:
        return ask(line, libero(st4vla={"robot": "arm", "session": "run"}))[KEY]["model_version"]

    with a_post(tmp_path) as running, running.ws() as line:
        line.recv()
        assert version(line) == "fixed-0-0@1"
        running.http("/v1/fleet/canary", {"model": "fixed-0-0@2", "share": 0.0, "robots": ["arm"]})
        running.wait(lambda: "fixed-0-0@2" in running.post.house.loaded)
        assert version(line) == "fixed-0-0@2"
        assert ask(line, libero(st4vla={"robot": "leg"}))[KEY]["model_version"] == "fixed-0-0@1"
        running.http("/v1/fleet/promote", {})
        running.wait(lambda: running.post.house.production == "fixed-0-0@2")
        assert ask(line, libero(st4vla={"robot": "leg"}))[KEY]["model_version"] == "fixed-0-0@2"
        running.http("/v1/fleet/rollback", {})
        running.wait(lambda: running.post.desk.state.routes.production == "fixed-0-0@1")
        assert version(line) == "fixed-0-0@1"


def test_a_model_that_cannot_be_loaded_changes_nothing(tmp_path: Path) -> None:
    with a_post(tmp_path) as running, running.ws() as line:
        line.recv()
        running.http("/v1/fleet/update", {"model": "broken@3"})
        running.wait(lambda: "broken@3" in running.post.house.failed)
        assert ask(line, libero(st4vla={"robot": "arm"}))[KEY]["model_version"] == "fixed-0-0@1"


def test_draining_closes_connections_behind_their_answers(tmp_path: Path) -> None:
    with a_post(tmp_path, model="fixed-300-0@1") as running, running.ws() as busy, running.ws() as idle:
        busy.recv()
        idle.recv()
        busy.send(openpi.pack(libero(7)))
        running.wait(lambda: any(not line.is_idle for line in running.post.lines._open))
        running.call(running.post.lines.drain())
        assert openpi.unpack(busy.recv())["actions"][0, 0] == 7
        for line in (busy, idle):
            with pytest.raises(ConnectionClosed) as caught:
                line.recv()
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"http://127.0.0.1:{running.port}/readyz")


def test_the_policys_own_trouble_is_told_without_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_post(tmp_path) as running, running.ws() as line:
        line.recv()

        def burst(*_: object, **__: object) -> None:
            raise RuntimeError("secret path /etc/passwd")

        monkeypatch.setattr(running.post.house.loaded["fixed-0-0@1"].systems, "actions", burst)
        error = ask(line, libero())["error"]
    assert error["kind"] == "internal" and "passwd" not in json.dumps(error)
