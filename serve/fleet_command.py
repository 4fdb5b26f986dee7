"""`st4vla fleet`: ask a serving application how it is, and tell it what to do, over its administration door."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from st4vla.platform.errors import ConfigError, JobError
from st4vla.serve.key_command import listed

KEY_VARIABLE = "ST4VLA_API_KEY"
TIMEOUT_S = 60.0


def main(cfg: Any) -> int:
    """Run the `fleet` command."""
    details = details_of(cfg)
    if details is None:
        _show(call(cfg.url, ""))
    else:
        _show_routes(call(cfg.url, cfg.action, details))
    return 0


def details_of(cfg: Any) -> dict[str, Any] | None:
    """Give what an action is sent with; None for `status`, which is only asked.

    Raises:
        ConfigError: there is no such action, or it lacks its subject.
    """
    subject = str(cfg.subject or "")
    match cfg.action:
        case "status":
            return None
        case "update" | "canary" if not subject:
            raise ConfigError(f"{cfg.action} needs a model: st4vla fleet {cfg.action} MODEL")
        case "update":
            return {"model": _as_seen_there(subject)}
        case "canary":
            return {"model": _as_seen_there(subject), "share": float(cfg.share), "robots": list(listed(cfg.robots))}
        case "promote" | "rollback":
            return {}
        case "stop":
            return {"robot": subject, "reason": cfg.reason}
        case "release":
            return {"robot": subject}
    raise ConfigError(
        f"fleet was asked to {cfg.action!r}; expected status, update, canary, promote, rollback, stop or release"
    )


def _as_seen_there(model: str) -> str:
    """Make a folder's path absolute: the application may have been started in another one."""
    return os.path.abspath(model) if os.path.isdir(model) else model


def call(url: str, action: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Ask the administration door.

    Raises:
        JobError: it does not answer, or refuses; with its words.
    """
    address = f"{url.rstrip('/')}/v1/fleet" + (f"/{action}" if action else "")
    body = None if details is None else json.dumps(details).encode()
    key = os.environ.get(KEY_VARIABLE, "")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Api-Key {key}"} if key else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=TIMEOUT_S) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise JobError(f"{address} refused: {_words(error.read(65536))}") from error
    except TimeoutError as error:
        raise JobError(
            f"{address} has not answered within {TIMEOUT_S:g} s; what was asked may still be done, or a model still be "
            "fetched: look at `st4vla fleet`"
        ) from error
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise JobError(f"no serving application answers at {url}: {error}; name it with --url") from error


def _words(body: bytes) -> str:
    try:
        error = json.loads(body)["error"]
        hint = f"; set {KEY_VARIABLE} to a key with the scope" if error["kind"] in ("unauthorized", "forbidden") else ""
        return f"{error['message']}{hint}"
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("ascii", "replace")


def _show(status: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    _show_routes(status)
    table = Table("replica", "answers with", "connections", "sessions", "served", "refused", "loaded")
    for name, replica in status["replicas"].items():
        counts = (str(replica[key]) for key in ("connections", "sessions", "served"))
        refused = sum(replica["refused"].values())
        table.add_row(name, replica["production"], *counts, str(refused), " ".join(replica["loaded"]))
    Console().print(table)


def failed_models(status: Mapping[str, Any]) -> dict[str, str]:
    """Give the models that some replica could not load, and why."""
    return {label: why for replica in status["replicas"].values() for label, why in replica["failed"].items()}


def _show_routes(status: Mapping[str, Any]) -> None:
    routes = status["routes"]
    if status.get("trouble"):
        print(f"trouble     {status['trouble']}")
    print(f"production  {routes['production']}")
    if routes["canary"]:
        named = f" and {', '.join(routes['robots'])}" if routes["robots"] else ""
        print(f"canary      {routes['canary']} for {100 * routes['share']:g} % of the robots{named}")
    if routes["previous"]:
        print(f"previous    {routes['previous']} (st4vla fleet rollback)")
    for label, why in failed_models({"replicas": {}, **status}).items():
        print(f"failed      {label}: {why}")
    for robot, reason in status["stopped"].items():
        print(f"stopped     {robot or 'the whole fleet'}: {reason}")
