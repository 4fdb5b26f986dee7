"""The GR00T door over real ZeroMQ sockets, by a client that is written after GR00T's own."""

import asyncio
import io
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
import zmq.asyncio

from benchmarks.fixed_latency import FixedLatencyPolicy
from st4vla.platform.errors import ConfigError
from st4vla.serve.access import KeyFile, Lock, RateConfig
from st4vla.serve.desk import Desk
from st4vla.serve.doors.groot import GrootConfig, GrootDoor
from st4vla.serve.events import Ended, Event, Observers, Refused, Served
from st4vla.serve.house import House
from st4vla.serve.keymap import KeyMap
from st4vla.serve.replica import ReplicaConfig
from st4vla.serve.state import Routes

KEYS = KeyMap(
    "groot", {"third_person": "video/front", "wrist": "video/wrist"}, ("state/arm", "state/hand"), "language/task"
)
PARTS = {"arm": (0, 6), "hand": (6, 7)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Client:
    """Ask as GR00T's PolicyClient does: a REQ socket, msgpack, arrays by numpy.save."""

    def __init__(self, port: int, token: str | None = None) -> None:
        self._context, self._token = zmq.asyncio.Context(), token
        self._socket = self._context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://127.0.0.1:{port}")

    async def ask(self, endpoint: str, data: dict[str, Any] | None = None) -> Any:
        request: dict[str, Any] = {"endpoint": endpoint, **({"data": data} if data is not None else {})}
        return await self.send(request | ({"api_token": self._token} if self._token else {}))

    async def send(self, request: Any) -> Any:
        await self._socket.send(request if isinstance(request, bytes) else msgpack.packb(request, default=encode))
        answer = await asyncio.wait_for(self._socket.recv(), 30)
        return msgpack.unpackb(answer, object_hook=decode)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def encode(value: Any) -> Any:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": buffer.getvalue()}


def decode(entries: dict[str, Any]) -> Any:
    if "__ndarray_class__" in entries:
        return np.load(io.BytesIO(entries["as_npy"]), allow_pickle=False)
    return entries["as_json"] if "__ModalityConfig_class__" in entries else entries


def observation(*pixels: int, says: str = "pick") -> dict[str, Any]:
    """Show one robot for each pixel value, two moments each; the newer one counts."""
    video = np.stack([np.stack([np.zeros((8, 8, 3)), np.full((8, 8, 3), pixel)]) for pixel in pixels]).astype(np.uint8)
    state = np.asarray(pixels, np.float32)[:, None, None]
    return {
        "video": {"front": video, "wrist": video},
        "state": {"arm": np.repeat(state, 7, 2), "hand": state},
        "language": {"task": [[says]] * len(pixels)},
    }


class Stage:
    """A desk with a policy of known answers, and a door before it."""

    def __init__(self, lock: Lock | None = None, act_s: float = 0.0, **config: Any) -> None:
        self.events: list[Event] = []
        self.clients: list[Client] = []
        self.policy = FixedLatencyPolicy(act_s=act_s)
        house = House(lambda reference: self.policy, ReplicaConfig())
        observers = Observers([self.events.append])
        self.desk = Desk(house, lock or Lock(), RateConfig(1000, 1000), observers)
        self.config = GrootConfig(**{"port": free_port(), "keys": KEYS, "actions": PARTS, **config})

    def run(self, story: Callable[["Stage"], Awaitable[None]]) -> None:
        async def whole() -> None:
            await self.desk.house.follow(Routes({"toy@1": "toy"}, "toy@1"))
            door = GrootDoor(self.desk, self.config)
            try:
                await story(self)
            finally:
                for client in self.clients:
                    client.close()
                await door.close()
                await self.desk.house.close()

        asyncio.run(whole())

    def client(self, token: str | None = None) -> Client:
        self.clients.append(Client(self.config.port, token))
        return self.clients[-1]

    def refusals(self) -> list[str]:
        return [one.kind for one in self.events if isinstance(one, Refused)]


def test_a_client_gets_actions_in_its_own_groups() -> None:
    async def story(stage: Stage) -> None:
        client = stage.client()
        assert (await client.ask("ping"))["status"] == "ok"
        actions, info = await client.ask("get_action", {"observation": observation(30), "options": None})
        assert {name: part.shape for name, part in actions.items()} == {"arm": (1, 10, 6), "hand": (1, 10, 1)}
        assert actions["arm"].dtype == np.float32 and actions["arm"][0, :, 0].tolist() == [30.0] * 10
        assert info["st4vla"][0]["model_version"] == "toy@1"

    Stage().run(story)


def test_the_modality_config_names_what_the_policy_reads() -> None:
    async def story(stage: Stage) -> None:
        client = stage.client()
        config = await client.ask("get_modality_config")
        assert config["video"] == {"delta_indices": [0], "modality_keys": ["front", "wrist"]}
        assert config["state"]["modality_keys"] == ["arm", "hand"]
        assert config["action"] == {"delta_indices": list(range(10)), "modality_keys": ["arm", "hand"]}

    Stage().run(story)


@pytest.mark.parametrize("endpoint", ["get_modality_config", "get_action"])
def test_a_map_that_does_not_fit_the_policy_is_answered_with_what_it_lacks(endpoint: str) -> None:
    async def story(stage: Stage) -> None:
        answer = await stage.client().ask(endpoint, {"observation": observation(1)})
        assert answer["kind"] == "unavailable" and "'wrist'" in answer["error"]
        assert stage.refusals() == ["unavailable"]

    Stage(keys=KeyMap("groot", {"third_person": "video/front"}, ("state/arm",), "language/task")).run(story)


def test_each_row_of_a_batch_is_a_robot_of_its_own() -> None:
    async def story(stage: Stage) -> None:
        client = stage.client()
        for first in (10, 40):
            seen = {"observation": observation(first, first + 10, first + 20)}
            actions, info = await client.ask("get_action", seen)
            assert actions["arm"][:, 0, 0].tolist() == [first, first + 10, first + 20]
            assert len({one["session"] for one in info["st4vla"]}) == 3
        served = [one for one in stage.events if isinstance(one, Served)]
        assert len({one.robot for one in served}) == 3

    Stage().run(story)


def test_many_clients_share_batches_and_each_gets_its_own_answer() -> None:
    async def one(stage: Stage, number: int) -> None:
        client = stage.client()
        for step in range(6):
            pixel = 20 * number + step
            actions, _ = await client.ask("get_action", {"observation": observation(pixel)})
            assert actions["arm"][0, 0, 0] == pixel

    async def story(stage: Stage) -> None:
        await asyncio.gather(*(one(stage, number) for number in range(6)))
        assert max(stage.policy.batches) > 1

    Stage(act_s=0.02).run(story)


def test_our_stamp_travels_in_the_options_and_a_reset_ends_the_episode() -> None:
    async def story(stage: Stage) -> None:
        client = stage.client()
        stamp = {"robot": "arm-7", "session": "s7", "sequence": 4, "executed_steps": 2}
        await client.ask("get_action", {"observation": observation(9), "options": {"st4vla": stamp}})
        assert await client.ask("reset", {"options": {"st4vla": {"robot": "arm-7", "session": "s7"}}}) == {}
        (served,) = [one for one in stage.events if isinstance(one, Served)]
        (ended,) = [one for one in stage.events if isinstance(one, Ended)]
        assert (served.robot, served.session, served.sequence) == ("arm-7", "s7", 4)
        assert (ended.robot, ended.session, ended.kind) == ("arm-7", "s7", "episode")

    Stage().run(story)


def test_kill_is_refused_and_the_server_goes_on() -> None:
    async def story(stage: Stage) -> None:
        client = stage.client()
        answer = await client.ask("kill")
        assert answer["kind"] == "forbidden" and "error" in answer
        assert (await client.ask("ping"))["status"] == "ok"
        assert stage.refusals() == ["forbidden"]

    Stage().run(story)


def test_without_the_right_token_nothing_is_answered(tmp_path: Any) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    good, watcher = keys.add("robot", ["act"], ["groot-*"]), keys.add("screen", ["observe"])

    async def story(stage: Stage) -> None:
        stage.desk.lock.change(keys.read())
        for token, kind in ((None, "unauthorized"), ("st4vla_x_y", "unauthorized"), (watcher, "forbidden")):
            client = stage.client(token)
            for endpoint in ("ping", "get_action", "get_modality_config", "kill"):
                assert (await client.ask(endpoint, {}))["kind"] == kind
        client = stage.client(good)
        assert (await client.ask("ping"))["status"] == "ok"
        other = {"observation": observation(1), "options": {"st4vla": {"robot": "somebody-else"}}}
        assert (await client.ask("get_action", other))["kind"] == "forbidden"
        assert good.split("_", 2)[2] not in str(stage.events)

    Stage().run(story)


def test_a_key_of_one_robot_names_it_and_a_stop_holds_over_a_new_connection(tmp_path: Any) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    own, any_ = keys.add("robot", ["act"], ["arm-7"]), keys.add("cell", ["act"])

    async def story(stage: Stage) -> None:
        stage.desk.lock.change(keys.read())
        seen = {"observation": observation(1)}
        await stage.client(own).ask("get_action", seen)
        await stage.client(any_).ask("get_action", seen)
        await asyncio.sleep(0)  # told behind the answers
        named, nameless = [one.robot for one in stage.events if isinstance(one, Served)]
        assert named == "arm-7" and nameless.startswith(f"groot-{any_.split('_')[1]}-")
        stage.desk.state = replace(stage.desk.state, stopped={nameless: "smoke"})
        assert (await stage.client(any_).ask("get_action", seen))["kind"] == "stopped"
        assert len(await stage.client(own).ask("get_action", seen)) == 2

    Stage().run(story)


def asking(seen: Any, **options: Any) -> dict[str, Any]:
    return {
        "endpoint": "get_action",
        "data": {"observation": seen, "options": {"st4vla": options} if options else None},
    }


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (b"\xc1", ""),
        (asking(None), "data.observation"),
        (asking({"video": 3}), "data.observation.video"),
        (asking({"video": {"front": np.zeros(3)}}), "data.observation.video.front"),
        (asking(observation(*range(20))), "data.observation"),
        (asking(observation(1) | {"language": {}}), "language/task"),
        (asking(observation(1) | {"state": {}}), "state/arm"),
        (asking(observation(1), x=1), "st4vla.x"),
    ],
)
def test_bad_input_is_refused_by_the_field_and_the_next_request_is_answered(request_: Any, field: str) -> None:
    async def story(stage: Stage) -> None:
        client = stage.client()
        answer = await client.send(request_)
        assert answer["field"] == field and answer["error"]
        assert len(stage.refusals()) == 1
        assert len(await client.ask("get_action", {"observation": observation(2)})) == 2

    Stage().run(story)


def test_an_oversize_message_is_dropped_and_others_are_answered() -> None:
    async def story(stage: Stage) -> None:
        loud, calm = stage.client(), stage.client()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loud.send(b"\0" * (stage.desk.limits.max_bytes + 1)), 2)
        assert (await calm.ask("ping"))["status"] == "ok"

    Stage().run(story)


def test_others_are_not_let_in_without_keys() -> None:
    async def story() -> None:
        stage = Stage(host="0.0.0.0")
        with pytest.raises(ConfigError, match="no keys"):
            GrootDoor(stage.desk, stage.config)

    asyncio.run(story())


def test_an_address_that_others_reach_answers_nobody_when_it_turns_out_that_there_are_no_keys() -> None:
    async def story(stage: Stage) -> None:
        client = stage.client()
        assert (await client.ask("ping"))["kind"] == "unauthorized"
        stage.desk.lock.change(())
        assert (await client.ask("ping"))["kind"] == "unauthorized"

    Stage(Lock(None), host="0.0.0.0").run(story)
