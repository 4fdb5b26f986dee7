"""Published checkpoints come in whole, or not at all with everything that is wrong said at once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from st4vla.platform.checkpoint import load_checkpoint, load_policy
from st4vla.platform.contracts import Observation
from st4vla.platform.errors import CheckpointError, ConfigError
from st4vla.platform.policy.config import SemanticsConfig
from st4vla.platform.policy.folder import read_tensors
from st4vla.platform.published.base import resolve
from st4vla.platform.published.bring_in import ImportConfig, bring_in
from st4vla.platform.published.run import to_statistics

WEIGHTS = Path("checkpoints") / "steps_1200_pytorch_model.pt"


@pytest.fixture
def run(tmp_path: Path, run_folder: Path) -> Path:
    """A copy of the published run, to spoil."""
    return shutil.copytree(run_folder, tmp_path / "run")


def change_weights(run: Path, change: Any) -> None:
    state = torch.load(run / WEIGHTS, weights_only=True)
    change(state)
    torch.save(state, run / WEIGHTS)


def refusal(run: Path | str, options: ImportConfig, tmp_path: Path) -> str:
    """Give the words in which an import is refused; nothing may be left behind."""
    with pytest.raises(CheckpointError) as error:
        bring_in(str(run), tmp_path / "ours", options)
    assert not (tmp_path / "ours").exists()
    return str(error.value)


def test_the_imported_policy_says_what_the_run_was(imported):
    config = load_checkpoint(imported).model.config
    assert config.name == "tiny_run" and config.statistics_key == "oxe_bridge" and config.control_hz == 5.0
    assert config.cameras == ("third_person",) and config.chunk_length == 4 and config.query.queries == 6
    assert config.prompt.action.endswith("Locate their bounding boxes in [x1,y1,x2,y2] format.")
    assert config.semantics == SemanticsConfig(attend_padding=True, lowercase=True, verbatim=True, rotation="euler")
    assert config.query.grad_scale == 1.0 and config.vision.position_offset == 0.1
    assert config.planner.plan_layers == () and config.planner.text.tie_embeddings


def test_every_published_tensor_is_accounted_for(imported, run_folder):
    notes = json.loads((imported / "lineage.json").read_text())["notes"]["imported"]
    state = torch.load(run_folder / WEIGHTS, weights_only=True)
    assert notes["published_tensors"] == len(state)
    assert notes["unused"] == [f"action_model.net.history_embedder.linear.{part}" for part in ("bias", "weight")]
    assert notes["tied_to_embedding"] == ["lm_head.weight"] and notes["mapped"] == len(state) - 3
    assert notes["planner_names"] == "flat" and notes["step"] == 1200
    assert notes["base_vlm_was"].endswith("checkpoint-20000")


def test_the_weights_are_the_published_ones_to_the_bit(imported, run_folder):
    state, ours = torch.load(run_folder / WEIGHTS, weights_only=True), read_tensors(imported)
    query = ours["frame_encoder.dino.encoder.layer.1.attention.q_proj.weight"]
    assert torch.equal(query, state["dino_encoder.body.blocks.1.attn.qkv.weight"][:128])
    assert torch.equal(ours["query_transformer.query_tokens"], state["layer_qformer.query_tokens"])


def test_both_generations_of_planner_names_give_the_same_folder(
    tmp_path, imported, original, published_state, write_run, options
):
    newer = bring_in(
        str(write_run(tmp_path / "newer", published_state(original, "nested"))), tmp_path / "ours", options
    )
    ours, theirs = read_tensors(imported), read_tensors(newer)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_planner_without_a_saved_output_layer_comes_in_too(tmp_path, run, options, imported):
    change_weights(run, lambda state: state.pop("qwen_vl_interface.model.lm_head.weight"))
    folder = bring_in(str(run), tmp_path / "ours", options)
    assert read_tensors(folder).keys() == read_tensors(imported).keys()


def test_an_output_layer_of_its_own_is_kept(tmp_path, run, options):
    name = "qwen_vl_interface.model.lm_head.weight"
    change_weights(run, lambda state: state.update({name: state[name] + 1}))
    loaded = load_checkpoint(bring_in(str(run), tmp_path / "ours", options))
    assert not loaded.model.config.planner.text.tie_embeddings
    expected = torch.load(run / WEIGHTS, weights_only=True)[name]
    assert torch.equal(loaded.model.planner.vlm.lm_head.weight, expected)


def test_missing_extra_and_misshapen_tensors_are_listed_at_once(tmp_path, run, options):
    def spoil(state: dict[str, torch.Tensor]) -> None:
        del state["dino_pro.bias"]
        del state["qwen_vl_interface.model.visual.blocks.2.attn.qkv.weight"]
        state["action_model.net.extra"] = torch.zeros(3)
        state["action_model.net.positional_embedding"] = torch.zeros(12, 64)

    change_weights(run, spoil)
    words = refusal(run, options, tmp_path)
    assert "(4):" in words
    assert "missing dino_pro.bias [64]" in words
    assert "missing qwen_vl_interface.model.visual.blocks.2.attn.qkv.weight [192, 64]" in words
    assert "unexpected action_model.net.extra [3]" in words
    assert "misshapen action_model.net.positional_embedding: [12, 64] instead of [10, 64]" in words


def test_nan_in_the_weights_is_named(tmp_path, run, options):
    change_weights(run, lambda state: state["layer_qformer.proj.bias"].__setitem__(3, float("nan")))
    assert "first layer_qformer.proj.bias" in refusal(run, options, tmp_path)


def test_a_run_without_statistics_is_refused(tmp_path, run, options):
    (run / "dataset_statistics.json").unlink()
    assert "has no dataset_statistics.json; without it no action can be scaled back" in refusal(run, options, tmp_path)


def test_an_embodiment_that_is_not_there_is_refused_with_those_that_are(tmp_path, run, options):
    words = refusal(run, replace(options, embodiment="franka"), tmp_path)
    assert "'franka' is not in the checkpoint's statistics; there are: oxe_bridge, oxe_rt1" in words


def test_of_several_embodiments_one_must_be_chosen(tmp_path, run, options):
    assert "choose one with embodiment=NAME" in refusal(run, replace(options, embodiment=""), tmp_path)


def test_a_pickle_that_holds_more_than_tensors_is_never_run(tmp_path, run, options):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"layer_qformer.query_tokens": Trap()}, run / WEIGHTS)
    assert "cannot be read as tensors alone" in refusal(run, options, tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 cut short"])
def test_damaged_weights_are_refused(tmp_path, run, options, content):
    (run / WEIGHTS).write_bytes(content)
    assert "cannot be read as tensors alone" in refusal(run, options, tmp_path)


def test_a_nested_state_dict_is_refused_by_name(tmp_path, run, options):
    torch.save({"model": {"a": torch.zeros(1)}, "step": 3}, run / WEIGHTS)
    assert "model, step are no tensors" in refusal(run, options, tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path, options):
    (tmp_path / "run").mkdir()
    assert "has no config.yaml" in refusal(tmp_path / "run", options, tmp_path)


def test_an_unknown_architecture_is_refused_with_the_way_out(tmp_path, run, options):
    words = refusal(run, replace(options, settings={}), tmp_path)
    assert "action_model_type is 'DiT-tiny'; known are DiT-S, DiT-B, DiT-L" in words and "settings={expert:" in words


def test_an_unknown_setting_is_refused(tmp_path, run, options):
    with pytest.raises(ConfigError, match="chunk_lenght is not a setting of PolicyConfig; did you mean chunk_length"):
        bring_in(str(run), tmp_path / "ours", replace(options, settings={**options.settings, "chunk_lenght": 3}))


def test_the_newest_weights_are_taken_unless_others_are_named(tmp_path, run, options):
    shutil.copy(run / WEIGHTS, run / "checkpoints" / "steps_900_pytorch_model.pt")
    for weights, step in (("", 1200), ("steps_900_pytorch_model.pt", 900)):
        folder = bring_in(str(run), tmp_path / str(step), replace(options, weights=weights))
        assert json.loads((folder / "lineage.json").read_text())["notes"]["imported"]["step"] == step
    assert "it has steps_1200" in refusal(run, replace(options, weights="steps_7.pt"), tmp_path)


def test_a_file_of_weights_stands_for_its_run(tmp_path, run, options):
    assert (bring_in(str(run / WEIGHTS), tmp_path / "ours", options) / "policy.yaml").is_file()


def test_weights_can_be_narrowed_on_the_way_in(tmp_path, run, options):
    folder = bring_in(str(run), tmp_path / "ours", replace(options, dtype="bfloat16"))
    assert {tensor.dtype for tensor in read_tensors(folder).values()} == {torch.bfloat16}
    with pytest.raises(ConfigError, match="dtype is 'int8'"):
        replace(options, dtype="int8")


@pytest.mark.parametrize(
    ("named", "public"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("./playground/Pretrained_models/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("/far/away/manip_sys2_qwen25_3b_onevision_molmo/checkpoint-20000", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("/far/away/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("/far/away/Qwen3-VL-4B-Instruct-Action/", "Qwen/Qwen3-VL-4B-Instruct"),
    ],
)
def test_somebodys_path_to_the_base_becomes_its_public_name(named, public):
    assert resolve(named) == public


def test_a_path_that_tells_no_model_asks_for_one():
    with pytest.raises(CheckpointError, match="'/far/away/best', which is not here .*; give base_vlm=FOLDER"):
        resolve("/far/away/best")


def test_a_hub_that_is_away_says_what_to_give_instead(tmp_path, run, options, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    words = refusal(run, replace(options, base_vlm="somebody/some-model"), tmp_path)
    assert "somebody/some-model could not be fetched" in words and "give base_vlm=FOLDER" in words
    words = refusal("hf:somebody/some-policy", options, tmp_path)
    assert "somebody/some-policy could not be fetched" in words


def test_a_base_of_another_size_is_refused(tmp_path, run, base_folder, options):
    other = shutil.copytree(base_folder, tmp_path / "base")
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 2}))
    changed = replace(options, base_vlm=str(other), settings={**options.settings, "planner": {"plan_layers": []}})
    run_config = yaml.safe_load((run / "config.yaml").read_text())
    run_config["framework"]["layer_qformer"] |= {"qformer_start_layer": 2, "qformer_end_layer": 3}
    (run / "config.yaml").write_text(yaml.safe_dump(run_config))
    assert "unexpected qwen_vl_interface.model.model.layers.2.mlp.up_proj.weight" in refusal(run, changed, tmp_path)


def test_a_base_whose_turns_have_no_place_for_an_image_is_refused(tmp_path, run, base_folder, options):
    other = shutil.copytree(base_folder, tmp_path / "base")
    (other / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content[1].text }}"}))
    assert "has no <|vision_start|>" in refusal(run, replace(options, base_vlm=str(other)), tmp_path)


def test_a_base_with_settings_that_we_cannot_have_is_refused(tmp_path, run, base_folder, options):
    other = shutil.copytree(base_folder, tmp_path / "base")
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(values | {"rms_norm_eps": 1e-5}))
    words = refusal(run, replace(options, base_vlm=str(other)), tmp_path)
    assert "text_config.rms_norm_eps: 1e-05 instead of 1e-06" in words


def test_the_imported_policy_acts_for_either_embodiment_in_numbers_of_its_own(imported):
    policy = load_policy(imported)
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    seen = Observation({"third_person": image}, None, "Pick UP the red cube.")
    chunk = policy.act([seen], ["a"], [(0, 0)])[0]
    stats = load_checkpoint(imported).processor.statistics["oxe_bridge"].action
    assert chunk.actions.shape == (4, 7) and set(np.unique(chunk.actions[:, 6])) <= {0.0, 1.0}
    assert (chunk.actions[:, :6] >= stats.q01[:6] - 1e-6).all() and (chunk.actions[:, :6] <= stats.q99[:6] + 1e-6).all()
    assert policy.spec.rotation_form == "euler_xyz"


def test_narrow_weights_act_close_to_wide_ones(imported):
    image = np.full((90, 120, 3), 120, np.uint8)
    seen = [Observation({"third_person": image}, None, "Pick UP the red cube.")]
    policies = [load_policy(imported, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    with torch.no_grad():
        plans = [policy.plan(seen)[0].hidden.float() for policy in policies]  # pyright: ignore[reportAttributeAccessIssue]
    assert (plans[0] - plans[1]).abs().mean() < 0.05 * plans[0].abs().mean()
    assert all(np.isfinite(policy.act(seen, ["a"], [(0, 0)])[0].actions).all() for policy in policies)


def test_a_run_that_names_no_base_asks_for_one(tmp_path, run, options):
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["framework"]["qwenvl"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "names no base_vlm; give base_vlm=FOLDER" in refusal(run, replace(options, base_vlm=""), tmp_path)


def test_the_gripper_of_wider_actions_is_their_last_column(tmp_path):
    numbers = {name: [0.0] * 8 for name in ("mean", "std", "min", "max", "q01", "q99")}
    found = to_statistics({"franka": {"action": numbers | {"mask": [True] * 7 + [False]}}}, "here")["franka"]
    assert [(s.start, s.end, s.mode) for s in found.action_slices] == [(0, 7, "q99"), (7, 8, "zero_one")]


def test_incomplete_statistics_are_refused():
    with pytest.raises(CheckpointError, match=r"here \[franka\], action, lacks mean, std, min, max"):
        to_statistics({"franka": {"action": {"q01": [0.0]}}}, "here")
