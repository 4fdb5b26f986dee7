"""The `simplerenv` command: hold this port of SimplerEnv against recordings of the original."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from st4vla.envs.simpler.parity import FIGURES, deviations
from st4vla.envs.simpler.recording import read_recording, read_states, write_recording
from st4vla.platform.errors import ConfigError, DataError, St4vlaError

log = logging.getLogger(__name__)
FAILED = 1


def main(cfg: Any) -> int:
    """Do what `action` says; 1 if a file failed, after the others were done."""
    files, out = [Path(str(file)) for file in cfg.files], Path(str(cfg.out)) if cfg.out else None
    if cfg.action == "replay":
        return replay_files(files, out, cfg.assets)
    if cfg.action == "judge":
        return judge_file(files, out, cfg.assets)
    if cfg.action == "parity":
        return compare(files, out)
    raise ConfigError(f"simplerenv was given {cfg.action!r}; expected replay, judge or parity")


def replay_files(files: Sequence[Path], out: Path | None, assets: str | None) -> int:
    """Replay every recording and write what happened here to `out`, under the same file name.

    Raises:
        ConfigError: no recordings or no folder were named.
    """
    if not files or out is None:
        raise ConfigError("simplerenv replay needs recordings and a folder: CASE.npz ... --out DIR")
    recordings = [one for file in files for one in _recordings(file)]
    _refuse_equal_names(recordings)
    _refuse_overwriting(recordings, out)
    world = _world(assets)
    failed = 0
    for file in _counted(recordings, "replaying"):
        failed += _attempt(file, lambda file=file: _replay_one(world, file, out))
    world.close()
    return FAILED if failed else 0


def _replay_one(world: Any, file: Path, out: Path) -> None:
    from st4vla.envs.simpler.replay import replay

    write_recording(out / file.name, replay(world, read_recording(file)))


def _refuse_equal_names(recordings: Sequence[Path]) -> None:
    names = [file.name for file in recordings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two recordings are named {twice[0]}; replay them into different folders")


def _refuse_overwriting(recordings: Sequence[Path], out: Path) -> None:
    same = [file for file in recordings if (out / file.name).resolve() == file.resolve()]
    if same:
        raise ConfigError(f"--out {out} holds {same[0].name} itself; choose another folder")


def judge_file(files: Sequence[Path], out: Path | None, assets: str | None) -> int:
    """Judge a list of states and write our verdicts in its order.

    Raises:
        ConfigError: not one list, or no file to write, was named.
    """
    if len(files) != 1 or out is None:
        raise ConfigError("simplerenv judge needs one list of states and a file: STATES.json --out FILE")
    from st4vla.envs.simpler.states import judge_states

    states = read_states(files[0])
    world = _world(assets)
    verdicts, failed = judge_states(world, states, files[0].parent)
    world.close()
    _write_json(out, verdicts)
    for verdict in verdicts:
        if "error" in verdict:
            log.error("%s: %s", verdict["case"], verdict["error"])
    print(f"{len(verdicts) - failed} of {len(verdicts)} states judged, in {out}")
    return FAILED if failed else 0


def compare(files: Sequence[Path], out: Path | None) -> int:
    """Print how far the recordings of B are from those of the same name of A, the original's.

    Raises:
        ConfigError: not two files or two folders were named.
    """
    if len(files) != 2:
        raise ConfigError("simplerenv parity compares two: two recordings, or two folders of them: A B")
    pairs, failed = _pairs(*files), 0
    rows: dict[str, dict[str, Any]] = {}
    for name, (first, second) in pairs.items():
        failed += _attempt(second, lambda n=name, a=first, b=second: rows.update({n: _deviations(a, b)}))
    _print_table(rows)
    if out is not None:
        _write_json(out, rows)
    return FAILED if failed else 0


def _deviations(first: Path, second: Path) -> dict[str, Any]:
    return deviations(read_recording(first), read_recording(second))


def _pairs(first: Path, second: Path) -> dict[str, tuple[Path, Path]]:
    if first.is_dir() != second.is_dir():
        raise ConfigError(f"{first} and {second} are a folder and a file; name two of a kind")
    if not first.is_dir():
        return {first.stem: (first, second)}
    names = [file.name for file in _recordings(first)]
    return {Path(name).stem: (first / name, second / name) for name in names}


def _recordings(file: Path) -> list[Path]:
    """Give the recordings of a folder, or the file itself."""
    if not file.is_dir():
        return [file]
    found = sorted(file.glob("*.npz"))
    if not found:
        raise ConfigError(f"{file} holds no recordings (.npz)")
    return found


def _print_table(rows: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, row in rows.items():
        table = Table("figure", "deviation", "limit", "", title=name, title_justify="left")
        for figure in FIGURES:
            value, holds = row[figure.key], figure.holds(row[figure.key])
            sign = ">=" if figure.at_least else "<="
            mark = {True: "[green]ok[/]", False: "[red]beyond[/]", None: ""}[holds]
            limit = "" if figure.limit is None else f"{sign} {figure.limit:g}"
            table.add_row(figure.about, "-" if value is None else f"{value:.4g}", limit, mark)
        console.print(table)


def _world(assets: str | None) -> Any:
    from st4vla.envs.simpler.world import SimplerWorld, SimplerWorldConfig

    return SimplerWorld(SimplerWorldConfig(assets=str(assets or "")))


def _attempt(file: Path, run: Any) -> int:
    """Run one file's work; a failure is said and counted, and the others go on."""
    try:
        run()
    except St4vlaError as error:
        log.error("%s: %s", file, error)
        return 1
    except Exception:  # one recording that meets an unknown fault must not cost the others
        log.exception("%s failed", file)
        return 1
    return 0


def _counted(files: Sequence[Path], title: str) -> Any:
    from rich.console import Console
    from rich.progress import track

    return track(files, title, console=Console(stderr=True), disable=len(files) < 2)


def _write_json(path: Path, content: Any) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
