"""The audit log says who did what, never holds a key, and never grows without bound."""

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from st4vla.serve.events import Admin, Observers, Opened, Refused, Served, Stopped
from st4vla.serve.watch.audit import AuditConfig, AuditLog


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def written(tmp_path: Path) -> AuditLog:
    return AuditLog(AuditConfig(str(tmp_path)))


def test_connections_refusals_stops_and_admins_are_written_down(written: AuditLog, make_served: Callable) -> None:
    written(Opened("arm-1", "s", "openpi", key_id="k1", address="10.0.0.7", at=1_700_000_000.0))
    written(make_served(0))
    written(Refused("unauthorized", reason="wrong key", address="10.0.0.8"))
    written(Stopped(True, "arm-1", "smoke", "k2"))
    written(Admin("rollback", {"to": "6"}, "k3"))
    written.close()
    kept = lines(written.path)
    assert [one["event"] for one in kept] == ["opened", "refused", "stop", "admin"]
    assert kept[0]["time"] == "2023-11-14T22:13:20.000+00:00" and kept[0]["key_id"] == "k1"
    assert kept[3]["details"] == {"to": "6"}
    assert stat.S_IMODE(os.stat(written.path).st_mode) == 0o600


def test_the_log_is_rotated_and_only_so_many_files_are_kept(tmp_path: Path) -> None:
    written = AuditLog(AuditConfig(str(tmp_path), file_mb=1, keep=2))
    for number in range(10_000):
        written(Refused("unauthorized", reason="x" * 480, address=str(number)))
    written.close()
    assert len(written.files()) == 2
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3.1 * 2**20
    assert lines(written.path)[-1]["address"] == "9999" and written.lost == 0


def test_no_flood_of_refusals_pushes_out_what_admins_did(tmp_path: Path) -> None:
    written = AuditLog(AuditConfig(str(tmp_path), file_mb=1, keep=1))
    written(Stopped(True, "arm-1", "smoke", "k2"))
    for number in range(10_000):
        written(Refused("stopped", reason="x" * 480, address=str(number)))
    written(Admin("rollback", {}, "k3"))
    written.close()
    rotated = [one["event"] for path in written.files() for one in lines(path)]
    assert "stop" not in rotated and len(written.files()) == 1
    assert [one["event"] for one in lines(tmp_path / "changes.jsonl")] == ["stop", "admin"]
    assert stat.S_IMODE(os.stat(tmp_path / "changes.jsonl").st_mode) == 0o600


def test_processes_that_share_a_log_follow_each_other_over_a_rotation(tmp_path: Path) -> None:
    logs = [AuditLog(AuditConfig(str(tmp_path), file_mb=1, keep=50)) for _ in range(3)]
    for number in range(3000):
        for written in logs:
            written(Refused("unauthorized", reason="x" * 480, address=str(number)))
    for written in logs:
        written.close()
    files = [*logs[0].files(), logs[0].path]
    assert sum(len(lines(path)) for path in files) == 9000 and len(files) >= 5
    assert all(path.stat().st_size <= 1.01 * 2**20 for path in files)


def test_long_and_odd_texts_from_outside_are_one_bounded_line(written: AuditLog) -> None:
    written(Refused("invalid", reason="a\nb" * 10_000, robot='"}\n<script>'))
    written(Admin("set", {"value": "y" * 100_000}))
    written.close()
    assert len(written.path.read_bytes()) < 5_000 and len(lines(written.path)) == 2


def test_a_flood_costs_lines_that_are_counted_and_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = AuditLog(AuditConfig(str(tmp_path), max_waiting=5))
    gate = threading.Event()
    write = written._write
    monkeypatch.setattr(written, "_write", lambda line: (gate.wait(20), write(line)))
    for number in range(50):
        written(Refused("unauthorized", address=str(number)))
    gate.set()
    written.close()
    kept = lines(written.path)
    (lost,) = [one for one in kept if one["event"] == "lost"]
    assert lost["lines"] == written.lost >= 44 and len(kept) - 1 == 50 - written.lost


def test_a_full_disk_costs_whole_lines_only(written: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, content: real(file, content[:10]))
        written(Refused("first"))
        while written.lost == 0:
            pass
    written(Refused("second"))
    written.close()
    assert [one.get("kind") for one in lines(written.path)] == ["second", None]


def test_an_observer_that_raises_harms_nobody(make_served: Callable, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Served] = []

    def broken(event: object) -> None:
        raise RuntimeError("no")

    observers = Observers([broken, seen.append])  # type: ignore[list-item]
    for number in range(3):
        observers.tell(make_served(number))
    assert len(seen) == 3 and list(observers.failures.values()) == [3]
    assert len(caplog.records) == 1
