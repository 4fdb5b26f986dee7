"""A simulated robot in real time under a policy server."""

import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.server import serve

from st4vla.platform.arguments import parse_arguments
from st4vla.platform.cli import compose_command, find_command
from st4vla.platform.contracts import PolicySpec
from st4vla.platform.errors import ConfigError
from st4vla.platform.wire import openpi
from st4vla.platform.wire.stamps import KEY, metadata
from st4vla.serve import fleet_command
from st4vla.serve.client import ClientConfig, RobotClient
from st4vla.serve.safety.embodiment import Embodiment
from st4vla.workers.robot import KEY_VARIABLE, policy_spec, read_key, run_episodes
from st4vla.workers.rollout.worlds import family

SPEC = PolicySpec(("third_person",), 128, 7, 7, 8, 5.0, "tabletop_panda")


@contextmanager
def forward_server(seen: list):
    """Serve a policy that always moves forward."""

    def handle(socket):
        socket.send(openpi.pack(metadata(SPEC, "forward")))
        for frame in socket:
            seen.append(openpi.unpack(frame))
            socket.send(openpi.pack({"actions": np.tile(np.array([0.01, 0, 0, 0, 0, 0, 1], np.float32), (8, 1))}))

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=16 * 1024 * 1024) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()


@pytest.mark.sim
def test_a_simulated_panda_acts_in_real_time_under_a_server(tmp_path: Path):
    seen: list = []
    worlds = family("tabletop")
    world = worlds.make_world("")
    with forward_server(seen) as url:
        with RobotClient(
            ClientConfig(url=url, robot="sim", execute_steps=8), Embodiment.load("tabletop_panda")
        ) as client:
            (tried,) = run_episodes(client, world, worlds.plan("seen", ["reach"], 1, 0), connect_s=20)
    world.close()
    assert 1 <= tried.steps <= 25 and 0 <= tried.waited < tried.steps
    looks = [message for message in seen if "prompt" in message]
    assert looks[0]["images/third_person"].shape == (128, 128, 3) and looks[0]["prompt"] == tried.instruction
    ended = [message[KEY]["success"] for message in seen if message[KEY].get("end") == "episode"]
    assert ended == [tried.success]
    assert client.stats.executed == tried.steps - tried.waited


def test_the_policys_cameras_come_from_the_servers_metadata():
    spec = policy_spec(metadata(SPEC, "x"), Embodiment.load("tabletop_panda"))
    assert (spec.cameras, spec.image_size, spec.chunk_length) == (("third_person",), 128, 8)


def test_a_server_that_names_no_cameras_is_refused():
    with pytest.raises(ConfigError, match="which cameras"):
        policy_spec({}, Embodiment.load("tabletop_panda"))


def test_the_key_is_read_from_a_file_or_from_the_environment(tmp_path: Path, monkeypatch):
    (tmp_path / "arm.key").write_text("abc\n")
    monkeypatch.setenv("ST4VLA_API_KEY", "def")
    assert read_key(str(tmp_path / "arm.key")) == "abc" and read_key(None) == "def"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key(str(tmp_path / "none.key"))


def test_the_fleets_operator_and_its_robots_name_the_key_alike():
    assert fleet_command.KEY_VARIABLE == KEY_VARIABLE == "ST4VLA_API_KEY"


def test_the_command_takes_an_embodiment_file():
    spec = find_command("robot")
    words = ["ws://127.0.0.1:9", "embodiment=my_arm.yaml"]
    cfg = compose_command("robot", parse_arguments(spec, words).overrides)
    assert (cfg.client.url, cfg.embodiment_from) == ("ws://127.0.0.1:9", "my_arm.yaml")
