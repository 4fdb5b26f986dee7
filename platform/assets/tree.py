"""Look at an asset tree: where it is, and how each file of a benchmark stands in it.

A tree may hold stand-ins for files that could not be had; it then says so in SUBSTITUTES.txt at its top, one path a
line, of which the model's folder and the stage's name count. They serve, but pictures differ from the original.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from st4vla.platform.assets.manifest import AssetFile
from st4vla.platform.errors import ConfigError

Standing = Literal["ok", "stand-in", "absent", "damaged"]
SUBSTITUTES = "SUBSTITUTES.txt"
DEFAULT = "~/.maniskill"
BLOCK = 1 << 20


@dataclass(frozen=True)
class AssetTree:
    """A folder laid out as MS_ASSET_DIR: everything lies below its `data`."""

    root: Path

    @property
    def data(self) -> Path:
        """The folder that places are relative to."""
        return self.root / "data"

    def path(self, place: str) -> Path:
        """Give where a place lies on this machine."""
        return self.data / place

    def stood_in(self) -> frozenset[str]:
        """Give what SUBSTITUTES.txt names: `models/ID` for a model's picture, `stages/NAME` for a stage."""
        file = self.root / SUBSTITUTES
        text = file.read_text(errors="replace") if file.is_file() else ""
        return frozenset(re.findall(r"(?m)^\S*?(stages/[\w.]+\.glb|models/\w+)", text))


def find_tree(folder: str | Path | None = None) -> AssetTree:
    """Give the tree of a folder, else of ST4VLA_ASSETS, else of MS_ASSET_DIR, else ManiSkill's own.

    Raises:
        ConfigError: the folder that was named does not exist.
    """
    named = [(name, os.environ.get(name)) for name in ("ST4VLA_ASSETS", "MS_ASSET_DIR")]
    how, value = next(((name, value) for name, value in [("dir", folder), *named] if value), ("", DEFAULT))
    root = Path(value).expanduser().absolute()
    if how.isupper() and not root.is_dir():
        raise ConfigError(f"{how} is {root}, which is no folder; unset it, or let it name an asset tree")
    return AssetTree(root.parent if root.name == "data" and not (root / "data").is_dir() else root)


def git_id(path: Path) -> str:
    """Give the git id of a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def standing(tree: AssetTree, file: AssetFile, stood_in: frozenset[str] = frozenset()) -> Standing:
    """Say how one file stands."""
    path = tree.path(file.place)
    if path.is_file() and file.size in (None, path.stat().st_size) and git_id(path) == file.git_id:
        return "ok"
    if _substitute(tree, file.place, stood_in):
        return "stand-in"
    return "damaged" if path.is_file() else "absent"


def _substitute(tree: AssetTree, place: str, stood_in: frozenset[str]) -> bool:
    """Say whether another file serves for this one; a model's collision mesh has no stand-in."""
    named = re.search(r"stages/[\w.]+\.glb$|models/\w+(?=/)", place)
    if named is None or named[0] not in stood_in or place.endswith("collision.obj"):
        return False
    path = tree.path(place)
    return path.is_file() if named[0].startswith("stages/") else any(path.parent.glob("textured.*"))


def survey(tree: AssetTree, files: Sequence[AssetFile]) -> dict[str, Standing]:
    """Say how every file stands, by place; the content of each is read."""
    stood_in = tree.stood_in()
    return {file.place: standing(tree, file, stood_in) for file in files}
