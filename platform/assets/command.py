"""The `assets` command: fetch the scenes of a benchmark, or say what of them is missing."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from omegaconf import OmegaConf

from st4vla.platform.assets.fetch import FetchConfig, Fetcher, free_bytes
from st4vla.platform.assets.manifest import AssetFile
from st4vla.platform.assets.needs import Readiness, files_for, readiness, suites_of
from st4vla.platform.assets.tree import AssetTree, find_tree, survey
from st4vla.platform.errors import ConfigError, DataError

SHOWN = 8


def main(cfg: Any) -> int:
    """Do what `action` says; give 1 if a suite that was asked for lacks a file."""
    suites = suites_of([str(suite) for suite in cfg.suites])
    tree = find_tree(cfg.dir)
    if cfg.action == "fetch":
        fetch(tree, suites, FetchConfig(**OmegaConf.to_container(cfg.fetch)))  # pyright: ignore[reportCallIssue]
    elif cfg.action != "check":
        raise ConfigError(f"assets was given {cfg.action!r}; expected fetch or check")
    return check(tree, suites)


def fetch(tree: AssetTree, suites: Sequence[str], config: FetchConfig) -> None:
    """Fetch what the suites need and the tree lacks; stand-ins are replaced.

    Raises:
        DataError: there is no room, or a file could not be had; the others were fetched.
    """
    files = files_for(suites)
    standings = survey(tree, files)
    wanted = [file for file in files if standings[file.place] != "ok"]
    _make_sure_of_room(tree, wanted)
    with _bar() as bar:
        known = sum(file.size or 0 for file in wanted)
        total = known if all(file.size for file in wanted) else None
        task = bar.add_task(f"fetching {len(wanted)} of {len(files)} files", total=total)
        failed = Fetcher(tree, config, lambda count: bar.advance(task, count)).fetch(wanted)
    if failed:
        lines = [f"{place}: {reason}" for place, reason in list(failed.items())[:SHOWN]]
        more = [f"and {len(failed) - SHOWN} more"] if len(failed) > SHOWN else []
        text = "\n  ".join([f"{len(failed)} of {len(wanted)} files could not be fetched:", *lines, *more])
        raise DataError(f"{text}\nRun it again to go on, or name another mirror with --mirror.")


def _make_sure_of_room(tree: AssetTree, wanted: Sequence[AssetFile]) -> None:
    needed, free = sum(file.size or 0 for file in wanted), free_bytes(tree.root)
    if needed > free:
        raise DataError(
            f"{tree.root} has {free / 1e6:.0f} MB free and at least {needed / 1e6:.0f} MB are to come; "
            "make room, or choose another folder with --dir"
        )


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
    )


def check(tree: AssetTree, suites: Sequence[str]) -> int:
    """Print how every task of the suites stands and give 1 if one of them lacks a file."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"assets in {tree.root}", highlight=False, soft_wrap=True)
    rows = readiness(survey(tree, files_for(suites)), suites)
    for suite in suites:
        table = Table("task", "", "files", title=suite, title_justify="left")
        for row in rows:
            if row.suite == suite:
                table.add_row(row.task, *describe(row))
        console.print(table)
    disabled = sorted({row.suite for row in rows if row.lacking})
    if disabled:
        console.print(f"`st4vla assets fetch {' '.join(disabled)}` brings what is missing.", soft_wrap=True)
    return int(bool(disabled))


def describe(row: Readiness) -> tuple[str, str]:
    """Give a word and a sentence on how a task stands."""
    if row.lacking:
        first, *others = row.lacking
        more = f" and {len(others)} more" if others else ""
        return "[red]disabled[/]", f"{PurePath(first).name}{more} missing or damaged"
    if row.stood_in:
        return (
            "[yellow]stand-ins[/]",
            f"{len(row.stood_in)} have stand-ins: pictures differ",
        )
    return "[green]ok[/]", "the originals"
