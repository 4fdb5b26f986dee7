"""Turn a command's positionals and --flags into Hydra overrides."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from st4vla.platform.errors import ConfigError

OVERRIDE = re.compile(r"^(\+{0,2}[A-Za-z_][\w./@-]*=|~[A-Za-z_])")
PLAIN_VALUE = re.compile(r"^[\w./:*@%?|+-]+$")


@dataclass(frozen=True)
class Flag:
    """A --flag: the config key it sets, and the constant it sets if it takes no value."""

    name: str
    key: str
    const: Any = None


@dataclass(frozen=True)
class CommandSpec:
    """The `command:` block of one primary config.

    Attributes:
        name: the command's name, its YAML file's.
        about: one line for `--help`.
        run: dotted name of the function called with the composed config.
        positionals: config keys that words without `=` fill, in order.
        flags: the command's own --flags.
        aliases: other names of config keys on the command line; Hydra keeps the name of a config group for the group,
            so a plain key that users know by such a name bears another one in the YAML.
        rest: config key that takes every word after the last positional, verbatim, as a list; "" for none.
        many: config key that takes every further word as a list, while flags and key=value keep their meaning.
    """

    name: str
    about: str
    run: str
    positionals: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()
    rest: str = ""
    many: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_block(cls, name: str, block: Mapping[str, Any]) -> "CommandSpec":
        """Read the block as YAML gives it.

        Raises:
            ConfigError: `about` or `run` is missing, or a key is unknown.
        """
        unknown = set(block) - {"about", "run", "positionals", "flags", "rest", "many", "aliases"}
        if unknown or not block.get("about") or not block.get("run"):
            raise ConfigError(
                f"the command block of configs/{name}.yaml has {sorted(block)}; "
                "expected about and run, and at most positionals, flags, rest, many and aliases"
            )
        flags = tuple(_flag(flag, target) for flag, target in (block.get("flags") or {}).items())
        positionals = tuple(block.get("positionals") or ())
        rest, many = block.get("rest") or "", block.get("many") or ""
        return cls(name, block["about"], block["run"], positionals, flags, rest, many, block.get("aliases") or {})

    @property
    def usage(self) -> str:
        """One line: the command, its positionals and where flags and settings go."""
        words = [f"[{key.upper()}]" for key in self.positionals]
        if self.rest or self.many:
            words.append(f"[{(self.rest or self.many).upper()} ...]")
        return " ".join(["st4vla", self.name, *words, "[--flags]", "[key=value ...]"])


def _flag(name: str, target: Any) -> Flag:
    if isinstance(target, str):
        return Flag(name, target)
    return Flag(name, target["key"], target.get("const", True))


@dataclass
class Arguments:
    """A parsed command line: Hydra overrides in the order given, and the two switches every command has."""

    overrides: list[str] = field(default_factory=list)
    help: bool = False
    print_config: bool = False


def parse_arguments(spec: CommandSpec, words: Sequence[str]) -> Arguments:
    """Sort words into overrides, flags and positionals.

    Raises:
        ConfigError: an unknown flag, a flag without its value, or a word no positional takes.
    """
    arguments = Arguments()
    free, further = list(spec.positionals), []
    queue = list(words)
    while queue:
        if spec.rest and not free:
            arguments.overrides.append(f"{spec.rest}=[{','.join(_quoted(word) for word in queue)}]")
            break
        word = queue.pop(0)
        if word in ("-h", "--help"):
            arguments.help = True
        elif word == "--print-config":
            arguments.print_config = True
        elif word.startswith("--"):
            arguments.overrides.append(_flag_override(spec, word, queue))
        elif OVERRIDE.match(word):
            arguments.overrides.append(_unaliased(spec, word))
        elif free:
            arguments.overrides.append(f"{free.pop(0)}={quote(word)}")
        elif spec.many:
            further.append(_quoted(word))
        else:
            raise ConfigError(f"{spec.name} was given {word!r} and has no place for it; usage: {spec.usage}")
    if further:
        arguments.overrides.append(f"{spec.many}=[{','.join(further)}]")
    return arguments


def _unaliased(spec: CommandSpec, word: str) -> str:
    key, _, value = word.partition("=")
    return f"{spec.aliases[key]}={quote(value)}" if key in spec.aliases else word


def _flag_override(spec: CommandSpec, word: str, queue: list[str]) -> str:
    name, equals, value = word.partition("=")
    flag = next((flag for flag in spec.flags if flag.name == name), None)
    if flag is None:
        raise ConfigError(f"{spec.name} has no flag {name}; {_flag_hint(spec, name)}")
    if flag.const is not None:
        if equals:
            raise ConfigError(f"{name} takes no value, but was given {value!r}")
        return f"{flag.key}={quote(_plain(flag.const))}"
    if not equals:
        if not queue:
            raise ConfigError(f"{name} needs a value: {name} VALUE")
        value = queue.pop(0)
    return f"{flag.key}={quote(value)}"


def _flag_hint(spec: CommandSpec, name: str) -> str:
    names = [flag.name for flag in spec.flags] + ["--help", "--print-config"]
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}, or key=value"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def quote(value: str) -> str:
    """Give a value in Hydra's grammar: lists and plain words as they are, anything else as a quoted string."""
    if PLAIN_VALUE.match(value) or (value[:1], value[-1:]) in (("[", "]"), ("{", "}")):
        return value
    return _quoted(value)


def _quoted(value: str) -> str:
    escaped = re.sub(r"(\\+)$", r"\1\1", re.sub(r"(\\*)'", r"\1\1\\'", value))
    return f"'{escaped}'"
