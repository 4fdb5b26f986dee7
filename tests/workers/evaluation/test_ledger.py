"""Facts about the ledger, on real files."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from st4vla.platform.contracts import EpisodeResult, EpisodeSpec
from st4vla.platform.errors import DataError
from st4vla.workers.evaluation.ledger import Ledger, plan_digest

PLAN = [EpisodeSpec("seen", "reach", "default", seed, "reach the red cube") for seed in range(4)]
SETTINGS = {"policy": "random", "execute": 8}


def result_of(spec: EpisodeSpec, **changes) -> EpisodeResult:
    result = EpisodeResult(spec.episode_id, True, partial_credit=1.0, stages=("reached",), steps=9, looks=2)
    return replace(result, **changes)


def test_a_row_is_there_after_opening_again(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, PLAN, SETTINGS) as ledger:
        ledger.append(PLAN[2], result_of(PLAN[2]))
    with Ledger(path, PLAN, SETTINGS) as ledger:
        assert [row["seed"] for row in ledger.rows()] == [2]
        assert [spec.seed for spec in ledger.missing(PLAN)] == [0, 1, 3]


def test_rows_come_in_canonical_order_and_timings_can_be_left_out(tmp_path: Path):
    with Ledger(tmp_path / "a.jsonl", PLAN, SETTINGS) as first, Ledger(tmp_path / "b.jsonl", PLAN, SETTINGS) as second:
        for spec in PLAN:
            first.append(spec, result_of(spec, wall_s=1.0))
        for spec in reversed(PLAN):
            second.append(spec, result_of(spec, wall_s=2.0, physics_s=1.0))
        assert first.rows() != second.rows()
        assert first.rows_without_timings() == second.rows_without_timings()


def test_an_episode_cannot_have_two_rows(tmp_path: Path):
    with Ledger(tmp_path / "ledger.jsonl", PLAN, SETTINGS) as ledger:
        ledger.append(PLAN[0], result_of(PLAN[0]))
        with pytest.raises(DataError, match="already has a row"):
            ledger.append(PLAN[0], result_of(PLAN[0]))


def test_a_stranger_is_refused(tmp_path: Path):
    stranger = EpisodeSpec("seen", "push", "default", 0, "push it")
    with Ledger(tmp_path / "ledger.jsonl", PLAN, SETTINGS) as ledger:
        with pytest.raises(DataError, match="not in the plan"):
            ledger.append(stranger, result_of(stranger))


@pytest.mark.parametrize("torn", [b'{"episode_id": "ab', b'{"episode_id": "abc"}', b"\xff\xfe\n"])
def test_a_torn_last_line_is_dropped_and_the_file_goes_on(tmp_path: Path, torn: bytes):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, PLAN, SETTINGS) as ledger:
        ledger.append(PLAN[0], result_of(PLAN[0]))
    path.write_bytes(path.read_bytes() + torn)
    with Ledger(path, PLAN, SETTINGS) as ledger:
        assert len(ledger.rows()) == 1
        ledger.append(PLAN[1], result_of(PLAN[1]))
    with Ledger(path, PLAN, SETTINGS) as ledger:
        assert len(ledger.rows()) == 2


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, PLAN, SETTINGS) as ledger:
        ledger.append(PLAN[0], result_of(PLAN[0]))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"not json\n" + lines[1])
    with pytest.raises(DataError, match="line 2 is not JSON"):
        Ledger(path, PLAN, SETTINGS)


def test_another_plan_is_refused_and_the_difference_named(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path, PLAN, SETTINGS).close()
    with pytest.raises(DataError, match=r"execute was 8, is 4; seen/reach had 4 episodes, has 2"):
        Ledger(path, PLAN[:2], SETTINGS | {"execute": 4})


def test_a_second_driver_is_kept_out(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, PLAN, SETTINGS), pytest.raises(DataError, match="held by another running process"):
        Ledger(path, PLAN, SETTINGS)


def test_the_digest_ignores_order_but_not_settings():
    assert plan_digest(PLAN, SETTINGS) == plan_digest(PLAN[::-1], SETTINGS)
    assert plan_digest(PLAN, SETTINGS) != plan_digest(PLAN, SETTINGS | {"execute": 1})


def test_retries_are_events_and_leave_the_rows_alone(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, PLAN, SETTINGS) as ledger:
        ledger.event("retry", episode_id=PLAN[0].episode_id, reason="actor died")
    with Ledger(path, PLAN, SETTINGS) as ledger:
        assert ledger.rows() == []
        assert ledger.events == [{"event": "retry", "episode_id": PLAN[0].episode_id, "reason": "actor died"}]


KILLED_WRITER = """
import itertools, sys
from pathlib import Path
from st4vla.platform.contracts import EpisodeResult, EpisodeSpec
from st4vla.workers.evaluation.ledger import Ledger
plan = [EpisodeSpec("seen", "reach", "default", seed, "reach") for seed in range(100000)]
ledger = Ledger(Path(sys.argv[1]), plan, {})
for spec in plan:
    ledger.append(spec, EpisodeResult(spec.episode_id, True, 1.0, (), 1, 1))
    print(spec.seed, flush=True)
"""


def test_every_row_that_was_acknowledged_survives_a_kill(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(path)], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert child.stdout is not None
    for _ in range(20):
        acknowledged = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    acknowledged += sum(1 for _ in child.stdout)
    child.wait()
    plan = [EpisodeSpec("seen", "reach", "default", seed, "reach") for seed in range(100000)]
    with Ledger(path, plan, {}) as ledger:
        seeds = {row["seed"] for row in ledger.rows()}
    assert set(range(acknowledged + 1)) <= seeds
