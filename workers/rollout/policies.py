"""Find the policy that a command names: random, expert, remote, a checkpoint folder or a registered model."""

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from st4vla.platform.contracts import Policy
from st4vla.platform.data.statistics import read_statistics
from st4vla.platform.errors import ConfigError, PolicyError
from st4vla.platform.policy.embodiment import EmbodimentConfig
from st4vla.platform.policy.random_policy import RandomPolicy, RandomPolicyConfig
from st4vla.platform.policy.remote import RemoteConfig, RemotePolicy

if TYPE_CHECKING:
    from st4vla.platform.policy.inference import InferenceConfig  # imports torch, which a driver need not

log = logging.getLogger(__name__)

RANDOM, EXPERT, REMOTE = "random", "expert", "remote"
# Files up to this size are digested whole, larger ones by size and both ends.
WHOLE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from; small and picklable, so that actors load it themselves.

    Attributes:
        name: "random", "expert" (the scripted expert of each world), "remote" (a server) or the path of a checkpoint
            folder.
        random: settings of the random policy.
        remote: the server, for "remote".
        label: what to call a folder that has another name for people, e.g. "models:/policy@champion".
    """

    name: str
    random: RandomPolicyConfig = field(default_factory=RandomPolicyConfig)
    remote: RemoteConfig | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if self.is_remote and self.remote is None:
            raise ConfigError("policy=remote needs a server: add url=ws://HOST:PORT.")
        if not self.is_checkpoint:
            return
        folder = Path(self.name)
        if not (folder / "policy.yaml").is_file():
            seen = "has no policy.yaml" if folder.is_dir() else "does not exist"
            raise ConfigError(
                f"policy={self.name}: that folder {seen}; expected random, expert, or a checkpoint folder, e.g. one "
                "that `st4vla train` wrote; also models:/NAME@ALIAS, or remote with url=."
            )
        object.__setattr__(self, "name", str(folder.resolve()))

    @property
    def is_expert(self) -> bool:
        """Whether the world's own expert acts, which needs the world and no look."""
        return self.name == EXPERT

    @property
    def is_remote(self) -> bool:
        """Whether a server is asked."""
        return self.name == REMOTE

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a folder on disk."""
        return self.name not in (RANDOM, EXPERT, REMOTE)

    @property
    def looks(self) -> bool:
        """Whether it will ask for pictures, as far as one can tell without loading it."""
        return self.is_checkpoint or self.is_remote or (self.name == RANDOM and bool(self.random.cameras))

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras it asks for, as far as one can tell without loading it."""
        if self.remote is not None and self.is_remote:
            return RemotePolicy(self.remote).spec.cameras
        if self.is_checkpoint:
            from st4vla.platform.policy.folder import read_policy_yaml  # imports torch, which a driver need not

            return tuple(read_policy_yaml(Path(self.name)).get("cameras", ()))
        return self.random.cameras if self.name == RANDOM else ()

    @property
    def title(self) -> str:
        """What to call it before people."""
        return f"remote {self.remote.url}" if self.remote is not None and self.is_remote else self.label or self.name

    @property
    def short_name(self) -> str:
        """A word for run names."""
        if self.label:
            return "-".join(part for part in re.split(r"[^A-Za-z0-9_.]+", self.label) if part)
        if not self.is_checkpoint:
            return self.name
        folder = Path(self.name)
        return folder.parent.name if folder.name == "checkpoint" else folder.name

    def check(self) -> None:
        """Find out what can be found out before any actor starts.

        Raises:
            PolicyError: no policy server answers.
        """
        if self.is_remote and self.remote is not None:
            policy = RemotePolicy(self.remote)
            log.info("policy server at %s: %s", self.remote.url, sorted(policy.connect()))
            policy.close()

    def digest(self) -> str:
        """Identify what will act: the checkpoint's content, so that a retrained folder is another policy."""
        if self.is_remote and self.remote is not None:
            return f"remote-{self.remote.digest()}"
        if self.name == RANDOM:
            words = json.dumps(asdict(self.random), sort_keys=True).encode()
            usual = self.random == RandomPolicyConfig()
            return RANDOM if usual else f"random-{hashlib.sha256(words).hexdigest()[:16]}"
        if self.is_expert:
            return self.name
        total = hashlib.sha256()
        for path in sorted(Path(self.name).rglob("*")):
            if path.is_file():
                total.update(f"{path.relative_to(self.name)} {path.stat().st_size} ".encode())
                total.update(_content_digest(path))
        return total.hexdigest()[:16]

    def statistics_keys(self, robots: Iterable[str], chosen: str | None = None) -> dict[str, str]:
        """Say for each robot which of a checkpoint's statistics it acts with; {} leaves it to the policy itself.

        Args:
            robots: names of packaged embodiments (configs/execution); "" for worlds that name none, whose policies act
                with their own key.
            chosen: a key that the user has chosen, for all robots alike.

        Raises:
            PolicyError: the checkpoint has no statistics of a robot.
            ConfigError: the chosen key is none of its statistics'.
        """
        path = Path(self.name) / "statistics.json"
        known = list(read_statistics(path)) if self.is_checkpoint and path.is_file() else []
        if chosen is not None and chosen not in known:
            raise ConfigError(
                f"inference.statistics_key is {chosen!r}; policy={self.title} has statistics of "
                f"{', '.join(known) or 'no embodiment'}."
            )
        if chosen is not None:
            return dict.fromkeys(robots, chosen)
        if not known:
            return {}
        return {robot: EmbodimentConfig.preset(robot).statistics_key(known) for robot in robots if robot}

    def load(self, inference: "InferenceConfig | None" = None, device: str = "cpu", dtype: str = "float32") -> Policy:
        """Load it in this process.

        Args:
            inference: how a checkpoint is run; None as it was saved.
            device: of a checkpoint: "cpu", "cuda", or "auto" for the GPU that this process has, if it has one.
            dtype: of a checkpoint's weights.

        Raises:
            CheckpointError: the folder is incomplete or of another architecture.
            ConfigError: it is the expert, which only a world can give, or there is no GPU.
        """
        if self.name == RANDOM:
            return RandomPolicy(self.random)
        if self.is_expert:
            raise ConfigError("policy=expert acts inside a simulated world and cannot be loaded on its own.")
        if self.is_remote and self.remote is not None:
            return RemotePolicy(self.remote)
        import torch

        from st4vla.platform.checkpoint import AS_SAVED, load_policy, usable_device

        return load_policy(
            self.name, device=usable_device(device), dtype=getattr(torch, dtype), inference=inference or AS_SAVED
        )


def acting_for(policy: Policy, statistics_key: str) -> Policy:
    """Give a loaded policy as it acts with one of its statistics, the weights shared; "" for its own.

    Raises:
        PolicyError: it has no such statistics.
    """
    if not statistics_key:
        return policy
    from st4vla.platform.policy.inference import St4vlaPolicy

    if not isinstance(policy, St4vlaPolicy):
        raise PolicyError(f"A {type(policy).__name__} has no statistics; it cannot act for {statistics_key!r}.")
    return policy.acting_for(statistics_key)


def _content_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        if path.stat().st_size <= WHOLE_BYTES:
            return hashlib.sha256(file.read()).digest()
        digest = hashlib.sha256(file.read(WHOLE_BYTES // 2))
        file.seek(-WHOLE_BYTES // 2, 2)
        digest.update(file.read())
        return digest.digest()
