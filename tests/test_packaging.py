"""The package holds what the tree holds, and nothing in it hides the standard library."""

import sys
import tomllib
from pathlib import Path

import pytest

ROOMS = ("platform", "workers", "envs", "serve", "configs")
DATA_SUFFIXES = (".py", ".yaml", ".json", ".html", ".jinja", ".safetensors", ".frag")


@pytest.fixture
def declared(checkout: Path) -> set[str]:
    return set(tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])


def test_every_folder_with_something_to_ship_is_declared(checkout: Path, declared: set[str]) -> None:
    folders = {
        "st4vla." + ".".join(file.relative_to(checkout).parent.parts)
        for room in ROOMS
        for file in (checkout / room).rglob("*")
        if file.suffix in DATA_SUFFIXES and "__pycache__" not in file.parts
    }
    assert folders == declared, "bring [tool.setuptools] packages in pyproject.toml up to date"


def test_platform_has_no_init_so_that_the_standard_library_keeps_its_name(checkout: Path) -> None:
    import platform

    assert not (checkout / "platform" / "__init__.py").exists()
    assert platform.system() == "Linux"


def test_tests_have_no_init(checkout: Path) -> None:
    assert list((checkout / "tests").rglob("__init__.py")) == []


def test_no_module_at_the_top_of_a_room_bears_a_standard_library_name(checkout: Path) -> None:
    modules = {file.stem for room in ROOMS for file in (checkout / room).glob("*.py")}
    assert modules & sys.stdlib_module_names == set()


def test_every_room_is_typed(checkout: Path) -> None:
    assert [room for room in ROOMS if not (checkout / room / "py.typed").exists()] == []


def test_lower_rooms_import_no_upper_ones(checkout: Path) -> None:
    forbidden = {
        "platform": ("st4vla.workers", "st4vla.envs", "st4vla.serve"),
        "envs": ("st4vla.workers", "st4vla.serve"),
        "serve": ("st4vla.workers", "st4vla.envs"),
    }
    found = [
        f"{file.relative_to(checkout)}: {line.strip()}"
        for room, uppers in forbidden.items()
        for file in (checkout / room).rglob("*.py")
        for line in file.read_text().splitlines()
        if line.strip().startswith(tuple(f"{word} {upper}" for word in ("from", "import") for upper in uppers))
    ]
    assert found == []


def test_core_folders_import_neither_ray_nor_hydra_nor_maniskill(checkout: Path) -> None:
    engines = ("ray", "hydra", "mani_skill", "sapien")
    found = [
        f"{file.relative_to(checkout)}: {line.strip()}"
        for folder in ("policy", "published", "data", "train", "wire")
        for file in (checkout / "platform" / folder).rglob("*.py")
        for line in file.read_text().splitlines()
        if line.strip().split(".")[0].split(" as ")[0] in {f"{w} {e}" for w in ("from", "import") for e in engines}
    ]
    assert found == []


def test_the_lock_pins_every_dependency(checkout: Path) -> None:
    lock = (checkout / "requirements.lock").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lock if "==" in line}
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {requirement.split("[")[0].split(">")[0].split("=")[0] for requirement in wanted}
    assert names - pinned == set(), "run: make lock"


def test_no_source_names_a_private_place(checkout: Path) -> None:
    marks = ("/home/", "/mnt/", "/work" + "/")
    found = [
        str(file.relative_to(checkout))
        for room in (*ROOMS, "scripts", "docs", "benchmarks")
        for file in (checkout / room).rglob("*")
        if file.suffix in (".py", ".yaml", ".sh", ".md") and any(mark in file.read_text() for mark in marks)
    ]
    assert found == []
