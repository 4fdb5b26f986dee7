"""What every test stands on: a prepared process, and a working directory of its own."""

import os
from pathlib import Path

import pytest

from st4vla.platform.machine import prepare_process

CHECKOUT = Path(__file__).resolve().parent.parent
os.environ.setdefault("ST4VLA_VULKAN", str(CHECKOUT / ".vulkan"))
os.environ.setdefault("MPLBACKEND", "Agg")
prepare_process()


@pytest.fixture
def checkout() -> Path:
    """The repository's root."""
    return CHECKOUT


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working directory while the test runs, so that runs/ lands in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def st4vla_environment() -> dict[str, str]:
    """The environment in which a child process finds st4vla the way this one does."""
    linked = CHECKOUT / "typings"
    path = os.pathsep.join(part for part in (str(linked), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path if linked.is_dir() else os.environ.get("PYTHONPATH", "")}
