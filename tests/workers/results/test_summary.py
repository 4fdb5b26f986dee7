"""Facts about how rows become numbers."""

import json

import pytest

from st4vla.workers.results.summary import flat_metrics, read_summary, summarise


def row(task="reach", seed=0, success=True, suite="seen", perturbations=(), **changes):
    return {
        "suite": suite,
        "task": task,
        "variant": "default",
        "seed": seed,
        "perturbations": list(perturbations),
        "success": success,
        "partial_credit": 1.0 if success else 0.5,
        "stages": ["reached"] if success else [],
        "steps": 10,
        "recovery_steps": None,
        "failure": "" if success else "task",
    } | changes


def test_each_task_is_a_group_and_the_suite_is_pooled_after_them():
    summary = summarise([row(), row(seed=1, success=False), row(task="push")])
    assert [group.name for group in summary.groups] == ["seen / reach", "seen / push", "seen / all"]
    assert [group.success.value for group in summary.groups] == [0.5, 1.0, pytest.approx(2 / 3)]
    assert summary.groups[0].partial_credit == 0.75
    assert summary.groups[0].stages == (0.5,)


def test_one_task_needs_no_pool():
    assert [group.task for group in summarise([row()]).groups] == ["reach"]


def test_infrastructure_failures_are_in_no_rate():
    rows = [row(), row(seed=1, success=False, failure="crash"), row(seed=2, success=False, failure="policy")]
    (group,) = summarise(rows).groups
    assert (group.success.successes, group.success.total, group.infrastructure) == (1, 1, 2)
    assert group.failures == {"crash": 1, "policy": 1}


def test_disturbed_episodes_are_compared_with_their_twins_of_the_same_seed():
    moved = {"suite": "moved_object", "perturbations": ("object_moved",)}
    rows = [row(suite="moved_object", seed=seed) for seed in range(4)]
    rows += [
        row(seed=0, recovery_steps=8, **moved),
        row(seed=1, recovery_steps=12, **moved),
        row(seed=2, success=False, **moved),
        row(seed=3, **moved),
    ]
    summary = summarise(rows)
    assert [group.name for group in summary.groups] == ["moved_object / reach", "moved_object / reach (disturbed)"]
    (paired,) = summary.paired
    assert paired.untouched == 1
    assert paired.outcome.drop == pytest.approx(1 / 3)
    assert (paired.outcome.recovery.successes, paired.outcome.recovery.total) == (2, 3)
    assert paired.outcome.median_recovery_steps == 10.0


def test_a_twin_that_crashed_leaves_its_pair_out():
    rows = [
        row(suite="moved_object", success=False, failure="crash"),
        row(suite="moved_object", perturbations=("object_moved",), recovery_steps=3),
    ]
    assert summarise(rows).paired[0].outcome.twin.total == 0


def test_metrics_are_named_by_suite_and_task():
    metrics = flat_metrics(summarise([row(), row(seed=1, success=False)], retries=2))
    assert metrics["seen/reach/success"] == 0.5
    assert metrics["retries"] == 2
    assert "seen/reach/success_drop" not in metrics


def test_a_summary_survives_json():
    rows = [row(suite="moved_object"), row(suite="moved_object", perturbations=("object_moved",), recovery_steps=3)]
    summary = summarise(rows)
    assert read_summary(json.loads(json.dumps(summary.plain()))) == summary


def test_stages_are_counted_whatever_they_are_called():
    rows = [row(stages=["red cube sorted", "blue bar sorted"]), row(seed=1, stages=["cyan cube sorted"])]
    assert summarise(rows).groups[0].stages == (1.0, 0.5)
