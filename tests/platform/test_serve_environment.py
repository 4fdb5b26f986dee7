"""The folder of HAProxy's files goes when the process goes that it is for, and not before."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from st4vla.platform.serve_environment import OWNER, SOCKET, hand_over, new_folder, serve_settings, sweep


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv(SOCKET, raising=False)
    return tmp_path


def test_what_a_killed_process_left_is_removed_and_what_lives_is_kept(temporary: Path) -> None:
    mine, left, nobodys = new_folder(), new_folder(), temporary / "st4-old"
    nobodys.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        hand_over(left, process.pid)
        sweep()
        assert left.is_dir()
        process.kill()
    sweep()
    assert mine.is_dir() and nobodys.is_dir() and not left.exists()


def test_a_number_that_another_process_has_by_now_is_not_the_owner(temporary: Path) -> None:
    place = new_folder()
    (place / OWNER).write_text(f"{os.getpid()} 1.0")
    sweep()
    assert not place.exists()


def test_settings_and_folder_last_as_long_as_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "1")
    with serve_settings(12.5) as place:
        assert os.environ[SOCKET] == str(place / "admin.sock") and place.stat().st_mode & 0o077 == 0
        assert os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] == "12.5"
        assert os.environ["RAY_SERVE_HAPROXY_NBTHREAD"] == "1"
    assert not place.exists() and SOCKET not in os.environ
    assert os.environ["RAY_SERVE_HAPROXY_NBTHREAD"] == "1"


def test_a_clusters_own_folder_is_used_and_left_to_it(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOCKET, str(temporary / "cluster" / "admin.sock"))
    (temporary / "cluster").mkdir()
    with serve_settings() as place:
        assert place == temporary / "cluster"
    assert place.is_dir()
