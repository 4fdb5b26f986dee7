"""Render stills for grounding in parallel: one Ray task a block, and only the blocks that are missing."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st4vla.platform.data.stills import Stills, block_folder, write_block
from st4vla.platform.errors import ConfigError, WorkerLost

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StillsConfig:
    """What to photograph.

    Attributes:
        out: folder of the blocks.
        scenes: how many scenes; each gives one picture by each camera.
        tasks: whose scenes, in turn.
        first: index of the first training scene.
        block: scenes of one block, the unit of work and of what a kill can cost.
        image_size: pixels.
        cameras: who looks.
    """

    out: str
    scenes: int
    tasks: tuple[str, ...]
    first: int
    block: int
    image_size: int
    cameras: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.scenes < 1 or self.block < 1:
            raise ConfigError(f"scenes is {self.scenes} and block is {self.block}; both must be 1 or more.")
        if not self.tasks or not self.cameras:
            raise ConfigError("tasks or cameras is empty; name at least one of each.")

    def indices(self, block: int) -> range:
        """Give the scene indices of one block."""
        end = min((block + 1) * self.block, self.scenes)
        return range(self.first + block * self.block, self.first + end)

    def missing(self) -> list[int]:
        """List the blocks that are not there yet."""
        blocks = range(-(-self.scenes // self.block))
        return [block for block in blocks if not block_folder(Path(self.out), block).exists()]


def render_block(config: StillsConfig, block: int) -> int:
    """Photograph one block's scenes and write them; give how many pictures."""
    from st4vla.envs.stage import Stage
    from st4vla.envs.still import photograph
    from st4vla.envs.suites import training_seed

    stage = Stage(config.image_size)
    try:
        stills = [
            still
            for index in config.indices(block)
            for still in photograph(
                stage, config.tasks[index % len(config.tasks)], training_seed(index), config.cameras
            )
        ]
    finally:
        stage.close()
    write_block(Path(config.out), block, stills)
    return len(stills)


def render_missing(config: StillsConfig, blocks: Sequence[int]) -> Iterator[int]:
    """Run one task a block and give each block's number of pictures as it is done.

    A task that dies (its process was killed, or the driver crashed) is run again at most three times.

    Raises:
        WorkerLost: a block failed more often than that.
    """
    import ray
    from ray import exceptions

    task = ray.remote(num_cpus=1, max_retries=3)(render_block)
    waiting = [task.remote(config, block) for block in blocks]
    while waiting:
        done, waiting = ray.wait(waiting)
        try:
            yield ray.get(done[0])
        except exceptions.WorkerCrashedError as error:
            raise WorkerLost(f"a block of stills failed four times: {error}; see `st4vla doctor`.") from error


def main(cfg: Any) -> int:
    """Run `st4vla stills`."""
    from omegaconf import OmegaConf
    from rich.console import Console
    from rich.progress import Progress

    from st4vla.workers.cluster import EngineConfig, connect

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    names = ("out", "scenes", "first", "block", "image_size")
    config = StillsConfig(
        **{name: settings[name] for name in names}, tasks=tuple(settings["tasks"]), cameras=tuple(settings["cameras"])
    )
    blocks = config.missing()
    if blocks:
        with connect(EngineConfig(**settings["engine"])), Progress(console=Console(stderr=True)) as bar:
            shown = bar.add_task("rendering blocks of scenes", total=len(blocks))
            for _ in render_missing(config, blocks):
                bar.advance(shown)
    Console().print(f"{len(Stills(Path(config.out)))} pictures in {config.out}")
    return 0
