"""A run folder goes on with its own settings only."""

import json
from pathlib import Path

import pytest

from st4vla.platform.errors import ConfigError
from st4vla.platform.train.config import BatchConfig, EngineConfig, OptimiserConfig, SavingConfig, TrainConfig
from st4vla.platform.train.engine import deepspeed_settings
from st4vla.platform.train.folder import finished, kept, publish, ranked, remember

SETTINGS = {"steps": 10, "optimiser": {"clip_norm": 1.0, "betas": (0.9, 0.95)}}


def train_config(**changes) -> TrainConfig:
    values = {
        "stage": "action",
        "steps": 4,
        "optimiser": {"learning_rates": {"others": 1e-3}},
        "batch": {"robot": 16, "grounding": 4},
    }
    return TrainConfig.from_mapping(values | changes)


def test_the_same_settings_go_on(tmp_path: Path):
    assert remember(tmp_path / "run", SETTINGS) is False
    assert remember(tmp_path / "run", SETTINGS) is True


def test_other_settings_are_all_listed(tmp_path: Path):
    remember(tmp_path, SETTINGS)
    with pytest.raises(ConfigError) as caught:
        remember(tmp_path, {"optimiser": {"clip_norm": 0.5, "betas": [0.9, 0.95]}, "seed": 1})
    message = str(caught.value)
    assert "steps: 10 there, absent here" in message
    assert "optimiser.clip_norm: 1.0 there, 0.5 here" in message
    assert "seed: absent there, 1 here" in message
    assert "betas" not in message


def test_a_run_is_finished_when_its_policy_is_published(tmp_path: Path):
    policy = tmp_path / "checkpoints" / "step_0000010" / "policy"
    policy.mkdir(parents=True)
    assert finished(tmp_path) is None
    (policy / "policy.yaml").write_text("kind: st4vla\n")
    assert publish(tmp_path, policy).readlink() == Path("checkpoints/step_0000010/policy")
    assert finished(tmp_path) == tmp_path / "checkpoint"


def test_a_misspelt_setting_is_named():
    with pytest.raises(ConfigError, match=r"optimiser is \['learning_rate'\]; unknown keys"):
        train_config(optimiser={"learning_rate": 1.0})


def test_a_batch_that_workers_cannot_share_is_refused():
    with pytest.raises(ConfigError, match=r"batch.grounding is 6; 2 workers x accumulation 2 need a multiple of 4"):
        BatchConfig(robot=8, grounding=6, accumulation=2).check_divides(2)


def test_stage_grounding_refuses_robot_samples():
    with pytest.raises(ConfigError, match="stage grounding reads no robot samples"):
        train_config(stage="grounding")


def test_masters_in_fp32_need_zero():
    with pytest.raises(ConfigError, match=r"deepspeed.precision is 'bf16'"):
        EngineConfig(precision="bf16", zero_stage=0)


def test_a_learning_rate_below_zero_is_refused():
    with pytest.raises(ConfigError, match=r"learning_rates\['planner'\] is -1.0"):
        OptimiserConfig({"planner": -1.0})


def test_deepspeed_is_told_the_share_of_each_worker():
    told = deepspeed_settings(train_config(batch={"robot": 16, "grounding": 4, "accumulation": 2}), world_size=2)
    assert told["train_batch_size"] == 16
    assert told["train_micro_batch_size_per_gpu"] == 4
    assert told["gradient_accumulation_steps"] == 2


def test_clipping_is_ours_without_zero_and_deepspeeds_with_it():
    assert deepspeed_settings(train_config(), 1)["gradient_clipping"] == 0.0
    assert deepspeed_settings(train_config(engine={"zero_stage": 2}), 1)["gradient_clipping"] == 1.0


def test_offloading_reaches_deepspeed():
    told = deepspeed_settings(train_config(engine={"zero_stage": 2, "offload": "cpu"}), 1)
    assert told["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert "offload_optimizer" not in deepspeed_settings(train_config(engine={"zero_stage": 2}), 1)["zero_optimization"]


def test_the_best_stay_and_the_newest_with_them(tmp_path: Path):
    values = {"step_1": 3.0, "step_2": 1.0, "step_3": 2.0, "step_4": 9.0}
    for name, value in values.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "row.json").write_text(json.dumps({"validation/error": value}))
    (tmp_path / "step_5").mkdir()
    whole = sorted(tmp_path.iterdir())
    lowest = SavingConfig(keep=2, best="validation/error")
    assert [path.name for path in ranked(whole, lowest)] == ["step_5", "step_4", "step_1", "step_3", "step_2"]
    assert {path.name for path in kept(whole, lowest)} == {"step_2", "step_3", "step_5"}
    assert ranked(whole, SavingConfig(best="validation/error", best_is="highest"))[-1].name == "step_4"
    assert {path.name for path in kept(whole, SavingConfig(keep=2))} == {"step_4", "step_5"}


def test_the_best_can_only_be_told_where_every_checkpoint_is_validated():
    with pytest.raises(ConfigError, match=r"let validation\.every divide saving\.every"):
        train_config(saving={"every": 3, "best": "validation/box_iou"}, validation={"every": 2})


def test_gradients_are_not_compared_on_a_weight_that_adapters_freeze():
    with pytest.raises(ConfigError, match=r"similarity.every is 5; adapters freeze .* adapters.rank=0"):
        train_config(similarity={"every": 5}, adapters={"rank": 4})


def test_a_run_from_before_a_setting_goes_on_with_what_it_had(tmp_path: Path):
    remember(tmp_path / "run", {"steps": 2})
    assert remember(tmp_path / "run", {"steps": 2, "packing": False})
    with pytest.raises(ConfigError, match="packing: False there, True here"):
        remember(tmp_path / "run", {"steps": 2, "packing": True})
