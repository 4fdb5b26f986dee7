"""docs/your-robot.md says nothing that does not work: its commands compose, its programs run."""

import re
import shlex
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.server import serve

from st4vla.platform.arguments import parse_arguments
from st4vla.platform.cli import compose_command, find_command
from st4vla.platform.wire import openpi
from st4vla.serve.safety.embodiment import Embodiment
from st4vla.serve.safety.measured import MeasureConfig, write

PAGE = Path(__file__).resolve().parents[3] / "docs" / "your-robot.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if line.startswith("st4vla")]
PROGRAMS = [text for kind, text in BLOCKS if kind == "python"]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_composes(line: str):
    _, name, *words = shlex.split(line)
    spec = find_command(name)
    assert compose_command(name, parse_arguments(spec, words).overrides)


class Arm:
    """Stands in for the page's arm, camera and LeRobot device."""

    action_features = dict.fromkeys(("shoulder.pos", "gripper.pos"), float)

    def __init__(self):
        self.commands, self.stays = [], 0

    def read(self):
        return np.zeros((16, 16, 3), np.uint8)

    def state(self):
        return [0.6, 0, 0.2, 3.1, 0, 0, 1]

    def command(self, action):
        self.commands.append(action)

    def stay(self):
        self.stays += 1

    def get_observation(self):
        return {"shoulder.pos": 5.0, "gripper.pos": 1.0, "front": self.read()}

    def send_action(self, action):
        self.commands.append(action)


@contextmanager
def still_server(width: int):
    def handle(socket):
        socket.send(openpi.pack({}))
        for frame in socket:
            state = openpi.unpack(frame).get("state", np.zeros(width))
            rows = np.zeros((8, width)) if width == 7 else np.tile(state, (8, 1))
            socket.send(openpi.pack({"actions": rows.astype(np.float32)}))

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()


def run_page(program: str, url: str, arm: Arm, fast: int) -> None:
    program = program.replace('ClientConfig(url="ws://127.0.0.1:8000", ', "ClientConfig(")
    program = program.replace("ClientConfig(", f'ClientConfig(url="{url}", ')
    program = re.sub(r"steps=\d+", f"steps={fast}", program)
    exec(compile(program, str(PAGE), "exec"), {"arm": arm, "camera": arm, "device": arm})


def test_the_first_program_drives_an_arm(workplace: Path):
    write(Embodiment.load("tabletop_panda"), MeasureConfig("x", "runs/my_arm.yaml"))
    arm = Arm()
    with still_server(7) as url:
        run_page(PROGRAMS[0], url, arm, 10)
    assert arm.commands and arm.stays and Path("runs/robot/interventions.jsonl").exists()


def test_the_second_program_drives_a_lerobot_device(workplace: Path):
    Path("so101.yaml").write_text(
        "name: so101\ncontrol_hz: 30\nstate_dim: 2\nparts:\n"
        "  - {name: joints, start: 0, end: 1, unit: deg, form: absolute, state_start: 0, velocity: [90]}\n"
        "  - {name: gripper, start: 1, end: 2, unit: '1', form: absolute}\n"
    )
    device = Arm()
    with still_server(2) as url:
        run_page(PROGRAMS[1], url, device, 30)
    assert {"shoulder.pos": 5.0, "gripper.pos": 1.0} in device.commands
