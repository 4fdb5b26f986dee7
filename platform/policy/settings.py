"""Fill frozen config dataclasses from plain mappings, and check the values they hold."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from importlib.resources import files
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from st4vla.platform.errors import ConfigError

Config = TypeVar("Config")


def packaged(folder: str, name: str, what: str) -> Any:
    """Read `configs/FOLDER/NAME.yaml` of the package.

    Raises:
        ConfigError: there is none of that name; those there are are listed.
    """
    place = files("st4vla.configs") / folder
    found = {file.name.removesuffix(".yaml"): file for file in place.iterdir() if file.name.endswith(".yaml")}
    if name not in found:
        raise ConfigError(f"There is no {what} {name!r}; there are {', '.join(sorted(found))}.")
    import yaml  # late, as a robot's client that is given its embodiment needs no YAML

    return yaml.safe_load(found[name].read_text())


def build_config(kind: type[Config], values: Mapping[str, Any], path: str = "") -> Config:
    """Build a config dataclass and those nested in it.

    Raises:
        ConfigError: a name is unknown or missing, or a value is of another kind; `path` leads to it.
    """
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
    for name in values:
        if name not in names:
            near = get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}."
            raise ConfigError(f"{path}{name} is not a setting of {kind.__name__}; {hint}")
    filled = {name: convert(hints[name], value, f"{path}{name}") for name, value in values.items()}
    try:
        return kind(**filled)
    except TypeError as error:
        raise ConfigError(f"{path.rstrip('.') or kind.__name__} is incomplete: {error}.") from error


def convert(hint: Any, value: Any, path: str) -> Any:
    """Give `value` in the form that the annotation `hint` asks for."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else convert(next(a for a in get_args(hint) if a is not type(None)), value, path)
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} is {value!r}; expected the settings of {hint.__name__}.")
        return build_config(hint, value, f"{path}.")
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{path} is {value!r}; expected a list.")
        return tuple(convert(get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{path} is {value!r}; expected one of {', '.join(map(str, get_args(hint)))}.")
        return value
    return scalar(hint, value, path)


def scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise ConfigError(f"{path} is {value!r}; expected {hint.__name__}.")
    return value


def plain(config: Any) -> dict[str, Any]:
    """Give a config as mappings, lists and scalars only, ready for YAML."""
    return _plain(asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def require(condition: bool, owner: object, field: str, remedy: str) -> None:
    """Raise ConfigError naming the field, its value and the remedy unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{type(owner).__name__}.{field} is {getattr(owner, field)!r}; {remedy}.")


def require_positive(owner: object, *names: str) -> None:
    """Raise ConfigError for the first of `names` that is not above zero."""
    for name in names:
        require(getattr(owner, name) > 0, owner, name, "it must be above 0")
