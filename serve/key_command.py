"""`st4vla keys`: make, list and revoke API keys. A running application takes a change up within a second."""

import time
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError
from st4vla.serve.access import Key, KeyFile


def main(cfg: Any) -> int:
    """Run the `keys` command."""
    keys = KeyFile(Path(cfg.folder) / "keys.json")
    match cfg.action:
        case "list":
            _show(keys.read(), time.time())
        case "add":
            if not cfg.subject:
                raise ConfigError("the new key needs a name, for the list: st4vla keys add NAME")
            print(keys.add(cfg.subject, listed(cfg.scopes), listed(cfg.robots), float(cfg.days)))
        case "revoke":
            revoked = keys.revoke(cfg.subject)
            print(f"revoked {revoked.key_id} ({revoked.name}); open connections of it end with their next request")
        case _:
            raise ConfigError(f"keys was asked to {cfg.action!r}; expected list, add or revoke")
    return 0


def listed(value: Any) -> tuple[str, ...]:
    """Read a list, or its words with commas between them."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else tuple(value)


def _show(keys: tuple[Key, ...], now: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "name", "scopes", "robots", "state")
    for key in keys:
        table.add_row(key.key_id, key.name, " ".join(key.scopes), " ".join(key.robots) or "any", state_of(key, now))
    Console().print(table)


def state_of(key: Key, now: float) -> str:
    """Say in words whether a key still opens anything."""
    if key.revoked_at:
        return "revoked"
    if not key.is_valid(now):
        return "expired"
    return f"{(key.expires_at - now) / 86400:.0f} days left" if key.expires_at else "valid"
