"""Every command composes, describes itself in one line, and names a function that exists."""

import inspect
from pathlib import Path

import pytest

from st4vla import configs
from st4vla.platform.cli import command_help, commands, compose_command, resolve

COMMANDS = commands()


def configs_folder() -> Path:
    return Path(configs.__path__[0])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_composes_and_describes_itself(name: str) -> None:
    spec = COMMANDS[name]
    cfg = compose_command(name)
    assert spec.about.endswith(".") and "\n" not in spec.about
    known = {*cfg, *(path.name for path in configs_folder().iterdir() if path.is_dir())}
    for key in (*spec.positionals, *(flag.key for flag in spec.flags), *([spec.rest] if spec.rest else [])):
        assert key.split(".")[0] in known, (
            f"{name} fills {key}, which is neither a key of its config nor a config group"
        )
    assert spec.about in command_help(spec, cfg)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_names_a_function_of_one_argument(name: str) -> None:
    assert len(inspect.signature(resolve(COMMANDS[name])).parameters) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_has_a_page(name: str, checkout: Path) -> None:
    assert (checkout / "docs" / "commands" / f"{name}.md").is_file()
