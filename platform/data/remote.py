"""Bring a dataset named by an address onto this machine: `hf:owner/name[@revision]` or `s3://bucket/prefix`.

What was fetched stays in a folder of downloads and is not fetched again; a fetch that was cut off goes on where it
stopped. A hub's dataset is pinned to one commit (`pinned`), so that every worker of a run reads the same one. What a
bucket holds has no such name: the copy follows the bucket, and the dataset's digest says what was read.
"""

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from st4vla.platform.data.address import Address, is_remote, read_address, readable
from st4vla.platform.data.bucket import fetch_bucket, list_objects, open_bucket
from st4vla.platform.data.disk import one_at_a_time, write_file
from st4vla.platform.errors import DataError

log = logging.getLogger(__name__)
DOWNLOADS = "runs/downloads"
EVERYTHING = ("*",)
COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(path: str, downloads: str = DOWNLOADS) -> str:
    """Give the address with its revision turned into a commit; other paths as they are.

    Raises:
        DataError: the hub cannot be asked, and no commit of an earlier run is known.
    """
    if not path.startswith("hf:"):
        return path
    address = read_address(path)
    if COMMIT.fullmatch(address.revision):
        return path
    kept = Path(downloads) / "hub" / "pins" / f"{address.name.replace('/', '--')}@{address.revision or 'main'}"
    try:
        commit = ask_commit(address)
        write_file(kept, commit.encode())
    except DataError as error:
        if not kept.exists():
            raise
        commit = kept.read_text()
        log.warning("%s; going on with commit %s, which was fetched before", error, commit)
    return str(replace(address, revision=commit))


def fetch(path: str, downloads: str = DOWNLOADS, wanted: Sequence[str] = EVERYTHING) -> Path:
    """Give the local folder or file of a path; of a remote one, what matches `wanted` is fetched first.

    Args:
        wanted: shell patterns of file paths inside the dataset; * crosses folders.

    Raises:
        DataError: it cannot be reached or read, nothing there matches, or the disk is full.
    """
    if not is_remote(path):
        return Path(path)
    address = read_address(pinned(path, downloads))
    with one_at_a_time(lock_of(address, Path(downloads))):
        if address.scheme == "hf":
            found = fetch_hub(address, Path(downloads) / "hub", wanted)
        else:
            found = fetch_bucket(address, Path(downloads) / "s3", wanted)
    if not found.exists():
        raise DataError(f"{address} has nothing that matches {', '.join(wanted)}; check the path inside it.")
    return found


def files_under(path: str, suffixes: tuple[str, ...], downloads: str = DOWNLOADS) -> list[str]:
    """List the files with one of the suffixes in a folder or under an address, as paths or addresses, in order.

    Raises:
        DataError: it cannot be read.
    """
    if not is_remote(path):
        place = Path(path)
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        return [str(one) for one in files if one.name.endswith(suffixes) and one.is_file()]
    address = read_address(pinned(path, downloads))
    names = list_hub(address) if address.scheme == "hf" else list_bucket(address)
    return [str(replace(address, inner=name)) for name in sorted(names) if name.endswith(suffixes)]


def list_hub(address: Address) -> list[str]:
    """List the files of a hub's dataset below the address."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with readable(address):
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        tree = api.list_repo_tree(address.name, recursive=True, revision=address.revision, repo_type="dataset")
        names = [one.path for one in tree if isinstance(one, RepoFile)]
    return [name for name in names if name == address.inner or name.startswith(f"{address.inner}/".lstrip("/"))]


def list_bucket(address: Address) -> list[str]:
    """List the objects of a bucket below the address."""
    system, base = open_bucket(address)
    with readable(address):
        found = list_objects(system, base)
    return [f"{address.inner}/{name}".strip("/") for name in found]


def fetch_hub(address: Address, kept: Path, wanted: Sequence[str]) -> Path:
    """Fetch files of a dataset on the hub at its commit; complete ones are not asked for again."""
    from huggingface_hub import snapshot_download

    inside = [f"{address.inner}/{pattern}" if address.inner else pattern for pattern in wanted]
    if address.inner and tuple(wanted) == EVERYTHING:
        inside.append(address.inner)  # the address may name one file
    with readable(address):
        root = snapshot_download(
            address.name,
            repo_type="dataset",
            revision=address.revision,
            cache_dir=kept,
            allow_patterns=inside,
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    return Path(root) / address.inner


def ask_commit(address: Address) -> str:
    """Ask the hub which commit a revision is."""
    from huggingface_hub import HfApi

    with readable(address):
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        return str(api.dataset_info(address.name, revision=address.revision or None).sha)


def lock_of(address: Address, downloads: Path) -> Path:
    """Name the file that processes which fetch the same address wait at."""
    name = hashlib.sha256(f"{address.scheme}:{address.name}/{address.inner}".encode()).hexdigest()[:24]
    return downloads / f".{name}.lock"
