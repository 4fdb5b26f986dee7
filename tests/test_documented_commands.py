"""Every `st4vla ...` that the pages show is one that the command line takes; nothing is run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from st4vla.platform.arguments import parse_arguments
from st4vla.platform.cli import commands, compose_command, find_command, refuse_missing
from st4vla.platform.jobs import remote_command

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = [CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((CHECKOUT / "docs").rglob("*.md"))
PAGE_OF = {page.stem: page for page in (CHECKOUT / "docs" / "commands").glob("*.md")}
GROUPS = {folder.name for folder in (CHECKOUT / "configs").iterdir() if folder.is_dir()}
MISSED = object()
BLOCK = re.compile(r"(?ms)^```(?:bash)?\n(.*?)^```$")
SPAN = re.compile(r"`(st4vla [^`\n]+)`")
# Words that stand for a choice of the reader's: of a command, or of a config group, where not every word will do.
PLACEHOLDERS = {"COMMAND words --flags key=value": "eval", "COMMAND": "eval", "NAME --help": "eval --help"}
PLACEHOLDERS |= {"mixture=NAME": "mixture=bridge", "checkpoint show NAME": "checkpoint show tiny"}


def stand_in(command: str) -> str:
    for words, choice in PLACEHOLDERS.items():
        command = re.sub(rf"(?<!\S){re.escape(words)}(?!\S)", choice, command)
    return command


def lines_of_blocks(page: Path) -> Iterator[str]:
    for block in BLOCK.findall(page.read_text()):
        lines = block.replace("\\\n", " ").splitlines()
        yield from (line for line in lines if line.startswith("st4vla "))


def listed(of_page: Any) -> list[Any]:
    found = [(page.relative_to(CHECKOUT), command) for page in PAGES for command in of_page(page)]
    return [pytest.param(command, id=f"{page}: {command}") for page, command in found]


BLOCKS = listed(lines_of_blocks)
SPANS = listed(lambda page: SPAN.findall(page.read_text()))


@pytest.fixture
def own_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config folder of their own that docs/data.md lets readers have."""
    (tmp_path / "my_configs" / "mixture").mkdir(parents=True)
    (tmp_path / "my_configs" / "mixture" / "kitchen.yaml").write_text("# @package _global_\ndata: runs/kitchen\n")
    monkeypatch.chdir(tmp_path)


def words_of(command: str) -> list[str]:
    """Split a line as a shell does."""
    return shlex.split(stand_in(command).replace("$PWD", str(Path.cwd())), comments=True)[1:]


def compose(words: list[str], complete: bool) -> Any:
    """Compose a command line; a complete one also has every setting that must be given."""
    spec = find_command(words[0])
    cfg = compose_command(spec.name, parse_arguments(spec, words[1:]).overrides)
    if complete:
        refuse_missing(spec, cfg)
    return cfg


def test_the_pages_are_found():
    assert len(BLOCKS) > 100 and len(SPANS) > 40


@pytest.mark.parametrize("command", BLOCKS)
def test_a_line_of_a_code_block_is_a_whole_command(command: str):
    cfg = compose(words_of(command), complete=True)
    if cfg.command.run.endswith("submit_main"):
        remote_command(cfg.remote_command, list(cfg.arguments))


@pytest.mark.parametrize("command", SPANS)
def test_a_command_in_running_text_has_only_words_that_exist(command: str, own_mixture: None):
    words = words_of(command)
    if words != ["--version"]:
        compose(words, complete=False)


def settings_of_tables(page: Path) -> list[str]:
    """Give what stands in code in the first column of a page's tables of settings."""
    tables = re.findall(r"(?m)^\| (?:setting|flag) .*\n\|[-|]+\n((?:\|.*\n)*)", page.read_text())
    cells = re.findall(r"(?m)^\| (`[^|]*) \|", "".join(tables))
    return [word for cell in cells for word in re.findall("`(.+?)`", cell)]


@pytest.mark.parametrize("name", commands())
def test_a_table_of_settings_names_only_settings_that_exist(name: str):
    """Names with a plus before them are those that the config does not list."""
    spec, cfg = find_command(name), compose_command(name)
    known = {flag.name for flag in spec.flags} | set(spec.aliases) | set(cfg) | GROUPS
    for word in settings_of_tables(PAGE_OF[name]):
        path = re.split(r"[= ]", word)[0].removesuffix(".*")
        if not path.startswith("+"):
            assert path in known or OmegaConf.select(cfg, path, default=MISSED) is not MISSED, f"{name} has no {word}"


@pytest.mark.parametrize("command", [one for one in BLOCKS if one.values[0].startswith("st4vla train ")])
def test_a_line_that_trains_makes_a_job_with_something_to_ask_about(command: str):
    from st4vla.workers.training.command import read_job

    settings: Any = OmegaConf.to_container(compose(words_of(command), complete=True), resolve=True)
    job = read_job(settings)
    unannotated = "mixture=" in command and not settings["grounding_data"]
    assert job.robot and not (unannotated and job.train.batch.grounding)
