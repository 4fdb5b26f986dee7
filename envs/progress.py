"""Say how far an episode has come, in any family of worlds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far an episode has come: success now, partial credit now 0..1, and the stages reached so far, in order."""

    success: bool
    partial_credit: float
    stages: tuple[str, ...]
