"""Who may do what: API keys kept as salted hashes with scopes, and how much one caller may ask.

A key is "st4vla_ID_SECRET". The secret has 256 random bits, so a salted SHA-256 is as strong as a slow hash would be
and leaves nothing to wear the server out with; only the hash is kept.
"""

import base64
import fnmatch
import hashlib
import hmac
import json
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError, WireError

SCOPES = ("act", "observe", "admin")
PREFIX = "st4vla"


@dataclass(frozen=True)
class Key:
    """One key as it is kept.

    Attributes:
        key_id: names it in logs and commands; not secret.
        robots: patterns ("arm-*") of the robot names it may act for; () for any.
        expires_at, revoked_at: Unix times; 0 for never.
    """

    key_id: str
    name: str
    salt: str
    digest: str
    scopes: tuple[str, ...]
    robots: tuple[str, ...] = ()
    created_at: float = 0.0
    expires_at: float = 0.0
    revoked_at: float = 0.0

    def __post_init__(self) -> None:
        if not self.scopes or not set(self.scopes) <= set(SCOPES):
            raise ConfigError(f"scopes are {list(self.scopes)}; expected some of {', '.join(SCOPES)}.")

    def is_valid(self, now: float) -> bool:
        """Whether it still opens anything."""
        return not (self.revoked_at or (self.expires_at and now >= self.expires_at))


@dataclass(frozen=True)
class Caller:
    """Whoever a request came from, once it was let in."""

    key_id: str
    scopes: tuple[str, ...]
    robots: tuple[str, ...] = ()
    address: str = ""

    @property
    def own_robot(self) -> str:
        """The robot that the key is for, where it is for one alone; else ""."""
        alone = len(self.robots) == 1 and not set("*?[") & set(self.robots[0])
        return self.robots[0] if alone else ""

    def check_robot(self, robot: str) -> None:
        """Refuse to act for a robot that the key is not for.

        Raises:
            WireError: "forbidden".
        """
        if self.robots and not any(fnmatch.fnmatchcase(robot, pattern) for pattern in self.robots):
            raise WireError("forbidden", "st4vla.robot", "The key is not for a robot of this name.")


def digest_of(salt: str, secret: str) -> str:
    return hashlib.sha256(f"{salt}:{secret}".encode()).hexdigest()


class KeyFile:
    """The keys of one server, in a JSON file that only its owner can read; every change replaces it whole."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> tuple[Key, ...]:
        """Give the keys; none where there is no file.

        Raises:
            ConfigError: the file is not what was written.
        """
        try:
            return tuple(_key_of(row) for row in json.loads(self.path.read_text()))
        except FileNotFoundError:
            return ()
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{self.path} does not hold keys as `st4vla keys` writes them: {error}") from error

    def add(
        self, name: str, scopes: Iterable[str], robots: Iterable[str] = (), days: float = 0.0, now: float | None = None
    ) -> str:
        """Make a key and give it; this is the only time that it is seen."""
        now = time.time() if now is None else now
        key_id, secret, salt = secrets.token_hex(4), secrets.token_urlsafe(32), secrets.token_hex(16)
        expires = now + 86400 * days if days else 0.0
        key = Key(key_id, name, salt, digest_of(salt, secret), tuple(scopes), tuple(robots), now, expires)
        self._write((*self.read(), key))
        return f"{PREFIX}_{key_id}_{secret}"

    def revoke(self, key_id: str, now: float | None = None) -> Key:
        """End a key.

        Raises:
            ConfigError: there is none of that id.
        """
        keys = {key.key_id: key for key in self.read()}
        if key_id not in keys:
            raise ConfigError(f"there is no key {key_id!r} in {self.path}; `st4vla keys list` shows them.")
        keys[key_id] = replace(keys[key_id], revoked_at=time.time() if now is None else now)
        self._write(tuple(keys.values()))
        return keys[key_id]

    def _write(self, keys: tuple[Key, ...]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self.path.with_suffix(f".{os.getpid()}.part")
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump([asdict(key) for key in keys], file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path)


def _key_of(row: dict[str, Any]) -> Key:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Key(**fields)


class Lock:
    """Let callers in by their key. Without any key ever made, everybody is let in: for a server on loopback alone.

    A lock that has known a key never opens to everybody again.

    Args:
        keys: None while they are not known: nobody is let in.
    """

    def __init__(self, keys: Iterable[Key] | None = (), clock: Callable[[], float] = time.time):
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._is_known = self._had_keys = False
        self.change(keys)

    def change(self, keys: Iterable[Key] | None) -> None:
        """Use these keys from now on; None where they are not known."""
        self._keys = {key.key_id: key for key in keys or ()}
        self._is_known = keys is not None
        self._had_keys = self._had_keys or bool(self._keys)

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return self._is_known and not self._had_keys

    def admit(self, authorization: str | None, scope: str, address: str = "") -> Caller:
        """Let a caller in who brings "Api-Key KEY" or "Bearer KEY", or the key as the password of "Basic".

        Raises:
            WireError: "unauthorized" without a valid key, "forbidden" with one that lacks the scope.
        """
        if self.is_open:
            return Caller("", SCOPES, (), address)
        key_id, secret = split_key(authorization or "")
        key = self._keys.get(key_id)
        digest = digest_of(key.salt if key else "", secret)
        if key is None or not hmac.compare_digest(digest, key.digest) or not key.is_valid(self._clock()):
            raise WireError(
                "unauthorized", "Authorization", "No valid key; send the header Authorization: Api-Key KEY."
            )
        if scope not in key.scopes:
            raise WireError("forbidden", "Authorization", f"The key {key_id} lacks the scope {scope}.")
        return Caller(key.key_id, key.scopes, key.robots, address)

    def still_valid(self, caller: Caller) -> bool:
        """Whether a caller that was let in would be let in now: keys end on open connections, too."""
        if self.is_open:
            return True
        key = self._keys.get(caller.key_id)
        return key is not None and key.is_valid(self._clock())


def split_key(authorization: str) -> tuple[str, str]:
    """Give id and secret of an Authorization header's value; empty where it is no key of ours."""
    method, _, value = authorization.partition(" ")
    if method.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:
            return "", ""
    elif method.lower() not in ("api-key", "bearer"):
        return "", ""
    parts = value.strip().split("_", 2)
    return (parts[1], parts[2]) if len(parts) == 3 and parts[0] == PREFIX else ("", "")


@dataclass(frozen=True)
class RateConfig:
    """How much one robot may ask of one replica.

    Attributes:
        requests_per_s: on average.
        burst: requests at once.
        connections: open connections of one robot's address or key.
        max_connections: open connections of all.
    """

    requests_per_s: float = 200.0
    burst: int = 100
    connections: int = 256
    max_connections: int = 1024

    def __post_init__(self) -> None:
        if self.requests_per_s <= 0 or min(self.burst, self.connections, self.max_connections) < 1:
            raise ConfigError(f"rate is {self}; every bound must be positive.")


class Rates:
    """A token bucket for each robot; forgets the ones unused for longest."""

    MOST = 4096

    def __init__(self, config: RateConfig, clock: Callable[[], float] = time.monotonic):
        self._config = config
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str) -> None:
        """Count one request.

        Raises:
            WireError: "rate_limited".
        """
        now = self._clock()
        tokens, at = self._buckets.pop(who, (float(self._config.burst), now))
        tokens = min(self._config.burst, tokens + (now - at) * self._config.requests_per_s)
        allowed = tokens >= 1
        self._buckets[who] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self.MOST:
            self._buckets.popitem(last=False)
        if not allowed:
            raise WireError(
                "rate_limited", "", f"More than {self._config.requests_per_s:g} requests a second; slow down."
            )
