"""The `track` command: show what waits for the tracking store, send it, or say how to open MLflow."""

import shlex
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError, TrackingError
from st4vla.platform.machine import program
from st4vla.platform.tracking import TrackingConfig
from st4vla.platform.tracking_queue import queue_states
from st4vla.platform.tracking_sender import StoreAway, sweep
from st4vla.platform.tracking_store import MlflowStore

ACTIONS = ("show", "sync", "ui")


def main(cfg: Any) -> int:
    """Do `cfg.action` to the store and queue of `cfg.tracking`."""
    config = TrackingConfig(**cfg.tracking)
    if cfg.action not in ACTIONS:
        raise ConfigError(f"track was asked to {cfg.action!r}; expected one of {', '.join(ACTIONS)}")
    if not config.enabled:
        raise ConfigError("tracking is off; choose tracking=sqlite or tracking=server")
    if cfg.action == "sync":
        sync(config)
    elif cfg.action == "ui":
        print(open_command(config))
        return 0
    show(config)
    return 0


def sync(config: TrackingConfig) -> int:
    """Send the records of every run whose process is gone; give the number of runs.

    Raises:
        TrackingError: the store does not answer.
    """
    store = MlflowStore(config.uri, config.experiment, config.upload_limit_mb)
    store.import_client()
    try:
        return sweep(store, Path(config.queue_dir))
    except StoreAway as error:
        raise TrackingError(
            f"the tracking store {config.uri} did not answer ({error}); nothing is lost, "
            f"the records stay in {config.queue_dir}. Start it and run `st4vla track sync` again"
        ) from error


def show(config: TrackingConfig) -> None:
    """Print one line for each run in the queue."""
    from rich.console import Console
    from rich.table import Table

    states = queue_states(Path(config.queue_dir))
    table = Table("run", "waiting", "refused", "process")
    for state in states:
        table.add_row(state.run_id, str(state.unsent), str(state.rejected), "runs" if state.alive else "gone")
    console = Console()
    console.print(f"store {config.uri}, experiment {config.experiment}", soft_wrap=True)
    console.print(table if states else "nothing waits to be sent")


def open_command(config: TrackingConfig) -> str:
    """Give the shell command that opens the store in a browser, or the address of a server."""
    if not config.uri.startswith("sqlite:"):
        return config.uri
    return f"{shlex.quote(program('mlflow'))} ui --backend-store-uri {shlex.quote(config.uri)}"
