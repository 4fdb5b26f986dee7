"""Draw a dataset for people: one contact sheet per episode and a page that lists them."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from st4vla.platform.data.disk import refused_by_disk, write_file
from st4vla.platform.data.draw import contact_sheet, draw_frame
from st4vla.platform.data.lerobot_config import DatasetConfig
from st4vla.platform.data.lerobot_reader import LeRobotDataset, open_dataset
from st4vla.platform.data.parts import Group, named_parts
from st4vla.platform.data.remote import DOWNLOADS
from st4vla.platform.errors import ConfigError

# A drawn frame is this wide at least; smaller frames are enlarged a whole number of times.
MIN_WIDTH_PX = 320


@dataclass(frozen=True)
class ShowConfig:
    """What is drawn.

    Attributes:
        dataset: folder or address of the dataset.
        out: folder the pictures go to.
        episodes: how many episodes, spread evenly over the dataset; 0 for all.
        frames: frames of each episode, spread evenly over it.
        cameras: cameras to draw; () for all.
        downloads: folder that a dataset with an address is fetched to.
    """

    dataset: str
    out: str = "runs/show"
    episodes: int = 12
    frames: int = 6
    cameras: tuple[str, ...] = ()
    downloads: str = DOWNLOADS

    def __post_init__(self) -> None:
        """Check the counts and that a dataset is named."""
        object.__setattr__(self, "cameras", tuple(self.cameras))
        if not self.dataset:
            raise ConfigError("no dataset is named; write: st4vla show FOLDER")
        if self.episodes < 0 or self.frames < 1:
            raise ConfigError(f"episodes={self.episodes}, frames={self.frames}; expected 0 or more, and 1 or more.")


def main(cfg: Mapping[str, Any]) -> None:
    """Run `st4vla show`: draw the dataset and print what it holds."""
    given: dict[str, Any] = {
        name: cfg[name] for name in ("out", "episodes", "frames", "cameras", "downloads") if cfg.get(name) is not None
    }
    config = ShowConfig(dataset=cfg["dataset"] or "", **given)
    dataset = open_dataset(DatasetConfig(config.dataset, cameras=config.cameras, downloads=config.downloads))
    page = show(dataset, config)
    Console().print(summary_table(dataset))
    Console().print(f"{page}", soft_wrap=True)


def show(dataset: LeRobotDataset, config: ShowConfig) -> Path:
    """Draw the chosen episodes into `config.out` and return the page that lists them.

    Raises:
        DataError: a video cannot be read, or the pictures cannot be written.
    """
    out = Path(config.out)
    chosen = _spread(dataset.num_episodes, config.episodes or dataset.num_episodes)
    sheets = []
    for index in chosen:
        path = out / f"episode_{index:06d}.png"
        _save(episode_sheet(dataset, index, config.frames), path)
        sheets.append((path.name, _title(dataset, index)))
    write_file(out / "index.html", _page(dataset, sheets).encode())
    return out / "index.html"


def episode_sheet(dataset: LeRobotDataset, index: int, num_frames: int) -> Image.Image:
    """Draw frames spread over one episode, one row per camera."""
    entry = dataset.meta.episodes[index]
    rows = []
    for camera in dataset.cameras:
        pictures = []
        for place in _spread(entry.length, num_frames):
            note = dataset.annotation(entry.first_frame + place, camera)
            image = dataset.image(entry.first_frame + place, camera)
            words = f"step {place}" + (f": {note.subgoal}" if note is not None and note.subgoal else "")
            pictures.append((words, draw_frame(image, note, max(1, -(-MIN_WIDTH_PX // image.shape[1])))))
        rows.append((camera, pictures))
    return contact_sheet(_title(dataset, index), rows, _facts(dataset, index))


def summary_table(dataset: LeRobotDataset) -> Table:
    """Give the table that the command prints: what the dataset holds."""
    table = Table("what", "value", title=str(dataset.folder))
    seconds = dataset.num_frames / dataset.fps
    table.add_row("format", f"LeRobot {dataset.meta.version}, robot {dataset.statistics_key}")
    table.add_row("episodes", f"{dataset.num_episodes}")
    table.add_row("frames", f"{dataset.num_frames} at {dataset.fps} per second ({seconds / 60:.1f} minutes)")
    table.add_row("cameras", ", ".join(dataset.cameras) or "none")
    table.add_row("instructions", f"{len(dataset.meta.tasks)} different")
    tasks = sorted({entry.task for entry in dataset.meta.episodes if entry.task})
    table.add_row("tasks", ", ".join(f"{name} {_count(dataset, name)}" for name in tasks) or "not named")
    for group in ("action", "state"):
        table.add_row(f"{group} parts", _parts(dataset, group))
    table.add_row("annotated frames", f"{_annotated(dataset)}")
    table.add_row("digest", dataset.digest[:16])
    return table


def _title(dataset: LeRobotDataset, index: int) -> str:
    return f"episode {index}: {dataset.meta.episodes[index].instruction}"


def _facts(dataset: LeRobotDataset, index: int) -> str:
    entry = dataset.meta.episodes[index]
    named = f"task {entry.task}, seed {entry.seed}, spec {entry.spec_id}; " if entry.task else ""
    return f"{named}{entry.length} steps at {dataset.fps} per second"


def _spread(count: int, wanted: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)).tolist() if count else []


def _parts(dataset: LeRobotDataset, group: Group) -> str:
    parts = named_parts(dataset.meta, group).values()
    return "\n".join(f"{one.name}: {one.key}[{one.start}:{one.end}] {one.unit}".rstrip() for one in parts) or "none"


def _count(dataset: LeRobotDataset, task: str) -> int:
    return sum(entry.task == task for entry in dataset.meta.episodes)


def _annotated(dataset: LeRobotDataset) -> int:
    return sum(len(dataset.annotation_table(entry)) for entry in dataset.meta.episodes)


def _save(picture: Image.Image, path: Path) -> None:
    with refused_by_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def _page(dataset: LeRobotDataset, sheets: Sequence[tuple[str, str]]) -> str:
    rows = "".join(
        f'<h2>{html.escape(title)}</h2><a href="{name}"><img src="{name}" alt="{html.escape(title)}"></a>'
        for name, title in sheets
    )
    head = f"{dataset.num_episodes} episodes, {dataset.num_frames} frames, {dataset.fps} per second"
    style = "body{background:#18181c;color:#eee;font:15px sans-serif;margin:2em}img{max-width:100%}h2{font-size:1em}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(dataset.folder.name)}</title>'
        f"<style>{style}</style><h1>{html.escape(str(dataset.folder))}</h1><p>{head}</p>{rows}</html>\n"
    )
