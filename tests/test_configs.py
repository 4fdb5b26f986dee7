"""Every command composes, describes itself in one line, and names a function that exists."""

import inspect
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from st4vla import configs
from st4vla.platform.cli import command_help, commands, compose_command, resolve

COMMANDS = commands()


def configs_folder() -> Path:
    return Path(configs.__path__[0])


def groups() -> set[str]:
    return {path.name for path in configs_folder().iterdir() if path.is_dir() and path.name != "__pycache__"}


def chosen_groups(name: str) -> set[str]:
    """Give the groups that a command's defaults list chooses from, those it chooses nothing of included."""
    found = set()
    for entry in yaml.safe_load((configs_folder() / f"{name}.yaml").read_text()).get("defaults", []):
        found |= {group.split("@")[0].strip("/") for group in entry} if isinstance(entry, dict) else set()
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_no_plain_key_bears_the_name_of_a_group_for_then_hydra_takes_no_value_for_it(name: str) -> None:
    cfg = compose_command(name)
    whole = {key for key in cfg if not OmegaConf.is_dict(cfg._get_node(key))}  # a mapping's entries are set one by one
    assert whole & groups() <= chosen_groups(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_composes_and_describes_itself(name: str) -> None:
    spec = COMMANDS[name]
    cfg = compose_command(name)
    assert spec.about.endswith(".") and "\n" not in spec.about
    known = {*cfg, *groups()}
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
