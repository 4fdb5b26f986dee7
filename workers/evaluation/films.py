"""Choose the episodes worth watching and have the rollout actors film them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from st4vla.platform.contracts import EpisodeResult, EpisodeSpec
from st4vla.platform.data.disk import write_file
from st4vla.platform.errors import DataError
from st4vla.workers.results.report import Film
from st4vla.workers.results.summary import INFRASTRUCTURE
from st4vla.workers.rollout.episode import Recording, Rollout
from st4vla.workers.rollout.pool import Pool
from st4vla.workers.rollout.recordings import load_recording

log = logging.getLogger(__name__)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Shot:
    """One film to make."""

    episode_id: str
    spec: EpisodeSpec
    rollout: Rollout
    path: Path


def choose(rows: Sequence[Row], per_suite: int) -> list[Row]:
    """Choose per suite failures and successes, half and half, disturbed episodes first.

    Tasks take turns, in a task its variants, in a variant the seeds, and failures begin with tasks of which no success
    is shown. Where there are too few of one kind the other fills its places; episodes without a recording are left out.
    """
    chosen: list[Row] = []
    for suite in dict.fromkeys(row["suite"] for row in rows):
        pool = [row for row in rows if row["suite"] == suite and row["failure"] not in INFRASTRUCTURE]
        pool = [row for row in pool if row["perturbations"]] or pool
        failed = [row for row in pool if not row["success"]]
        won = in_turn([row for row in pool if row["success"]])
        won = won[: max(per_suite - len(failed), -(-per_suite // 2))]
        shown = {row["task"] for row in won}
        failed.sort(key=lambda row: row["task"] in shown)
        chosen += won + in_turn(failed)[: per_suite - len(won)]
    return chosen


def in_turn(rows: Sequence[Row], keys: Sequence[str] = ("task", "variant")) -> list[Row]:
    """Order rows so that each value of the first key has a turn, in its turns each of the next, and then by seed."""
    if not keys:
        return sorted(rows, key=lambda row: row["seed"])
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[keys[0]], []).append(row)
    turns = zip_longest(*(in_turn(group, keys[1:]) for group in groups.values()))
    return [row for turn in turns for row in turn if row is not None]


def film_name(row: Row) -> str:
    """Name a film by what it shows."""
    arm = "-disturbed" if row["perturbations"] else ""
    verdict = "success" if row["success"] else "failed"
    variant = "" if row["variant"] == "default" else f"-{row['variant'].replace('/', '_')}"
    return f"{row['suite']}-{row['task']}{variant}-{row['seed']}{arm}-{verdict}.mp4"


def film_chosen(
    pool: Callable[[], Pool[Any]], plan: Sequence[EpisodeSpec], rows: Sequence[Row], folder: Path, per_suite: int
) -> list[Film]:
    """Film the chosen episodes that have no film yet and give the gallery; a film that fails is left out and logged."""
    specs = {spec.episode_id: spec for spec in plan}
    chosen = choose(rows, per_suite)
    shots = []
    for row in chosen:
        path = folder / "films" / film_name(row)
        source = folder / "recordings" / f"{row['episode_id']}.npz"
        if not path.exists() and source.exists() and (recording := _read(source)) is not None:
            rollout = Rollout(result_of(row), recording)
            shots.append(_Shot(row["episode_id"], specs[row["episode_id"]], rollout, path))
    if shots:
        _shoot(pool(), shots)
    return [_entry(row) for row in chosen if (folder / "films" / film_name(row)).exists()]


def _read(path: Path) -> Recording | None:
    try:
        return load_recording(path)
    except DataError as error:
        log.warning("%s", error)
        return None


def _shoot(pool: Pool[_Shot], shots: Sequence[_Shot]) -> None:
    left = iter(shots)
    for outcome in pool.run(lambda _: next(left, None), lambda actor, shot: actor.film.remote(shot.spec, shot.rollout)):
        if outcome.value is None:
            log.warning("no film of episode %s: %s", outcome.item.episode_id, outcome.reason)
            continue
        write_file(outcome.item.path, outcome.value, sync=True)


def result_of(row: Row) -> EpisodeResult:
    """Read the result back out of a ledger row."""
    names = EpisodeResult.__dataclass_fields__
    fields: dict[str, Any] = {name: row[name] for name in names if name in row}
    fields["stages"] = tuple(row["stages"])
    return EpisodeResult(**fields)


def _entry(row: Row) -> Film:
    arm = ", ".join(name.replace("_", " ") for name in row["perturbations"])
    variant = "" if row["variant"] == "default" else f", {row['variant']}"
    title = f"{row['suite']} / {row['task']}{variant}, seed {row['seed']}" + (f" ({arm})" if arm else "")
    caption = f"{row['instruction']} - {row['steps']} steps, {row['looks']} looks"
    return Film(f"films/{film_name(row)}", title, caption, row["success"])
