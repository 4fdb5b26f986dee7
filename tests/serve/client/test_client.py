"""A robot's client: it never waits, holds when it must, and comes back; over a scripted link and over real sockets."""

import asyncio
import contextlib
import datetime
import ipaddress
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from websockets.sync.server import serve

from st4vla.platform.contracts import Observation
from st4vla.platform.errors import ConfigError, WireError
from st4vla.platform.wire.stamps import KEY, metadata
from st4vla.serve.client import ClientConfig, RobotClient
from st4vla.serve.client.link import Connected, Lost, Refused, Reply
from st4vla.serve.client.point_robot import PointRobot
from st4vla.serve.client.point_server import GOAL, SPEC, answer, serve_connection
from st4vla.serve.safety.embodiment import Embodiment, Part
from tests.serve.client.scripted import POINT, ScriptedLink, client_of, logged, run, stamps


def test_the_robot_holds_until_the_first_chunk_and_skips_none_of_its_actions():
    link, robot = ScriptedLink([3]), PointRobot()
    whys = run(client_of(link), link, robot, 5)
    assert whys == ["waiting"] * 3 + ["chunk"] * 2
    assert robot.applied[0][:3] == pytest.approx(answer(link.sent[0])["actions"][0, :3], abs=3e-3)


def test_the_next_picture_is_taken_while_the_chunk_is_executed():
    link, robot = ScriptedLink([1, 2, 2, 2]), PointRobot()
    whys = run(client_of(link), link, robot, 14)
    assert whys == ["waiting"] + ["chunk"] * 13
    assert [stamp["executed_steps"] for stamp in stamps(link)] == [0, 4, 4, 4]
    assert robot.looks == 4


def test_a_request_announces_the_longest_delay_of_late_and_brings_what_remains_of_the_chunk():
    link = ScriptedLink([9, 2, 3, 1, 1])
    run(client_of(link), link, PointRobot(), 27)
    asked = stamps(link)
    assert [stamp["delay_steps"] for stamp in asked] == [0, 1, 2, 3, 3]
    assert "remaining" not in asked[0] and asked[2]["remaining"].shape == (4, 7)
    assert all(s["delay_steps"] <= s["executed_steps"] <= 8 - s["delay_steps"] for s in asked[1:])


def test_a_new_chunk_begins_where_the_old_one_has_come_to():
    link, robot = ScriptedLink([1, 2]), PointRobot()
    run(client_of(link), link, robot, 9)
    second = answer(link.sent[1])["actions"]
    assert robot.applied[6][:3] == pytest.approx(second[2, :3], abs=1e-3)


def test_a_robot_whose_answer_is_late_brakes_within_its_limits_and_then_holds(tmp_path):
    link, robot = ScriptedLink([1, 30]), PointRobot()
    client = client_of(link, tmp_path)
    whys = run(client, link, robot, 20)
    assert whys[:9] == ["waiting"] + ["chunk"] * 8
    assert whys[9] == "braking" and whys[-1] == "waiting"
    speeds = np.linalg.norm(np.diff([action[:3] for action in robot.applied], axis=0), axis=1)
    assert speeds.max() * POINT.control_hz**2 <= 4.001
    assert [line["kind"] for line in logged(client)] == ["held"]
    assert client.stats.late == 11


def test_after_a_hold_the_rows_dropped_are_those_executed_and_not_those_waited_for():
    link, robot = ScriptedLink([1, 12, 1]), PointRobot()
    client = client_of(link)
    whys = run(client, link, robot, 18)
    assert whys[5 + 12 : 18] == ["chunk"]


def test_waiting_executes_so_many_steps_and_then_holds_for_the_answer():
    link, robot = ScriptedLink([2, 2, 2]), PointRobot()
    whys = run(client_of(link, chunking="wait"), link, robot, 12)
    assert whys[:6] == ["waiting"] * 2 + ["chunk"] * 4
    assert "chunk" not in whys[6:8] and whys[8:12] == ["chunk"] * 4
    assert all(stamp["delay_steps"] == 0 for stamp in stamps(link))


def test_a_late_answer_past_its_deadline_is_dropped_and_asked_for_again(tmp_path):
    now = [0.0]
    link = ScriptedLink([1, 5])
    client = client_of(link, tmp_path, clock=lambda: now[0], deadline_ms=100)
    robot = PointRobot()
    client.tick(robot.observe)
    now[0], link.step = 1.0, 1
    assert client.tick(robot.observe).why == "waiting"
    assert client.stats.dropped_replies == 1 and len(link.sent) == 2


@pytest.mark.parametrize(
    "actions", [np.full((8, 7), np.nan, np.float32), np.zeros((8, 6), np.float32), "fast", np.full((8, 7), 9.0)]
)
def test_an_answer_that_cannot_be_executed_is_dropped_and_the_robot_holds(actions, tmp_path):
    link = ScriptedLink()
    client = client_of(link, tmp_path)
    robot = PointRobot()
    client.tick(robot.observe)
    link.tell(Reply(1, {"actions": actions}))
    assert client.tick(robot.observe).action is None
    assert client.stats.dropped_replies == 1 and robot.applied == []


def test_an_absolute_chunk_that_runs_away_from_a_slowed_robot_is_ended_and_not_raised(tmp_path):
    rail = Embodiment("rail", 20.0, (Part("x", 0, 1, "m", "absolute", 0, (), (), (0.1,), (0.5,)),), state_dim=1)
    link = ScriptedLink(told={})
    client = RobotClient(ClientConfig(), rail, link, clock=lambda: 0.0)  # pyright: ignore[reportArgumentType]

    def observe():
        return Observation({}, np.zeros(1, np.float32), "go")

    client.tick(observe)
    link.tell(Reply(1, {"actions": np.arange(1, 9, dtype=np.float32)[:, None] * 0.02}))
    whys = [client.tick(observe).why for _ in range(8)]
    assert whys[0] == "chunk" and "braking" in whys
    assert client.stats.clamps > 0 and client.stats.dropped_replies == 1


def test_a_lost_connection_is_gone_on_with_under_the_same_session():
    link, robot = ScriptedLink([1]), PointRobot()
    client = client_of(link)
    run(client, link, robot, 6)
    link.is_up = False
    link.tell(Lost("gone"))
    assert run(client, link, robot, 3) == ["chunk"] * 3
    link.is_up = True
    link.tell(Connected(metadata(SPEC, "point")))
    link._delays.append(1)
    run(client, link, robot, 3)
    asked = stamps(link)
    assert asked[-1]["session"] == asked[0]["session"] == client.session
    assert asked[-1]["sequence"] > asked[0]["sequence"]
    assert client.stats.losses == 1 and client.stats.connections == 2


def test_a_stop_at_the_server_drops_every_action_at_once(tmp_path):
    link, robot = ScriptedLink([1]), PointRobot()
    client = client_of(link, tmp_path)
    run(client, link, robot, 5)
    link.tell(Refused(2, WireError("stopped", "robot", "The fleet is stopped.")))
    assert run(client, link, robot, 3) == ["waiting"] * 3
    assert client.stats.refusals == {"stopped": 1}
    assert [line["limit"] for line in logged(client)] == ["stopped"]


def test_the_operators_stop_holds_until_it_is_released(tmp_path):
    link, robot = ScriptedLink([1, 1, 1, 1]), PointRobot()
    client = client_of(link, tmp_path)
    run(client, link, robot, 3)
    client.stop("a hand in the cell")
    assert run(client, link, robot, 3) == ["stopped"] * 3
    looks = robot.looks
    client.release()
    assert run(client, link, robot, 3) == ["waiting", "chunk", "chunk"] and robot.looks == looks + 1
    kinds = [line["kind"] for line in logged(client)]
    assert kinds == ["stopped", "held", "released"]


def test_a_busy_server_is_asked_again_after_a_pause():
    now = [0.0]
    link, robot = ScriptedLink(), PointRobot()
    client = client_of(link, clock=lambda: now[0], pause_s=0.5)
    client.tick(robot.observe)
    link.tell(Refused(1, WireError("overloaded", "", "Busy.")))
    for now[0] in (0.1, 0.4, 0.59):
        assert client.tick(robot.observe).action is None
    assert len(link.sent) == 1
    now[0] = 0.61
    client.tick(robot.observe)
    assert len(link.sent) == 2


def test_a_first_request_that_is_wrong_says_so():
    link = ScriptedLink()
    client = client_of(link)
    client.tick(PointRobot().observe)
    link.tell(Refused(1, WireError("missing", "images/wrist", "The message lacks this image.")))
    with pytest.raises(WireError, match="images/wrist"):
        client.tick(PointRobot().observe)


def test_a_server_of_another_robot_is_refused_before_anything_moves():
    told = metadata(SPEC, "point") | {"action_dim": 14}
    with pytest.raises(ConfigError, match="gives 14 numbers"):
        client_of(ScriptedLink(told=told)).tick(PointRobot().observe)


def test_a_program_that_is_interrupted_leaves_the_robot_holding():
    link, robot = ScriptedLink([1]), PointRobot()

    def interrupted(_):
        link.step += 1
        if link.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client_of(link).run(robot, sleep=interrupted)
    assert robot.holds >= 2 and len(robot.applied) == 3


def test_a_robot_whose_methods_are_coroutines_is_driven_the_same():
    class AsyncRobot(PointRobot):
        async def observe(self):
            return PointRobot.observe(self)

        async def apply(self, action):
            PointRobot.apply(self, action)

        async def hold(self):
            PointRobot.hold(self)

    link, robot = ScriptedLink([0, 0, 0, 0, 0]), AsyncRobot()
    asyncio.run(client_of(link).run_async(robot, steps=6))
    assert len(robot.applied) == 6 and robot.holds == 1


@contextlib.contextmanager
def point_server(answer_s=0.0):
    def handle(connection):
        serve_connection(connection, answer_s)

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()


def test_a_robot_reaches_its_goal_over_a_real_socket():
    robot = PointRobot(goal=GOAL)
    with point_server() as url, RobotClient(ClientConfig(url=url, robot="arm"), POINT) as client:
        client.wait_until_connected()
        while robot.distance > 0.01 and client.stats.steps < 2000:
            client.run(robot, steps=20)
    assert robot.distance <= 0.01
    assert client.stats.replies > 5 and client.metadata[KEY]["model_version"] == "point"


def test_a_picture_that_cannot_be_sent_is_said_so_and_leaves_the_link_alive():
    class Camera(PointRobot):
        def observe(self):
            seen = super().observe()
            return replace(seen, images={"camera": Image.fromarray(seen.images["camera"])})

    with point_server() as url, RobotClient(ClientConfig(url=url, timeout_s=20.0), POINT) as client:
        client.wait_until_connected(20)
        with pytest.raises(WireError, match="images/camera: It cannot be sent: Image cannot be sent") as caught:
            until(client, Camera(), lambda: False)
        assert caught.value.kind == "invalid" and client._link.is_up
        client._fatal = None
        until(client, PointRobot(), lambda: client.stats.replies)


def test_a_server_that_is_not_there_is_said_so():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{taken.getsockname()[1]}"
        with RobotClient(ClientConfig(url=url), POINT) as client, pytest.raises(WireError, match="refused"):
            client.wait_until_connected(0.3)


def test_a_killed_server_leaves_the_robot_holding_and_a_new_one_moves_it_again(st4vla_environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "st4vla.serve.client.point_server", "--port", str(port), "--answer-s", "0.02"]
    server = subprocess.Popen(command, env=st4vla_environment)
    robot = PointRobot(goal=GOAL)
    try:
        with RobotClient(ClientConfig(url=f"ws://127.0.0.1:{port}"), POINT) as client:
            client.wait_until_connected(30)
            session = client.session
            until(client, robot, lambda: len(robot.applied) >= 10)
            server.send_signal(signal.SIGKILL)
            server.wait()
            until(client, robot, lambda: client.stats.losses and client.stats.held > 5)
            moved = len(robot.applied)
            client.run(robot, steps=5)
            assert len(robot.applied) == moved
            server = subprocess.Popen(command, env=st4vla_environment)
            until(client, robot, lambda: len(robot.applied) > moved + 5)
            assert client.session == session and client.stats.connections == 2
    finally:
        server.kill()
        server.wait()
    steps = np.array(robot.applied)[:, :3]
    assert np.linalg.norm(steps, axis=1).max() <= 0.5 / 20 * 1.001


def until(client, robot, done, longest_s=60):
    end = time.monotonic() + longest_s
    while not done():
        assert time.monotonic() < end, client.stats
        client.run(robot, steps=1)


def test_a_key_that_is_turned_away_is_not_tried_again():
    def refuse(connection, request):
        return connection.respond(401, "no")

    with serve(lambda _: None, "127.0.0.1", 0, process_request=refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        with RobotClient(ClientConfig(url=url, api_key="wrong"), POINT) as client:
            with pytest.raises(WireError, match="turned the key away") as caught:
                client.wait_until_connected(20)
        server.shutdown()
    assert caught.value.kind == "unauthorized" and client.stats.losses == 0


def test_a_server_behind_tls_is_trusted_by_its_certificate_alone(tmp_path):
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serve(serve_connection, "127.0.0.1", 0, ssl=context, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"wss://127.0.0.1:{server.socket.getsockname()[1]}"
        with RobotClient(ClientConfig(url=url, ca_file=str(certificate)), POINT) as client:
            assert client.wait_until_connected(20)["action_dim"] == 7
        with RobotClient(ClientConfig(url=url), POINT) as client, pytest.raises(WireError, match="CERTIFICATE"):
            client.wait_until_connected(1)
        server.shutdown()


def self_signed(folder):
    """Write a certificate for 127.0.0.1 and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "robots")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
    made = made.not_valid_after(now + datetime.timedelta(days=1)).add_extension(address, False)
    made = made.sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    plain = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(plain)
    return folder / "cert.pem", folder / "key.pem"


def test_the_key_is_never_shown():
    config = ClientConfig(api_key="secret")
    assert "secret" not in repr(config) and "secret" not in repr(config.link())


def test_the_client_needs_only_numpy_msgpack_and_websockets(st4vla_environment):
    code = (
        "import sys, st4vla.serve.client, st4vla.serve.client.point_robot, websockets.sync.client;"
        "print(' '.join(sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names))))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=st4vla_environment, check=True, capture_output=True, text=True
    ).stdout.split()
    started_with = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], check=True, capture_output=True, text=True
    ).stdout.split()
    extra = set(found) - {name.split(".")[0] for name in started_with}
    heavy = {name for name in extra if not name.startswith(("_cython", "cython_runtime"))}
    assert heavy <= {"numpy", "msgpack", "websockets", "st4vla"}
