"""Our client and our server together, with everything between them but Ray: doors, desk, limits, stops."""

import asyncio
import contextlib
import socket
import threading
import time
from dataclasses import replace

import pytest
import uvicorn

from st4vla.platform.wire.stamps import KEY
from st4vla.serve.client import ClientConfig, RobotClient
from st4vla.serve.client.point_robot import PointRobot
from st4vla.serve.client.point_server import GOAL
from st4vla.serve.control import Control
from st4vla.serve.models import LoaderConfig
from st4vla.serve.post import NearControl, Post, PostConfig
from st4vla.serve.safety.embodiment import Embodiment
from st4vla.serve.safety.guard import SafetyConfig
from st4vla.serve.safety.interventions import read_log
from st4vla.serve.safety.measured import MeasureConfig, write

POINT = Embodiment.load("point")
LOADER = LoaderConfig(function="st4vla.serve.client.point_server.point_policy")


class Server:
    """A serving process in a thread of this one."""

    def __init__(self, folder, safety):
        self._config = PostConfig(loader=LOADER, safety=safety)
        self._control = Control(str(folder))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._ready = threading.Event()
        self.url = f"ws://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    async def _main(self):
        self._loop = asyncio.get_running_loop()
        await self._control.begin({"point@0": "point"}, "point@0")
        post = Post(self._config, NearControl(self._control))
        await post.start()
        self._server = uvicorn.Server(uvicorn.Config(post.application(), log_level="warning"))
        self._ready.set()
        await self._server.serve([self._socket])
        await post.close()

    def do(self, story):
        return asyncio.run_coroutine_threadsafe(story, self._loop).result(10)

    def stop(self, robot):
        self.do(self._control.stop(robot, "smoke"))

    def release(self, robot):
        self.do(self._control.release(robot))

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(20)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "interventions.jsonl"


@contextlib.contextmanager
def driven(server, robot):
    with RobotClient(ClientConfig(url=server.url, robot="arm", pause_s=0.05), POINT) as client:
        client.wait_until_connected()
        yield client


def until(client, robot, done, longest_s=60):
    end = time.monotonic() + longest_s
    while not done():
        assert time.monotonic() < end, client.stats
        client.run(robot, steps=1)


def test_a_robot_reaches_its_goal_under_the_server_and_nothing_needs_limiting(tmp_path, log):
    robot = PointRobot(goal=GOAL)
    with Server(tmp_path, SafetyConfig(interventions=str(log))) as server, driven(server, robot) as client:
        until(client, robot, lambda: robot.distance < 0.01)
    assert client.stats.clamps == 0 and client.stats.refusals == {}
    assert list(read_log(log)) == []


def test_what_the_server_clamps_is_in_the_reply_and_in_the_log(tmp_path, log):
    gentle = replace(POINT, name="gentle", parts=(replace(POINT.parts[0], velocity=(0.1,)), *POINT.parts[1:]))
    write(gentle, MeasureConfig("nothing", str(tmp_path / "gentle.yaml")))
    safety = SafetyConfig({"point": str(tmp_path / "gentle.yaml")}, interventions=str(log))
    robot = PointRobot(goal=GOAL)
    with Server(tmp_path, safety) as server, driven(server, robot) as client:
        until(client, robot, lambda: len(robot.applied) >= 6)
        assert client.last_reply[KEY]["interventions"][0].startswith("clamped: position velocity")
    assert max(float((action[:3] ** 2).sum() ** 0.5) for action in robot.applied) <= 0.1 / 20 * 1.001
    first = next(read_log(log))
    assert (first["robot"], first["part"], first["limit"], first["place"]) == ("arm", "position", "velocity", "server")


def test_an_emergency_stop_holds_the_robot_until_it_is_released(tmp_path, log):
    robot = PointRobot(goal=GOAL)
    with Server(tmp_path, SafetyConfig()) as server, driven(server, robot) as client:
        until(client, robot, lambda: len(robot.applied) >= 5)
        server.stop("arm")
        until(client, robot, lambda: client.stats.refusals.get("stopped"))
        moved = len(robot.applied)
        client.run(robot, steps=10)
        assert len(robot.applied) == moved
        server.release("arm")
        until(client, robot, lambda: len(robot.applied) > moved + 3)
