"""Every named mixture composes, and reads datasets of the published ones' shape as it says."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from st4vla.platform.cli import compose_command
from st4vla.platform.contracts import ActionSample
from st4vla.platform.data.episode import Episode
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterConfig
from st4vla.platform.errors import ConfigError, DataError
from st4vla.platform.train.job import check_job
from st4vla.platform.train.sources import SourceConfig, Sources
from st4vla.platform.train.stage import StageJob
from st4vla.workers.training.command import read_job

NAMES = sorted(path.stem for path in (Path(__file__).parents[3] / "configs" / "mixture").glob("*.yaml"))
FRACTAL, BRIDGE = "fractal20220817_data_lerobot", "bridge_orig_lerobot"


def job_of(*words: str) -> StageJob:
    return read_job(OmegaConf.to_container(compose_command("train", list(words)), resolve=True))  # type: ignore[arg-type]


def record(folder: Path, cameras: list[str], width: int = 7, episodes: int = 2, fps: int = 5) -> None:
    """Write a dataset of few frames whose actions are `width` wide."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.02, 0.02, (6, width)).astype(np.float32)
    actions[:, -1] = [1, 1, 1, 0, 0, 0]
    actions[1, :3] = 0
    frames = {name: np.full((6, 32, 32, 3), 90, np.uint8) for name in cameras}
    with LeRobotWriter(folder, WriterConfig(formats=("v2.1",))) as writer:
        for seed in range(episodes):
            states = rng.normal(size=(6, 8)).astype(np.float32)
            writer.add(Episode("open it", "open", actions, states, frames, {}, fps, seed, f"{seed:016x}"))


@pytest.mark.parametrize("name", NAMES)
def test_the_mixture_composes_for_every_size_of_policy(name: str) -> None:
    for policy in ("tiny", "st4vla_4b"):
        job = job_of(f"mixture={name}", f"policy={policy}")
        assert job.robot and all(source.kind == "lerobot" for source in job.robot)
        keys = {source.options.get("statistics_key") for source in job.robot}
        assert name == "own" or job.reading.statistics_key in keys
        remote = [source.path for source in job.robot if source.path.startswith("hf:IPEC-COMMUNITY/")]
        assert name == "own" or len(remote) == len(job.robot)


def test_bridge_rt_1_is_half_bridge_and_half_rt_1_each_in_its_own_scale(tmp_path: Path) -> None:
    record(tmp_path / BRIDGE, ["image_0", "image_1"])
    record(tmp_path / FRACTAL, ["image"], episodes=4)
    job = job_of("mixture=bridge_rt_1", f"mixture_root={tmp_path}", "held_out_share=0", "batch.grounding=0")
    sources = Sources(job.robot, (), job.reading, seed=0)
    assert [source.name for source in sources.robot] == [BRIDGE, FRACTAL]
    assert {one.key: [part.mode for part in one.action_slices] for one in sources.statistics()} == {
        "oxe_bridge": ["q99", "q99", "zero_one"],
        "oxe_rt1": ["q99", "q99", "zero_one"],
    }
    mixture = sources.mixtures["robot"]
    assert [len(source) for source in mixture.sources] == [10, 20], "the second frame of each episode is a pause"
    drawn = [mixture.at(position).source for position in range(400)]
    assert 160 < sum(drawn) < 240, "half and half, though one is twice the other's size"
    sample: ActionSample = mixture.sources[1].load(0, np.random.default_rng(0))
    assert list(sample.images) == ["third_person"] and sample.state is None and sample.actions.shape[1] == 7


def test_libero_is_read_with_its_wrist_and_its_gripper_as_it_is(tmp_path: Path) -> None:
    record(tmp_path / "libero_goal_no_noops_1.0.0_lerobot", ["image", "wrist_image"])
    job = job_of("mixture=libero_goal", f"mixture_root={tmp_path}", "batch.grounding=0")
    (source,) = Sources(job.robot, (), job.reading, seed=0).robot
    statistics = source.statistics()
    assert statistics is not None and statistics.key == "franka"
    assert [part.mode for part in statistics.action_slices] == ["q99", "q99", "identity"]
    sample = source.robot().load(0, np.random.default_rng(0))
    assert list(sample.images) == ["third_person", "wrist"] and len(sample.actions) == 8


def test_clashing_action_widths_name_every_dataset_and_its_columns(tmp_path: Path) -> None:
    record(tmp_path / "arm", ["third_person", "wrist"])
    record(tmp_path / "joints", ["third_person", "wrist"], width=8)
    job = job_of(f"data=[{tmp_path}/arm,{tmp_path}/joints]")
    with pytest.raises(DataError) as clash:
        Sources(job.robot, (), job.reading, seed=0)
    lines = str(clash.value).splitlines()
    assert lines[1:3] == [
        "  7 wide, arm: action[0:3] + action[3:6] + action[6:7]",
        "  8 wide, joints: action[0:8]",
    ]


def test_rotations_of_another_form_than_the_policys_are_refused(tmp_path: Path) -> None:
    record(tmp_path / BRIDGE, ["image_0"])
    job = job_of("mixture=bridge", f"mixture_root={tmp_path}", "policy.semantics.rotation=vector")
    with pytest.raises(DataError, match=r"options.rotation says 'euler' .*; set \+\+policy.semantics.rotation=euler"):
        Sources(job.robot, (), job.reading, seed=0)
    joints = job_of("mixture=bridge", f"mixture_root={tmp_path}", "++policy.action_form=delta_joints")
    with pytest.raises(DataError, match="options.action_form says 'delta_end_effector' .* means 'delta_joints'"):
        Sources(joints.robot, (), joints.reading, seed=0)


def test_recordings_of_another_rate_than_the_policys_are_refused_with_both(tmp_path: Path) -> None:
    record(tmp_path / FRACTAL, ["image"], fps=3)
    words = [f"mixture_root={tmp_path}", "batch.grounding=0", "frame_cache=null"]
    assert job_of("mixture=rt_1").policy.control_hz == 3
    check_job(job_of("mixture=rt_1", *words))
    with pytest.raises(ConfigError, match=rf"control_hz is 5 .*: {FRACTAL} at 3 Hz; .* Set policy.control_hz=3 "):
        check_job(job_of("mixture=rt_1", *words, "policy.control_hz=5"))


def test_of_a_mixture_one_dataset_has_the_policys_rate_and_the_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record(tmp_path / BRIDGE, ["image_0"])
    record(tmp_path / FRACTAL, ["image"], fps=3)
    check_job(job_of("mixture=bridge_rt_1", f"mixture_root={tmp_path}", "batch.grounding=0"))
    (warned,) = [one.getMessage() for one in caplog.records if "control_hz" in one.message]
    assert f"control_hz is 5, and actions of {FRACTAL} at 3 Hz are learned" in warned and BRIDGE not in warned


def test_a_gripper_that_would_become_a_constant_stops_the_driver(tmp_path: Path) -> None:
    record(tmp_path / "arm", ["third_person", "wrist"])
    (data,) = (tmp_path / "arm" / "data").rglob("*_000001.parquet")
    table = pq.read_table(data)
    rows = [[*row[:6], 0.08 * row[6]] for row in table["action"].to_pylist()]
    for path in data.parent.iterdir():
        pq.write_table(pq.read_table(path).set_column(0, "action", pa.array(rows, pa.list_(pa.float32()))), path)
    with pytest.raises(DataError, match=r"number 6 of the action runs from 0 to 0\.08 .* option openings"):
        check_job(job_of(f"data={tmp_path}/arm", "batch.grounding=0", "frame_cache=null"))


def test_a_mixture_of_ones_own_is_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "mixture").mkdir()
    lines = ["# @package _global_", "mixture_root: /data", "data:", "  - {path: '${mixture_root}/a', weight: 2.0}"]
    (tmp_path / "mixture" / "kitchen.yaml").write_text("\n".join(lines))
    job = job_of("mixture=kitchen", f"hydra.searchpath=[file://{tmp_path}]")
    assert job.robot == (SourceConfig("/data/a", weight=2.0),)


def test_a_dataset_without_the_mixtures_camera_says_what_it_has(tmp_path: Path) -> None:
    record(tmp_path / BRIDGE, ["top"])
    job = job_of("mixture=bridge", f"mixture_root={tmp_path}")
    with pytest.raises(DataError, match=f"{BRIDGE} has no camera image_0; it has top"):
        Sources(job.robot, (), job.reading, seed=0)
