"""Open-loop scores hold chunks against recorded actions, episode ends left out."""

import json
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.checkpoint import Lineage, save_checkpoint
from st4vla.platform.cli import compose_command
from st4vla.platform.contracts import ActionSample
from st4vla.platform.data.statistics import EmbodimentStatistics, Statistics
from st4vla.platform.errors import ConfigError, DataError, PolicyError
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.prompt import template_texts
from st4vla.platform.policy.random_policy import RandomPolicyConfig
from st4vla.platform.policy.tokenizer import build_tokenizer
from st4vla.workers.evaluation.command import main
from st4vla.workers.evaluation.open_loop import OpenLoopConfig, load_for, open_for, summarise
from st4vla.workers.rollout.policies import PolicySource

RANDOM = PolicySource("random", RandomPolicyConfig(cameras=("third_person",), chunk_length=8))


def sample(actions: list[list[float]], is_pad: list[bool]) -> ActionSample:
    return ActionSample({}, None, "reach", np.array(actions, np.float32), np.array(is_pad), "arm")


def test_rows_after_the_end_count_nowhere():
    samples = [sample([[1.0, 0.0], [9.0, 9.0]], [False, True]), sample([[1.0, 0.0], [1.0, 0.0]], [False, False])]
    chunks = [np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)]
    result = summarise([(0, 0), (0, 1)], samples, chunks, np.array([0.5, 0.0]), "delta_end_effector")
    assert result.by_dimension == (1.0, 0.0)
    assert result.by_step == (1.0, 1.0)
    assert result.figures == {"action_error": 1.0}
    assert result.traces[0][1].tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_seven_joints_are_not_told_as_millimetres():
    samples = [sample([[0.5] * 7], [False])]
    chunks, spread = [np.zeros((1, 7), np.float32)], np.full(7, 0.25)
    assert summarise([(0, 0)], samples, chunks, spread, "delta_joints").figures == {"action_error": 2.0}
    assert "action_translation_mm" in summarise([(0, 0)], samples, chunks, spread, "delta_end_effector").figures


def test_the_command_scores_a_policy_on_recordings(painted_dataset: Path, workplace: Path):
    words = ["policy_from=random", f"dataset={painted_dataset}", "tracking=off", "random.cameras=[third_person]"]
    assert main(compose_command("eval", [*words, "open_loop.stride=2", f"run_dir={workplace}"])) == 0
    folder = workplace / "random-on-painted"
    found = json.loads((folder / "open_loop.json").read_text())
    assert found["frames"] == 24 and len(found["by_dimension"]) == 7
    assert 0 < found["figures"]["action_translation_mm"] < 100
    assert (folder / "open_loop.png").stat().st_size > 1000


def test_actions_of_another_width_are_refused(painted_dataset: Path):
    policy = RANDOM.load()
    with pytest.raises(DataError, match="actions of width 3, the policy gives 7"):
        open_for(policy, OpenLoopConfig(RANDOM, str(painted_dataset), {"action": ["position"]}))


def test_a_form_that_the_policy_does_not_give_is_refused(painted_dataset: Path):
    policy = RANDOM.load()
    for options, said in (({"rotation": "euler"}, "'euler'"), ({"action_form": "delta_joints"}, "'delta_joints'")):
        with pytest.raises(DataError, match=f"says {said} of its actions.*score it on recordings of its own form"):
            open_for(policy, OpenLoopConfig(RANDOM, str(painted_dataset), options))
    open_for(policy, OpenLoopConfig(RANDOM, str(painted_dataset), {"rotation": "vector"}))


def test_a_checkpoint_acts_for_the_embodiment_that_is_named(tmp_path: Path):
    config = PolicyConfig.from_yaml(Path(__file__).parents[2] / "platform" / "policy" / "micro.yaml")
    rows = np.linspace(-1, 1, 14).reshape(2, 7)
    known = {
        key: EmbodimentStatistics(key, Statistics.of(rows), Statistics.of(rows)) for key in ("tabletop_panda", "b")
    }
    processor = Processor(config, build_tokenizer(template_texts(config.prompt), 512), known)
    lineage = Lineage(parent="", data={}, git_revision="", notes={})
    folder = save_checkpoint(tmp_path / "policy", St4vlaModel(config, processor.token_ids), processor, lineage)
    source = PolicySource(str(folder))
    assert load_for(OpenLoopConfig(source, "x", {})).spec.statistics_key == "tabletop_panda"
    assert load_for(OpenLoopConfig(source, "x", {"statistics_key": "b"})).spec.statistics_key == "b"
    with pytest.raises(PolicyError, match="No statistics for 'c'"):
        load_for(OpenLoopConfig(source, "x", {"statistics_key": "c"}))
    with pytest.raises(ConfigError, match="policy=random keeps no statistics"):
        load_for(OpenLoopConfig(RANDOM, "x", {"statistics_key": "b"}))


def test_the_expert_needs_a_world(painted_dataset: Path, workplace: Path):
    with pytest.raises(ConfigError, match="inside a simulated world"):
        main(compose_command("eval", ["policy_from=expert", f"dataset={painted_dataset}", "tracking=off"]))
