"""Bringing one's own robot: limits measured in recordings, and a device with LeRobot's methods."""

from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.errors import ConfigError
from st4vla.platform.wire.stamps import metadata
from st4vla.serve.client import ClientConfig, RobotClient
from st4vla.serve.client.lerobot_robot import LeRobotRobot
from st4vla.serve.client.link import Reply
from st4vla.serve.safety.embodiment import Embodiment, Part
from st4vla.serve.safety.measured import MeasureConfig, clamped_share, episodes_of, measure, write
from tests.serve.client.scripted import ScriptedLink

JOINTS = ("shoulder.pos", "elbow.pos", "gripper.pos")
ARM = Embodiment(
    "two_joints",
    30.0,
    (
        Part("joints", 0, 2, "deg", "absolute", 0, (-90, -90), (90, 90), (60, 60), (600, 600), (20000, 20000)),
        Part("gripper", 2, 3, "1", "absolute", None, (0,), (100,)),
    ),
    state_dim=3,
)


class TwoJoints:
    """A device with LeRobot's two methods, whose joints go where they are sent at once."""

    def __init__(self):
        self.at = dict.fromkeys(JOINTS, 10.0)
        self.sent = []

    def get_observation(self):
        return {**self.at, "front": np.zeros((8, 8, 3), np.uint8)}

    def send_action(self, action):
        self.sent.append(action)
        self.at = dict(action)
        return action


class Answering(ScriptedLink):
    """A link that answers at once with a chunk towards 20 degrees."""

    def __init__(self, target=(20, 10, 50), rows=9, told=None):
        super().__init__(told=told or {})
        self.target, self.rows = target, rows

    def send(self, ticket, message):
        self.sent.append(message)
        way = np.linspace(message["state"], self.target, self.rows)[1:]
        self.tell(Reply(ticket, {"actions": way.astype(np.float32)}))


def test_a_lerobot_device_is_driven_by_its_joints_within_its_limits():
    device, link = TwoJoints(), Answering()
    robot = LeRobotRobot(device, JOINTS, {"front": "front"}, "wave")
    client = RobotClient(ClientConfig(), ARM, link, clock=lambda: 0.0)  # pyright: ignore[reportArgumentType]
    client.run(robot, steps=40, sleep=lambda _: None)
    assert device.at["shoulder.pos"] == pytest.approx(20, abs=0.1)
    moved = np.diff([10.0] + [sent["shoulder.pos"] for sent in device.sent])
    assert 0 < np.abs(moved).max() * 30 <= 60.01
    assert link.sent[0]["prompt"] == "wave" and link.sent[0]["images/front"].shape == (8, 8, 3)


def test_a_lerobot_device_holds_where_it_was_sent_last_and_before_that_where_it_was_found():
    device = TwoJoints()
    robot = LeRobotRobot(device, JOINTS, {}, "wave")
    robot.hold()
    robot.apply(np.array([11, 9, 0]))
    robot.hold()
    assert [list(sent.values()) for sent in device.sent] == [[10, 10, 10], [11, 9, 0], [11, 9, 0]]


def test_a_missing_joint_is_named():
    with pytest.raises(ConfigError, match=r"no 'wrist.pos'; it has shoulder.pos"):
        LeRobotRobot(TwoJoints(), ("wrist.pos",), {}, "wave").observe()


def test_an_absolute_target_far_away_is_refused_and_the_arm_stays():
    device, link = TwoJoints(), Answering((80, 80, 80), rows=2)
    device.at = dict.fromkeys(JOINTS, -80.0)
    robot = LeRobotRobot(device, JOINTS, {}, "wave")
    client = RobotClient(ClientConfig(pause_s=0), ARM, link, clock=lambda: 0.0)  # pyright: ignore[reportArgumentType]
    client.run(robot, steps=5, sleep=lambda _: None)
    assert client.stats.dropped_replies and device.at["shoulder.pos"] == -80


def test_limits_are_measured_a_margin_above_the_demonstrations(painted_dataset: Path, tmp_path: Path):
    from st4vla.platform.data.lerobot_reader import open_dataset

    dataset = open_dataset(painted_dataset)
    config = MeasureConfig(str(painted_dataset), str(tmp_path / "arm.yaml"), name="my_arm", margin=1.5)
    robot = measure(dataset, config)
    fastest = max(float(np.linalg.norm(rows[:, :3], axis=1).max()) for rows, _ in episodes_of(dataset))
    assert robot.parts[0].velocity[0] == pytest.approx(1.5 * fastest * dataset.fps, rel=1e-3)
    assert [part.name for part in robot.parts] == ["position", "rotation", "gripper"] and robot.state_dim == 7
    assert clamped_share(robot, episodes_of(dataset)) == 0
    write(robot, config)
    assert Embodiment.load(tmp_path / "arm.yaml") == robot


def test_an_arms_form_needs_seven_columns(painted_dataset: Path):
    from st4vla.serve.safety.measured import parts_of

    with pytest.raises(ConfigError, match="set form=absolute_joints"):
        parts_of(MeasureConfig("x", "y"), 6, 6)
    joints, gripper = parts_of(MeasureConfig("x", "y", form="absolute_joints"), 7, 7)
    assert (joints.end, joints.form, gripper.start) == (6, "absolute", 6)


def test_metadata_of_another_rate_is_refused_before_the_arm_moves():
    from st4vla.platform.contracts import PolicySpec

    link = Answering(told=metadata(PolicySpec(("front",), 8, 3, 3, 8, 10.0, "two_joints"), "x"))
    client = RobotClient(ClientConfig(), ARM, link)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="3 numbers at 10"):
        client.tick(LeRobotRobot(TwoJoints(), JOINTS, {}, "wave").observe)
