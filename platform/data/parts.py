"""Name the parts of actions and states: stated by the user, by meta/modality.json, or derived from the features' names.

A part is a slice of a column: its name, the column's key, start and end. Where a dataset has no modality.json, names
that LeRobot's info.json gives single numbers are grouped, neighbours of one sort together:

    x y z                       position    metres
    roll pitch yaw              rotation    rad, angles about the fixed axes
    rx ry rz, or with rw        rotation    rad, a rotation vector; or a quaternion
    ...gripper...               gripper     as recorded
    ...joint..., motors' .pos   joints      not stated by LeRobot: rad or degrees
    pad                         pad         nothing

A second part of one sort gets a number, gripper_2; a column without names, or with names of no sort above, is one part.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np

from st4vla.platform.data.disk import read_json
from st4vla.platform.data.lerobot_meta import DatasetMeta
from st4vla.platform.errors import DataError

Group = Literal["action", "state"]
DEFAULTS: dict[Group, str] = {"action": "action", "state": "observation.state"}
SORTS = (
    ("gripper", re.compile(r"gripper|claw"), ""),
    ("joints", re.compile(r"joint|motor|\.pos$|shoulder|elbow|wrist|waist|forearm"), "not stated"),
    ("position", re.compile(r"(^|[._])[xyz]$"), "m"),
    ("rotation", re.compile(r"(^|[._])(r[xyzw]|q[xyzw]|roll|pitch|yaw)$"), "rad"),
    ("pad", re.compile(r"^pad(ding)?$"), ""),
)
TAIL_UNITS = {"position": "m", "rotation": "rad", "joints": "rad"}


@dataclass(frozen=True)
class Part:
    """Columns `start` .. `end - 1` of the feature `key`, and the unit where one is known."""

    name: str
    key: str
    start: int
    end: int
    unit: str = ""

    @property
    def width(self) -> int:
        """Give the number of columns."""
        return self.end - self.start


def named_parts(meta: DatasetMeta, group: Group, given: Mapping[str, Any] | None = None) -> dict[str, Part]:
    """Give {name: part} of actions or states.

    Args:
        given: {"action": {name: {"start", "end", "original_key"}}, "state": ...}, modality.json's form; counts before
            the dataset's own.

    Raises:
        DataError: a part lies outside its column, or names a column that the dataset lacks; file and key are named.
    """
    path = meta.folder / "meta" / "modality.json"
    if given and given.get(group):
        return _stated(meta, group, given[group], "the option parts")
    stated = read_json(path).get(group) if path.exists() else None
    return _stated(meta, group, stated, str(path)) if stated else derived_parts(meta, group)


def derived_parts(meta: DatasetMeta, group: Group) -> dict[str, Part]:
    """Derive the parts from what info.json says of the features."""
    found: dict[str, Part] = {}
    for key, feature in meta.features.items():
        if not key.removeprefix("observation.").startswith(group) or not str(feature["dtype"]).startswith("float"):
            continue
        width = int(np.prod(feature["shape"]))
        tail = key.removeprefix("observation.").removeprefix(group).lstrip("._")
        if tail:
            unit = next((unit for word, unit in TAIL_UNITS.items() if word in tail), "")
            found.setdefault(tail, Part(tail, key, 0, width, unit))
            continue
        for name, start, end, unit in _runs(_element_names(feature), width):
            numbered = next(f"{name}{_number(n)}" for n in range(1, 99) if f"{name}{_number(n)}" not in found)
            found[numbered] = Part(numbered, key, start, end, unit)
    return found


def choose_parts(
    meta: DatasetMeta, group: Group, wanted: Sequence[str], given: Mapping[str, Any] | None = None
) -> list[Part]:
    """Give the parts, or whole columns, that the wanted names mean, in their order; none for ("none",).

    Without names the column "action" or "observation.state" is taken, in its parts where these cover it.

    Raises:
        DataError: a name is neither a part nor a column; what there is to choose from is listed.
    """
    if tuple(wanted) == ("none",):
        return []
    named = named_parts(meta, group, given)
    if not wanted:
        key = DEFAULTS[group]
        return _covering(named, key, width_of(meta, key)) if key in meta.features else []
    chosen = []
    for name in wanted:
        if name not in named and name not in meta.features:
            raise DataError(f"{meta.folder} has no {group} {name!r}; it has {offers(meta, group, given)}.")
        chosen.append(named[name] if name in named else Part(name, name, 0, width_of(meta, name)))
    return chosen


def offers(meta: DatasetMeta, group: Group, given: Mapping[str, Any] | None = None) -> str:
    """List what can be chosen: parts first, then columns."""
    named = list(named_parts(meta, group, given))
    return ", ".join(named + [key for key in meta.features if group in key and key not in named]) or "none"


def width_of(meta: DatasetMeta, key: str) -> int:
    """Give how many numbers of a feature info.json says a row has."""
    return int(np.prod(meta.features[key]["shape"]))


def layout(parts: Sequence[Part]) -> Iterator[tuple[Part, int, int]]:
    """Give each part with its first column and its end in the joined action or state."""
    start = 0
    for part in parts:
        yield part, start, start + part.width
        start += part.width


def may_end_in_gripper(parts: Sequence[Part]) -> bool:
    """Say whether the last number of an action is a gripper's: by its part's name, or for lack of any name."""
    last = parts[-1]
    if last.name in ("all", "action", "other"):
        return len(parts) == 1 or last.width == 1
    return last.width == 1 and SORTS[0][1].search(last.name.lower()) is not None


def _stated(meta: DatasetMeta, group: Group, stated: Mapping[str, Any], where: str) -> dict[str, Part]:
    found = {}
    for name, value in stated.items():
        key = value.get("original_key", DEFAULTS[group])
        start, end = value.get("start"), value.get("end")
        if key not in meta.features:
            raise DataError(f"{where}: {group} part {name!r} is of column {key!r}, which {meta.folder} does not have.")
        width = width_of(meta, key)
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= width):
            raise DataError(
                f"{where}: {group} part {name!r} runs from {start} to {end} of column {key!r}, which has {width} "
                "numbers; expected 0 <= start < end <= width."
            )
        unit = next((unit for word, unit in TAIL_UNITS.items() if word in name), "")
        found[name] = Part(name, key, start, end, unit)
    return found


def _covering(named: Mapping[str, Part], key: str, width: int) -> list[Part]:
    own = sorted((part for part in named.values() if part.key == key), key=lambda part: part.start)
    places = [column for part in own for column in range(part.start, part.end)]
    return own if places == list(range(width)) else [Part("all", key, 0, width)]


def _runs(names: Sequence[str], width: int) -> list[tuple[str, int, int, str]]:
    sorts = [_sort(name) for name in names]
    if len(names) != width or not any(sorts):
        return [("all", 0, width, "")]
    found, start = [], 0
    for sort, run in groupby(sorts):
        end = start + len(list(run))
        found.append((sort[0] if sort else "other", start, end, sort[1] if sort else ""))
        if sort and sort[0] == "rotation" and end - start == 4:
            found[-1] = ("rotation", start, end, "quaternion")
        start = end
    return found


def _sort(name: str) -> tuple[str, str] | None:
    return next(((sort, unit) for sort, pattern, unit in SORTS if pattern.search(name.lower())), None)


def _element_names(feature: Mapping[str, Any]) -> list[str]:
    """Flatten what LeRobot's versions keep under "names": a list, {"motors": [...]}, or {name: place}."""
    names = feature.get("names") or []
    if isinstance(names, Mapping):
        lists = [value for value in names.values() if isinstance(value, list)]
        names = [one for value in lists for one in value] if lists else list(names)
    return [str(one) for one in names]


def _number(count: int) -> str:
    return f"_{count}" if count > 1 else ""
