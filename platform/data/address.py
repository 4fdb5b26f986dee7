"""Name a dataset by an address: `hf:owner/name[@revision]` on the hub, `s3://bucket/prefix` in a bucket."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from st4vla.platform.errors import ConfigError, DataError

HUB = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<inner>[^@?]+))?/?")
BUCKET = re.compile(r"s3:(?://)?(?P<name>[a-z0-9][a-z0-9.-]+)(?:/(?P<inner>[^?]*))?(?:\?(?P<options>.*))?")
BUCKET_OPTIONS = ("region", "scheme", "endpoint_override")
CREDENTIALS = {"hf": "HF_TOKEN, or `hf auth login`", "s3": "AWS_ACCESS_KEY_ID, AWS_PROFILE or the machine's role"}


@dataclass(frozen=True)
class Address:
    """Where a dataset lies.

    Attributes:
        scheme: "hf" or "s3".
        name: owner/name on the hub, or the bucket.
        inner: path inside it, "" for all of it.
        revision: branch, tag or commit on the hub; "" for its main branch.
        options: how to reach the bucket: region, scheme, endpoint_override.
    """

    scheme: str
    name: str
    inner: str = ""
    revision: str = ""
    options: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        """Give the short name for logs and lineage: the last part of the path."""
        return (self.inner or self.name).rstrip("/").rsplit("/", 1)[-1]

    def __str__(self) -> str:
        if self.scheme == "hf":
            return f"hf:{self.name}" + f"@{self.revision}" * bool(self.revision) + f"/{self.inner}" * bool(self.inner)
        asked = "&".join(f"{key}={value}" for key, value in self.options)
        return f"s3://{self.name}" + f"/{self.inner}" * bool(self.inner) + f"?{asked}" * bool(asked)


def is_remote(path: str) -> bool:
    """Say whether a dataset's path is an address."""
    return path.startswith(("hf:", "s3:"))


def read_address(path: str) -> Address:
    """Read an address.

    Raises:
        ConfigError: it has another form, or carries credentials, which are not repeated.
    """
    if "@" in path.partition("?")[0] and path.startswith("s3:"):
        raise ConfigError("an s3 address holds credentials; leave them out and set AWS_ACCESS_KEY_ID or AWS_PROFILE.")
    found = (HUB if path.startswith("hf:") else BUCKET).fullmatch(path)
    if found is None:
        raise ConfigError(f"{path!r:.200} is no address; write hf:owner/name[@revision] or s3://bucket/prefix.")
    given = found.groupdict()
    options = parse_qsl(given.get("options") or "", keep_blank_values=True)
    if unknown := [key for key, _ in options if key not in BUCKET_OPTIONS]:
        raise ConfigError(
            f"an s3 address has the option {', '.join(unknown)}; known are {', '.join(BUCKET_OPTIONS)}. "
            "Credentials come from the environment."
        )
    inner = (given["inner"] or "").strip("/")
    return Address(path[:2], given["name"], inner, given.get("revision") or "", tuple(options))


def title_of(path: str) -> str:
    """Give the short name of a dataset, local or remote."""
    return read_address(path).title if is_remote(path) else Path(path).name


def absolute(path: str) -> str:
    """Give a path that other processes understand: addresses as they are, folders from the root."""
    return path if is_remote(path) else str(Path(path).absolute())


@contextmanager
def readable(address: Address) -> Iterator[None]:
    """Turn what the hub's or the bucket's client raises into one sentence without secrets."""
    import pyarrow as pa
    from httpx2 import HTTPError
    from huggingface_hub.errors import HFValidationError

    refused = (HTTPError, HFValidationError, pa.ArrowException, OSError)
    try:
        yield
    except refused as error:
        raise DataError(
            f"{address} cannot be read: {without_secrets(str(error)) or type(error).__name__}. Expected a dataset "
            f"there; check the name, the network and the credentials ({CREDENTIALS[address.scheme]}), or name a folder."
        ) from None


def without_secrets(text: str) -> str:
    """Give the first line of a message with all queries of URLs cut: those of signed URLs are credentials."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return re.sub(r"\?\S+", "?...", " ".join(lines[:2])).rstrip(".")
