"""What every test stands on: a prepared process, and a working directory of its own."""

import os
import tempfile
from pathlib import Path

import pytest

from st4vla.platform.machine import prepare_process
from st4vla.platform.ray_token import ray_token_environment

CHECKOUT = Path(__file__).resolve().parent.parent
os.environ.setdefault("ST4VLA_VULKAN", str(CHECKOUT / ".vulkan"))
os.environ.setdefault("MPLBACKEND", "Agg")
prepare_process()
# Ray's core reads its token once and keeps it, so every Ray that this process starts or joins has the same one.
HOME = tempfile.TemporaryDirectory(prefix="st4vla-tests-")
os.environ["ST4VLA_HOME"] = HOME.name
os.environ.update(ray_token_environment())


@pytest.fixture
def checkout() -> Path:
    """The repository's root."""
    return CHECKOUT


@pytest.fixture
def ray_token() -> Path:
    """The token that every Ray of this test session asks for."""
    return Path(HOME.name) / "ray_token"


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


@pytest.fixture(scope="session")
def painted_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobot dataset of 12 episodes of 4 frames: two painted cubes, and a hand that goes straight to one of them."""
    from benchmarks import recordings

    return recordings.painted_dataset(tmp_path_factory.mktemp("data") / "painted")
