"""Checkpoint folders: what goes in comes out, and nothing is ever half there."""

import dataclasses
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from st4vla.platform.checkpoint import Lineage, load_checkpoint, load_planner, load_policy, save_checkpoint
from st4vla.platform.contracts import Observation
from st4vla.platform.data.statistics import EmbodimentStatistics, Statistics
from st4vla.platform.errors import CheckpointError
from st4vla.platform.policy.config import ExpertConfig, PolicyConfig
from st4vla.platform.policy.folder import is_finite, own_tensors
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.prompt import template_texts
from st4vla.platform.policy.state_policy import StateMlp, StateMlpConfig, save_state_policy
from st4vla.platform.policy.tokenizer import build_tokenizer

LINEAGE = Lineage(parent="base", data={"reach": "abc"}, git_revision="123", notes={"stage": "action"})


@pytest.fixture(scope="module")
def processor() -> Processor:
    config = PolicyConfig.from_yaml(Path(__file__).parent / "policy" / "micro.yaml")
    rows = np.linspace(-1, 1, 14).reshape(2, 7)
    statistics = EmbodimentStatistics("tabletop_panda", Statistics.of(rows), Statistics.of(rows))
    return Processor(config, build_tokenizer(template_texts(config.prompt), 512), {"tabletop_panda": statistics})


@pytest.fixture(scope="module")
def model(processor) -> St4vlaModel:
    torch.manual_seed(0)
    return St4vlaModel(processor.config, processor.token_ids)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model, processor):
    return save_checkpoint(tmp_path_factory.mktemp("saved") / "step-1", model, processor, LINEAGE)


def test_weights_tokens_statistics_and_lineage_come_back(saved, model, processor):
    loaded = load_checkpoint(saved)
    ours, theirs = own_tensors(model), own_tensors(loaded.model)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.processor.tokenizer("Point to it")["input_ids"] == processor.tokenizer("Point to it")["input_ids"]
    assert loaded.processor.statistics["tabletop_panda"].to_json() == processor.statistics["tabletop_panda"].to_json()
    assert loaded.lineage == LINEAGE
    assert loaded.model.config == model.config


def test_the_folder_holds_the_documented_files_and_leaves_no_others_beside_it(saved):
    names = {path.name for path in saved.iterdir()}
    assert names >= {"policy.yaml", "model.safetensors", "statistics.json", "lineage.json", "tokenizer.json"}
    assert [path.name for path in saved.parent.iterdir()] == ["step-1"]


def test_saving_again_replaces_the_folder(tmp_path, model, processor):
    save_checkpoint(tmp_path / "last", model, processor, LINEAGE)
    save_checkpoint(tmp_path / "last", model, processor, Lineage(parent="newer"))
    assert load_checkpoint(tmp_path / "last").lineage.parent == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_product_of_stage_one_starts_stage_two_and_the_rest_is_named(tmp_path, model, processor):
    parts = ("planner", "frame_encoder")
    folder = save_checkpoint(tmp_path / "base", model, processor, LINEAGE, parts=parts, dtype=torch.bfloat16)
    assert load_checkpoint(folder, parts_ok=True).fresh == ("query_transformer", "state_encoder", "action_expert")
    with pytest.raises(CheckpointError, match="missing action_expert.positional_embedding"):
        load_checkpoint(folder)


def test_a_planner_alone_starts_a_model_with_another_action_side(saved, model, processor):
    other = dataclasses.replace(processor.config, chunk_length=4, expert=ExpertConfig(width=64, layers=1, heads=2))
    torch.manual_seed(1)
    fresh = St4vlaModel(other, processor.token_ids)
    load_planner(fresh, saved)
    name = "vlm.model.language_model.norm.weight"
    assert torch.equal(fresh.planner.state_dict()[name], model.planner.state_dict()[name])


def test_weights_of_another_architecture_are_refused_with_all_names_at_once(tmp_path, saved):
    folder = shutil.copytree(saved, tmp_path / "other")
    values = yaml.safe_load((folder / "policy.yaml").read_text())
    values["expert"]["layers"], values["chunk_length"] = 2, 4
    (folder / "policy.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder)
    assert "unexpected action_expert.blocks.2.attn.qkv.weight" in str(error.value)
    assert "misshapen action_expert.positional_embedding: [17, 64] instead of [13, 64]" in str(error.value)
    assert "(9 tensors)" in str(error.value)


@pytest.mark.parametrize(
    "name", ["policy.yaml", "model.safetensors", "statistics.json", "tokenizer.json", "lineage.json"]
)
def test_an_incomplete_folder_is_refused_by_the_missing_name(tmp_path, saved, name):
    folder = shutil.copytree(saved, tmp_path / "part")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_checkpoint(folder)


def test_damaged_weights_are_refused(tmp_path, saved):
    folder = shutil.copytree(saved, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(folder)


def test_weights_that_are_not_finite_are_not_saved(tmp_path, processor):
    broken = St4vlaModel(processor.config, processor.token_ids)
    with torch.no_grad():
        broken.frame_encoder.widen.bias[3] = float("nan")
    with pytest.raises(CheckpointError, match="first frame_encoder.widen.bias"):
        save_checkpoint(tmp_path / "nan", broken, processor, LINEAGE)
    assert not (tmp_path / "nan").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_number_among_many_that_is_not_finite_is_found(value, dtype):
    numbers = torch.zeros(1001, dtype=dtype)
    assert is_finite(numbers)
    for place in (0, 517, 1000):
        spoilt = numbers.clone()
        spoilt[place] = value
        assert not is_finite(spoilt) and not is_finite(spoilt.view(7, 143).T)


def test_a_disk_that_fills_up_while_saving_leaves_the_old_checkpoint_whole(tmp_path, model, processor):
    folder = save_checkpoint(tmp_path / "last", model, processor, LINEAGE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    try:
        with pytest.raises(CheckpointError, match=r"last, which needs 3522524 bytes of weights"):
            save_checkpoint(folder, model, processor, Lineage(parent="newer"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert load_checkpoint(folder).lineage == LINEAGE


def test_too_little_space_is_noticed_before_anything_is_written(tmp_path, model, processor, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 12))
    with pytest.raises(CheckpointError, match="12 bytes are free"):
        save_checkpoint(tmp_path / "last", model, processor, LINEAGE)
    assert list(tmp_path.iterdir()) == []


def test_load_policy_gives_a_policy_of_the_folders_kind(saved):
    assert load_policy(saved).spec.chunk_length == 8


def test_an_unknown_kind_is_refused(tmp_path):
    (tmp_path / "policy.yaml").write_text("kind: oracle\n")
    with pytest.raises(CheckpointError, match="kind 'oracle'; this platform knows st4vla, state_mlp"):
        load_policy(tmp_path)


def test_a_state_policy_acts_as_before_after_a_round_trip(tmp_path):
    torch.manual_seed(0)
    model = StateMlp(StateMlpConfig("ppo", 5, 7, (16, 16), 5.0, "tabletop_panda", squash="tanh"))
    model.mean.fill_(1.0)
    model.low[:6], model.high[:6] = -0.02, 0.02
    model.low[6] = 0.0
    policy = load_policy(save_state_policy(tmp_path / "ppo", model, Lineage()))
    seen = [Observation({}, np.full(5, value, np.float32), "reach") for value in (0.0, 2.0)]
    actions = [chunk.actions for chunk in policy.act(seen, ["a", "b"], [(0, 0), (0, 0)])]
    with torch.inference_mode():
        expected = model(torch.stack([torch.zeros(5), torch.full((5,), 2.0)])).numpy()
    np.testing.assert_allclose(np.concatenate(actions), expected, rtol=1e-5)
    assert actions[0].shape == (1, 7) and policy.spec.cameras == () and policy.spec.state_form == "privileged"
    assert np.abs(actions[0][0, :6]).max() <= 0.02 and 0 <= actions[0][0, 6] <= 1
