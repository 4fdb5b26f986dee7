"""What came in goes out as it was, and what was trained here goes out in the layout that others read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from st4vla.platform.checkpoint import load_checkpoint, load_policy, save_checkpoint
from st4vla.platform.errors import CheckpointError
from st4vla.platform.policy.folder import Lineage, read_tensors
from st4vla.platform.policy.hollow import without_weights
from st4vla.platform.published.bring_in import ImportConfig, bring_in
from st4vla.platform.published.write_out import write_out

BASE = Path(__file__).resolve().parents[3] / "platform" / "base"


def state_of(run: Path, name: str = "steps_1200_pytorch_model.pt") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / name, weights_only=True)


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


def test_a_run_that_was_imported_comes_out_to_the_bit(tmp_path, imported, run_folder):
    out = write_out(imported, tmp_path / "out")
    assert_equal(state_of(out), state_of(run_folder))
    assert yaml.safe_load((out / "config.yaml").read_text()) == yaml.safe_load((run_folder / "config.yaml").read_text())
    name = "dataset_statistics.json"
    assert json.loads((out / name).read_text()) == json.loads((run_folder / name).read_text())


def test_mixed_widths_survive_the_round_trip(tmp_path, original, published_state, write_run, options):
    state = published_state(original)
    state = {name: t.bfloat16() if name.startswith("qwen") else t for name, t in state.items()}
    run = write_run(tmp_path / "run", state)
    out = write_out(bring_in(str(run), tmp_path / "ours", options), tmp_path / "out")
    assert_equal(state_of(out), state)


def test_a_run_that_was_trained_on_here_keeps_names_and_gets_a_configuration(tmp_path, imported, run_folder, options):
    checkpoint = load_checkpoint(imported)
    with torch.no_grad():
        checkpoint.model.query_transformer.proj.bias.add_(1)
    notes = {"stage": "action", "step": 70}
    trained = save_checkpoint(tmp_path / "trained", checkpoint.model, checkpoint.processor, Lineage(notes=notes))
    out = write_out(trained, tmp_path / "out")
    state, before = state_of(out, "steps_70_pytorch_model.pt"), state_of(run_folder)
    torch.testing.assert_close(state["layer_qformer.proj.bias"], before["layer_qformer.proj.bias"] + 1)
    assert state["action_model.net.history_embedder.linear.weight"].shape == (64, 7)
    assert "qwen_vl_interface.model.model.language_model.norm.weight" in state
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["framework"]["layer_qformer"]["qformer_start_layer"] == 3
    assert settings["framework"]["action_model"]["future_action_window_size"] == 3
    again = load_checkpoint(bring_in(str(out), tmp_path / "again", options))
    assert again.model.config.planner == checkpoint.model.config.planner
    assert torch.equal(again.model.query_transformer.proj.bias, checkpoint.model.query_transformer.proj.bias)


def test_what_the_published_layout_has_no_place_for_is_listed(tmp_path):
    checkpoint = load_checkpoint(BASE, parts_ok=True)
    folder = save_checkpoint(tmp_path / "tiny", checkpoint.model, checkpoint.processor, Lineage())
    with pytest.raises(CheckpointError) as error:
        write_out(folder, tmp_path / "out")
    assert "state_encoder.0.weight has no place in the published layout" in str(error.value)
    assert "planner.dense_head.weight has no place" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def plain_folder(tmp_path: Path, base_folder: Path, original: Any) -> Path:
    """A plain Qwen2.5-VL model as transformers saves it."""
    folder = tmp_path / "plain"
    original.qwen_vl_interface.model.save_pretrained(folder)
    for path in base_folder.iterdir():
        if path.name != "config.json":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


PLAIN = ImportConfig(settings={"image_size": 112})


def test_a_plain_model_comes_in_as_a_product_of_stage_one(tmp_path, plain_folder, original):
    folder = bring_in(str(plain_folder), tmp_path / "ours", PLAIN)
    tensors = read_tensors(folder)
    assert {name.split(".")[0] for name in tensors} == {"planner"}
    norm = original.qwen_vl_interface.model.model.language_model.norm.weight
    assert torch.equal(tensors["planner.vlm.model.language_model.norm.weight"], norm)
    with pytest.raises(CheckpointError, match="missing action_expert"):
        load_policy(folder)


def test_a_plain_model_goes_out_as_transformers_reads_it(tmp_path, plain_folder, original):
    out = write_out(bring_in(str(plain_folder), tmp_path / "ours", PLAIN), tmp_path / "out")
    loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    model, told = loaded
    assert not any(told["missing_keys"]) and not any(told["unexpected_keys"]) and not any(told["mismatched_keys"])
    theirs = original.qwen_vl_interface.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_the_planner_of_a_run_goes_out_as_transformers_reads_it(tmp_path, imported, original):
    checkpoint = load_checkpoint(imported)
    parts = save_checkpoint(tmp_path / "p", checkpoint.model, checkpoint.processor, Lineage(), parts=("planner",))
    out = write_out(parts, tmp_path / "out")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(out)
    theirs = original.qwen_vl_interface.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_a_qwen3_vl_model_comes_in_and_goes_out(tmp_path, base_folder):
    torch.manual_seed(0)
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 512, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    vision = {"depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 64}
    grid = {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    config = Qwen3VLConfig(text_config=text | heads | {"rope_parameters": rope}, vision_config=vision | grid)
    config.tie_word_embeddings = True
    model = Qwen3VLForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "plain")
    for path in base_folder.iterdir():
        if path.name != "config.json":
            (tmp_path / "plain" / path.name).write_bytes(path.read_bytes())
    ours = bring_in(str(tmp_path / "plain"), tmp_path / "ours")
    out = write_out(ours, tmp_path / "out")
    again = Qwen3VLForConditionalGeneration.from_pretrained(out).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    fresh = load_checkpoint(ours, parts_ok=True).model.planner
    assert fresh.config.vision.deep_layers == (0, 1) and fresh.config.text.rope_theta == 5e6


def test_a_folder_that_is_there_is_never_replaced(tmp_path, imported, run_folder, options):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years")
    with pytest.raises(CheckpointError, match="thesis is there already"):
        write_out(imported, tmp_path / "thesis")
    with pytest.raises(CheckpointError, match="thesis is there already"):
        bring_in(str(run_folder), tmp_path / "thesis", options)


def test_shards_are_read_as_one(tmp_path, plain_folder, original):
    original.qwen_vl_interface.model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    (plain_folder / "model.safetensors").unlink()
    for path in (tmp_path / "shards").glob("model*"):
        (plain_folder / path.name).write_bytes(path.read_bytes())
    assert len(list(plain_folder.glob("*.safetensors"))) > 1
    folder = bring_in(str(plain_folder), tmp_path / "ours", PLAIN)
    next(plain_folder.glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="damaged or missing"):
        bring_in(str(plain_folder), tmp_path / "again", PLAIN)
    assert folder.is_dir()


def test_a_hollow_model_holds_no_weights_and_keeps_ties(imported):
    config = load_checkpoint(imported).model.config
    from st4vla.platform.policy.model import St4vlaModel
    from st4vla.platform.policy.sizes import ANY_TOKENS

    with without_weights():
        model = St4vlaModel(config, ANY_TOKENS)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert model.planner.vlm.lm_head.weight is model.planner.vlm.model.language_model.embed_tokens.weight
    assert not torch.nn.Linear(2, 2).weight.is_meta
