"""The whole job at the smallest size: collect, ground, act, evaluate, track, and go on where it was stopped."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from st4vla.platform.cli import main
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.workers.demo import print_ending
from st4vla.workers.evaluation.ledger import read_rows


def contents_of(folder: Path) -> dict[str, bytes]:
    """What the steps leave."""
    files = (
        "dataset/collect.jsonl",
        "grounding/rows.jsonl",
        "action/rows.jsonl",
        "eval/seen/ledger.jsonl",
    )
    return {name: (folder / name).read_bytes() for name in files}


@pytest.mark.sim
@pytest.mark.ray
@pytest.mark.slow
def test_the_main_job_runs_from_end_to_end_and_a_second_call_leaves_it_as_it_was(workplace: Path):
    from mlflow import MlflowClient

    assert main(["demo", "--size", "smoke", "--out", "runs/demo"]) == 0
    run = workplace / "runs" / "demo"
    assert open_dataset(str(run / "dataset")).num_episodes == 4
    assert json.loads((run / "action" / "checkpoint" / "lineage.json").read_text())
    _, rows = read_rows(run / "eval" / "seen" / "ledger.jsonl")
    assert sorted((row["suite"], row["task"]) for row in rows) == [("seen", "push"), ("seen", "reach")]
    _, disturbed = read_rows(run / "eval" / "disturbed" / "ledger.jsonl")
    assert sorted(row["suite"] for row in disturbed) == ["changed_instruction"] * 2 + ["moved_object"] * 2
    assert "reach" in (run / "eval" / "seen" / "report.html").read_text()
    client = MlflowClient(f"sqlite:///{workplace}/runs/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    parents = [one.data.tags.get("mlflow.parentRunId") for one in runs]
    demo = next(one for one in runs if one.info.run_name and parents.count(one.info.run_id) == 5)
    assert demo.data.metrics["seconds/5_eval"] > 0
    before = contents_of(run)
    assert main(["demo", "--size", "smoke", "--out", "runs/demo"]) == 0
    assert contents_of(run) == before


def test_the_demo_ends_with_two_commands_to_try_next(tmp_path: Path):
    films = tmp_path / "eval" / "seen" / "films"
    films.mkdir(parents=True)
    for name in ("reach-failure.mp4", "reach-success.mp4"):
        (films / name).touch()
    console = Console(width=400, record=True)
    print_ending(console, [], [], tmp_path)
    ending = console.export_text().split("try next:")[1].strip().splitlines()
    assert [line.split("#")[0].split()[-1] for line in ending] == [str(films / "reach-success.mp4"), "ui"]
    assert ending[0].startswith("xdg-open ")
