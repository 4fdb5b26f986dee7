"""Pack st4vla for a cluster that does not have it: its wheel, unpacked.

Ray installs a wheel with the `pip` it finds on each node, dependencies included, into a fresh folder: with ours that
is three gigabytes. So the wheel's content is shipped as a folder, which Ray caches by its digest.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from st4vla.platform.errors import JobError
from st4vla.platform.machine import CHECKOUT
from st4vla.platform.ray_token import st4vla_home

ROOMS = ("platform", "workers", "envs", "serve", "configs")
BESIDE = ("pyproject.toml", "README.md", "LICENSE")


def packed_package() -> Path:
    """Give a folder named st4vla that holds the package as it is now, packing it at most once per content.

    Raises:
        JobError: the wheel could not be built.
    """
    sources = _checkout_files() if (CHECKOUT / "pyproject.toml").is_file() else _installed_files()
    target = st4vla_home() / "packages" / _digest(sources)
    if not (target / "st4vla").is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            if (CHECKOUT / "pyproject.toml").is_file():
                _unpack(build_wheel(sources, Path(work)), Path(work) / "content")
            else:
                _copy(sources, Path(work) / "content")
            _publish(Path(work) / "content", target)
    return target / "st4vla"


def _publish(content: Path, target: Path) -> None:
    try:
        content.rename(target)
    except OSError:
        if not (target / "st4vla").is_dir():
            raise


def _checkout_files() -> dict[str, Path]:
    """Every file that goes into the wheel's build, by its path in the checkout."""
    found = {name: CHECKOUT / name for name in BESIDE if (CHECKOUT / name).is_file()}
    for room in ROOMS:
        for file in sorted((CHECKOUT / room).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                found[str(file.relative_to(CHECKOUT))] = file
    return found


def _installed_files() -> dict[str, Path]:
    """Every file of the installed distribution's package, by its path in site-packages."""
    files = metadata.distribution("st4vla").files or []
    wanted = [file for file in files if file.parts[0] == "st4vla" and "__pycache__" not in file.parts]
    return {str(file): Path(str(file.locate())) for file in wanted}


def _digest(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        content = hashlib.sha256(files[name].read_bytes()).hexdigest()
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()[:16]


def _copy(files: dict[str, Path], target: Path) -> None:
    for name, file in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target / name)


def build_wheel(sources: dict[str, Path], work: Path) -> Path:
    """Build the wheel from a copy of the sources, so that the checkout gets no build folder."""
    _copy(sources, work / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", str(work), str(work / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(work.glob("st4vla-*.whl"))
    if done.returncode or not wheels:
        raise JobError(f"the wheel could not be built; `make build` shows more:\n{done.stderr[-2000:]}")
    return wheels[0]


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target, [name for name in archive.namelist() if name.startswith("st4vla/")])
