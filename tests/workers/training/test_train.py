"""`st4vla train`, for real: Ray Train, two DeepSpeed workers, both stages, a killed worker."""

import threading
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from st4vla.platform.checkpoint import load_checkpoint
from st4vla.platform.cli import compose_command
from st4vla.platform.errors import CheckpointError, ConfigError, DataError
from st4vla.platform.train.alone import FolderReporter
from st4vla.platform.train.config import SavingConfig
from st4vla.workers.training.command import (
    RunConfig,
    check_carrier,
    main,
    read_job,
    read_run,
    read_sources,
    with_parents_policy,
)
from st4vla.workers.training.progress import read_rows

SMALL = [
    "tracking=off",
    "policy.planner.text.layers=1",
    "policy.planner.vision.layers=1",
    "policy.vision.layers=1",
    "policy.expert.layers=1",
    "batch.grounding=4",
    "held_out_share=0.2",
    "validation={robot_samples: 2, grounding_samples: 2}",
    "log_every=2",
    "drawn=0",
]


def train(data: Path, folder: Path, *overrides: str) -> Path:
    cfg = compose_command("train", [*SMALL, f"data={data}", f"run_dir={folder}", *overrides])
    assert main(cfg) == 0
    return folder / "checkpoint"


def settings(*overrides: str) -> dict:
    from omegaconf import OmegaConf

    cfg = compose_command("train", ["data=x", *overrides])
    return OmegaConf.to_container(cfg, resolve=True)  # pyright: ignore[reportReturnType]


def test_sources_are_a_folder_a_list_or_mappings():
    both = read_sources(["a", {"path": "b", "weight": 3.0}])
    assert [(Path(one.path).name, one.weight) for one in both] == [("a", 1.0), ("b", 3.0)]
    assert read_sources("a") == both[:1]


@pytest.mark.parametrize("policy", ["tiny", "small", "st4vla_4b", "st4vla_qwen3vl_4b"])
@pytest.mark.parametrize("stage", ["grounding", "action"])
def test_every_recipe_makes_a_job(policy: str, stage: str):
    job = read_job(settings(f"policy={policy}", f"stage={stage}"))
    assert job.train.stage == stage and job.policy.name == policy
    assert job.train.batch.robot == (0 if stage == "grounding" else 4 * job.train.batch.grounding)


def test_the_published_recipe_is_the_published_one():
    job = read_job(settings("policy=st4vla_4b", "deepspeed=zero2"))
    rates = job.train.optimiser.learning_rates
    assert (job.train.batch.robot, job.train.batch.grounding, job.train.steps) == (256, 64, 50_000)
    assert (rates["planner"], rates["action_expert"], rates["others"]) == (1e-5, 1e-4, 5e-5)
    assert (job.train.loss_weights["grounding"], job.train.optimiser.min_learning_rate) == (0.1, 5e-7)


def test_a_dataset_that_is_none_stops_the_command_before_any_worker(workplace: Path):
    with pytest.raises(DataError, match="nowhere"):
        train(workplace / "nowhere", workplace / "run", "stage=grounding")


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/run", "hf:owner/name"])
def test_a_run_folder_at_an_address_is_refused(address: str):
    with pytest.raises(ConfigError, match="run_dir is .*an address.*Mount the bucket"):
        read_run(settings() | {"run_dir": address})


def test_a_run_goes_on_the_way_it_was_begun(tmp_path: Path):
    from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

    def count(workers: int) -> RunConfig:
        return RunConfig(tmp_path / "run", workers)

    for workers in (0, 2):
        check_carrier(count(workers))  # nothing lies there yet
    reporter = FolderReporter(tmp_path / "run" / "checkpoints", SavingConfig())
    reporter.checkpoint(2, lambda folder: lambda: None, {}, lambda: None)
    reporter.close()
    check_carrier(count(0))
    with pytest.raises(ConfigError, match="begun with workers=0, and workers is 2; Ray would .* begin at step 0"):
        check_carrier(count(2))
    on_ray = tmp_path / "on_ray" / "checkpoints"
    on_ray.mkdir(parents=True)
    (on_ray / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME).touch()
    for workers in (1, 2):
        check_carrier(RunConfig(tmp_path / "on_ray", workers))
    with pytest.raises(ConfigError, match="begun on Ray, and workers is 0"):
        check_carrier(RunConfig(tmp_path / "on_ray", 0))


def test_actions_of_another_width_are_refused(painted_dataset: Path, workplace: Path):
    with pytest.raises(DataError, match="action rows of width 7, the policy reads 8"):
        train(painted_dataset, workplace / "run", "policy.action_dim=8", "batch.robot=8")


def test_the_parents_own_policy_is_trained_where_asked_for(workplace: Path):
    assert with_parents_policy(settings())["policy"]["name"] == "tiny"
    (workplace / "parent").mkdir()
    (workplace / "parent" / "policy.yaml").write_text("kind: st4vla\nname: theirs\n")
    asked = settings("parent=parent", "policy_of_parent=true", "policy=st4vla_4b")
    assert with_parents_policy(asked)["policy"] == {"kind": "st4vla", "name": "theirs"}
    with pytest.raises(ConfigError, match="policy_of_parent is true, but there is no parent"):
        with_parents_policy(settings("policy_of_parent=true"))


@pytest.mark.slow
def test_both_stages_run_in_this_process_and_the_first_is_the_parent(painted_dataset: Path, workplace: Path):
    grounded = train(painted_dataset, workplace / "one", "stage=grounding", "workers=0", "steps=2")
    assert train(painted_dataset, workplace / "one", "stage=grounding", "workers=0", "steps=2") == grounded
    with pytest.raises(ConfigError, match="steps: 2 there, 3 here"):
        train(painted_dataset, workplace / "one", "stage=grounding", "workers=0", "steps=3")
    with pytest.raises(CheckpointError, match=r"planner\.text\.layers: 1 there, 2 here"):
        train(painted_dataset, workplace / "x", f"parent={grounded}", "policy.planner.text.layers=2")
    more = ("workers=0", "steps=2", "batch.robot=8", "packing=true", "drawn=2")
    acting = train(painted_dataset, workplace / "two", f"parent={grounded}", *more)
    drawn = sorted(path.name for path in (workplace / "two" / "drawings").iterdir())
    assert drawn == ["actions_0000002.png", "answers_0000002.png"]
    checkpoint = load_checkpoint(acting)
    assert checkpoint.lineage.parent == str(grounded)
    assert checkpoint.lineage.notes["stage"] == "action"
    assert list(checkpoint.processor.statistics) == ["tabletop_panda"]


@pytest.mark.slow
def test_actions_of_six_joints_are_trained_and_validated_to_the_end(painted_dataset: Path, workplace: Path):
    six = f"data=[{{path: {painted_dataset}, options: {{action: [position, rotation]}}}}]"
    words = ("policy.action_dim=6", "++policy.action_form=absolute_joints", "batch={robot: 4, grounding: 0}")
    acting = train(painted_dataset, workplace / "six", six, *words, "workers=0", "steps=1", "drawn=1")
    assert load_checkpoint(acting).model.config.action_dim == 6
    figures = set().union(*read_rows(workplace / "six"))
    assert "validation/action_error" in figures and "validation/action_translation_mm" not in figures


def kill_a_worker_after(checkpoints: Path, killed: list[int]) -> None:
    """SIGKILL one training worker of ours once the second checkpoint stands, so that the first is known to Ray."""
    while len(list(checkpoints.glob("step_*/engine/latest"))) < 2:
        time.sleep(0.05)
    for child in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in child.name() or "RayTrainWorker" in " ".join(child.cmdline()):
            child.kill()
            killed.append(child.pid)
            return


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(painted_dataset: Path, workplace: Path):
    from st4vla.workers.cluster import EngineConfig, connect

    words = ("stage=grounding", "workers=2", "steps=8", "saving.every=2")
    killed: list[int] = []
    with connect(EngineConfig(num_cpus=2)):
        watch = threading.Thread(
            target=kill_a_worker_after, args=(workplace / "b" / "checkpoints", killed), daemon=True
        )
        watch.start()
        broken = train(painted_dataset, workplace / "b", *words)
        unbroken = train(painted_dataset, workplace / "a", *words)
    assert killed
    one, other = (load_file(folder / "model.safetensors") for folder in (unbroken, broken))
    assert all(one[name].equal(other[name]) for name in one)
    stored = [row for row in read_rows(workplace / "a") if "checkpoint/whole_s" in row]
    assert [row["step"] for row in stored] == [2.0, 4.0, 6.0, 8.0]
    assert all(0 < row["checkpoint/blocked_s"] <= row["checkpoint/whole_s"] for row in stored)
