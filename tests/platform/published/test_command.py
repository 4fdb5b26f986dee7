"""`st4vla checkpoint` brings in, writes out and shows; an imported policy is trained on like any other."""

from dataclasses import replace
from pathlib import Path

import pytest

from st4vla.platform.checkpoint import load_checkpoint
from st4vla.platform.cli import main
from st4vla.platform.policy.config import PromptConfig, SemanticsConfig
from st4vla.platform.published.command import facts_of
from st4vla.platform.published.summary import summarise
from st4vla.platform.train.job import parent_kinship

TOLD = (
    "settings={expert: {layers: 2, width: 64, heads: 4}, vision: {layers: 2, width: 128, heads: 2, position_px: 154}}"
)


def test_a_run_is_brought_in_shown_and_written_out(workplace, run_folder, base_folder, capsys):
    words = ["checkpoint", "import", str(run_folder), "--out", "ours", "--base-vlm", str(base_folder), TOLD]
    assert main([*words, "--embodiment", "oxe_rt1"]) == 0
    assert load_checkpoint("ours").model.config.control_hz == 3.0
    assert main(["checkpoint", "show", "ours"]) == 0
    shown = capsys.readouterr().out
    assert "query_transformer" in shown and "oxe_bridge" in shown and "attend_padding True" in shown
    assert main(["checkpoint", "export", "ours", "--out", "theirs"]) == 0
    assert (workplace / "theirs" / "checkpoints" / "steps_1200_pytorch_model.pt").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["improt", "x", "--out", "y"], "checkpoint was asked to 'improt'; expected one of import, export, show"),
        (["import", "x"], "checkpoint import needs --out FOLDER"),
        (["import", "nowhere", "--out", "y"], "nowhere has no config.yaml"),
        (["export", "nowhere", "--out", "y"], "nowhere/policy.yaml is missing"),
        (["show", "nowhere"], "There is no preset 'nowhere'; there are small, st4vla_4b"),
        (["show"], "checkpoint needs source"),
    ],
)
def test_what_cannot_be_done_is_said(workplace, capsys, words, said):
    assert main(["checkpoint", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_summary_tells_counts_semantics_scaling_and_lineage(imported):
    found = summarise(str(imported))
    assert found.stored.keys() == {"planner", "frame_encoder", "query_transformer", "action_expert"}
    assert all(found.counts[part] == count for part, count in found.stored.items())
    assert found.statistics["oxe_rt1"] == "0-5 q99, 6-6 zero_one"
    facts = facts_of(found)
    assert facts["semantics"] == "attend_padding True, lowercase True, verbatim True, rotation euler, grad_scale 1.0"
    assert facts["acts for"] == "oxe_bridge" and '"mapped"' in facts["notes"]


def test_changed_semantics_keep_all_weights_and_a_changed_expert_keeps_the_planner(imported):
    config = load_checkpoint(imported).model.config
    ours = replace(
        config, semantics=SemanticsConfig(), prompt=PromptConfig(), query=replace(config.query, grad_scale=0.5)
    )
    assert parent_kinship(str(imported), ours) == "all"
    assert parent_kinship(str(imported), replace(config, expert=replace(config.expert, layers=3))) == "planner"
    again = load_checkpoint(imported, config=ours).model
    assert again.query_transformer.grad_scale == 0.5 and again.config.semantics == SemanticsConfig()


@pytest.mark.slow
def test_an_imported_policy_is_trained_on(workplace, imported, painted_dataset, monkeypatch):
    words = f"stage=action policy=st4vla_4b policy_of_parent=true parent={imported} workers=0 steps=2"
    small = "batch={robot: 4, grounding: 4}", "validation={robot_samples: 2, grounding_samples: 2}", "tracking=off"
    assert main(["train", *words.split(), f"data={painted_dataset}", "run_dir=run", "held_out_share=0.2", *small]) == 0
    trained = load_checkpoint(Path("run") / "checkpoint")
    assert trained.model.config == load_checkpoint(imported).model.config
    assert trained.lineage.parent == str(imported) and trained.lineage.notes["stage"] == "action"
    assert list(trained.processor.statistics) == ["oxe_bridge", "oxe_rt1"]
    changed = trained.model.query_transformer.proj.bias - load_checkpoint(imported).model.query_transformer.proj.bias
    assert changed.abs().max() > 0
    assert main(["checkpoint", "export", "run/checkpoint", "--out", "theirs"]) == 0
