"""Messages of the robot families in use are read, whatever form their images and grippers have."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from st4vla.platform.contracts import PolicySpec
from st4vla.platform.errors import ConfigError, WireError
from st4vla.platform.wire.stamps import RequestStamp
from st4vla.serve.command import key_map
from st4vla.serve.keymap import GripperForm, KeyMap, in_policys_terms, in_robots_terms, read_observation

SPEC = PolicySpec(("third_person", "wrist"), 224, 8, 7, 8, 5.0, "arm")
IMAGE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
DROID = KeyMap(
    "droid",
    {"third_person": "observation/exterior_image_1_left", "wrist": "observation/wrist_image_left"},
    ("observation/joint_position", "observation/gripper_position"),
    default_prompt="wait",
)
NATIVE = KeyMap().fit(SPEC)


def native(**changes: object) -> dict[str, object]:
    message = {"images": {"third_person": IMAGE, "wrist": IMAGE}, "state": np.arange(8.0), "prompt": "reach"}
    return {**message, **changes}


def test_a_native_message_is_read() -> None:
    seen = read_observation(native(), NATIVE, SPEC)
    assert list(seen.images) == ["third_person", "wrist"] and seen.instruction == "reach"
    assert seen.state is not None and seen.state.dtype == np.float32 and seen.state.tolist() == list(range(8))


def test_a_droid_message_with_a_scalar_gripper_and_no_prompt_is_read() -> None:
    message = {
        "observation/exterior_image_1_left": IMAGE,
        "observation/wrist_image_left": IMAGE,
        "observation/joint_position": np.arange(7.0),
        "observation/gripper_position": np.float64(0.5),
    }
    seen = read_observation(message, DROID, SPEC)
    assert seen.state is not None and seen.state.tolist() == [0, 1, 2, 3, 4, 5, 6, 0.5] and seen.instruction == "wait"


@pytest.mark.parametrize("form", ["chw", "float", "chw float", "int64"])
def test_images_of_other_forms_are_read_alike(form: str) -> None:
    image: np.ndarray = IMAGE / np.float32(255) if "float" in form else IMAGE
    image = image.astype(np.int64) if form == "int64" else image
    image = image.transpose(2, 0, 1) if "chw" in form else image
    seen = read_observation(native(images={"third_person": image, "wrist": IMAGE}), NATIVE, SPEC)
    assert np.array_equal(seen.images["third_person"], IMAGE) and seen.images["third_person"].dtype == np.uint8


@pytest.mark.parametrize(
    ("change", "kind", "field"),
    [
        ({"images": {"third_person": IMAGE}}, "missing", "images/wrist"),
        ({"images": {"third_person": IMAGE, "wrist": IMAGE[..., 0]}}, "invalid", "images/wrist"),
        ({"images": {"third_person": IMAGE, "wrist": np.zeros((4, 5, 4), np.uint8)}}, "invalid", "images/wrist"),
        ({"images": {"third_person": IMAGE, "wrist": np.zeros((0, 5, 3), np.uint8)}}, "invalid", "images/wrist"),
        ({"images": {"third_person": IMAGE, "wrist": IMAGE * np.nan}}, "invalid", "images/wrist"),
        ({"images": {"third_person": IMAGE, "wrist": IMAGE.astype(float)}}, "invalid", "images/wrist"),
        ({"images": {"third_person": IMAGE, "wrist": "a cat"}}, "invalid", "images/wrist"),
        ({"images": {"third_person": IMAGE, "wrist": np.zeros((9000, 9000, 3), "u1")}}, "too_large", "images/wrist"),
        ({"state": np.zeros(7)}, "invalid", "state"),
        ({"state": [0, 1, 2, 3, 4, 5, 6, float("inf")]}, "invalid", "state"),
        ({"state": ["0"] * 8}, "invalid", "state"),
        ({"state": None}, "missing", "state"),
        ({"state": True}, "invalid", "state"),
        ({"prompt": ""}, "missing", "prompt"),
        ({"prompt": 7}, "invalid", "prompt"),
        ({"prompt": "x" * 10000}, "invalid", "prompt"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_wrong_is_refused_by_name(change: dict, kind: str, field: str) -> None:
    with pytest.raises(WireError) as caught:
        read_observation(native(**change), NATIVE, SPEC)
    assert (caught.value.kind, caught.value.field) == (kind, field)


def shade(value: int) -> np.ndarray:
    """Give an image of one brightness, [H,W,3]."""
    return np.full((4, 5, 3), value, np.uint8)


# What the robots of each family send: their cameras in this order show the shades 1, 2, ..., their state counts up.
FAMILIES: dict[str, tuple[tuple[str, ...], int, dict[str, object]]] = {
    "native": (
        ("third_person", "wrist"),
        8,
        {"images": {"third_person": shade(1), "wrist": shade(2)}, "state": np.arange(8.0), "prompt": "lift"},
    ),
    "libero": (
        ("third_person", "wrist"),
        8,
        {
            "observation/image": shade(1),
            "observation/wrist_image": shade(2),
            "observation/state": np.arange(8.0),
            "prompt": "lift",
        },
    ),
    "droid": (
        ("third_person", "wrist"),
        8,
        {
            "observation/exterior_image_1_left": shade(1),
            "observation/wrist_image_left": shade(2),
            "observation/joint_position": np.arange(7.0),
            "observation/gripper_position": 7.0,
            "prompt": "lift",
        },
    ),
    "aloha": (
        ("third_person", "low", "left_wrist", "right_wrist"),
        14,
        {
            "images": {
                name: shade(value).transpose(2, 0, 1)
                for value, name in enumerate(("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"), start=1)
            },
            "state": np.arange(14.0),
            "prompt": "lift",
        },
    ),
    "bridge": (
        ("third_person", "wrist"),
        7,
        {"observation": {"image_0": shade(1), "image_3": shade(2), "state": np.arange(7.0)}, "prompt": "lift"},
    ),
    "google": (
        ("third_person",),
        8,
        {
            "observation/image": shade(1),
            "observation/base_pose_tool_reached": np.arange(7.0, dtype=np.float32),
            "observation/gripper_closed": np.array([7.0]),
            "prompt": "lift",
        },
    ),
    "vla_eval_simpler": (
        ("third_person",),
        0,
        {"images": {"primary": shade(1)}, "task_description": "lift", "task_name": "widowx_put_eggplant_in_basket"},
    ),
    "vla_eval": (
        ("third_person", "wrist"),
        8,
        {"images": {"agentview": shade(1), "wrist": shade(2)}, "states": np.arange(8.0), "task_description": "lift"},
    ),
}


def packaged(checkout: Path) -> dict[str, KeyMap]:
    files = sorted((checkout / "configs" / "keymap").glob("*.yaml"))
    return {file.stem: key_map(yaml.safe_load(file.read_text())) for file in files}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_packaged_map_reads_what_its_robots_send(checkout: Path, family: str) -> None:
    cameras, state_dim, message = FAMILIES[family]
    spec = PolicySpec(cameras, 224, state_dim, 7, 8, 5.0, "arm")
    keys = packaged(checkout)[family]
    seen = read_observation(message, keys.fit(spec), spec)
    assert [int(seen.images[camera].mean()) for camera in cameras] == list(range(1, len(cameras) + 1))
    assert all(image.shape == (4, 5, 3) for image in seen.images.values())
    assert ([] if seen.state is None else seen.state.tolist()) == list(range(state_dim))
    assert seen.instruction == "lift" and keys.name == family


def test_no_packaged_map_is_left_untried(checkout: Path) -> None:
    assert set(packaged(checkout)) == set(FAMILIES)


def test_a_map_without_a_camera_of_the_policy_is_refused_when_it_is_set_up() -> None:
    with pytest.raises(ConfigError, match="'wrist'"):
        KeyMap("mine", {"third_person": "observation/image"}).fit(SPEC)


# What each family's own client takes for a closed and for an open gripper, where the policy gives 0 and 1.
GRIPPERS = {
    "libero": (1, -1),
    "vla_eval": (1, -1),
    "droid": (1, 0),
    "aloha": (0, 1),
    "bridge": (0, 1),
    "google": (0, 1),
    "vla_eval_simpler": (0, 1),
    "native": (0, 1),
}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_packaged_map_gives_the_gripper_that_its_robots_take(checkout: Path, family: str) -> None:
    chunk = np.array([[0.25] * 6 + [0.0], [0.25] * 6 + [1.0]], np.float32)
    given = in_robots_terms(chunk, packaged(checkout)[family].gripper)
    assert tuple(given[:, -1]) == GRIPPERS[family] and (given[:, :-1] == 0.25).all()


@pytest.mark.parametrize("gripper", ["as_is", "close_positive", "closed_one"])
def test_what_a_robot_says_is_left_of_its_chunk_turns_back_into_the_policys_terms(gripper: GripperForm) -> None:
    rows = np.array([[0.5, 0.0], [0.5, 0.25], [0.5, 1.0]], np.float32)
    stamp = RequestStamp(remaining=in_robots_terms(rows, gripper))
    back = in_policys_terms(stamp, gripper).remaining
    assert back is not None and np.array_equal(back, rows)
    assert in_policys_terms(RequestStamp(), gripper).remaining is None


def test_grippers_turn_into_the_robots_terms() -> None:
    actions = np.array([[0.0, 0.0], [0.0, 1.0]], np.float32)
    assert in_robots_terms(actions, "as_is")[:, -1].tolist() == [0, 1]
    assert in_robots_terms(actions, "close_positive")[:, -1].tolist() == [1, -1]
    assert in_robots_terms(actions, "closed_one")[:, -1].tolist() == [1, 0]
