"""The HTTP door tells of what it refuses, lets a robot end an episode, and describes all that it takes and gives."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

from st4vla.platform.wire.stamps import KEY, RequestStamp
from st4vla.serve.events import Admin, Ended, Refused
from tests.serve.running import Running, a_post, native


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with a_post(tmp_path_factory.mktemp("serve")) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "body", "kind", "where"),
    [
        ("/v1/act", b"{", "malformed", ""),
        ("/v1/act", b"x" * 200_001, "too_large", ""),
        ("/v1/act", {"images": [], "instruction": "go"}, "invalid", "images"),
        ("/v1/act", {KEY: {"sequence": -1}}, "invalid", f"{KEY}.sequence"),
        ("/v1/ground", {"question": "where"}, "missing", "image"),
        ("/v1/fleet/stop", b"[", "malformed", ""),
        ("/v1/fleet/stop", {"robot": 7}, "invalid", "robot"),
        ("/v1/fleet/dance", {}, "invalid", "action"),
        ("/v1/fleet/rollback", {}, "invalid", ""),
        ("/v1/fleet/update", {}, "missing", "model"),
    ],
)
def test_what_cannot_be_read_or_done_is_refused_and_told(
    shared: Running, path: str, body: Any, kind: str, where: str
) -> None:
    before = len(shared.events)
    status, answer = shared.http(path, body)
    assert status in (400, 413) and (answer["error"]["kind"], answer["error"]["field"]) == (kind, where)
    (told,) = shared.events[before:]
    assert isinstance(told, Refused) and (told.kind, told.where, told.address) == (kind, where, "127.0.0.1")
    assert not shared.of(Admin)


def test_a_robot_says_over_http_how_its_episode_went(shared: Running) -> None:
    stamp = {"robot": "arm-1", "session": "run-1", "sequence": 4}
    assert shared.http("/v1/act", native(st4vla=stamp))[0] == 200
    over = {KEY: {**stamp, "end": "episode", "success": True}}
    assert shared.http("/v1/act", over) == (200, {KEY: {"session": "run-1", "sequence": 4, "end": "episode"}})
    shared.wait(lambda: bool(shared.of(Ended)))
    assert [(one.robot, one.session, one.kind, one.success) for one in shared.of(Ended)] == [
        ("arm-1", "run-1", "episode", True)
    ]
    status, answer = shared.http("/v1/act", {KEY: {"robot": "arm-1", "end": "episode"}})
    assert status == 400 and answer["error"]["field"] == f"{KEY}.session"


def test_the_description_names_all_that_is_taken_given_and_refused(shared: Running) -> None:
    paths = shared.http("/openapi.json")[1]["paths"]
    act, ground = paths["/v1/act"]["post"], paths["/v1/ground"]["post"]

    def schema(part: dict[str, Any]) -> dict[str, Any]:
        return part["content"]["application/json"]["schema"]["properties"]

    assert set(schema(act["requestBody"])[KEY]["properties"]) == {field.name for field in fields(RequestStamp)}
    answer = shared.http("/v1/act", native(st4vla={"robot": "arm-2", "spatial": True}))[1]
    assert set(answer) == set(schema(act["responses"]["200"]))
    assert set(answer[KEY]) <= set(schema(act["responses"]["200"])[KEY]["properties"])
    assert set(schema(ground["responses"]["200"])) == {"answer", "spatial", "model_version"}
    for status in ("400", "401", "403", "409", "413", "423", "429", "500", "503", "504"):
        assert "error" in schema(act["responses"][status])
