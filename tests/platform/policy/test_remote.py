"""Facts about asking a policy server, over real sockets on this machine."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import serve

from st4vla.platform.contracts import Observation
from st4vla.platform.errors import ConfigError, PolicyError
from st4vla.platform.policy.remote import RemoteConfig, RemotePolicy, pad_resize
from st4vla.platform.wire import openpi

LOOK = Observation({"third_person": np.full((64, 128, 3), 200, np.uint8)}, np.arange(7, dtype=np.float32), "push it")
KEYS = {"observation/image": "third_person", "observation/state": "state", "prompt": "instruction", "unused": None}
CHUNK = {"actions": np.tile([0.01, 0, 0, 0, 0, 0, -1.0], (4, 1))}


class Server:
    """An openpi server that answers with what `reply` gives: a map, raw bytes, a text, or None to hang up."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self.connections = 0
        self.reply: Callable[[], Any] = lambda: CHUNK
        self._server = serve(self._talk, "127.0.0.1", 0, compression=None)
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _talk(self, connection: Any) -> None:
        self.connections += 1
        self.headers.append(connection.request.headers.get("Authorization"))
        connection.send(openpi.pack({"model": "a server"}))
        for frame in connection:
            self.seen.append(openpi.unpack(frame))
            answer = self.reply()
            if answer is None:
                return
            connection.send(openpi.pack(answer) if isinstance(answer, dict) else answer)

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def policy_of(server: Server, **changes: Any) -> RemotePolicy:
    return RemotePolicy(RemoteConfig(**{"url": server.url, "keys": KEYS, "deadline_s": 20.0, "resize": 32} | changes))


def ask(policy: RemotePolicy) -> np.ndarray:
    return policy.act([LOOK], ["e"], [(0, 0)])[0].actions


def test_the_server_sees_its_own_names_and_a_padded_picture(server: Server):
    policy = policy_of(server)
    actions = ask(policy)
    (seen,) = server.seen
    assert sorted(seen) == ["observation/image", "observation/state", "prompt"]
    assert seen["prompt"] == "push it" and seen["observation/state"].tolist() == list(range(7))
    picture = seen["observation/image"]
    assert picture.shape == (32, 32, 3) and picture[0].max() == 0 and picture[16].min() == 200
    assert (actions.shape, actions.dtype) == ((4, 7), np.float32)
    assert policy.metadata == {"model": "a server"}
    policy.close()


def test_the_spec_is_what_the_keys_ask_for(server: Server):
    spec = policy_of(server).spec
    assert (spec.cameras, spec.state_dim) == (("third_person",), 7)


def test_the_camera_s_own_size_is_asked_for_and_the_whole_picture_padded(server: Server):
    policy = policy_of(server, resize=224)
    assert policy.spec.image_size == 0
    wide = np.full((480, 640, 3), 200, np.uint8)
    policy.act([Observation({"third_person": wide}, LOOK.state, "push it")], ["e"], [(0, 0)])
    picture = server.seen[0]["observation/image"]
    assert picture.shape == (224, 224, 3)
    assert (picture[:28].max(), picture[28:196].min(), picture[196:].max()) == (0, 200, 0)
    policy.close()


def test_the_form_of_its_rotations_is_the_servers_own(server: Server):
    assert policy_of(server).spec.rotation_form == "rotation_vector"
    oxe = policy_of(server, rotation_form="euler_xyz")
    assert oxe.spec.rotation_form == "euler_xyz" and oxe.config.digest() != policy_of(server).config.digest()
    with pytest.raises(ConfigError, match="rotation_form is 'quaternion'; expected one of rotation_vector, euler_xyz"):
        policy_of(server, rotation_form="quaternion")
    with pytest.raises(ConfigError, match="remote.image_size is 0"):
        policy_of(server, image_size=0)


def test_a_gripper_of_another_sign_is_translated(server: Server):
    policy = policy_of(server, gripper_open=-1.0, gripper_closed=1.0)
    assert ask(policy)[:, 6].tolist() == [1.0] * 4
    policy.close()


def test_each_episode_has_a_connection_of_its_own(server: Server):
    policy = policy_of(server)
    ask(policy)
    ask(policy)
    policy.reset("next")
    ask(policy)
    policy.close()
    assert server.connections == 2


def test_a_late_answer_is_given_up_and_never_taken_for_the_next_one(server: Server):
    release = threading.Event()
    server.reply = lambda: release.wait(30) and CHUNK
    policy = policy_of(server, deadline_s=0.3)
    with pytest.raises(PolicyError, match=r"gave no answer within 0\.3 s"):
        ask(policy)
    release.set()
    server.reply = lambda: {"actions": np.full((1, 7), 2.0)}
    policy = policy_of(server)
    assert ask(policy).tolist() == [[2.0] * 7]
    policy.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "went away"),
        ("Traceback: no such key", "reported: Traceback: no such key"),
        (b"\xc1 not msgpack", "cannot be read"),
        ({"action": 3}, r"has \['action'\]; expected an array of numbers, `actions`"),
        ({"actions": [[0.0] * 7]}, "expected an array of numbers"),
        (b"\x00" * 2_000_000, "went away"),
    ],
)
def test_what_is_no_answer_is_a_policy_error_with_its_reason(server: Server, answer: Any, message: str):
    server.reply = lambda: answer
    policy = policy_of(server, max_reply_mb=1)
    with pytest.raises(PolicyError, match=message):
        ask(policy)
    server.reply = lambda: CHUNK
    assert ask(policy).shape == (4, 7)
    policy.close()


def test_nobody_there_is_said_with_the_address():
    with pytest.raises(PolicyError, match="no policy server answered at ws://127.0.0.1:1:"):
        RemotePolicy(RemoteConfig("ws://127.0.0.1:1")).connect()


def test_a_key_travels_in_the_header_and_stays_out_of_the_digest(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", "secret")
    policy = policy_of(server, api_key_variable="A_KEY")
    policy.connect()
    policy.close()
    assert server.headers == ["Api-Key secret"]
    monkeypatch.setenv("A_KEY", "other")
    assert policy.config.digest() == policy_of(server, api_key_variable="A_KEY").config.digest()


def test_a_key_is_not_sent_in_the_clear_to_another_machine():
    with pytest.raises(ConfigError, match="a key is sent over wss://"):
        RemoteConfig("ws://example.org:8000", api_key_variable="A_KEY")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "http://127.0.0.1"])
def test_a_url_of_another_kind_is_refused(url: str):
    with pytest.raises(ConfigError, match="such as url=ws://127.0.0.1:8000"):
        RemoteConfig(url)


def test_a_picture_of_the_right_size_is_sent_as_it_is():
    square = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(pad_resize(square, 4), square)
    assert pad_resize(square, None).shape == (4, 4, 3)
