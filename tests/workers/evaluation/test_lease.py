"""Facts about who may write a ledger, on real files and real processes."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from st4vla.platform.contracts import EpisodeResult, EpisodeSpec
from st4vla.platform.errors import DataError
from st4vla.workers.evaluation import ledger as ledger_module
from st4vla.workers.evaluation.lease import Lease, LeaseConfig, birth_of
from st4vla.workers.evaluation.ledger import Ledger, read_rows

PLAN = [EpisodeSpec("seen", "reach", "default", seed, "reach the red cube") for seed in range(200)]
QUICK = LeaseConfig(beat_s=0.01, silence_s=0.05)


def result_of(spec: EpisodeSpec) -> EpisodeResult:
    return EpisodeResult(spec.episode_id, True, partial_credit=1.0, stages=("reached",), steps=9, looks=2)


def test_a_living_holder_keeps_a_second_one_out(tmp_path: Path):
    lease = Lease(tmp_path / "ledger")
    with pytest.raises(DataError, match=rf"held by another running process \(process {os.getpid()} on"):
        Lease(tmp_path / "ledger")
    lease.release()
    Lease(tmp_path / "ledger").release()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_was_killed_is_succeeded_at_once(tmp_path: Path):
    code = "import sys, time; from pathlib import Path; from st4vla.workers.evaluation.lease import Lease\n"
    code += "Lease(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "ledger")], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    with pytest.raises(DataError, match=f"process {child.pid}"):
        Lease(tmp_path / "ledger")
    child.send_signal(signal.SIGKILL)
    child.wait()
    lease = Lease(tmp_path / "ledger")
    assert lease.taken_over
    lease.release()


def test_a_number_that_another_process_bears_now_is_not_the_holder(tmp_path: Path):
    lease = Lease(tmp_path / "ledger")
    note = json.loads(lease.note.read_text())
    lease.note.write_text(json.dumps(note | {"birth": "1"}))
    assert Lease(tmp_path / "ledger").taken_over


def test_a_process_that_is_gone_has_no_birth():
    assert birth_of(os.getpid()) is not None
    assert birth_of(2**22 + 1) is None


def test_another_machines_holder_is_watched_and_kept_while_it_beats(tmp_path: Path):
    there = Lease(tmp_path / "ledger", QUICK, machine="there")
    with pytest.raises(DataError, match="held by another running process"):
        Lease(tmp_path / "ledger", LeaseConfig(beat_s=0.2, silence_s=5.0), machine="here")
    there.release()


def test_another_machines_silent_holder_is_succeeded_and_stopped_at_its_next_row(tmp_path: Path):
    silent = Ledger(tmp_path / "ledger.jsonl", PLAN, {}, LeaseConfig(beat_s=600))
    silent.append(PLAN[0], result_of(PLAN[0]))
    note = tmp_path / "ledger.jsonl.driver"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"machine": "there"}))
    with Ledger(tmp_path / "ledger.jsonl", PLAN, {}, QUICK) as ledger:
        ledger.append(PLAN[1], result_of(PLAN[1]))
        with pytest.raises(DataError, match="taken over by another driver"):
            silent.append(PLAN[2], result_of(PLAN[2]))
        os.write(silent._handle, b"what a paused driver still had to say")
        assert [row["seed"] for row in read_rows(ledger.path)[1]] == [0, 1]


def test_a_torn_note_counts_as_a_silent_holder(tmp_path: Path):
    (tmp_path / "ledger.driver").write_bytes(b'{"host": "x')
    assert Lease(tmp_path / "ledger", QUICK).taken_over


def test_a_full_disk_is_a_clear_error_and_loses_no_row(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, PLAN, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 1000, before[1]))
    written = 0
    try:
        with pytest.raises(DataError, match=r"the 2 rows in it are safe\. Free some space"):
            for spec in PLAN:
                ledger.append(spec, result_of(spec))
                written += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes().endswith(b"}\n")
    ledger.append(PLAN[written], result_of(PLAN[written]))
    assert len(read_rows(path)[1]) == written + 1
    ledger.close()


def test_a_void_row_is_missing_again_and_stays_in_the_file(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, PLAN[:2], {}) as ledger:
        ledger.append(PLAN[0], result_of(PLAN[0]))
        ledger.void(PLAN[0].episode_id, "the server was away")
        assert ledger.missing(PLAN[:2]) == PLAN[:2]
    with Ledger(path, PLAN[:2], {}) as ledger:
        assert ledger.rows() == []
        ledger.append(PLAN[0], result_of(PLAN[0]))
    assert [row["seed"] for row in read_rows(path)[1]] == [0]
    assert path.read_text().count('"steps":9') == 2


def test_reading_a_folder_that_is_no_evaluation_says_so(tmp_path: Path):
    with pytest.raises(DataError, match="there is no ledger at"):
        read_rows(tmp_path / "ledger.jsonl")


def gone(ledger: Path) -> None:
    """Leave a ledger of one row whose driver was killed."""
    with Ledger(ledger, PLAN, {}) as first:
        first.append(PLAN[0], result_of(PLAN[0]))
        note = json.loads((ledger.parent / "ledger.jsonl.driver").read_text())
    (ledger.parent / "ledger.jsonl.driver").write_text(json.dumps(note | {"birth": "1"}))


def test_who_takes_over_and_sleeps_before_the_copy_does_not_undo_the_next_ones_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "ledger.jsonl"
    gone(path)
    read = ledger_module.parse_lines

    def read_then_sleep(path: Path):
        lines = read(path)
        monkeypatch.setattr(ledger_module, "parse_lines", read)
        note = path.with_name(path.name + ".driver")
        note.write_text(json.dumps(json.loads(note.read_text()) | {"birth": "1"}))
        with Ledger(path, PLAN, {}) as next_one:
            next_one.append(PLAN[1], result_of(PLAN[1]))
        return lines

    monkeypatch.setattr(ledger_module, "parse_lines", read_then_sleep)
    with pytest.raises(DataError, match="taken over by another driver"):
        Ledger(path, PLAN, {})
    assert [row["seed"] for row in read_rows(path)[1]] == [0, 1]


@pytest.mark.parametrize("fate", ["replaced", "removed"])
def test_a_row_is_not_written_into_a_file_that_has_lost_its_name(tmp_path: Path, fate: str):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, PLAN, {}) as ledger:
        ledger.append(PLAN[0], result_of(PLAN[0]))
        if fate == "replaced":
            (tmp_path / "copy").write_bytes(path.read_bytes())
            os.replace(tmp_path / "copy", path)
        else:
            path.unlink()
        with pytest.raises(DataError, match="replaced or removed while this driver had it open"):
            ledger.append(PLAN[1], result_of(PLAN[1]))
        assert list(ledger.rows_by_id) == [PLAN[0].episode_id]
