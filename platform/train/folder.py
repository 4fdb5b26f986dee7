"""Remember what a run folder was started with, and refuse to go on with something else."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from st4vla.platform.errors import ConfigError
from st4vla.platform.train.config import SavingConfig

SETTINGS = "settings.yaml"
# Settings that are younger than some run folders, as the runs in those had them.
SINCE = {"packing": False}
LATEST, BEST = "checkpoint", "best"
ROW = "row.json"  # in every checkpoint: the figures of its step


def remember(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Write the settings into a new run folder, or check that they are those it was started with.

    Returns:
        whether the folder was there before, so that the run goes on.

    Raises:
        ConfigError: it was started with other settings, all of which are listed.
    """
    path = folder / SETTINGS
    plain = yaml.safe_load(yaml.safe_dump(dict(settings)))
    if path.exists():
        there = {key: value for key, value in SINCE.items() if key in plain} | (yaml.safe_load(path.read_text()) or {})
        if lines := apart(there, plain):
            listed = "\n  ".join(lines)
            raise ConfigError(
                f"{folder} was started with other settings:\n  {listed}\n"
                "go on with those, or give the new run its own folder with run_dir=..."
            )
        return True
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(yaml.safe_dump(plain, sort_keys=False))
    part.rename(path)
    return False


def apart(there: Any, here: Any, prefix: str = "") -> list[str]:
    """List where two nested mappings differ: "optimiser.clip_norm: 1.0 there, 0.5 here"."""
    if not isinstance(there, dict) or not isinstance(here, dict):
        return [] if there == here else [f"{prefix}: {there} there, {here} here"]
    missing = object()
    lines: list[str] = []
    for key in dict.fromkeys([*there, *here]):
        name, one, other = f"{prefix}.{key}" if prefix else str(key), there.get(key, missing), here.get(key, missing)
        if one is missing or other is missing:
            lines.append(
                f"{name}: {'absent' if one is missing else one} there, {'absent' if other is missing else other} here"
            )
        else:
            lines += apart(one, other, name)
    return lines


def finished(folder: Path) -> Path | None:
    """Give the policy folder of a run that is through, None for any other."""
    link = folder / LATEST
    return link if (link / "policy.yaml").exists() else None


def ranked(checkpoints: Iterable[Path], saving: SavingConfig) -> list[Path]:
    """Sort checkpoints from worst to best by `saving.best`; those without that figure come first."""
    sign = -1.0 if saving.best_is == "lowest" else 1.0

    def worth(checkpoint: Path) -> float:
        path = checkpoint / ROW
        value = json.loads(path.read_text()).get(saving.best) if path.is_file() else None
        return -math.inf if value is None or math.isnan(value) else sign * value

    return sorted(checkpoints, key=lambda checkpoint: (worth(checkpoint), checkpoint.name))


def kept(checkpoints: Sequence[Path], saving: SavingConfig) -> set[Path]:
    """Choose which of the checkpoints, oldest first, stay: the newest `keep`, or the best `keep` and the newest."""
    if not saving.best:
        return set(checkpoints[-saving.keep :])
    return {*ranked(checkpoints, saving)[-saving.keep :], *checkpoints[-1:]}


def publish(folder: Path, policy: Path, name: str = LATEST) -> Path:
    """Point `folder`/`name` at a policy, in one rename; give that link."""
    link, part = folder / name, folder / f".{name}.part"
    part.unlink(missing_ok=True)
    part.symlink_to(policy.resolve().relative_to(folder.resolve()))
    part.rename(link)
    return link
