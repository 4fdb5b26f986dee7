"""Every door answers what it should and refuses what it should, on real sockets, without Ray."""

import asyncio
import base64
import json
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from st4vla.platform.wire import openpi
from st4vla.platform.wire.json_form import write_image
from st4vla.platform.wire.stamps import KEY
from st4vla.serve.access import KeyFile, RateConfig
from st4vla.serve.doors.line import MOST_REFUSALS, POLICY, Line, Lines
from st4vla.serve.events import Ended, Opened, Refused, Served, Stopped, Trouble
from st4vla.serve.replica import ReplicaConfig
from st4vla.serve.safety.guard import SafetyConfig
from st4vla.serve.safety.interventions import read_log
from st4vla.serve.watch.metrics import Names, exposition
from tests.serve.running import CONFIG, Running, a_post, ask, libero, native


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with a_post(tmp_path_factory.mktemp("serve")) as running:
        yield running


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


def test_a_frame_that_trickles_in_is_given_up_like_a_silent_connection(tmp_path: Path) -> None:
    hello = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    hello += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    with a_post(tmp_path, replace(CONFIG, idle_s=1.0)) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=20) as line:
            line.sendall(hello.encode())
            running.wait(lambda: len(running.post.lines) == 1)
            line.sendall(b"\x82\xfe\x10\x00" + b"\0" * 8)  # a masked frame of 4096 bytes, and the first few
            seen = b""
            while POLICY.to_bytes(2, "big") + b"no message for too long" not in seen:
                part = line.recv(65_536)
                assert part
                seen += part


@pytest.mark.parametrize("way", ["end_silent", "drain"])
def test_connections_that_are_closed_wait_for_none_of_each_other(way: str) -> None:
    class Slow(Line):
        async def close(self, code: int, reason: str) -> None:
            await both.wait()

    async def story() -> None:
        lines = Lines(RateConfig(), idle_s=-1.0)
        with lines.hold(Slow(socket, "a")), lines.hold(Slow(socket, "b")):  # type: ignore[arg-type]
            await asyncio.wait_for(getattr(lines, way)(), 20)

    both = asyncio.Barrier(2)
    asyncio.run(story())


def test_http_acts_and_refuses_by_status(shared: Running) -> None:
    body, image = native(), write_image(np.full((32, 32, 3), 9, np.uint8))
    status, answer = shared.http("/v1/act", body)
    assert status == 200 and answer["actions"][0][0] == 9 and answer[KEY]["model_version"] == "fixed-0-0@1"
    status, answer = shared.http("/v1/act", {**body, "images": {"wrist": image}})
    assert status == 400 and answer["error"]["field"] == "images/third_person"
    assert shared.http("/v1/act", b"x" * 200_001)[0] == 413
    assert shared.http("/v1/ground", {"image": image, "question": "where"})[0] == 503


def test_an_http_request_without_a_session_begins_and_ends_none(shared: Running) -> None:
    before = len(shared.events)
    named = native(st4vla={"robot": "arm-12", "session": "run-12"})
    for body in (native(), native(st4vla={"robot": "arm-11"}), named):
        assert shared.http("/v1/act", body)[0] == 200
    shared.wait(lambda: len(shared.events) == before + 4)
    told = shared.events[before:]
    assert [type(event) for event in told] == [Served, Served, Opened, Served]
    assert [event.is_passing for event in told if isinstance(event, Served)] == [True, True, False]


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


def test_a_key_that_has_ended_ends_no_session_and_that_is_told(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.add("robot", ["act"], ["arm-*"])
    over = {KEY: {"robot": "arm-1", "session": "run", "end": "session"}}
    with a_post(tmp_path) as running, running.ws(key=key) as line:
        line.recv()
        assert "actions" in ask(line, libero(st4vla={"robot": "arm-1", "session": "run"}))
        assert ask(line, {KEY: {**over[KEY], "robot": "leg-1"}})["error"]["kind"] == "forbidden"
        keys.revoke(key.split("_")[1])
        running.wait(lambda: any(key.revoked_at for key in running.post.desk.state.keys))
        assert ask(line, over)["error"]["kind"] == "unauthorized"
        assert len(running.post.house.sessions) == 1 and not running.of(Ended)
        assert [(told.kind, told.session) for told in running.of(Refused)] == [
            ("forbidden", "run"),
            ("unauthorized", "run"),
        ]


def test_ends_count_as_requests_and_open_no_session(tmp_path: Path) -> None:
    with a_post(tmp_path, replace(CONFIG, rate=RateConfig(requests_per_s=0.001, burst=2))) as running:
        with running.ws() as line:
            line.recv()
            over = {KEY: {"robot": "arm-1", "session": "run", "end": "episode"}}
            answers = [ask(line, over) for _ in range(3)]
            assert len(running.post.house.sessions) == 0
    assert KEY in answers[1] and answers[2]["error"]["kind"] == "rate_limited"


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


def test_a_stop_of_a_nameless_robot_holds_whatever_name_it_comes_back_under(tmp_path: Path) -> None:
    with a_post(tmp_path) as running:
        with running.ws() as one, running.ws() as other:
            for line in (one, other):
                line.recv()
                assert "actions" in ask(line, libero())
            running.wait(lambda: len(running.of(Served)) == 2)  # told behind the answers
            assert {event.robot for event in running.of(Served)} == {"openpi-127.0.0.1", "openpi-127.0.0.1-2"}
            assert running.http("/v1/fleet/stop", {"robot": "openpi-127.0.0.1-2", "reason": "smoke"})[0] == 200
            running.wait(lambda: bool(running.post.desk.state.stopped))
        running.wait(lambda: not len(running.post.lines))
        with running.ws() as line:  # alone now, it is the first
            line.recv()
            refusals = [ask(line, libero())["error"] for _ in range(MOST_REFUSALS + 5)]
            assert {one["kind"] for one in refusals} == {"stopped"} and "smoke" in refusals[0]["message"]
            assert "actions" in ask(line, libero(st4vla={"robot": "arm-1"}))
            assert running.http("/v1/fleet/release", {"robot": "openpi-127.0.0.1-2"})[0] == 200
            running.wait(lambda: not running.post.desk.state.stopped)
            assert "actions" in ask(line, libero())


def test_a_robot_with_a_key_of_its_own_is_stopped_alone_and_stays_so(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    arm, leg, admin = keys.add("arm", ["act"], ["arm-7"]), keys.add("leg", ["act"], ["leg"]), keys.add("me", ["admin"])
    with a_post(tmp_path) as running:
        assert running.http("/v1/fleet/stop", {"robot": "arm-7"}, admin)[0] == 200
        running.wait(lambda: bool(running.post.desk.state.stopped))
        for _ in range(2):
            with running.ws(key=arm) as line, running.ws(key=leg) as other:
                line.recv()
                other.recv()
                assert ask(line, libero())["error"]["kind"] == "stopped" and "actions" in ask(other, libero())


def test_an_answer_that_is_late_by_the_servers_own_deadline_is_not_sent(tmp_path: Path) -> None:
    config = replace(CONFIG, replica=ReplicaConfig(deadline_ms=100))
    with a_post(tmp_path, config, model="fixed-300-0@1") as running, running.ws() as line:
        line.recv()
        assert ask(line, libero())["error"]["kind"] == "deadline"
        assert "actions" in ask(line, libero(st4vla={"robot": "arm", "deadline_ms": 1e6}))


def test_a_key_for_some_robots_asks_about_images_and_acts_for_no_others(tmp_path: Path) -> None:
    key = KeyFile(tmp_path / "keys.json").add("robot", ["act"], ["arm-*"])
    image = write_image(np.full((32, 32, 3), 9, np.uint8))
    with a_post(tmp_path) as running:
        status, answer = running.http("/v1/ground", {"image": image, "question": "where"}, key)
        assert (status, answer["error"]["kind"]) == (503, "unavailable")  # this model has no planner
        assert running.http("/v1/act", native(), key)[0] == 403


def test_a_log_of_interventions_that_cannot_be_written_is_told_of_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, safety=SafetyConfig(interventions=str(tmp_path / "interventions.jsonl")))
    with a_post(tmp_path, config) as running, running.ws() as line:
        line.recv()
        assert running.http("/v1/fleet/stop", {"robot": "arm-1", "reason": "smoke"})[0] == 200
        log = running.post._safety._log
        assert log is not None and log.flush()
        monkeypatch.setattr(log, "_write", lambda line: os.write(-1, b"x"))
        assert running.http("/v1/fleet/release", {"robot": "arm-1"})[0] == 200
        running.wait(lambda: bool(running.of(Trouble)) and not running.post.desk.state.stopped)
        assert "actions" in ask(line, libero(st4vla={"robot": "arm-1"}))
        assert running.of(Trouble)[0].kind == "interventions_log"
    assert [one["kind"] for one in read_log(tmp_path / "interventions.jsonl")] == ["stopped"]


def test_one_robot_that_asks_too_often_is_slowed_down(tmp_path: Path) -> None:
    with a_post(tmp_path, replace(CONFIG, rate=RateConfig(requests_per_s=0.001, burst=2))) as running:
        with running.ws() as line:
            line.recv()
            answers = [ask(line, libero(st4vla={"robot": "arm"})) for _ in range(3)]
            other = ask(line, libero(st4vla={"robot": "other"}))
    assert "actions" in answers[1] and answers[2]["error"]["kind"] == "rate_limited" and "actions" in other


def test_who_gives_no_name_is_limited_by_where_it_comes_from(tmp_path: Path) -> None:
    with a_post(tmp_path, replace(CONFIG, rate=RateConfig(requests_per_s=0.001, burst=2))) as running:
        assert [running.http("/v1/act", native())[0] for _ in range(3)] == [200, 200, 429]
        answers = []
        for _ in range(3):
            with running.ws() as line:
                line.recv()
                answers.append(ask(line, libero()))
    assert "actions" in answers[1] and answers[2]["error"]["kind"] == "rate_limited"


def test_who_gives_no_name_takes_no_place_among_the_metrics_from_who_does(tmp_path: Path) -> None:
    with a_post(tmp_path) as running:
        metrics = running.post.watch.metrics
        metrics._robot = Names(4)
        for _ in range(3):
            assert running.http("/v1/act", native())[0] == 200
            with running.ws() as one, running.ws() as other:
                for line in (one, other):
                    line.recv()
                    assert "actions" in ask(line, libero())
            running.wait(lambda: not len(running.post.lines))
        assert running.http("/v1/act", native(st4vla={"robot": "arm-1"}))[0] == 200
        running.wait(lambda: len(running.of(Served)) == 10)
        text = exposition({"a": metrics.families()}).decode()
    robots = set(re.findall(r'st4vla_requests_total{.*robot="([^"]*)"', text))
    assert robots == {"http-127.0.0.1", "openpi-127.0.0.1", "openpi-127.0.0.1-2", "arm-1"}


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
