"""Every error the platform raises on purpose; the message says what was seen, what was expected, the next step."""

from typing import Literal

RefusalKind = Literal[
    "malformed",
    "too_large",
    "missing",
    "invalid",
    "unauthorized",
    "forbidden",
    "rate_limited",
    "overloaded",
    "deadline",
    "stale",
    "stopped",
    "unavailable",
    "internal",
]


class St4vlaError(Exception):
    """The base of the platform's own errors: the command line prints its message without a traceback."""


class ConfigError(St4vlaError, ValueError):
    """A setting is unknown, contradicts another, or lies outside its range."""


class DataError(St4vlaError):
    """A dataset, a file in it or a row of it is missing, unreadable or does not fit the rest."""


class CheckpointError(St4vlaError):
    """A checkpoint folder is incomplete, of another architecture, or could not be written."""


class TrainingError(St4vlaError):
    """Training cannot go on: a loss is not finite, or the run does not fit what stands in its folder."""


class EnvError(St4vlaError):
    """A simulated world could not be built, reset or stepped."""


class PolicyError(St4vlaError):
    """A policy was shown something it cannot read, or answered something unusable."""


class WorkerLost(St4vlaError):
    """A Ray worker died more often than its retries allow."""


class TrackingError(St4vlaError):
    """The tracking store refused a record that must not be lost."""


class JobError(St4vlaError):
    """A Ray job could not be submitted, found or stopped."""


class WireError(St4vlaError, ValueError):
    """A message is refused; this is the whole of what its sender is told, so it holds nothing of the server's own.

    Attributes:
        kind: what sort of refusal, for programs; docs/serving.md lists them.
        field: where in the message, as "observation/image.shape"; "" for the message as a whole.
        message: one sentence for people.
    """

    def __init__(self, kind: RefusalKind, field: str, message: str):
        self.kind: RefusalKind = kind
        self.field = field
        self.message = message
        super().__init__(f"{field}: {message}" if field else message)

    def __reduce__(self) -> tuple[type["WireError"], tuple[str, str, str]]:
        return type(self), (self.kind, self.field, self.message)

    def as_plain(self) -> dict[str, dict[str, str]]:
        """Give the form every protocol sends: {"error": {"kind", "field", "message"}}."""
        return {"error": {"kind": self.kind, "field": self.field, "message": self.message}}
