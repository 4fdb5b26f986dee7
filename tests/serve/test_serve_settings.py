"""Every setting of serving can be given on the command line: Hydra refuses a key that the file does not hold."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from st4vla.serve.application import ScaleConfig
from st4vla.serve.gate import GateConfig
from st4vla.serve.post import PostConfig

# Filled from other settings of the command; keymaps have files of their own.
ELSEWHERE = {"post.keys", "post.vla_eval_keys", "post.groot.keys", "post.vla_eval", "post.tracking_uri", "post.leave_s"}
# The command keeps an audit log, a post of one's own need not.
OTHER_DEFAULT = {"post.watch.audit"}


def settings_of(config: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Give the path and the default of every setting."""
    for field in fields(config):
        value, name = getattr(config, field.name), f"{path}.{field.name}"
        if is_dataclass(value) and name not in ELSEWHERE:
            yield from settings_of(value, name)
        else:
            yield name, value


def find(settings: Mapping[str, Any], path: str) -> Any:
    for step in path.split("."):
        settings = settings[step]
    return settings


def test_the_file_holds_every_setting_and_its_default(checkout: Path) -> None:
    written = yaml.safe_load((checkout / "configs" / "serve.yaml").read_text())
    missing, different = [], {}
    for part, config in (("gate", GateConfig()), ("scale", ScaleConfig()), ("post", PostConfig())):
        for path, default in settings_of(config, part):
            if path in ELSEWHERE:
                continue
            try:
                value = find(written, path)
            except KeyError:
                missing.append(path)
                continue
            plain = list(default) if isinstance(default, tuple) else default
            if value != plain and path not in OTHER_DEFAULT and "${" not in str(value):
                different[path] = (value, plain)
    assert not missing and not different
