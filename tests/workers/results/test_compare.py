"""Facts about comparing two runs."""

import json
from pathlib import Path

import pytest
from scipy.stats import binomtest

from st4vla.platform.contracts import EpisodeResult, EpisodeSpec, FailureKind
from st4vla.platform.errors import DataError
from st4vla.workers.evaluation.ledger import Ledger
from st4vla.workers.results.compare import compare_runs
from st4vla.workers.results.comparison_table import mean_sentence, verdict
from st4vla.workers.results.paired import compare_pairs, mcnemar, mean_of_tasks, more_pairs

BOTH, ONLY_A, ONLY_B, NONE = (True, True), (True, False), (False, True), (False, False)


def plan(episodes: int, tasks=("reach", "push")) -> list[EpisodeSpec]:
    return [EpisodeSpec("seen", task, "default", seed, "go") for task in tasks for seed in range(episodes)]


def run(folder: Path, marks: str, policy: str, **settings) -> Path:
    """Write a run: w won, l lost, x crashed, - missing."""
    kinds: dict[str, FailureKind] = {"w": "", "l": "task", "x": "crash"}
    specs = plan(len(marks) // 2)
    with Ledger(folder / "ledger.jsonl", specs, {"policy": policy, **settings}) as ledger:
        for spec, mark in zip(specs, marks, strict=True):
            if mark in kinds:
                result = EpisodeResult(spec.episode_id, mark == "w", 0.0, (), 1, 1, failure=kinds[mark])
                ledger.append(spec, result)
    return folder


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (9, 1), (5, 5), (14, 4), (30, 12)])
def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ(only_a: int, only_b: int):
    total = only_a + only_b
    expected = binomtest(only_a, total).pvalue if total else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected)


def test_nine_against_one_of_twenty_pairs_decides():
    group = compare_pairs("all", [ONLY_A] * 9 + [ONLY_B] + [BOTH] * 5 + [NONE] * 5)
    assert (group.a.successes, group.b.successes, group.difference) == (14, 6, pytest.approx(0.4))
    assert group.p_value == pytest.approx(22 / 1024)
    assert (group.effect, group.more_pairs, group.verdict) == (pytest.approx(0.4), 0, "A is better")
    assert group.low < 0.4 < group.high


def test_an_open_question_says_how_many_more_pairs_it_needs():
    # q = 0.3, d = 0.1: n = (1.96 sqrt(.3) + 0.8416 sqrt(.29))^2 / .01 = 233.1
    assert more_pairs(20, 10, 100) == 234 - 100
    assert more_pairs(5, 5, 100) is None
    assert compare_pairs("all", [ONLY_A] * 3 + [BOTH] * 17).more_pairs is not None


def test_each_task_counts_the_same_in_the_mean_of_tasks():
    mean = mean_of_tasks({"few": [ONLY_A] * 4, "many": [ONLY_B] * 10 + [BOTH] * 30})
    assert (mean.a, mean.b) == (pytest.approx((1 + 0.75) / 2), pytest.approx(0.5))
    assert mean.difference == pytest.approx(0.375)
    assert mean.low == pytest.approx(0.5 * (1 - 0.4), abs=0.03)
    assert mean.high == pytest.approx(0.5 * (1 - 0.125), abs=0.03)


def test_a_bootstrap_is_the_same_each_time():
    pairs = {"reach": [ONLY_A, BOTH, NONE, ONLY_B] * 5}
    assert mean_of_tasks(pairs) == mean_of_tasks(pairs)


def test_episodes_are_paired_by_id_and_leftovers_are_counted(tmp_path: Path):
    a = run(tmp_path / "a", "wwwwwwxl" + "wwwl--ll", "one")
    b = run(tmp_path / "b", "llllllwl" + "wlxlw-ll", "two", latency=0.4)
    result = compare_runs(a, b)
    left = result.leftovers
    assert (left.only_in_a, left.only_in_b, left.unscored) == (0, 1, 2)
    assert [group.name for group in result.groups] == ["seen / push", "seen / reach", "all"]
    assert (result.groups[-1].a.total, result.groups[-1].only_a, result.groups[-1].only_b) == (12, 7, 0)
    assert result.differences == ("latency: None against 0.4",)
    assert verdict(result).startswith("A is better on these episodes")
    assert mean_sentence(result.mean).startswith("Mean of 2 tasks: A 62.9 %, B 10.0 %")
    assert json.dumps(result.plain())


def test_runs_that_share_nothing_are_refused_with_what_to_do(tmp_path: Path):
    a, b = run(tmp_path / "a", "w-", "one"), run(tmp_path / "b", "-w", "two")
    with pytest.raises(DataError, match="share no scored episode .1 only in the first, 1 only in the second"):
        compare_runs(a, b)


def test_a_folder_without_a_ledger_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="there is no ledger at"):
        compare_runs(tmp_path, tmp_path)
