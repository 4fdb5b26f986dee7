"""Turn a spooled recording into an episode of a LeRobot dataset.

A robot shows one frame a request and executes several rows of the chunk it gets, so the episode has one row for each
executed step: the action that was sent, the frame and state of the request it answered, and beside them

    fresh          1 where the frame was new, 0 where it repeats the one before; only the former start a training sample
    sequence       number of the request in its session
    model          index into the episode's fact "models": which version answered
    interventions  how many limits changed this row before it was sent
    plan_age_ms    how old the plan was

How many rows of a chunk were executed is what the robot says with its next request, and of which chunk, where an answer
never reached it. Where it says nothing, the time between the two requests and the control rate stand in for it, and the
fact "steps" is "clock" rather than "stated". Of the last chunk only its first row counts, unless the recording goes on
in a next part: nobody knows of more.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from st4vla.platform.data.episode import Episode
from st4vla.platform.data.lerobot_features import Recording
from st4vla.platform.errors import DataError
from st4vla.serve.recorder.spool import Record, read_spool

IMAGE, STATE, ACTIONS = "image/", "state", "actions"
NAME = re.compile(r"[^A-Za-z0-9_-]+")
MAX_NOTED = 200


@dataclass(frozen=True)
class Tape:
    """The records of one spool file: its head, its looks, and how it ended (None if it was cut off)."""

    head: Mapping[str, Any]
    looks: Sequence[Record]
    end: Mapping[str, Any] | None


def read_tape(path: Path) -> Tape:
    """Read a spool file; one that was torn at its first record is a tape without looks.

    Raises:
        DataError: it cannot be read, or is no recording.
    """
    records = list(read_spool(path))
    if not records:
        return Tape({}, (), None)
    if records[0].facts.get("kind") != "head":
        raise DataError(f"{path} does not begin with the head of a recording; it was not written by the recorder.")
    end = records[-1].facts if records[-1].facts["kind"] == "end" else None
    return Tape(records[0].facts, [one for one in records[1:] if one.facts["kind"] == "look"], end)


def to_episode(tape: Tape, spec_id: str) -> Episode:
    """Lay a recording out as one row for each executed step.

    Raises:
        DataError: it holds no look, or what was served makes no episode.
    """
    steps = executed_steps(tape)
    if not sum(steps):
        raise DataError("the recording holds no executed step.")
    which = np.repeat(np.arange(len(steps)), steps)
    row = np.concatenate([np.arange(count) for count in steps])
    executed = [look.arrays[ACTIONS][:count] for look, count in zip(tape.looks, steps, strict=True)]
    models, model = _models(tape.looks)
    counts, noted = _interventions(tape.looks, steps)
    facts = [look.facts for look in tape.looks]
    return Episode(
        instruction=tape.head["instruction"],
        task="served",
        actions=np.concatenate(executed).astype(np.float32),
        states=_states(tape.looks, which),
        frames=_frames(tape.looks, which),
        fps=tape.head["fps"],
        spec_id=spec_id,
        columns={
            "fresh": (row == 0).astype(np.int64),
            "sequence": np.array([fact["sequence"] for fact in facts], np.int64)[which],
            "model": model[which],
            "interventions": counts,
            "plan_age_ms": np.array([fact["plan_age_ms"] for fact in facts], np.float32)[which],
        },
        facts=_facts(tape, models, noted),
    )


def executed_steps(tape: Tape) -> list[int]:
    """Give how many rows of each look's chunk the robot executed; 0 where it asked anew before the first.

    A robot whose answer was lost, late or of no use goes on with an older chunk, and counts its rows: they are that
    chunk's, and the looks in between, whose chunks were never begun, have none.
    """
    steps = [0] * len(tape.looks)
    numbers = [look.facts["sequence"] for look in tape.looks]
    for at, fact in enumerate([look.facts for look in tape.looks[1:]]):
        said, of = fact["executed"], fact.get("executed_of")
        if said is None:
            said, of = max(1, round((fact["at"] - tape.looks[at].facts["at"]) * tape.head["fps"])), None
        _count(steps, numbers[: at + 1], said, of)
    said = (tape.end or {}).get("executed")
    _count(steps, numbers, 1 if said is None else said, (tape.end or {}).get("executed_of"))
    return [min(count, len(look.arrays[ACTIONS])) for count, look in zip(steps, tape.looks, strict=True)]


def _count(steps: list[int], numbers: Sequence[int], said: int, of: int | None) -> None:
    """Note that so many rows were executed of the chunk with number `of`, None for the last of `numbers`."""
    if of is None or of == numbers[-1]:
        steps[len(numbers) - 1] = max(int(said), 0)
    elif of in numbers:
        at = len(numbers) - 1 - numbers[::-1].index(of)
        steps[at] = max(steps[at], int(said))


def dataset_name(episode: Episode, embodiment: str) -> str:
    """Name the dataset an episode belongs to: its embodiment, and a digest of the form that its episodes share."""
    form = Recording.of(episode)
    said = json.dumps([{k: list(v) for k, v in form.cameras.items()}, form.action_width, form.state_width, form.fps])
    return f"{plain_name(embodiment)}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def plain_name(text: str) -> str:
    """Make a text from outside fit for a file name."""
    return NAME.sub("_", text)[:60].strip("_") or "robot"


def _frames(looks: Sequence[Record], which: np.ndarray) -> dict[str, np.ndarray]:
    cameras = [name for name in looks[0].arrays if name.startswith(IMAGE)]
    plain = [plain_name(name.removeprefix(IMAGE)) for name in cameras]
    if len(set(plain)) < len(plain):
        raise DataError(f"the cameras {cameras} have the same file name; rename one of them.")
    shown = [np.stack([look.arrays[name] for look in looks])[which] for name in cameras]
    return {name: _with_even_sides(frames) for name, frames in zip(plain, shown, strict=True)}


def _with_even_sides(frames: np.ndarray) -> np.ndarray:
    """Repeat the last row or column of pixels where a side is odd, as H.264 wants."""
    height, width = frames.shape[1:3]
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _states(looks: Sequence[Record], which: np.ndarray) -> np.ndarray | None:
    if STATE not in looks[0].arrays:
        return None
    return np.stack([look.arrays[STATE] for look in looks])[which].astype(np.float32)


def _models(looks: Sequence[Record]) -> tuple[list[str], np.ndarray]:
    named = [f"{look.facts['model']}@{look.facts['version']}" for look in looks]
    models = list(dict.fromkeys(named))
    return models, np.array([models.index(name) for name in named], np.int64)


def _interventions(looks: Sequence[Record], steps: Sequence[int]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Count what changed each executed row, and note it; what is about no row counts for the chunk's first."""
    counts, noted = np.zeros(sum(steps), np.int64), []
    starts = np.cumsum([0, *steps])
    for look, start, executed in zip(looks, starts, steps, strict=False):
        for change in look.facts["interventions"]:
            first, last = change.get("rows") or (0, 0)
            if first < executed:
                counts[start + first : start + min(last + 1, executed)] += 1
                noted.append({**change, "step": int(start) + first})
    return counts, noted[:MAX_NOTED]


def _facts(tape: Tape, models: Sequence[str], noted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    stated = all(look.facts["executed"] is not None for look in tape.looks[1:])
    end = tape.end or {"how": "cut off", "success": None}
    return {
        **{name: tape.head[name] for name in ("robot", "session", "embodiment", "part", "started")},
        "models": list(models),
        "steps": "stated" if stated else "clock",
        "ended": end["how"],
        "success": end["success"],
        "interventions": list(noted),
    }
