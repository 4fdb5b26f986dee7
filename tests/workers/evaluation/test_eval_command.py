"""Facts about what the words of `st4vla eval` and `st4vla compare` mean."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from st4vla.platform.cli import compose_command
from st4vla.platform.errors import ConfigError
from st4vla.workers.evaluation.command import read_config
from st4vla.workers.evaluation.evaluate import facts
from st4vla.workers.evaluation.ledger import plan_digest
from st4vla.workers.results.compare_command import main as compare


def settings(*words: str) -> Any:
    return OmegaConf.to_container(compose_command("eval", words), resolve=True)


def test_the_plain_command_evaluates_the_usual_tasks_of_one_suite():
    config = read_config(settings("policy_from=random"))
    assert (config.suites, config.tasks, config.episodes, config.stop) == (("seen",), (), None, None)
    assert config.family_name == "tabletop"


def test_simplerenv_is_found_by_its_suites_and_not_mixed_with_the_tabletop():
    config = read_config(settings("policy_from=random", "suite=[simplerenv_widowx,simplerenv_google_vm]"))
    assert config.family_name == "simpler"
    mixed = read_config(settings("policy_from=random", "suite=[seen,simplerenv_widowx]"))
    with pytest.raises(ConfigError, match="mixes families of worlds"):
        mixed.settings()


def test_a_preset_of_simplerenv_can_be_changed_and_decides_the_run_folder():
    words = ["policy_from=random", "suite=[simplerenv_widowx,simplerenv_google_vm]"]
    usual = read_config(settings(*words)).settings()["execution"]
    assert [usual[robot]["execute"] for robot in ("widowx", "google_robot")] == [1, 1]
    assert [usual[robot]["ensemble_horizon"] for robot in ("widowx", "google_robot")] == [7, 2]
    plain = read_config(settings(*words, "execute=8", "execution.ensemble_horizon=1", "execution.sticky_steps=15"))
    assert plain.settings()["execution"]["widowx"] | {"gripper": ""} == {
        **{"execute": 8, "ensemble_horizon": 1, "ensemble_alpha": 0.1, "gripper": ""},
        **{"sticky_steps": 15, "action_scale": 1.0},
    }
    shown = facts(plain, [])
    assert shown["chunks on widowx"] == "8 of each chunk's actions a look, the newest chunk alone"
    assert shown["chunks on google_robot"].endswith(", a change of the gripper told for 15 steps")
    assert "actions executed per look" not in shown


def test_the_tabletop_has_no_preset_and_its_run_folders_keep_their_names():
    config = read_config(settings("policy_from=random"))
    assert plan_digest([], config.settings()) == "5ce3bfb3586a15e9"
    assert facts(config, [])["actions executed per look"] == "the whole chunk"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["execution.ensemble_horizon=1"], "take actions as they are"),
        (["suite=simplerenv_widowx", "execution.sticky_steps=5"], "gripper of widowx is told its opening"),
        (["suite=simplerenv_widowx", "execution.ensemble_horizon=0"], "ensemble_horizon is 0"),
    ],
)
def test_a_change_that_no_robot_heeds_is_refused(words: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        read_config(settings("policy_from=random", *words)).settings()


def test_a_policy_server_is_read_with_its_names():
    words = ["policy_from=remote", "url=ws://127.0.0.1:8000", "remote.deadline_s=2"]
    config = read_config(settings(*words, "remote.keys={observation/wrist_image:null}"))
    assert config.policy.remote is not None
    assert (config.policy.title, config.policy.remote.deadline_s) == ("remote ws://127.0.0.1:8000", 2)
    assert "observation/wrist_image" not in config.policy.remote.sent


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["policy_from=remote"], "needs one such as url=ws://"),
        (["policy_from=random", "url=ws://a:1"], "belongs to policy=remote"),
        (["policy_from=models:/x", "tracking=off"], "is looked up in MLflow"),
        (["policy_from=random", "stop.low=0.5"], "stop needs both rates"),
        (["policy_from=random", "latency=soon"], "expected seconds from 0 to 60"),
        (["policy_from=random", "run_dir=s3://bucket/x"], "object stores cannot do"),
        (["policy_from=random", "watch.step_timeout_s=0"], "expected more than 0 seconds"),
        (["policy_from=random", "gpu_workers.gpus_each=2"], "a share above 0 and up to 1"),
        (["policy_from=random", "execution.ensemble_horizon=1.5"], "execution.ensemble_horizon is 1.5; expected int"),
        (["policy_from=nowhere"], "does not exist; expected random, expert"),
    ],
)
def test_a_wrong_setting_is_a_clear_error(words: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        read_config(settings(*words))


def test_a_run_is_not_compared_with_itself(tmp_path: Path):
    with pytest.raises(ConfigError, match="was given twice"):
        compare(compose_command("compare", [f"run_a={tmp_path}", f"run_b={tmp_path}/"]))
