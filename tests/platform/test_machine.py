"""How a program of this environment is called from a shell."""

import sys
from pathlib import Path

import pytest

from st4vla.platform.machine import program


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder env/bin, whose programs this process runs, below the working directory."""
    folder = tmp_path / "env" / "bin"
    folder.mkdir(parents=True)
    (folder / "tool").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_program_off_the_path_is_called_by_where_it_lies(environment: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert program("tool") == "env/bin/tool"


def test_a_program_on_the_path_is_called_by_its_name_unless_that_is_another_one(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(environment))
    assert program("tool") == "tool"
    other = tmp_path / "other"
    other.mkdir()
    (other / "tool").touch(0o755)
    monkeypatch.setenv("PATH", f"{other}:{environment}")
    assert program("tool") == "env/bin/tool"
