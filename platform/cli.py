"""Run `st4vla COMMAND [positionals] [--flags] [key=value ...]`.

Every `configs/COMMAND.yaml` with a `command:` block is a command. Hydra composes it, positionals and --flags become
overrides of the keys the block names, and the function in `command.run` is imported and called with the result, so
that this module imports no other room.
"""

import difflib
import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from st4vla.platform.arguments import CommandSpec, parse_arguments
from st4vla.platform.errors import ConfigError, St4vlaError
from st4vla.platform.machine import prepare_process

CONFIG_MODULE = "st4vla.configs"
USER_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit code: 2 for a user's error, 130 when interrupted."""
    prepare_process()
    words = list(sys.argv[1:] if argv is None else argv)
    configure_logging()
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except St4vlaError as error:
        if os.environ.get("ST4VLA_DEBUG") == "1":
            traceback.print_exc()
        print(f"st4vla: {error}", file=sys.stderr)
        return USER_ERROR


def configure_logging() -> None:
    """Send the platform's log to standard error, at the level ST4VLA_LOG names (INFO unless set)."""
    level = os.environ.get("ST4VLA_LOG", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        raise ConfigError(f"ST4VLA_LOG is {level!r}; expected one of DEBUG, INFO, WARNING, ERROR")
    logging.basicConfig(format="%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("st4vla").setLevel(level)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("st4vla"))
        return 0
    spec = find_command(words[0])
    arguments = parse_arguments(spec, words[1:])
    if arguments.help:
        print(command_help(spec, compose_command(spec.name, arguments.overrides)))
        return 0
    cfg = compose_command(spec.name, arguments.overrides)
    if arguments.print_config:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(cfg), end="")
        return 0
    refuse_missing(spec, cfg)
    return resolve(spec)(cfg) or 0


def commands() -> dict[str, CommandSpec]:
    """Read the `command:` block of every primary config, by command name."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = {}
    for file in resources.files(CONFIG_MODULE).iterdir():
        if not file.name.endswith(".yaml"):
            continue
        block = (yaml.load(file.read_text(), Loader=loader) or {}).get("command")
        if block:
            name = file.name.removesuffix(".yaml")
            found[name] = CommandSpec.from_block(name, block)
    return dict(sorted(found.items()))


def find_command(name: str) -> CommandSpec:
    """Give the command of that name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    known = commands()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}."
    raise ConfigError(f"{name!r} is not a command; {hint} `st4vla --help` lists them all")


def compose_command(name: str, overrides: Sequence[str] = ()) -> Any:
    """Compose `configs/NAME.yaml` with Hydra and give the DictConfig.

    Raises:
        ConfigError: with Hydra's own text, and the nearest key where one was mistyped.
    """
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            return compose(name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{error}{_nearest_key(name, str(error))}") from error


def _nearest_key(name: str, message: str) -> str:
    mistyped = re.search(r"Could not override '([\w.]+)'", message)
    if mistyped is None:
        return ""
    typed, keys = mistyped[1], _dotted_keys(compose_command(name))
    if (resources.files(CONFIG_MODULE) / typed).is_dir():
        return f"\n{typed} is a group of settings that {name} has no choice of; `st4vla {name} --help` lists its keys."
    if typed in keys:  # Hydra's own text says how to add to what the key holds
        return ""
    near = difflib.get_close_matches(typed, keys, n=1)
    return f"\nDid you mean {near[0]}?" if near else f"\n`st4vla {name} --help` lists the keys."


def _dotted_keys(cfg: Any, prefix: str = "") -> list[str]:
    keys = []
    for key in cfg:
        keys.append(f"{prefix}{key}")
        if (node := cfg._get_node(key)) is not None and hasattr(node, "keys") and not node._is_missing():
            keys += _dotted_keys(node, f"{prefix}{key}.")
    return keys


def refuse_missing(spec: CommandSpec, cfg: Any) -> None:
    """Raise ConfigError naming the keys of a composed config that must be given and were not."""
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{spec.name} needs {', '.join(missing)}; usage: {spec.usage}")


def resolve(spec: CommandSpec) -> Callable[[Any], int | None]:
    """Import the function a command's `run:` names.

    Raises:
        ConfigError: the module or the function does not exist.
    """
    module_name, _, function = spec.run.rpartition(".")
    try:
        run = getattr(importlib.import_module(module_name), function)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        raise ConfigError(f"command {spec.name} names {spec.run}, but there is no module {module_name}") from error
    except AttributeError as error:
        raise ConfigError(f"command {spec.name} names {spec.run}, which {module_name} lacks") from error
    return run


def overview() -> str:
    """Give the text of `st4vla --help`."""
    known = commands()
    width = max((len(name) for name in known), default=0)
    lines = [f"  {name:<{width}}  {spec.about}" for name, spec in known.items()]
    return "\n".join(
        [
            "usage: st4vla COMMAND [positionals] [--flags] [key=value ...]",
            "",
            "Take a vision-language model to robots: collect, train, evaluate, reinforce, serve.",
            "",
            *lines,
            "",
            "`st4vla COMMAND --help` shows a command's settings, `--print-config` what it composes.",
        ]
    )


def command_help(spec: CommandSpec, cfg: Any) -> str:
    """Give the text of `st4vla COMMAND --help`: usage, flags and every key with the value it would have."""
    from omegaconf import OmegaConf

    notes = _key_notes(spec.name)
    lines = [f"usage: {spec.usage}", "", spec.about, ""]
    lines += [f"  {flag.name}{'' if flag.const is not None else ' VALUE':<8}  sets {flag.key}" for flag in spec.flags]
    lines += ["  --print-config  print the composed settings and stop", "", "settings (key=value):"]
    for key in cfg:
        if key == "command":
            continue
        if key in notes:
            lines.append(f"  # {notes[str(key)]}")
        text = OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, [key]))
        lines += [f"  {line}" for line in text.splitlines()]
    return "\n".join(lines)


def _key_notes(name: str) -> dict[str, str]:
    """Read the comments that stand behind top-level keys in a primary config."""
    text = Path(str(resources.files(CONFIG_MODULE) / f"{name}.yaml")).read_text()
    return {key: note for key, note in re.findall(r"(?m)^(\w+):[^#\n]*#\s*(.+)$", text) if key != "command"}


if __name__ == "__main__":
    sys.exit(main())
