"""How served sessions are recorded, and where the parts of a recording lie.

FOLDER/spool/OWNER/.owner      locked by the replica that writes there while it lives; .shelf by who reads there
FOLDER/spool/OWNER/NAME.open   a recording that grows;  NAME.done  one that waits to become an episode
FOLDER/refused/NAME.done       one that makes no episode, with the reason in NAME.txt
FOLDER/datasets/FORM/          LeRobot datasets, one for each form of robot
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from st4vla.platform.data.lerobot_writer import WRITABLE_VERSIONS
from st4vla.platform.errors import ConfigError
from st4vla.serve.events import Served

MIB = 2**20


@dataclass(frozen=True)
class RecorderConfig:
    """How served sessions are recorded.

    Attributes:
        folder: where recordings lie, see the module's table; replicas on shared storage may share it.
        when: "always": every session whose robot does not ask to be left out; "asked": those whose robot asks for it.
        formats: LeRobot versions to write.
        max_queue_mb: frames that wait in memory for the disk; beyond it recordings are cut, answers never wait.
        max_spool_mb: recordings that wait on disk to become episodes, of all replicas together.
        min_free_mb: what the disk must keep free for others.
        max_episode_mb: decoded frames of one episode; a longer recording goes on in a next part.
        max_sessions: sessions recorded at the same time by one replica.
        idle_s: a session that was silent so long has ended.
        cut_s: so long nothing of a cut session is recorded; then a new episode begins.
        sync_s: at most so much is lost when the machine, not only the process, dies.
    """

    folder: str = "runs/serve/recordings"
    when: Literal["always", "asked"] = "always"
    formats: tuple[str, ...] = ("v3.0",)
    max_queue_mb: int = 256
    max_spool_mb: int = 4096
    min_free_mb: int = 1024
    max_episode_mb: int = 256
    max_sessions: int = 256
    idle_s: float = 60.0
    cut_s: float = 30.0
    sync_s: float = 0.5

    def __post_init__(self) -> None:
        """Check the choices and the ranges."""
        object.__setattr__(self, "formats", tuple(self.formats))
        if self.when not in ("always", "asked"):
            raise ConfigError(f"recorder.when is {self.when!r}; choose always or asked.")
        if not self.formats or set(self.formats) - set(WRITABLE_VERSIONS):
            raise ConfigError(f"recorder.formats is {list(self.formats)}; choose from {', '.join(WRITABLE_VERSIONS)}.")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value <= 0:
                raise ConfigError(f"recorder.{field.name} is {value}; expected more than 0.")

    def wants(self, event: Served) -> bool:
        """Say whether an answered request is to be recorded."""
        return event.recording is True or (self.when == "always" and event.recording is None)

    @property
    def spool(self) -> Path:
        """Give the folder of recordings that are not episodes yet."""
        return Path(self.folder) / "spool"

    @property
    def datasets(self) -> Path:
        """Give the folder of the datasets."""
        return Path(self.folder) / "datasets"

    @property
    def refused(self) -> Path:
        """Give the folder of what makes no episode."""
        return Path(self.folder) / "refused"
