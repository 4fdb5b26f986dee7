"""Bring together what all replicas say of their robots: one page, one metrics target, whichever replica is asked.

Each replica posts a `Report` about once a second to the one `Board` of the application; a replica that has been silent
for ten seconds is left out. A robot that moved from one replica to another is shown as the one that saw it last tells,
with its counts added up. Pictures cost the replicas time, so they are asked for only while somebody looks.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from st4vla.serve.watch.metrics import Family, exposition

FORGET_S = 10.0
LOOKS_LAST_S = 15.0
SUMS = ("requests", "interventions", "refusals", "episodes")


@dataclass(frozen=True)
class Report:
    """What one replica says of itself.

    Attributes:
        replica: its name.
        fleet: `FleetView.snapshot`.
        families: `FleetMetrics.families`, None to leave those of the last report.
        pictures: the robots' last frames that are new since the last post, (time, JPEG).
        facts: further facts, e.g. how many requests wait.
        deployment: what is deployed, e.g. {"canary_share": 0.1}.
    """

    replica: str
    fleet: Mapping[str, Any]
    families: Sequence[Family] | None = None
    pictures: Mapping[str, tuple[float, bytes]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    deployment: Mapping[str, Any] = field(default_factory=dict)


class Board:
    """Holds the newest report of each replica; safe from several threads. `clock` gives seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock, self._looked_at = clock, threading.Lock(), -LOOKS_LAST_S
        self._families: dict[str, Sequence[Family]] = {}
        self._posts: dict[str, tuple[float, Report]] = {}
        self._pictures: dict[str, tuple[float, bytes]] = {}

    def post(self, post: Report) -> bool:
        """Take a replica's newest words; say whether anybody wants to see pictures."""
        with self._lock:
            self._posts[post.replica] = (self._clock(), post)
            for robot, picture in post.pictures.items():
                if picture[0] >= self._pictures.get(robot, (0.0, b""))[0]:
                    self._pictures[robot] = picture
            if post.families is not None:
                self._families[post.replica] = post.families
            return self._clock() - self._looked_at < LOOKS_LAST_S

    def fleet(self) -> dict[str, Any]:
        """Give what `/v1/robots` answers."""
        posts, self._looked_at = self._newest(), self._clock()
        robots = _merge_robots([(post.replica, robot) for post in posts for robot in post.fleet["robots"]])
        with self._lock:
            self._pictures = {name: kept for name, kept in self._pictures.items() if name in robots}
        return {
            "at": max((post.fleet["at"] for post in posts), default=time.time()),
            "robots": sorted(robots.values(), key=lambda robot: robot["robot"]),
            "versions": _merge_versions([one for post in posts for one in post.fleet["versions"]]),
            "stops": _unique([one for post in posts for one in post.fleet["stops"]], "robot"),
            "troubles": sorted((one for post in posts for one in post.fleet["troubles"]), key=lambda one: -one["at"])[
                :20
            ],
            "replicas": [{"replica": post.replica, **post.facts} for post in posts],
            "deployment": dict(posts[-1].deployment) if posts else {},
        }

    def picture(self, robot: str) -> bytes | None:
        """Give a robot's last frame as JPEG, None if there is none."""
        with self._lock:
            kept = self._pictures.get(robot)
        return kept[1] if kept else None

    def metrics(self) -> bytes:
        """Give what `/metrics` answers."""
        return exposition({post.replica: self._families.get(post.replica, ()) for post in self._newest()})

    def _newest(self) -> list[Report]:
        now = self._clock()
        with self._lock:
            self._posts = {name: kept for name, kept in self._posts.items() if now - kept[0] <= FORGET_S}
            self._families = {name: kept for name, kept in self._families.items() if name in self._posts}
            return [post for _, post in sorted(self._posts.values(), key=lambda kept: kept[0])]


def _merge_robots(told: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for replica, robot in sorted(told, key=lambda one: one[1]["seen_at"]):
        before = merged.get(robot["robot"], {})
        sums = {name: robot[name] + before.get(name, 0) for name in SUMS}
        merged[robot["robot"]] = {**robot, **sums, "replica": replica}
    return merged


def _merge_versions(told: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add up the answers by version, and say what share of all each gave."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in told:
        entry = merged.setdefault((one["model"], one["version"], one["canary"]), {**one, "requests": 0})
        entry["requests"] += one["requests"]
    total = sum(entry["requests"] for entry in merged.values())
    shared = [{**entry, "share": entry["requests"] / total if total else 0.0} for entry in merged.values()]
    return sorted(shared, key=lambda entry: (-entry["share"], entry["model"], entry["version"]))


def _unique(entries: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    return list({entry[key]: entry for entry in entries}.values())
