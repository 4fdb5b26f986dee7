"""The ladder plans commands that compose, and says of each claim whether it held."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st4vla.platform.cli import compose_command
from st4vla.platform.errors import ConfigError, DataError
from st4vla.workers.ladder.outcome import bootstrap_mean, compare
from st4vla.workers.ladder.page import write_ladder
from st4vla.workers.ladder.plan import Ladder
from st4vla.workers.training.command import read_job

PLANNED = {"suite": "seen", "variant": "default", "seed": 0, "perturbations": []}


def settings(run: Path, *overrides: str) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(compose_command("ladder", [f"run_dir={run}", *overrides]), resolve=True)


def row(episode: int, success: bool, task: str = "reach", failure: str = "") -> dict[str, Any]:
    kind = failure or ("" if success else "task")
    return {"episode_id": str(episode), "task": task, "success": success, "failure": kind} | PLANNED


def ledgers(**arms: str) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """One seed an arm: "110" is two successes and a failure."""
    return {name: {0: [row(place, mark == "1") for place, mark in enumerate(marks)]} for name, marks in arms.items()}


def job_of(step: Any) -> Any:
    from omegaconf import OmegaConf

    composed: Any = OmegaConf.to_container(compose_command("train", list(step.words[1:])), resolve=True)
    return read_job(composed)


def test_every_step_composes_and_arms_differ_only_in_what_they_add(tmp_path: Path):
    ladder = Ladder(settings(tmp_path))
    steps = [*ladder.data_steps(), *ladder.seed_steps(1)]
    assert [step.words[0] for step in steps] == ["collect", "stills", "train", *["train", "eval"] * 4]
    for step in steps:
        compose_command(step.words[0], list(step.words[1:]))
    stage_1, vanilla, cotrained, guided, full = (job_of(step) for step in steps if step.words[0] == "train")
    assert stage_1.parent == vanilla.parent == cotrained.parent == guided.parent
    assert full.parent.endswith("seed_1/stage_1/checkpoint")
    assert {job.train.steps for job in (vanilla, cotrained, guided, full)} == {1000}
    assert (vanilla.train.batch.grounding, cotrained.train.batch.grounding) == (0, 16)
    assert vanilla.policy.prompt.action == cotrained.policy.prompt.action == "Your task is {instruction}."
    assert guided.policy.prompt.action == full.policy.prompt.action != vanilla.policy.prompt.action
    assert cotrained.reading.questions.weight("target") == 0.0
    assert {job.policy.expert.temperature for job in (stage_1, vanilla, full)} == {1.0}
    assert guided.train == full.train and guided.policy == full.policy and guided.train.seed == 1


def test_a_ladder_needs_two_arms(tmp_path: Path):
    with pytest.raises(ConfigError, match="at least two arms"):
        Ladder(settings(tmp_path) | {"arms": {}})


def test_a_gain_pairs_episodes_and_leaves_out_what_the_infrastructure_failed():
    arms = ledgers(full="1110", vanilla="0100")
    arms["vanilla"][0].append(row(9, False, failure="crash"))
    arms["full"][0].append(row(9, True))
    found = compare("full", "vanilla", arms, resamples=200)
    assert (found.difference, found.episodes) == (0.5, 4)


def test_verdicts():
    better = compare("a", "b", ledgers(a="1" * 20, b="0" * 20))
    same = compare("a", "b", ledgers(a="10" * 10, b="01" * 10))
    assert (better.verdict, better.low, better.high) == ("held", 1.0, 1.0)
    assert (same.verdict, same.difference) == ("not shown", 0.0)
    assert compare("b", "a", ledgers(a="1" * 20, b="0" * 20)).verdict == "reversed"


def test_arms_without_a_common_episode_are_refused():
    arms = ledgers(a="1", b="1")
    arms["b"][0][0]["episode_id"] = "other"
    with pytest.raises(DataError, match="share no episode"):
        compare("a", "b", arms)


def test_the_bootstrap_is_seeded_and_covers_the_mean():
    values = np.array([0.0, 1.0] * 50)
    low, high = bootstrap_mean(values, 500)
    assert (low, high) == bootstrap_mean(values, 500)
    assert 0.38 < low < 0.5 < high < 0.62


def test_the_page_says_what_held_and_what_did_not(tmp_path: Path):
    ladder = Ladder(settings(tmp_path, "seeds=[0]"))
    marks = {"vanilla": "0000000000", "cotrained": "0000000001", "guided": "1111111110", "full": "1111111110"}
    for name, outcome in marks.items():
        folder = ladder.folder(0, "eval") / name
        folder.mkdir(parents=True)
        lines = [json.dumps(row(place, mark == "1")) for place, mark in enumerate(outcome)]
        (folder / "ledger.jsonl").write_text("\n".join([json.dumps({"header": 1}), *lines]) + "\n")
        ladder.folder(0, name).mkdir()
        rows = [{"step": step, "similarity/pss": 0.3, "similarity/chance": 0.1} for step in (100, 200)]
        (ladder.folder(0, name) / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    results, page = write_ladder(ladder)
    assert [one.verdict for one in results.comparisons] == ["not shown", "held", "not shown", "held"]
    assert results.metrics()["gain/full_over_vanilla"] == pytest.approx(0.9)
    assert results.similarity["full"]["0"] == [(100, 0.3), (200, 0.3)] and results.chance == pytest.approx(0.1)
    text = page.read_text()
    assert (
        "spatial guidance does better than co-training; ST4VLA does better than Vanilla VLA: held at this size." in text
    )
    assert text.count("data:image/png") == 2
