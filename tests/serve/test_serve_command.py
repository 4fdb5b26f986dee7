"""The command opens nothing to others without keys."""

from pathlib import Path

import pytest

from st4vla.platform.errors import ConfigError
from st4vla.serve.access import KeyFile
from st4vla.serve.command import ServeConfig, check_doors
from st4vla.serve.doors.groot import GrootConfig
from st4vla.serve.gate import GateConfig
from st4vla.serve.post import PostConfig

EVERYWHERE = "0.0.0.0"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"gate": GateConfig(host=EVERYWHERE)}, "gate.host"),
        ({"serve_host": EVERYWHERE}, "serve_host"),
        ({"post": PostConfig(groot=GrootConfig(port=5555, host=EVERYWHERE))}, "post.groot.host"),
    ],
)
def test_a_door_that_others_reach_asks_for_a_key(tmp_path: Path, settings: dict, name: str) -> None:
    config = ServeConfig(("m",), str(tmp_path), **settings)
    with pytest.raises(ConfigError, match=f"{name}=0.0.0.0 can be reached"):
        check_doors(config)
    KeyFile(tmp_path / "keys.json").add("robot", ["act"])
    assert check_doors(config)


def test_loopback_asks_for_none(tmp_path: Path) -> None:
    assert not check_doors(ServeConfig(("m",), str(tmp_path), post=PostConfig(groot=GrootConfig(host=EVERYWHERE))))
