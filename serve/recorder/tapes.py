"""Write what is served into spool files, one for each episode that is being recorded.

One thread owns the tapes. A tape ends with its episode or session, when the session falls silent, when it is full (the
recording goes on in a next part), or when the instruction or the form of the data changes. Where the disk or the
queue cannot keep up a tape is cut: what it holds stays a whole episode, the session is not recorded for a
while, and then a new episode begins. So no episode has a hole, and nothing is left out without being counted.
"""

import logging
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from st4vla.platform.errors import DataError
from st4vla.serve.events import Ended, Served, Trouble
from st4vla.serve.recorder.episodes import ACTIONS, IMAGE, STATE
from st4vla.serve.recorder.settings import MIB, RecorderConfig
from st4vla.serve.recorder.spool import Record, SpoolFile

log = logging.getLogger(__name__)
Key = tuple[str, str]
Report = Callable[[Trouble], None]


@dataclass
class Counts:
    """What has been recorded and what has not, since the start.

    Attributes:
        frames: answered requests on disk.
        ended: recordings that became whole files.
        cut: recordings cut short, by reason.
        left_out: answered requests that are in no recording, by reason.
    """

    frames: int = 0
    ended: int = 0
    cut: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass
class _Tape:
    file: SpoolFile
    form: tuple[Any, ...]
    part: int
    frame_mb: float
    last: float
    size_mb: float = 0.0
    sequence: int = -1

    def note(self, event: Served, now: float) -> None:
        """Count the frames that the episode will have for this look, at most one for each row of its chunk."""
        steps = len(event.actions) if event.executed_steps is None else max(event.executed_steps, 1)
        self.size_mb += self.frame_mb * steps
        self.last, self.sequence = now, event.sequence


class Tapes:
    """The recordings that are being made in `folder`.

    Args:
        report: told of every recording that is cut.
        clock: seconds, monotonic.
        free_mb: gives what the disk has left, in MiB.
    """

    def __init__(
        self,
        folder: Path,
        config: RecorderConfig,
        report: Report = lambda trouble: None,
        clock: Callable[[], float] = time.monotonic,
        free_mb: Callable[[Path], float] | None = None,
    ) -> None:
        self.folder, self.config, self.counts = folder, config, Counts()
        self._report, self._clock, self._free_mb = report, clock, free_mb or _free_mb
        self._tapes: dict[Key, _Tape] = {}
        self._cut_until: dict[Key, float] = {}
        self._spooled_mb = 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, event: Served | Ended) -> None:
        """Record an answered request, or the end of an episode or session."""
        key = (event.robot, event.session)
        if isinstance(event, Ended):
            self._cut_until.pop(key, None)
            self._end(key, event.kind, event.success)
        elif reason := self._unfit(key, event):
            self.counts.left_out[reason] += 1
        else:
            self._record(key, event)

    def sequence(self, robot: str, session: str) -> int:
        """Give the number of the newest request of the session's growing recording, -1 if there is none."""
        tape = self._tapes.get((robot, session))
        return tape.sequence if tape else -1

    def cut(self, key: Key, reason: str, why: str) -> None:
        """End a recording here, and leave its session out for a while."""
        self.counts.cut[reason] += 1
        if len(self._cut_until) < self.config.max_sessions:
            self._cut_until[key] = self._clock() + self.config.cut_s
        self._report(Trouble(f"recording_{reason}", why, *key))
        log.warning("the recording of robot %r is cut: %s", key[0], why)
        self._end(key, reason)

    def look_after(self, spooled_mb: float) -> None:
        """Do what time asks for: wait for the disk, end silent sessions, stop where the disk is too full."""
        now, self._spooled_mb = self._clock(), spooled_mb
        self._cut_until = {key: until for key, until in self._cut_until.items() if until > now}
        for key in [key for key, tape in self._tapes.items() if now - tape.last > self.config.idle_s]:
            self._end(key, "idle")
        if self._tapes and (full := self._overfull()):
            for key in list(self._tapes):
                self.cut(key, *full)
        for key, tape in list(self._tapes.items()):
            try:
                tape.file.sync()
            except DataError as error:
                self.cut(key, "disk", str(error))

    def end_all(self, how: str) -> None:
        """End every recording."""
        for key in list(self._tapes):
            self._end(key, how)

    def _unfit(self, key: Key, event: Served) -> str:
        if key in self._cut_until:
            return "cut"
        if not event.observation.instruction:
            return "no_instruction"
        if key not in self._tapes and len(self._tapes) >= self.config.max_sessions:
            return "too_many_sessions"
        return ""

    def _overfull(self) -> tuple[str, str] | None:
        """Say why nothing more may be written, None if it may."""
        limit = self.config.max_spool_mb
        if self._spooled_mb > limit:
            return "backlog", f"{self._spooled_mb:.0f} MiB wait to become episodes; at most {limit} may."
        free = self._free_mb(self.folder)
        if free < self.config.min_free_mb:
            return (
                "disk",
                f"the disk has {free:.0f} MiB left and keeps {self.config.min_free_mb} free; free some space.",
            )
        return None

    def _record(self, key: Key, event: Served) -> None:
        tape, form = self._tapes.get(key), _form(event)
        part = 0
        if tape and (tape.form != form or tape.size_mb > self.config.max_episode_mb):
            # What was executed since still belongs to the last chunk of the part that ends here.
            self._end(key, "continued", by=event)
            tape, part = None, tape.part + 1
        if not tape and (full := self._overfull()):
            self.counts.left_out[full[0]] += 1
            self.cut(key, *full)
            return
        try:
            tape = tape or self._start(key, event, form, part)
            tape.file.append(_look(event))
        except DataError as error:
            self.counts.left_out["disk"] += 1
            self.cut(key, "disk", str(error))
            return
        self.counts.frames += 1
        tape.note(event, self._clock())

    def _start(self, key: Key, event: Served, form: tuple[Any, ...], part: int) -> _Tape:
        frame_mb = sum(image.nbytes for image in event.observation.images.values()) / MIB
        tape = _Tape(SpoolFile(self.folder, secrets.token_hex(8)), form, part, frame_mb, self._clock())
        self._tapes[key] = tape
        tape.file.append(Record(_head(event, part), {}))
        return tape

    def _end(self, key: Key, how: str, success: bool | None = None, by: Served | None = None) -> None:
        """End a recording; `by` is the request that its next part begins with, which says what was executed."""
        tape = self._tapes.pop(key, None)
        if tape is None:
            return
        counted = _counted(by) if by else {"executed": None, "executed_of": None}
        end = {"kind": "end", "how": how, "success": success, **counted}
        try:
            tape.file.append(Record(end, {}))
        except DataError as error:
            log.warning("the end of a recording could not be noted, the recording itself is whole: %s", error)
        try:
            tape.file.finish()
        except DataError as error:
            # The file stays as it is, and is taken up when this replica is gone.
            self._report(Trouble("recording_disk", str(error), *key))
            log.error("%s", error)
            return
        self.counts.ended += 1


def _form(event: Served) -> tuple[Any, ...]:
    """Give what all looks of one episode share."""
    seen = event.observation
    cameras = tuple((name, image.shape) for name, image in seen.images.items())
    state = None if seen.state is None else seen.state.shape
    return seen.instruction, event.embodiment, event.control_hz, cameras, state, event.actions.shape[1:]


def _head(event: Served, part: int) -> dict[str, Any]:
    return {
        "kind": "head",
        "robot": event.robot,
        "session": event.session,
        "embodiment": event.embodiment,
        "instruction": event.observation.instruction,
        "fps": max(1, round(event.control_hz)),
        "part": part,
        "started": datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds"),
    }


def _look(event: Served) -> Record:
    facts = {
        "kind": "look",
        "sequence": event.sequence,
        "model": event.model,
        "version": event.model_version,
        "plan_age_ms": event.plan_age_ms,
        "interventions": [dict(change) for change in event.interventions],
        **_counted(event),
        "at": event.at,
    }
    arrays = {IMAGE + name: image for name, image in event.observation.images.items()}
    if event.observation.state is not None:
        arrays[STATE] = event.observation.state.astype(np.float32)
    return Record(facts, {**arrays, ACTIONS: event.actions.astype(np.float32)})


def _counted(event: Served) -> dict[str, Any]:
    return {"executed": event.executed_steps, "executed_of": event.executed_of}


def _free_mb(folder: Path) -> float:
    return shutil.disk_usage(folder).free / MIB
