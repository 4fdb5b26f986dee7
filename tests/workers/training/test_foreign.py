"""Both stages and an open-loop score on another lab's recording; set ST4VLA_DATA to the folder that holds it."""

import json
import os
from pathlib import Path

import pytest

from st4vla.platform.checkpoint import load_checkpoint
from st4vla.platform.cli import compose_command
from st4vla.workers.evaluation.command import main as evaluate
from st4vla.workers.training.command import main as train

FOLDER = Path(os.environ.get("ST4VLA_DATA", "")) / "lerobot_v21_pick_place"
pytestmark = [
    pytest.mark.skipif("ST4VLA_DATA" not in os.environ, reason="ST4VLA_DATA names no folder of datasets"),
    pytest.mark.slow,
]
# Its one camera is on the hand; a gripper_close of -1 is an open gripper.
READ = (
    "action: [delta_eef_position, delta_eef_rotation, gripper_close], state: [state.joints], "
    "camera_names: {wrist: ego_view}, openings: {gripper_close: [1, -1]}"
)
LEARNED = (
    "scaling: {delta_eef_position: min_max, delta_eef_rotation: min_max, gripper_close: binary}, "
    "action_form: delta_end_effector, drop_pauses: {}"
)
POLICY = [
    *("policy.planner.text.layers=1", "policy.planner.vision.layers=1", "policy.vision.layers=1"),
    *("policy.expert.layers=1", "policy.cameras=[wrist]", "policy.planner.cameras=[wrist]"),
    *("policy.statistics_key=franka_robotiq", "policy.control_hz=30"),
]
RUN = [
    *("tracking=off", "workers=0", "frame_cache=null", "held_out_share=0.25", "log_every=1", "steps=1"),
    *("validation={robot_samples: 1, grounding_samples: 1}", "batch.grounding=2"),
    "questions={weights: {box: 1, trace: 1}, cameras: null}",
]


def test_it_grounds_acts_and_is_scored(workplace: Path) -> None:
    data = f"data=[{{path: {FOLDER}, options: {{{READ}, {LEARNED}}}}}]"
    assert train(compose_command("train", [*RUN, *POLICY, data, "stage=grounding", "run_dir=one"])) == 0
    words = [data, "stage=action", "batch.robot=2", "parent=one/checkpoint", "run_dir=two"]
    assert train(compose_command("train", [*RUN, *POLICY, *words])) == 0
    rows = [json.loads(line) for line in (workplace / "two" / "rows.jsonl").read_text().splitlines()]
    assert {"loss/robot/loss", "loss/grounding/answer"} <= set().union(*rows)
    statistics = load_checkpoint(workplace / "two" / "checkpoint").processor.statistics["franka_robotiq"]
    assert [part.mode for part in statistics.action_slices] == ["min_max", "min_max", "binary"]
    assert (statistics.action.min[6], statistics.action.max[6]) == (0, 1)
    words = [f"dataset={FOLDER}", f"dataset_options={{{READ}}}", "open_loop={stride: 400, most_frames: 4, batch: 2}"]
    words += ["policy_from=two/checkpoint", "tracking=off", "run_dir=scores"]
    assert evaluate(compose_command("eval", words)) == 0
    (found,) = (workplace / "scores").glob("*/open_loop.json")
    figures = json.loads(found.read_text())["figures"]
    assert 0 <= figures["gripper_accuracy"] <= 1 and figures["action_translation_mm"] < 1000
