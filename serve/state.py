"""What a fleet's server should be doing, as a record: which model answers whom, who is stopped, which keys hold.

It is a small JSON file that outlives the process that keeps it; `control.py` changes it, and replicas follow it. The
keys have a file of their own.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from st4vla.platform.data.disk import replace_file
from st4vla.serve.access import Key

FLEET = ""
RECORD = "control.json"


@dataclass(frozen=True)
class Routes:
    """Which model answers whom, by labels of `models`.

    Attributes:
        models: {label: reference that a replica can load}.
        production: answers everybody who is not named otherwise.
        previous: what production was before, kept loaded, for a rollback.
        canary: answers `robots` and a `share` of all others, chosen by their names.
        beside: what was deployed beside production: it answers whoever asks for it by name, until the next deployment.
    """

    models: Mapping[str, str]
    production: str
    previous: str = ""
    canary: str = ""
    share: float = 0.0
    robots: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def needed(self) -> tuple[str, ...]:
        """The labels that must be loaded, most needed first."""
        labels = (self.production, self.canary, *self.beside, self.previous)
        return tuple(dict.fromkeys(label for label in labels if label))

    def pruned(self) -> "Routes":
        """Give the same routes with the references that they need and no others."""
        return replace(self, models={label: self.models[label] for label in self.needed})


@dataclass(frozen=True)
class State:
    """Everything a replica follows, at one revision.

    Attributes:
        stopped: {robot: reason}; the robot "" is the whole fleet.
        generation: rises with every deployment of the application; replicas of an older one drain.
        ending: whether every replica is to finish what it is at, and let go of its robots.
        keys_required: whether nobody is let in without a key, also while no keys are known; once true, it stays so.
        folder: in a record that is left behind, the folder in which the deployment goes on.
    """

    routes: Routes
    stopped: Mapping[str, str] = field(default_factory=dict)
    generation: int = 0
    revision: int = 0
    ending: bool = False
    keys_required: bool = False
    folder: str = ""
    keys: tuple[Key, ...] = ()

    def stop_reason(self, robot: str, kin: str = "") -> str | None:
        """Say why a robot is stopped, None if it is not.

        Args:
            kin: of a robot that has no name of its own, what the names begin with that its caller's connections are
                given. It may have had another of them when it was stopped, so a stop of any of them holds for it.
        """
        reason = self.stopped.get(FLEET, self.stopped.get(robot))
        if reason is None and kin:
            kindred = (name for name in self.stopped if name == kin or name.startswith(f"{kin}-"))
            reason = next((f"{self.stopped[name]} (as {name})" for name in kindred), None)
        return reason

    def as_plain(self) -> dict[str, Any]:
        """Give the JSON form; keys have their own file."""
        plain = asdict(replace(self, keys=()))
        del plain["keys"]
        return plain

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> "State":
        """Read what `as_plain` gave."""
        kept = plain["routes"]
        routes = Routes(**{**kept, "robots": tuple(kept["robots"]), "beside": tuple(kept.get("beside", ()))})
        facts = {name: plain[name] for name in ("generation", "revision", "ending")}
        asked = {"keys_required": plain.get("keys_required", False), "folder": plain.get("folder", "")}
        return cls(routes, dict(plain["stopped"]), **facts, **asked)


def recorded(folder: Path) -> State | None:
    """Give the state that a folder's record holds, None where there is none."""
    file = folder / RECORD
    return State.of_plain(json.loads(file.read_text())) if file.exists() else None


def write_record(folder: Path, state: State) -> None:
    """Replace a folder's record whole."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(folder / RECORD, json.dumps(state.as_plain(), indent=1).encode(), sync=True)
