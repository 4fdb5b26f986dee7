"""Copy what a bucket holds under a prefix, through pyarrow's S3 client: files whole, in parallel, resumable.

A file that is there with the object's size and time is not fetched again; half a file goes on where it stopped, unless
the object has changed since.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st4vla.platform.data.address import Address, readable
from st4vla.platform.data.disk import refused_by_disk
from st4vla.platform.errors import DataError

if TYPE_CHECKING:
    from pyarrow import fs

PIECE = 8 << 20
AT_ONCE = 8


def fetch_bucket(address: Address, kept: Path, wanted: Sequence[str]) -> Path:
    """Fetch the objects of a prefix whose names match, and drop copies of objects that are gone."""
    system, base = open_bucket(address)
    with readable(address):
        listed = list_objects(system, base)
    chosen = {name: info for name, info in listed.items() if any(fnmatch(name, one) for one in wanted)}
    if not chosen:
        raise DataError(
            f"{address} holds {len(listed)} objects and none that matches {', '.join(wanted)}; check the prefix."
        )
    folder = kept / address.name / address.inner
    if set(chosen) == {""}:  # the address names one object
        copy_object(system, chosen[""], folder, address)
        return folder
    drop_others(folder, chosen, wanted)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        copies = [pool.submit(copy_object, system, info, folder / name, address) for name, info in chosen.items()]
        for copied in progress(copies, f"fetching {address.title}"):
            copied.result()
    return folder


def open_bucket(address: Address) -> tuple["fs.FileSystem", str]:
    """Give pyarrow's file system and the path of an address in it; credentials come from the environment."""
    from pyarrow import fs

    options: dict[str, Any] = dict(address.options)
    base = f"{address.name}/{address.inner}".rstrip("/")
    with readable(address):
        return fs.S3FileSystem(connect_timeout=10, request_timeout=60, **options), base


def list_objects(system: "fs.FileSystem", base: str) -> dict[str, Any]:
    """Give {path below `base`: its FileInfo}; {"": info} where `base` itself is an object."""
    from pyarrow import fs

    itself = system.get_file_info(base)
    if itself.type == fs.FileType.File:
        return {"": itself}
    found = system.get_file_info(fs.FileSelector(base, recursive=True))
    names = {info.path.removeprefix(base).lstrip("/"): info for info in found if info.type == fs.FileType.File}
    if escaping := [name for name in names if ".." in Path(name).parts or name.startswith("/")]:
        raise OSError(f"object {escaping[0]!r:.80} would leave the folder of downloads")
    return names


def copy_object(system: "fs.FileSystem", info: Any, target: Path, address: Address) -> None:
    """Copy one object to `target`, going on with the part that an earlier try left."""
    stamp = info.mtime_ns or 0
    if target.exists() and (target.stat().st_size, target.stat().st_mtime_ns) == (info.size, stamp):
        return
    part = target.with_name(f".{target.name}.{stamp:x}.part")
    with refused_by_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            append_rest(system, info, file, address)
        os.utime(part, ns=(stamp, stamp))
        os.replace(part, target)


def append_rest(system: "fs.FileSystem", info: Any, file: Any, address: Address) -> None:
    """Write what of an object is not yet in its part file."""
    done = file.tell()
    if done >= info.size:
        file.truncate(info.size)
        return
    with readable(address):
        source = system.open_input_file(info.path)
    with source:
        while done < info.size:
            with readable(address):
                piece = source.read_at(min(PIECE, info.size - done), done)
            if not piece:
                raise DataError(f"{address}: {info.path} ends at byte {done} of {info.size}; run the command again.")
            file.write(piece)
            done += len(piece)


def drop_others(folder: Path, chosen: dict[str, Any], wanted: Sequence[str]) -> None:
    """Delete copies, among the wanted, of objects that the bucket no longer has: they would be read as data."""
    for path in folder.rglob("*") if folder.is_dir() else ():
        name = path.relative_to(folder).as_posix()
        hidden = path.name.startswith(".")
        if path.is_file() and not hidden and name not in chosen and any(fnmatch(name, one) for one in wanted):
            path.unlink()


def progress(copies: Sequence[Any], words: str) -> Any:
    """Show how many of the copies are done."""
    from rich.progress import track

    return track(copies, words, transient=True)
