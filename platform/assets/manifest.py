"""List the files of a benchmark's scenes: where each lies in the tree, where it comes from and how it is known.

A tree is laid out as ManiSkill's MS_ASSET_DIR; places are relative to its `data` folder. Every file is known by its git
id (SHA-1 of a header with the size and of the content), which the public repositories fix at the pinned commit; size
and SHA-256 are given where they are known as well.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from st4vla.platform.errors import ConfigError

BENCHMARKS = ("simplerenv",)


@dataclass(frozen=True)
class AssetFile:
    """One file.

    Attributes:
        place: where it lies below the tree's `data` folder.
        address: path of its address below a mirror: owner/name/commit/path.
        git_id: 40 hexadecimal digits.
        size: bytes, or None where only the git id is known.
        sha256: 64 hexadecimal digits, or None.
    """

    place: str
    address: str
    git_id: str
    size: int | None = None
    sha256: str | None = None


@cache
def asset_files(benchmark: str) -> tuple[AssetFile, ...]:
    """Give the files of a benchmark, in the order of their places.

    Raises:
        ConfigError: there is no such benchmark.
    """
    if benchmark not in BENCHMARKS:
        raise ConfigError(f"There are no assets called {benchmark!r}; expected one of {', '.join(BENCHMARKS)}")
    text = resources.files("st4vla.platform.assets").joinpath(f"{benchmark}.json").read_text()
    return tuple(sorted(_rows(json.loads(text)["sources"]), key=lambda file: file.place))


def _rows(sources: Sequence[dict]) -> list[AssetFile]:
    return [
        AssetFile(place, f"{source['repository']}/{source['commit']}/{path}", *known)
        for source in sources
        for place, path, *known in source["files"]
    ]
