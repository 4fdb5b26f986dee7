"""Plan the paper's ladder: the commands that train its four arms on the same data with several seeds and evaluate them.

    once       demonstrations and still scenes
    per seed   ungrounded weights -> stage 1 (for the full arm only) -> stage 2 of every arm -> evaluation of every arm

The rungs are those of ST4VLA (arXiv 2602.10109, table 1). Every step is a command anybody can repeat and goes on where
it was stopped, so the whole may be interrupted at any time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError
from st4vla.workers.demo import Step, hydra_value

UNGROUNDED, STAGE_1 = "ungrounded", "stage_1"


@dataclass(frozen=True)
class Arm:
    """One rung: what it is called, what it adds, and the settings of its stage 2."""

    name: str
    title: str
    means: str
    stage_1: bool
    settings: Mapping[str, Any]


class Ladder:
    """The steps of a ladder, from its settings; nothing runs here.

    Raises:
        ConfigError: fewer than two arms, no seeds, or an arm without a name for its folder.
    """

    def __init__(self, settings: Mapping[str, Any], run_id: str | None = None) -> None:
        self.settings = settings
        self.run = Path(settings["run_dir"])
        self.arms = [Arm(name, **arm) for name, arm in settings["arms"].items()]
        self.seeds = list(settings["seeds"])
        if len(self.arms) < 2 or not self.seeds:
            raise ConfigError(
                f"the ladder has {len(self.arms)} arms and {len(self.seeds)} seeds; it compares at least two arms "
                "over at least one seed."
            )
        self.common = {"engine": settings["engine_group"], "tracking": settings["tracking_group"]}
        if run_id:
            self.common["parent_run"] = run_id

    def folder(self, seed: int, name: str) -> Path:
        """Give the folder of one training run of a seed."""
        return self.run / f"seed_{seed}" / name

    def data_steps(self) -> list[Step]:
        """Collect demonstrations and render still scenes, once for all arms."""
        one = self.settings
        collect = {"out": self.run / "dataset", "tasks": one["tasks"], "episodes": one["demonstrations"]}
        stills = {"out": self.run / "stills", "tasks": one["tasks"], "scenes": one["stills"], "cameras": ["third_person"]}
        return [
            self._step("collect demonstrations", "collect", collect | self.common),
            self._step("render still scenes", "stills", stills),
        ]

    def seed_steps(self, seed: int) -> Iterator[Step]:
        """Give one seed's steps in order; the ungrounded weights must be there."""
        if any(arm.stage_1 for arm in self.arms):
            yield self._stage_1(seed)
        for arm in self.arms:
            yield self._stage_2(seed, arm)
            yield self._evaluation(seed, arm)

    def training(self, seed: int) -> dict[str, Any]:
        """Give the settings that all training of a seed shares."""
        one = self.settings
        policy = {f"policy.{key}": value for key, value in one["policy_settings"].items()}
        return {
            "policy": one["preset"],
            "data": [{"path": str(self.run / "dataset"), "options": one["data_options"]}],
            "grounding_data": [{"path": str(self.run / "stills"), "kind": "stills"}, str(self.run / "dataset")],
            "seed": seed,
            "workers": one["workers"],
            "questions.weights": one["with_target"],
        } | (policy | self.common)

    def _stage_1(self, seed: int) -> Step:
        settings = (
            self.training(seed)
            | self.settings["stage_1"]
            | {
                "stage": "grounding",
                "parent": self.folder(seed, UNGROUNDED),
                "run_dir": self.folder(seed, STAGE_1),
            }
        )
        return self._step(f"seed {seed}, stage 1: ground the planner", "train", settings)

    def _stage_2(self, seed: int, arm: Arm) -> Step:
        parent = self.folder(seed, STAGE_1) / "checkpoint" if arm.stage_1 else self.folder(seed, UNGROUNDED)
        similarity = {f"similarity.{key}": value for key, value in self.settings["similarity"].items()}
        settings = (
            self.training(seed)
            | self.settings["stage_2"]
            | {
                "stage": "action",
                "parent": parent,
                "run_dir": self.folder(seed, arm.name),
            }
        )
        return self._step(f"seed {seed}, {arm.title}: stage 2", "train", settings | similarity | dict(arm.settings))

    def _evaluation(self, seed: int, arm: Arm) -> Step:
        one = self.settings
        settings = {
            "policy_from": self.folder(seed, arm.name) / "checkpoint",
            "suite": "seen",
            "tasks": one["tasks"],
            "episodes": one["episodes"],
            "execute": one["execute"],
            "run_dir": self.folder(seed, "eval"),
            "name": arm.name,
            "films": 1,
        }
        return self._step(f"seed {seed}, {arm.title}: closed loop", "eval", settings | self.common)

    def _step(self, title: str, command: str, settings: Mapping[str, Any]) -> Step:
        return Step(title, (command, *(f"{key}={hydra_value(value)}" for key, value in settings.items())))


def make_ungrounded(ladder: Ladder, seed: int) -> Path:
    """Write the seed's random weights and the tokenizer that all its arms share, once; give the folder.

    One checkpoint for all, since a tokenizer made from an arm's own data would give each other words.
    """
    folder = ladder.folder(seed, UNGROUNDED)
    if (folder / "policy.yaml").is_file():
        return folder
    from omegaconf import OmegaConf

    from st4vla.platform.checkpoint import Lineage, save_checkpoint
    from st4vla.platform.cli import compose_command
    from st4vla.platform.train.job import open_sources
    from st4vla.platform.train.stage import build_policy
    from st4vla.workers.training.command import read_job

    words = {key: value for key, value in ladder.training(seed).items() if key != "parent_run"}
    cfg = compose_command("train", ["stage=action", *(f"{key}={hydra_value(value)}" for key, value in words.items())])
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    job = read_job(settings)
    sources = open_sources(job)
    model, processor = build_policy(job, sources)
    save_checkpoint(folder, model, processor, Lineage(data=sources.digests, notes={"ungrounded": True, "seed": seed}))
    return folder
